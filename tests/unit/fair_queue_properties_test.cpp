#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "runtime/fair_queue.h"

// The queue beside one that keeps everything and looks through all of it, on uses that RapidCheck makes up and, where
// one fails, makes smaller.
namespace shoal {
namespace {

/// Somebody among others, who never is forgotten: debts end when nobody has requests, and are made up for otherwise.
struct ModelShare {
  double served = 0;
  int requests = 0;
};

template <class Member>
struct ModelGroup {
  std::map<std::string, Member> members;
  double virtual_time = 0;

  int active() const {
    return static_cast<int>(std::ranges::count_if(members, [](const auto& m) { return m.second.requests > 0; }));
  }
  Member& join(const std::string& name) {
    Member& member = members[name];
    if (active() == 0) {
      for (auto& [other, idle] : members) idle.served = virtual_time;
    }
    if (member.requests++ == 0) member.served = std::max(member.served, virtual_time);
    return member;
  }
  Member& charge(const std::string& name, int tokens) {
    Member& member = members.at(name);
    member.served += tokens;
    virtual_time += static_cast<double>(tokens) / active();
    return member;
  }
};

struct ModelClient : ModelShare, ModelGroup<ModelShare> {};

struct ModelRequest {
  std::string client, user;
  std::uint64_t id;
  bool waits = true;
};

struct ModelQueue {
  ModelGroup<ModelClient> clients;
  std::vector<ModelRequest> requests;

  void push(const ModelRequest& request) {
    clients.join(request.client).join(request.user);
    requests.push_back(request);
  }
  /// Of a client: the user who got least, the request that came first.
  const ModelRequest* front_of(const std::string& name, const ModelClient& client) const {
    const ModelRequest* best = nullptr;
    const auto turn = [&](const ModelRequest* r) { return std::pair(client.members.at(r->user).served, r->id); };
    for (const ModelRequest& r : requests) {
      if (r.waits && r.client == name && (!best || turn(&r) < turn(best))) best = &r;
    }
    return best;
  }
  const ModelRequest* front() const {
    const ModelRequest* best = nullptr;
    const auto turn = [&](const ModelRequest* r) { return std::pair(clients.members.at(r->client).served, r->id); };
    for (const auto& [name, client] : clients.members) {
      const ModelRequest* its = front_of(name, client);
      if (its && (!best || turn(its) < turn(best))) best = its;
    }
    return best;
  }
  void leave(std::size_t i) {
    ModelClient& client = clients.members.at(requests[i].client);
    --client.members.at(requests[i].user).requests;
    --client.requests;
    requests.erase(requests.begin() + static_cast<std::ptrdiff_t>(i));
  }
  int waiting_of(const std::string& client) const {
    return static_cast<int>(
        std::ranges::count_if(requests, [&](const ModelRequest& r) { return r.waits && r.client == client; }));
  }
};

void assert_alike(const FairQueue& queue, const ModelQueue& model) {
  const ModelRequest* next = model.front();
  RC_ASSERT(queue.front().has_value() == (next != nullptr));
  if (next) RC_ASSERT(*queue.front() == next->id);
  int waiting = 0;
  for (const char* client : {"a", "b", "c"}) {
    const int its = model.waiting_of(client);
    RC_ASSERT(queue.waiting_of(client) == its);
    waiting += its;
  }
  RC_ASSERT(queue.waiting() == waiting);
  std::map<std::string, const ModelRequest*> first;  // of each client
  for (const ModelRequest& r : model.requests) {
    const ModelClient& client = model.clients.members.at(r.client);
    const auto [its_client, its_user] = queue.served(r.id);
    RC_ASSERT(its_client == client.served);
    // Where the users of a client begin that was forgotten is the queue's affair.
    const ModelRequest& other = *first.emplace(r.client, &r).first->second;
    RC_ASSERT(its_user - queue.served(other.id).second ==
              client.members.at(r.user).served - client.members.at(other.user).served);
  }
}

TEST(FairQueueProperties, IsWhatLookingThroughEverybodyFinds) {
  EXPECT_TRUE(rc::check([] {
    FairQueue queue;
    ModelQueue model;
    std::uint64_t last = 0;
    const int uses = *rc::gen::inRange(0, 200);
    for (int i = 0; i < uses; ++i) {
      const int what = *rc::gen::inRange(0, 9);  // as many leave as come, so that all have left now and then
      if (what < 3) {
        const ModelRequest request{*rc::gen::element<std::string>("a", "b", "c"),
                                   *rc::gen::element<std::string>("", "x", "y", "z"), ++last};
        queue.push(request.client, request.user, request.id);
        model.push(request);
      } else if (what == 3 && model.front()) {
        for (ModelRequest& r : model.requests) {
          if (r.id == *queue.front()) r.waits = false;
        }
        queue.pop();
      } else if (!model.requests.empty()) {
        const std::size_t at = *rc::gen::inRange<std::size_t>(0, model.requests.size());
        const ModelRequest request = model.requests[at];
        if (what < 6) {
          const int tokens = 12 * *rc::gen::inRange(0, 5);  // its parts are whole numbers, so that sums are exact
          queue.charge(request.id, tokens);
          model.clients.charge(request.client, tokens).charge(request.user, tokens);
        } else {
          queue.leave(request.id);
          model.leave(at);
        }
      }
      assert_alike(queue, model);
    }
  }));
}

}  // namespace
}  // namespace shoal
