#include "runtime/fair_queue.h"

#include <algorithm>

#include "base/error.h"

namespace shoal {

void FairQueue::push(const std::string& client, std::uint64_t request) {
  const auto [at, is_new] = clients_.try_emplace(client);
  Client& joined = at->second;
  if (joined.requests++ == 0) {
    ++active_;
    joined.served = std::max(joined.served, virtual_time_);
  }
  joined.waiting.push_back(request);
  ++waiting_;
}

FairQueue::Clients::const_iterator FairQueue::next() const {
  auto best = clients_.end();
  for (auto at = clients_.begin(); at != clients_.end(); ++at) {
    if (at->second.waiting.empty()) continue;
    const auto turn = [](const Client& client) { return std::pair(client.served, client.waiting.front()); };
    if (best == clients_.end() || turn(at->second) < turn(best->second)) best = at;
  }
  return best;
}

std::optional<std::uint64_t> FairQueue::front() const {
  if (waiting_ == 0) return std::nullopt;
  return next()->second.waiting.front();
}

void FairQueue::pop() {
  if (waiting_ == 0) fail("nobody waits");
  clients_.at(next()->first).waiting.pop_front();
  --waiting_;
}

void FairQueue::remove(const std::string& client, std::uint64_t request) {
  const auto at = clients_.find(client);
  if (at == clients_.end() || std::erase(at->second.waiting, request) == 0) fail("request {} does not wait", request);
  --waiting_;
  end_request(at);
}

void FairQueue::leave(const std::string& client) {
  const auto at = clients_.find(client);
  if (at == clients_.end() || at->second.requests == static_cast<int>(at->second.waiting.size())) {
    fail("a client without a running request cannot end one");
  }
  end_request(at);
}

void FairQueue::end_request(Clients::iterator client) {
  if (--client->second.requests > 0) return;
  --active_;
  // Who is idle and owes nothing is forgotten, so that names do not pile up.
  std::erase_if(clients_, [this](const auto& entry) {
    return entry.second.requests == 0 && (active_ == 0 || entry.second.served <= virtual_time_);
  });
}

void FairQueue::charge(const std::string& client, int tokens) {
  clients_.at(client).served += tokens;
  virtual_time_ += static_cast<double>(tokens) / active_;
}

int FairQueue::waiting_of(std::string_view beginning) const {
  std::size_t n = 0;
  for (const auto& [name, client] : clients_)
    if (name.starts_with(beginning)) n += client.waiting.size();
  return static_cast<int>(n);
}

void FairQueue::clear() { *this = {}; }

}  // namespace shoal
