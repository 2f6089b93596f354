// The exchange whose rows stay on GPUs, against the same plain loops as the one by host memory: over one rank, and over
// several whose NCCL is a stand-in.
#include "kernels/token_exchange.h"
#include "tests/unit/expert_exchange_suite.h"
#include "tests/unit/gpu_ranks.h"
#include "tests/unit/station.h"

namespace shoal::test {
namespace {

/// Rows in a back end's memory that hold what `host` does.
class DeviceRows {
 public:
  DeviceRows(Backend& backend, Rows<const float> host)
      : memory_(backend.allocate(static_cast<std::size_t>(host.rows * host.cols) * sizeof(float))),
        rows_(static_cast<float*>(memory_.get()), host.rows, host.cols) {
    backend.from_host(host, rows_);
  }
  Rows<float> rows() const { return rows_; }

 private:
  std::shared_ptr<void> memory_;
  Rows<float> rows_;
};

MakeExchange by_gpu(Communicator& comm, Backend& backend) {
  return [&](const ExchangeCase& of) -> RunLayer {
    const std::shared_ptr<TokenExchange> exchange =
        backend.token_exchange(comm, {of.hidden, of.bf16_wire, of.answers, of.f8_rows});
    if (!exchange) fail("no exchange from GPU to GPU");
    return [&, exchange](const ExchangeCase& c, ExpertMap& map, const Tokens& t, std::vector<float>& out,
                         std::int64_t out_stride) {
      const DeviceRows h(backend, {t.x.data(), t.count, c.hidden, t.stride}),
          sums(backend, {out.data(), t.count, c.hidden, out_stride});
      exchange->dispatch(h.rows(), t.expert.data(), t.weight.data(), c.top_k, map);
      const ExpertBatch& batch = exchange->dispatched();
      exchange->arrived();

      // The experts' work is the host's here.
      HostRoom room;
      const Rows<float> x = backend.to_host({const_cast<float*>(batch.x.data), batch.x.rows, batch.x.cols}, room);
      std::vector<float> results(static_cast<std::size_t>(batch.results.rows * c.hidden));
      ExpertBatch there = batch;
      for (std::size_t r = 0; r < batch.row.size(); ++r) {
        there.rows.push_back(x[batch.row[r]]);
        there.out.push_back(results.data() + r * static_cast<std::size_t>(c.hidden));
      }
      const float pairs = work(c, map, comm.rank(), there);
      backend.from_host({results.data(), batch.results.rows, c.hidden}, batch.results);

      exchange->combine(sums.rows());
      exchange->combined(sums.rows());
      const Rows<float> answered = backend.to_host(sums.rows(), room);
      for (std::int64_t i = 0; i < t.count; ++i) std::copy_n(answered[i], c.hidden, out.data() + i * out_stride);
      return pairs;
    };
  };
}

void do_what_plain_loops_do(int ranks, int ranks_per_host) {
  over_gpus(
      ranks,
      [](Communicator& comm) {
        const auto backend = make_cuda_backend({.self_check = false});
        check_expert_exchanges_by(by_gpu(comm, *backend), comm);
      },
      ranks_per_host);
}

void send_rows_in_f8(int ranks, int ranks_per_host) {
  over_gpus(
      ranks,
      [](Communicator& comm) {
        const auto backend = make_cuda_backend({.compute = Compute::fp8, .self_check = false});
        for (const Answers answers : {Answers::summed, Answers::by_expert}) {
          ExchangeCase c{.hidden = 300, .bf16_wire = true, .answers = answers, .f8_rows = true};
          for (int e = 0; e < c.n_experts; ++e) c.rank_of.push_back(e * comm.size() / c.n_experts);
          check_expert_exchange(comm, by_gpu(comm, *backend), c, 3);
        }
      },
      ranks_per_host);
}

class GpuExchange : public testing::TestWithParam<int> {};

TEST_P(GpuExchange, DoesWhatPlainLoopsDo) { do_what_plain_loops_do(GetParam(), 1); }

/// Tokens of experts of E4M3 travel as such, answers as BF16.
TEST_P(GpuExchange, SendsRowsInFp8) { send_rows_in_f8(GetParam(), 1); }

/// By two hops.
TEST(GpuExchanges, OfSeveralHostsDoWhatPlainLoopsDo) {
  do_what_plain_loops_do(4, 2);
  send_rows_in_f8(4, 2);
}

/// What a model makes of some tokens on each rank, its layers with experts among it. `most_tokens`: as TokenBatch's.
std::vector<std::vector<float>> hidden_states(const std::string& model, Compute of, int ranks, bool on_gpus,
                                              Answers answers, std::int64_t most_tokens = 0, int ranks_per_host = 1) {
  const auto dir = std::filesystem::path(SHOAL_SOURCE_DIR) / "tests" / "fixtures" / "models" / model;
  std::vector<std::vector<float>> result(static_cast<std::size_t>(ranks));
  const auto body = [&](Communicator& comm) {
    StationOptions options{.compute = of, .answers = answers};
    if (on_gpus)
      options.make_backend = [](Compute compute) {
        return make_cuda_backend({.compute = compute, .self_check = false});
      };
    Station station(dir, comm, options);
    for (int step = 0; step < 3; ++step) {
      const int tokens = comm.rank() == 1 ? 0 : 3 + step + comm.rank();  // rank 1 only has experts
      const std::vector<std::int32_t> pages{0, 1};
      TokenBatch batch = tokens_of(tokens, comm.rank(), step, pages);
      batch.most_tokens = most_tokens;
      const Rows<const float> x = station.model->forward(batch);
      HostRoom room;
      const Rows<float> host = station.backend->to_host({const_cast<float*>(x.data), x.rows, x.cols}, room);
      std::vector<float>& mine = result[static_cast<std::size_t>(comm.rank())];
      for (std::int64_t i = 0; i < host.rows; ++i) mine.insert(mine.end(), host[i], host[i] + host.cols);
    }
  };
  if (on_gpus)
    over_gpus(ranks, body, ranks_per_host);
  else
    run_in_process(ranks, body, ranks_per_host);
  return result;
}

TEST_P(GpuExchange, ModelsComputeWhatTheyDoOnCpus) {
  if (GetParam() > 3) GTEST_SKIP() << "three ranks are enough";
  for (const Answers answers : {Answers::summed, Answers::by_expert}) {
    const auto gpus = hidden_states("deepseek-v3", Compute::f32, GetParam(), true, answers),
               cpus = hidden_states("deepseek-v3", Compute::f32, GetParam(), false, answers);
    for (std::size_t r = 0; r < gpus.size(); ++r) {
      ASSERT_EQ(gpus[r].size(), cpus[r].size());
      for (std::size_t i = 0; i < gpus[r].size(); ++i)
        ASSERT_NEAR(gpus[r][i], cpus[r][i], 1e-3 * (1 + std::abs(cpus[r][i]))) << "rank " << r << ", " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, GpuExchange, testing::Values(1, 2, 3, 5));

/// To the bit, where answers go by expert: what stays on its rank is rounded as what travels.
TEST(GpuExchanges, AnswersDoNotDependOnTheNumberOfGpus) {
  for (const auto& [model, compute] :
       {std::pair{"deepseek-v3", Compute::f32}, {"deepseek-v3", Compute::bf16}, {"deepseek-v3-fp8", Compute::fp8}}) {
    const auto one = hidden_states(model, compute, 1, true, Answers::by_expert),
               three = hidden_states(model, compute, 3, true, Answers::by_expert);
    ASSERT_FALSE(one[0].empty());
    EXPECT_EQ(one[0], three[0]) << model;
  }
}

/// Of many tokens half are exchanged while the experts of the others are computed: to the bit the same.
TEST(GpuExchanges, HalvesOfALayerComputeWhatTheWholeDoes) {
  constexpr std::int64_t many = 1 << 20;
  for (const Answers answers : {Answers::summed, Answers::by_expert})
    for (const int ranks : {2, 4}) {
      const auto whole = hidden_states("deepseek-v3", Compute::bf16, ranks, true, answers, 0, 2),
                 halves = hidden_states("deepseek-v3", Compute::bf16, ranks, true, answers, many, 2);
      ASSERT_FALSE(whole[0].empty());
      EXPECT_EQ(whole, halves) << ranks;
    }
}

/// Over a communicator without GPUs rows go by the host's memory.
TEST(GpuExchanges, AreNotThereWhereRanksHaveNoWayBetweenGpus) {
  run_in_process(2, [](Communicator& comm) {
    const auto backend = make_cuda_backend({.self_check = false});
    EXPECT_EQ(backend->token_exchange(comm, {8, false, Answers::summed}), nullptr);
  });
}

}  // namespace
}  // namespace shoal::test
