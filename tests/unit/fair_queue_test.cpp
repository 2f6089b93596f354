#include "runtime/fair_queue.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

#include "base/error.h"

namespace shoal {
namespace {

TEST(FairQueue, OneClientIsServedInOrder) {
  FairQueue queue;
  EXPECT_FALSE(queue.front());
  EXPECT_THROW(queue.pop(), Error);
  for (const std::uint64_t id : {3, 4, 5}) queue.push("", id);
  queue.remove("", 4);
  EXPECT_THROW(queue.remove("", 4), Error);
  EXPECT_THROW(queue.remove("nobody", 3), Error);
  EXPECT_THROW(queue.leave(""), Error);
  EXPECT_EQ(queue.front(), 3u);
  queue.pop();
  EXPECT_EQ(queue.front(), 5u);
  EXPECT_EQ(queue.waiting(), 1);
  queue.leave("");
  EXPECT_THROW(queue.leave(""), Error);
}

TEST(FairQueue, WhoGotLeastIsNextAndIdlingSavesNothing) {
  FairQueue queue;
  queue.push("a", 1);
  queue.push("a", 2);
  queue.pop();
  queue.charge("a", 1000);
  queue.push("b", 3);
  EXPECT_EQ(queue.front(), 2u) << "b starts where a is; the one that came first goes first";
  queue.charge("a", 10);
  EXPECT_EQ(queue.front(), 3u);
  queue.pop();
  queue.charge("b", 20);
  EXPECT_EQ(queue.front(), 2u);
  EXPECT_EQ(queue.served("b") - queue.served("a"), 10);
}

TEST(FairQueue, LeavingAndComingBackDoesNotForgive) {
  FairQueue queue;
  queue.push("greedy", 1);
  queue.push("modest", 2);
  queue.pop();
  queue.charge("greedy", 100);  // half of it was modest's share
  queue.leave("greedy");
  queue.push("greedy", 3);
  EXPECT_EQ(queue.front(), 2u);
  EXPECT_GT(queue.served("greedy"), queue.served("modest"));
}

/// Whatever the sizes of requests, clients that always have some get the same service, one request more or less.
TEST(FairQueue, ServiceDiffersByOneRequestAtMost) {
  std::mt19937 random(1);
  FairQueue queue;
  std::map<std::string, int> served;
  std::map<std::uint64_t, std::string> client_of;
  std::uint64_t last = 0;
  const auto push = [&](const std::string& client) {
    queue.push(client, ++last);
    client_of[last] = client;
  };
  const std::map<std::string, int> size{{"a", 1}, {"b", 7}, {"c", 50}};
  for (const auto& [client, most] : size) push(client);
  for (int i = 0; i < 20000; ++i) {
    const std::string client = client_of.at(*queue.front());
    queue.pop();
    push(client);
    const int tokens = 1 + static_cast<int>(random() % static_cast<unsigned>(size.at(client)));
    queue.charge(client, tokens);
    served[client] += tokens;
    queue.leave(client);
    if (i < 10) continue;
    for (const auto& [other, got] : served) ASSERT_LE(std::abs(got - served[client]), 51) << other << " and " << client;
  }
}

}  // namespace
}  // namespace shoal
