#include "runtime/expert_moves.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <numeric>
#include <random>

#ifdef SHOAL_HAS_CUDA_EMULATION
#include "kernels/cuda/emulated_backend.h"
#endif
#include "launch/quantize.h"
#include "tests/unit/scratch_folder.h"
#include "tests/unit/station.h"

// Replicas and moves on small checkpoints: wherever experts are, answers stay the same, bit for bit, and work goes
// where the placement says.
namespace shoal {
namespace {

namespace fs = std::filesystem;
using Random = std::mt19937_64;

fs::path fixture(const std::string& name) {
  return fs::path(SHOAL_SOURCE_DIR) / "tests" / "fixtures" / "models" / name;
}

/// Each expert on one rank at least, on any others with a chance of a third, random shares.
LayerPlacement random_placement(Random& random, std::size_t experts, int ranks) {
  LayerPlacement placement(experts);
  for (auto& replicas : placement) {
    const auto home = static_cast<int>(random() % static_cast<std::uint64_t>(ranks));
    float sum = 0;
    for (int rank = 0; rank < ranks; ++rank)
      if (rank == home || random() % 3 == 0) replicas.push_back({rank, 1.0f + static_cast<float>(random() % 7)});
    for (const Replica& r : replicas) sum += r.share;
    for (Replica& r : replicas) r.share /= sum;
  }
  return placement;
}

Placement random_placements(Random& random, const ModelConfig& config, int ranks) {
  Placement placement = place_evenly(config, ranks);
  for (auto& layer : placement.experts) layer = random_placement(random, layer.size(), ranks);
  return placement;
}

struct Scored {
  std::vector<float> logprobs;                     // of the prompts, in order
  std::vector<std::vector<std::uint64_t>> work;    // [ranks][MoE layers]
  std::vector<std::vector<std::uint64_t>> tokens;  // [MoE layers][experts]
};

/// Scores six prompts, dealt out to the ranks, 8 tokens a step; before each step some layers' experts may move.
Scored score(const fs::path& model, int ranks, const std::optional<Placement>& placement, bool moving,
             Compute compute = Compute::f32) {
  constexpr int prompts = 6, length = 40, chunk = 8;
  const ModelConfig config = ModelConfig::from_file(model);
  Scored run;
  std::vector<std::vector<float>> of_prompt(prompts);
  run.work.resize(static_cast<std::size_t>(ranks));
  std::mutex mutex;
  run_in_process(ranks, [&](Communicator& comm) {
    test::Station station(model, comm, {.compute = compute, .placement = placement, .answers = Answers::by_expert});
    Random random(11);  // the same moves on all ranks
    const int me = comm.rank();
    for (int first = 0, step = 1; first < length; first += chunk, ++step) {
      StepPlan plan{.step = static_cast<std::uint64_t>(step)};
      for (int p = me; p < prompts; p += ranks) {
        const auto id = static_cast<std::uint64_t>(p);
        if (first == 0) plan.start.push_back({.sequence = id, .sampling = {}, .logprobs = -1, .answer = {}});
        SequenceChunk c{.sequence = id, .position = first};
        for (int i = first; i < first + chunk; ++i) c.tokens.push_back(2 + (i * i + 7 * p) % 90);
        c.next_token = 2 + ((first + chunk) * (first + chunk) + 7 * p) % 90;
        if (first % 16 == 0) c.pages = {3 * p + first / 16};
        c.score = true;
        plan.chunks.push_back(c);
      }
      for (int layer = 0; moving && layer < config.num_hidden_layers; ++layer)
        if (config.is_moe_layer(layer) && random() % 2)
          plan.experts.push_back(
              {layer, random_placement(random, static_cast<std::size_t>(config.n_routed_experts), ranks)});
      const StepResult result = station.worker->run(plan);
      const std::lock_guard lock(mutex);
      auto& work = run.work[static_cast<std::size_t>(me)];
      work.resize(result.expert_work.size());
      for (std::size_t i = 0; i < work.size(); ++i) work[i] += result.expert_work[i];
      run.tokens.resize(work.size(), std::vector<std::uint64_t>(static_cast<std::size_t>(config.n_routed_experts)));
      auto count = result.expert_tokens.begin();
      for (auto& layer : run.tokens)
        for (auto& expert : layer) expert += *count++;
      for (const SequenceOutput& output : result.outputs)
        for (const TokenLogprob& entry : output.scored) of_prompt[output.sequence].push_back(entry.logprob);
    }
  });
  for (const auto& scores : of_prompt) {
    EXPECT_EQ(scores.size(), static_cast<std::size_t>(length));
    run.logprobs.insert(run.logprobs.end(), scores.begin(), scores.end());
  }
  return run;
}

class ExpertMoves : public testing::TestWithParam<const char*> {};

TEST_P(ExpertMoves, AnswersAreTheSameWhereverExpertsAre) {
  const fs::path model = fixture(GetParam());
  const ModelConfig config = ModelConfig::from_file(model);
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    const Scored alone = score(model, 1, {}, false, compute);
    for (const int ranks : {2, 3, 4}) {
      Random random(static_cast<std::uint64_t>(ranks));
      EXPECT_EQ(score(model, ranks, {}, false, compute).logprobs, alone.logprobs) << ranks << " ranks";
      const Placement spread = random_placements(random, config, ranks);
      ASSERT_TRUE(spread.has_replicas());
      EXPECT_EQ(score(model, ranks, spread, false, compute).logprobs, alone.logprobs) << ranks << " ranks, replicas";
      EXPECT_EQ(score(model, ranks, spread, true, compute).logprobs, alone.logprobs) << ranks << " ranks, moving";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, ExpertMoves, testing::Values("deepseek-v3", "deepseek-v3-fp8", "deepseek-v2-lite"),
                         [](const auto& family) {
                           std::string name = family.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(ExpertMoves, WorkSplitsAsPlanned) {
  const fs::path model = fs::path(SHOAL_SOURCE_DIR) / "launch" / "demo-model";
  const ModelConfig config = ModelConfig::from_file(model);
  for (const int ranks : {2, 3, 4}) {
    Random random(static_cast<std::uint64_t>(10 + ranks));
    const Placement placement = random_placements(random, config, ranks);
    const Scored run = score(model, ranks, placement, false);
    for (std::size_t layer = 0; layer < run.tokens.size(); ++layer) {
      const LayerPlacement& experts = placement.experts[layer + static_cast<std::size_t>(config.first_k_dense_replace)];
      std::vector<double> planned(static_cast<std::size_t>(ranks));
      double tokens = 0;
      for (std::size_t e = 0; e < experts.size(); ++e) {
        tokens += static_cast<double>(run.tokens[layer][e]);
        for (const Replica& r : experts[e])
          planned[static_cast<std::size_t>(r.rank)] +=
              static_cast<double>(r.share) * static_cast<double>(run.tokens[layer][e]);
      }
      ASSERT_EQ(tokens, 6 * 40 * config.num_experts_per_tok);
      for (std::size_t r = 0; r < planned.size(); ++r)
        EXPECT_NEAR(static_cast<double>(run.work[r][layer]), planned[r], 0.05 * tokens)
            << "rank " << r << " of " << ranks << ", layer " << layer;
    }
  }
}

TEST(ExpertMoves, IntegersStayIntegersOnTheirWay) {
  const ScratchFolder folder;
  const fs::path model = folder.path() / "int4";
  QuantizeOptions options{.in = fixture("deepseek-v2-lite"), .out = model, .type = "INT4", .group_size = 32};
  options.quiet = true;
  quantize_model(options);
  const ModelConfig config = ModelConfig::from_file(model);
  const Scored alone = score(model, 1, {}, false);
  Random random(5);
  EXPECT_EQ(score(model, 3, random_placements(random, config, 3), true).logprobs, alone.logprobs);
}

/// A matrix of every kind arrives as it was.
TEST(ExpertMoves, PackedBytesMakeTheSameMatrix) {
  std::vector<std::byte> raw(64 * 256 * 4);
  Random random(3);
  for (auto& byte : raw) byte = static_cast<std::byte>(random());
  for (const DType type : {DType::f32, DType::bf16, DType::f8_e4m3}) {
    Matrix a(type, 37, 51), b(type, 37, 51);
    a.pack_rows(0, 37, raw.data(), 51 * static_cast<std::int64_t>(size_of(type)));
    b.set_packed(a.packed());
    EXPECT_EQ(a.has_nan_codes(), b.has_nan_codes());
    EXPECT_EQ(std::memcmp(a.panel(0), b.panel(0), a.packed().size()), 0);
  }
  const PackedFormat& format = *packed_format(*find_format("Q4_K"));
  Matrix a(format, 37, 256), b(format, 37, 256);
  a.pack_rows(0, 37, raw.data(), format.stored->block_bytes);
  b.set_packed(a.packed());
  EXPECT_EQ(std::memcmp(a.panel(0), b.panel(0), a.packed().size()), 0);
  EXPECT_THROW(b.set_packed(a.packed().first(5)), Error);
}

/// 4-bit integers in groups of 64 columns, with a zero for each group or one for all, their columns in another order.
Matrix integers(Random& random, std::optional<int> zero) {
  Matrix m(integer_format(4, Scales::single, 64, zero), 37, 128);
  m.pack_blocks(0, 37, [&](std::int64_t, std::int64_t, CodeBlock& out) {
    for (auto& code : out.code) code = static_cast<std::uint8_t>(random() % 16);
    out.d = std::bit_cast<std::uint32_t>(0.25f * static_cast<float>(random() % 9));
    out.zero = static_cast<std::uint8_t>(random() % 16);
  });
  std::vector<std::int32_t> order(128);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  m.set_order(std::move(order));
  return m;
}

TEST(ExpertMoves, IntegersArriveWithTheirOrderOfColumns) {
  const auto expert = [](int id) {
    Random random(static_cast<std::uint64_t>(id));
    const std::optional<int> zero = id == 0 ? std::nullopt : std::optional(8);
    return FeedForward{integers(random, zero), integers(random, zero), integers(random, zero)};
  };
  run_in_process(2, [&](Communicator& comm) {
    const int me = comm.rank();
    MoeWeights weights;
    weights.map = expert_map({{{0, 1}}, {{1, 1}}});
    weights.experts.push_back(expert(me));
    const auto backend = make_cpu_backend({.threads = 1});
    move_experts(weights, {{{1, 1}}, {{0, 1}}}, comm, *backend);
    ASSERT_EQ(weights.experts.size(), 1u);
    const FeedForward wanted = expert(1 - me);
    for (const auto matrix : {&FeedForward::gate, &FeedForward::up, &FeedForward::down})
      for (std::int64_t row = 0; row < 37; ++row)
        for (std::int64_t col = 0; col < 128; ++col)
          ASSERT_EQ((weights.experts[0].*matrix).at(row, col), (wanted.*matrix).at(row, col));
  });
}

void expect_same(const FeedForward& a, const FeedForward& b) {
  for (const auto matrix : {&FeedForward::gate, &FeedForward::up, &FeedForward::down}) {
    const Matrix &x = a.*matrix, &y = b.*matrix;
    ASSERT_EQ(x.packed().size(), y.packed().size());
    EXPECT_EQ(std::memcmp(x.packed().data(), y.packed().data(), x.packed().size()), 0);
    EXPECT_EQ(x.scales().values, y.scales().values);
  }
}

/// Ranks are lost: those left have the experts of the placement among them, as if they had been loaded for it.
TEST(ExpertMoves, LostExpertsAreReadAgain) {
  Random random(7);
  for (const char* name : {"deepseek-v3", "deepseek-v2-lite", "deepseek-v3-fp8", "deepseek-v3-mtp"}) {
    const fs::path dir = fixture(name);
    const ModelConfig config = ModelConfig::from_file(dir);
    const Checkpoint checkpoint = Checkpoint::open(dir);
    const LoadOptions options{.mtp = config.num_nextn_predict_layers > 0};
    for (const bool even : {true, false}) {
      const int ranks = 4;
      const Placement before = even ? place_evenly(config, ranks) : random_placements(random, config, ranks);
      const std::vector<int> left{0, 1, 3};
      const Placement after = place_among(config, before, left);
      for (int rank = 0; rank < std::ssize(left); ++rank) {
        const int rank_before = left[static_cast<std::size_t>(rank)];
        ModelWeights weights = load_weights(config, checkpoint, before, rank_before, options);
        std::vector<const std::byte*> places;
        for (const LayerWeights& layer : weights.layers)
          for (const FeedForward& e : layer.moe.experts) places.push_back(e.gate.packed().data());
        // One layer was on its way to other ranks when they were lost.
        if (rank == 1) weights.layers.back().moe.experts.clear();
        reload_experts(weights, rank_before, config, checkpoint, after, rank, options);
        const ModelWeights wanted = load_weights(config, checkpoint, after, rank, options);
        const auto check = [](const MoeWeights& a, const MoeWeights& b) {
          ASSERT_EQ(a.experts.size(), b.experts.size());
          for (std::size_t e = 0; e < a.experts.size(); ++e) expect_same(a.experts[e], b.experts[e]);
          ASSERT_EQ(a.map.replicas.size(), b.map.replicas.size());
          for (std::size_t e = 0; e < a.map.replicas.size(); ++e) {
            ASSERT_EQ(a.map.replicas[e].size(), b.map.replicas[e].size());
            for (std::size_t i = 0; i < a.map.replicas[e].size(); ++i) {
              EXPECT_EQ(a.map.replicas[e][i].rank, b.map.replicas[e][i].rank);
              EXPECT_EQ(a.map.replicas[e][i].local, b.map.replicas[e][i].local);
            }
          }
        };
        std::size_t still = 0;
        for (std::size_t i = 0; i < weights.layers.size(); ++i) {
          check(weights.layers[i].moe, wanted.layers[i].moe);
          for (const FeedForward& e : weights.layers[i].moe.experts)
            still += static_cast<std::size_t>(std::ranges::count(places, e.gate.packed().data()));
        }
        if (weights.mtp) check(weights.mtp->layer.moe, wanted.mtp->layer.moe);
        if (rank != 1) {
          EXPECT_EQ(still, places.size()) << "what is there is not read again";
        }
      }
    }
  }
}

/// A rank goes while experts are on their way: none is left half there.
TEST(ExpertMoves, AMoveThatFailsLeavesNone) {
  const auto expert = [](int id) {
    Random random(static_cast<std::uint64_t>(id));
    return FeedForward{integers(random, 8), integers(random, 8), integers(random, 8)};
  };
  EXPECT_ANY_THROW(run_in_process(3, [&](Communicator& comm) {
    if (comm.rank() == 2) fail("gone");
    MoeWeights weights;
    weights.map = expert_map({{{0, 1}}, {{1, 1}}, {{2, 1}}});
    weights.experts.push_back(expert(comm.rank()));
    const auto backend = make_cpu_backend({.threads = 1});
    EXPECT_ANY_THROW(move_experts(weights, {{{1, 1}}, {{0, 1}}, {{0, 1}}}, comm, *backend));
    EXPECT_TRUE(weights.experts.empty());
    EXPECT_EQ(weights.map.replicas[0][0].rank, 0);
  }));
}

#ifdef SHOAL_HAS_CUDA_EMULATION
/// Experts that a GPU has placed leave its memory, travel, and are placed where they arrive.
TEST(ExpertMoves, PlacedExpertsMoveToo) {
  const auto expert = [](int id) {
    Random random(static_cast<std::uint64_t>(id));
    std::vector<std::byte> raw(150 * 200 * 4);
    for (auto& byte : raw) byte = static_cast<std::byte>(random() % 100);
    Matrix f8(DType::f8_e4m3, 150, 200), bf16(DType::bf16, 150, 200);
    f8.pack_rows(0, 150, raw.data(), 200);
    f8.set_scales({std::vector<float>(4, 0.5f + static_cast<float>(id)), 128, 128});
    bf16.pack_rows(0, 150, raw.data(), 400);
    return FeedForward{std::move(f8), std::move(bf16), integers(random, 8)};
  };
  run_in_process(2, [&](Communicator& comm) {
    const int me = comm.rank();
    const auto gpu = make_emulated_cuda_backend();
    MoeWeights weights;
    weights.map = expert_map({{{0, 1}}, {{1, 1}}});
    weights.experts.push_back(expert(me));
    for (Matrix* m : {&weights.experts[0].gate, &weights.experts[0].up, &weights.experts[0].down}) gpu->place(*m);
    move_experts(weights, {{{1, 1}}, {{0, 1}}}, comm, *gpu);
    ASSERT_EQ(weights.experts.size(), 1u);
    const FeedForward wanted = expert(1 - me);
    for (const auto matrix : {&FeedForward::gate, &FeedForward::up, &FeedForward::down}) {
      ASSERT_TRUE((weights.experts[0].*matrix).placed());
      const Matrix here = gpu->fetch(weights.experts[0].*matrix), &there = wanted.*matrix;
      ASSERT_EQ(here.packed().size(), there.packed().size());
      EXPECT_EQ(std::memcmp(here.packed().data(), there.packed().data(), here.packed().size()), 0);
      EXPECT_EQ(here.scales().values, there.scales().values);
      EXPECT_EQ(here.order(), there.order());
    }
  });
}
#endif

}  // namespace
}  // namespace shoal
