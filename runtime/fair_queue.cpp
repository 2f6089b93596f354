#include "runtime/fair_queue.h"

#include <algorithm>

#include "base/error.h"

namespace shoal {

FairQueue::Member& FairQueue::Member::member(const std::string& its_name) {
  std::unique_ptr<Member>& found = members[its_name];
  if (!found) {
    found = std::make_unique<Member>();
    found->group = this;
    found->name = its_name;
  }
  return *found;
}

/// Who is idle and owes nothing is forgotten, so that names do not pile up.
void FairQueue::Member::forget_idle() {
  while (!idle.empty() && (active == 0 || idle.begin()->first <= virtual_time)) {
    const auto least = idle.extract(idle.begin());
    members.erase(members.find(least.value().second->name));
  }
}

/// Before anything of a member changes that its turn, or that of its group, depends on. put_back() follows.
void FairQueue::take_out(Member& member) {
  if (!member.group) return;
  take_out(*member.group);  // first, while its turn is what it was when it got its place
  if (member.waiting > 0) member.group->turns.erase(member.turn());
}

void FairQueue::put_back(Member& member) {
  for (Member* at = &member; at->group; at = at->group) {
    if (at->waiting > 0) at->group->turns.insert(at->turn());
  }
}

void FairQueue::push(const std::string& client, const std::string& user, std::uint64_t request) {
  const auto [at, is_new] = users_.try_emplace(request);
  if (!is_new) fail("request {} is already known", request);
  Member& joined = *(at->second = &all_.member(client).member(user));
  take_out(joined);
  joined.turns.emplace(0, request);
  for (Member* member = &joined; member; member = member->group) {
    ++member->waiting;
    if (member->requests++ > 0 || !member->group) continue;
    Member& group = *member->group;
    ++group.active;
    group.idle.erase({member->served, member});
    member->served = std::max(member->served, group.virtual_time);
  }
  put_back(joined);
}

std::optional<std::uint64_t> FairQueue::front() const {
  if (all_.waiting == 0) return std::nullopt;
  return all_.turn().second;
}

void FairQueue::pop() {
  if (all_.waiting == 0) fail("nobody waits");
  Member& user = *users_.at(all_.turn().second);
  take_out(user);
  user.turns.erase(user.turns.begin());
  for (Member* member = &user; member; member = member->group) --member->waiting;
  put_back(user);
}

void FairQueue::leave(std::uint64_t request) {
  const auto known = users_.extract(request);
  if (!known) fail("request {} is not known", request);
  Member& user = *known.mapped();
  take_out(user);
  const bool waited = user.turns.erase({0, request}) > 0;
  for (Member* member = &user; member; member = member->group) {
    --member->requests;
    member->waiting -= waited;
  }
  put_back(user);

  for (Member* member = &user; member->group && member->requests == 0;) {
    Member& group = *member->group;
    --group.active;
    group.idle.emplace(member->served, member);
    group.forget_idle();
    member = &group;
  }
}

void FairQueue::charge(std::uint64_t request, int tokens) {
  Member& user = *users_.at(request);
  take_out(user);
  for (Member* member = &user; member->group; member = member->group) {
    member->served += tokens;
    member->group->virtual_time += static_cast<double>(tokens) / member->group->active;
  }
  put_back(user);
}

std::pair<double, double> FairQueue::served(std::uint64_t request) const {
  const Member& user = *users_.at(request);
  return {user.group->served, user.served};
}

int FairQueue::waiting_of(const std::string& client) const {
  const auto found = all_.members.find(client);
  return found == all_.members.end() ? 0 : found->second->waiting;
}

void FairQueue::clear() {
  users_.clear();
  all_ = {};
}

}  // namespace shoal
