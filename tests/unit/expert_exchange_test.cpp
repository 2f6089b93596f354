#include "tests/unit/expert_exchange_suite.h"

#include "base/error.h"

namespace shoal {
namespace {

class ExpertExchangeTest : public testing::TestWithParam<int> {};

TEST_P(ExpertExchangeTest, EveryContributionArrivesOnce) { run_in_process(GetParam(), test::check_expert_exchanges); }

INSTANTIATE_TEST_SUITE_P(Ranks, ExpertExchangeTest, testing::Values(1, 2, 3, 5, 8), testing::PrintToStringParamName());

/// The answer does not depend on which rank a token lives on: what stays on its rank is rounded as what travels.
TEST(ExpertExchange, Bf16ResultIsTheSameFromEveryRank) {
  std::vector<std::vector<float>> out(3, std::vector<float>(50));
  run_in_process(3, [&](Communicator& comm) {
    ExpertExchange exchange(comm, 50, true);
    const ExpertMap map{{0, 1, 2}, {0, 0, 0}};
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

TEST(ExpertExchange, RefusesAnExpertThatNobodyHolds) {
  const auto comm = make_self_communicator();
  ExpertExchange exchange(*comm, 4, false);
  const std::vector<float> x(4), weight = {1.0f};
  const std::vector<std::int32_t> expert = {2};
  EXPECT_THROW(exchange.dispatch(x.data(), 4, 1, expert.data(), weight.data(), 1, {{0, 0}, {0, 1}}), Error);
  EXPECT_THROW(exchange.dispatch(x.data(), 4, 1, expert.data(), weight.data(), 1, {{0, 0, 1}, {0, 1, 0}}), Error);
}

TEST(ExpertExchange, RanksMustAgreeOnTheRow) {
  EXPECT_THROW(run_in_process(2,
                              [](Communicator& comm) {
                                const int hidden = comm.rank() == 0 ? 8 : 16;
                                ExpertExchange exchange(comm, hidden, false);
                                const std::vector<float> x(16), weight = {1.0f};
                                const std::vector<std::int32_t> expert = {0};
                                exchange.dispatch(x.data(), hidden, 1, expert.data(), weight.data(), 1, {{0}, {0}});
                                exchange.dispatched();
                                exchange.combine();
                                std::vector<float> out(16);
                                exchange.combined(out.data(), hidden);
                              }),
               Error);
}

}  // namespace
}  // namespace shoal
