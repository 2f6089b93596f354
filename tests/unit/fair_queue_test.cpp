#include "runtime/fair_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <vector>

#include "base/error.h"

namespace shoal {
namespace {

TEST(FairQueue, OneUserIsServedInOrder) {
  FairQueue queue;
  EXPECT_FALSE(queue.front());
  EXPECT_THROW(queue.pop(), Error);
  for (const std::uint64_t id : {3, 4, 5}) queue.push("", "", id);
  EXPECT_THROW(queue.push("", "another", 4), Error);
  queue.leave(4);
  EXPECT_THROW(queue.leave(4), Error);
  EXPECT_EQ(queue.front(), 3u);
  queue.pop();
  EXPECT_THROW(queue.push("", "", 3), Error) << "it is served";
  EXPECT_EQ(queue.front(), 5u);
  EXPECT_EQ(queue.waiting(), 1);
  queue.leave(3);
  EXPECT_THROW(queue.leave(3), Error);
  queue.leave(5);
  EXPECT_FALSE(queue.front());
}

TEST(FairQueue, CountsThoseOfAClientWhoWait) {
  FairQueue queue;
  queue.push("a", "", 1);
  queue.push("a", "x", 2);
  queue.push("b", "x", 3);
  EXPECT_EQ(queue.waiting(), 3);
  EXPECT_EQ(queue.waiting_of("a"), 2);
  EXPECT_EQ(queue.waiting_of("x"), 0);
  queue.pop();
  EXPECT_EQ(queue.waiting_of("a"), 1);
  queue.leave(3);
  EXPECT_EQ(queue.waiting_of("b"), 0);
  queue.clear();
  EXPECT_EQ(queue.waiting(), 0);
  queue.push("a", "", 1);
  EXPECT_EQ(queue.front(), 1u);
}

TEST(FairQueue, WhoGotLeastIsNextAndIdlingSavesNothing) {
  for (const bool clients : {true, false}) {  // the same holds of clients, and of one client's users
    FairQueue queue;
    const auto push = [&](const char* who, std::uint64_t id) {
      clients ? queue.push(who, "", id) : queue.push("", who, id);
    };
    const auto served = [&](std::uint64_t id) { return clients ? queue.served(id).first : queue.served(id).second; };
    push("a", 1);
    push("a", 2);
    queue.pop();
    queue.charge(1, 1000);
    push("b", 3);
    EXPECT_EQ(queue.front(), 2u) << "b starts where a is; the one that came first goes first";
    queue.charge(1, 10);
    EXPECT_EQ(queue.front(), 3u);
    queue.pop();
    queue.charge(3, 20);
    EXPECT_EQ(queue.front(), 2u);
    EXPECT_EQ(served(3) - served(2), 10);
  }
}

TEST(FairQueue, LeavingAndComingBackDoesNotForgive) {
  FairQueue queue;
  queue.push("greedy", "", 1);
  queue.push("modest", "", 2);
  queue.pop();
  queue.charge(1, 100);  // half of it was modest's share
  queue.leave(1);
  queue.push("greedy", "", 3);
  EXPECT_EQ(queue.front(), 2u);
  EXPECT_GT(queue.served(3), queue.served(2));
  queue.push("greedy", "of another name", 4);
  queue.leave(3);
  EXPECT_EQ(queue.front(), 2u);
}

/// Clients that always have two requests, each of up to so many tokens, from the users that `user` names.
class BusyQueue {
 public:
  BusyQueue(std::map<std::string, int> size, std::function<std::string(const std::string& client, std::uint64_t)> user)
      : size_(std::move(size)), user_(std::move(user)) {
    for (int i = 0; i < 2; ++i) {
      for (const auto& [client, most] : size_) push(client);
    }
  }

  void serve_one() {
    const std::uint64_t id = *queue_.front();
    const std::string client = client_of_.at(id);
    queue_.pop();
    const int tokens = 1 + static_cast<int>(random_() % static_cast<unsigned>(size_.at(client)));
    queue_.charge(id, tokens);
    of_clients[client] += tokens;
    push(client);
    queue_.leave(id);
  }

  std::map<std::string, int> of_clients;

 private:
  void push(const std::string& client) {
    ++last_;
    queue_.push(client, user_(client, last_), last_);
    client_of_[last_] = client;
  }

  std::map<std::string, int> size_;
  std::function<std::string(const std::string&, std::uint64_t)> user_;
  FairQueue queue_;
  std::map<std::uint64_t, std::string> client_of_;
  std::uint64_t last_ = 0;
  std::mt19937 random_{1};
};

int spread(const std::map<std::string, int>& got) {
  const auto less = [](const auto& a, const auto& b) { return a.second < b.second; };
  const auto [least, most] = std::minmax_element(got.begin(), got.end(), less);
  return most->second - least->second;
}

/// Whatever the sizes of requests, clients that always have some get the same service, one request more or less.
TEST(FairQueue, ServiceDiffersByOneRequestAtMost) {
  BusyQueue queue({{"a", 1}, {"b", 7}, {"c", 50}}, [](const std::string&, std::uint64_t) { return ""; });
  for (int i = 0; i < 20000; ++i) {
    queue.serve_one();
    if (i < 10) continue;
    ASSERT_LE(spread(queue.of_clients), 51);
  }
}

/// A client that calls itself by another user's name in every request gets what one with a single user gets.
TEST(FairQueue, RotatingUsersGetsAClientNothing) {
  BusyQueue queue({{"honest", 20}, {"rotating", 20}}, [](const std::string& client, std::uint64_t id) {
    return client == "honest" ? "one" : std::to_string(id);
  });
  for (int i = 0; i < 5000; ++i) {
    queue.serve_one();
    if (i < 10) continue;
    ASSERT_LE(spread(queue.of_clients), 21);
  }
}

}  // namespace
}  // namespace shoal
