#include "tests/unit/expert_exchange_suite.h"

#include "base/error.h"

namespace shoal {
namespace {

class ExpertExchangeTest : public testing::TestWithParam<int> {};

TEST_P(ExpertExchangeTest, EveryContributionArrivesOnce) { run_in_process(GetParam(), test::check_expert_exchanges); }

/// {ranks of a host, hosts}.
class ByHosts : public testing::TestWithParam<std::pair<int, int>> {};

TEST_P(ByHosts, EveryContributionArrivesOnce) {
  const auto [of_host, hosts] = GetParam();
  run_in_process(of_host * hosts, test::check_expert_exchanges, of_host);
}

/// Where answers go by expert, they are the same to the bit as by one hop.
TEST_P(ByHosts, AnswersByExpertAreThoseOfOneHop) {
  const auto [of_host, hosts] = GetParam();
  const test::ExchangeCase c{.bf16_wire = true, .rank_of = {0, 5, 1, 3, 2, 4, 7, 6, 3, 0, 2, 1, 5, 6, 4, 7}};
  run_in_process(
      of_host * hosts,
      [&](Communicator& comm) {
        const test::Tokens t = test::make_tokens(c, comm.rank(), 7);
        std::vector<float> by_hops[2];
        for (const int per_host : {1, 0}) {
          ExpertMap map = test::make_map(c, comm.size());
          ExpertExchange exchange(comm, c.hidden, true, Answers::by_expert, per_host);
          exchange.dispatch(t.x.data(), t.stride, t.count, t.expert.data(), t.weight.data(), c.top_k, map);
          test::work(c, map, comm.rank(), exchange.dispatched());
          exchange.combine();
          by_hops[per_host].resize(static_cast<std::size_t>(t.count * c.hidden));
          exchange.combined(by_hops[per_host].data(), c.hidden);
        }
        EXPECT_EQ(by_hops[0], by_hops[1]);
      },
      of_host);
}

INSTANTIATE_TEST_SUITE_P(Hosts, ByHosts,
                         testing::Values(std::pair(2, 2), std::pair(3, 2), std::pair(2, 4), std::pair(4, 2)),
                         [](const auto& of) {
                           return std::to_string(of.param.second) + "x" + std::to_string(of.param.first);
                         });

INSTANTIATE_TEST_SUITE_P(Ranks, ExpertExchangeTest, testing::Values(1, 2, 3, 5, 8), testing::PrintToStringParamName());

/// The answer does not depend on which rank a token lives on: what stays on its rank is rounded as what travels.
TEST(ExpertExchange, Bf16ResultIsTheSameFromEveryRank) {
  std::vector<std::vector<float>> out(3, std::vector<float>(50));
  run_in_process(3, [&](Communicator& comm) {
    ExpertExchange exchange(comm, 50, true);
    ExpertMap map({{{0, 0, 1}}, {{1, 0, 1}}, {{2, 0, 1}}});
    std::vector<float> x(50);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = test::some_float(i, 1) * 0.01f;
    const std::vector<std::int32_t> expert = {0, 1, 2};
    const std::vector<float> weight = {0.3f, 0.5f, 0.2f};
    exchange.dispatch(x.data(), 50, 1, expert.data(), weight.data(), 3, map);
    test::work({.n_experts = 3, .top_k = 3, .hidden = 50}, map, comm.rank(), exchange.dispatched());
    exchange.combine();
    exchange.combined(out[static_cast<std::size_t>(comm.rank())].data(), 50);
  });
  EXPECT_EQ(out[0], out[1]);
  EXPECT_EQ(out[0], out[2]);
}

/// Over all tokens, over any hundred of one rank in a row, and over those that many ranks send at the same time.
TEST(ExpertExchange, TokensSplitOverReplicasAsTheirSharesSay) {
  const std::vector<float> shares = {0.5f, 0.3f, 0.15f, 0.05f};
  std::vector<ExpertReplica> replicas;
  for (std::size_t r = 0; r < shares.size(); ++r) replicas.push_back({static_cast<std::int32_t>(r), 0, shares[r]});
  const auto check = [&](const std::vector<int>& got, int sent) {
    for (std::size_t r = 0; r < shares.size(); ++r)
      EXPECT_NEAR(got[r], static_cast<double>(shares[r]) * sent, 3) << "replica " << r << " of " << sent << " tokens";
  };
  ExpertMap map({replicas});
  std::vector<int> all(4);
  for (int hundred = 0; hundred < 100; ++hundred) {
    std::vector<int> got(4);
    for (int i = 0; i < 100; ++i) {
      const int rank = map.next(0, 3)->rank;
      ++got[static_cast<std::size_t>(rank)];
      ++all[static_cast<std::size_t>(rank)];
    }
    check(got, 100);
  }
  check(all, 10000);
  for (int step = 0; step < 20; ++step) {
    std::vector<int> got(4);
    for (int from = 0; from < 64; ++from) {
      ExpertMap own({replicas});
      own.turn[0] = static_cast<std::uint32_t>(step);
      ++got[static_cast<std::size_t>(own.next(0, from)->rank)];
    }
    check(got, 64);
  }
}

TEST(ExpertExchange, RefusesAnExpertThatNobodyHolds) {
  const auto comm = make_self_communicator();
  ExpertExchange exchange(*comm, 4, false);
  const std::vector<float> x(4), weight = {1.0f};
  const std::vector<std::int32_t> expert = {2};
  ExpertMap too_few({{{0, 0, 1}}, {{0, 1, 1}}}), nowhere({{{0, 0, 1}}, {{0, 1, 1}}, {{1, 0, 1}}});
  EXPECT_THROW(exchange.dispatch(x.data(), 4, 1, expert.data(), weight.data(), 1, too_few), Error);
  EXPECT_THROW(exchange.dispatch(x.data(), 4, 1, expert.data(), weight.data(), 1, nowhere), Error);
}

TEST(ExpertExchange, RanksMustAgreeOnTheRow) {
  EXPECT_THROW(run_in_process(2,
                              [](Communicator& comm) {
                                const int hidden = comm.rank() == 0 ? 8 : 16;
                                ExpertExchange exchange(comm, hidden, false);
                                const std::vector<float> x(16), weight = {1.0f};
                                const std::vector<std::int32_t> expert = {0};
                                ExpertMap map({{{0, 0, 1}}});
                                exchange.dispatch(x.data(), hidden, 1, expert.data(), weight.data(), 1, map);
                                exchange.dispatched();
                                exchange.combine();
                                std::vector<float> out(16);
                                exchange.combined(out.data(), hidden);
                              }),
               Error);
}

}  // namespace
}  // namespace shoal
