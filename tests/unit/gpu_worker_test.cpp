// Whole models on the GPU's fast paths: tokens drawn on the device, launches repeated as graphs, attention on tensor
// cores. The model's answer must not depend on any of it but the last, and on that only by rounding.
#include "tests/unit/gpu_subjects.h"
#include "tests/unit/station.h"

namespace shoal::kernel_test {
namespace {

namespace fs = std::filesystem;

struct WorkerAnswer {
  std::vector<std::int32_t> tokens;
  std::vector<float> logprobs;
};

class GpuWorker : public EveryIsa {
 protected:
  static std::unique_ptr<Backend> gpu_backend(Compute compute) {
    if (GetParam().kind == Subject::Kind::gpu) return make_cuda_backend({.compute = compute});
#ifdef SHOAL_HAS_CUDA_EMULATION
    return make_emulated_cuda_backend({.compute = compute, .self_check = false});
#else
    return nullptr;
#endif
  }

  /// Log-probabilities of a text of 300 tokens that comes in such chunks, with another sequence in each step.
  std::vector<float> scores(const std::vector<int>& chunks) {
    const fs::path dir = fs::path(SHOAL_SOURCE_DIR) / "tests" / "fixtures" / "models" / "deepseek-v2-lite";
    std::vector<float> result;
    run_in_process(1, [&](Communicator& comm) {
      test::Station station(dir, comm, {.compute = Compute::bf16, .make_backend = gpu_backend});
      std::vector<std::int32_t> text;
      for (int i = 0; i < 300; ++i) text.push_back((i * 37 + i / 7) % 250);
      std::int32_t position = 0;
      for (std::size_t step = 0; step < chunks.size(); ++step) {
        StepPlan plan{.step = step + 1, .most_tokens = chunks[step] + 1};
        SequenceChunk chunk{.sequence = 1, .position = position},
            other{.sequence = 2, .position = static_cast<std::int32_t>(step)};
        if (step == 0) {
          for (const std::uint64_t s : {1, 2}) plan.start.push_back({.sequence = s, .sampling = {}, .answer = {}});
          other.pages = {30};
          for (int p = 0; p < 19; ++p) chunk.pages.push_back(p * 7 % 19);
        }
        other.tokens = {9};
        chunk.tokens.assign(text.begin() + position, text.begin() + position + chunks[step]);
        position += chunks[step];
        chunk.score = true;
        if (position < std::ssize(text)) chunk.next_token = text[std::size_t(position)];
        plan.chunks = {other, chunk};
        for (const SequenceOutput& output : station.worker->run(plan).outputs)
          for (const TokenLogprob& p : output.scored) result.push_back(p.logprob);
      }
    });
    return result;
  }

  /// An answer of `steps` tokens to a prompt; with log-probabilities the host sees the logits and draws.
  WorkerAnswer answer(const std::string& model, Compute compute, bool on_gpu, bool logprobs, int steps) {
    const fs::path dir = fs::path(SHOAL_SOURCE_DIR) / "tests" / "fixtures" / "models" / model;
    WorkerAnswer result;
    run_in_process(1, [&](Communicator& comm) {
      test::StationOptions options{.compute = compute};
      if (on_gpu) options.make_backend = gpu_backend;
      test::Station station(dir, comm, options);
      SamplingParams sampling{.temperature = 0.8f, .top_p = 0.9f, .seed = 5, .rules = {}};
      std::vector<std::int32_t> next{5, 17, 9, 40, 3};
      std::int32_t position = 0;
      for (int step = 1; step <= steps; ++step) {
        StepPlan plan{.step = static_cast<std::uint64_t>(step), .most_tokens = static_cast<std::int32_t>(next.size())};
        if (step == 1)
          plan.start.push_back({.sequence = 1, .sampling = sampling, .logprobs = logprobs ? 0 : -1, .answer = {}});
        SequenceChunk chunk{.sequence = 1, .position = position};
        chunk.tokens = next;
        chunk.sample = true;
        if (step == 1) chunk.pages = {2, 0};
        plan.chunks.push_back(chunk);
        const StepResult of_step = station.worker->run(plan);
        position += static_cast<std::int32_t>(next.size());
        next = of_step.outputs.at(0).tokens;
        result.tokens.insert(result.tokens.end(), next.begin(), next.end());
        for (const TokenLogprob& p : of_step.outputs.at(0).sampled) result.logprobs.push_back(p.logprob);
      }
    });
    return result;
  }
};

TEST_P(GpuWorker, DrawsOnTheDeviceWhatTheHostWouldDraw) {
  for (const char* model : {"deepseek-v2-lite", "qwen2"}) {
    const WorkerAnswer drawn = answer(model, Compute::bf16, true, false, 7),
                       seen = answer(model, Compute::bf16, true, true, 7);
    EXPECT_EQ(drawn.tokens.size(), 7u);
    EXPECT_EQ(drawn.tokens, seen.tokens) << model;
    EXPECT_TRUE(drawn.logprobs.empty());
    EXPECT_EQ(seen.logprobs.size(), 7u);
  }
}

/// In FP32 the same tokens as on a CPU: steps that are recorded, and then repeated, follow what changes between them.
TEST_P(GpuWorker, AnswersAsACpuDoes) {
  const WorkerAnswer gpu = answer("deepseek-v2-lite", Compute::f32, true, true, 7),
                     cpu = answer("deepseek-v2-lite", Compute::f32, false, true, 7);
  EXPECT_EQ(gpu.tokens, cpu.tokens);
  for (std::size_t i = 0; i < cpu.logprobs.size(); ++i) EXPECT_NEAR(gpu.logprobs[i], cpu.logprobs[i], 1e-3);
}

/// A chunk of 280 tokens behind 20 that are cached already, attended with keys and values of its own.
TEST_P(GpuWorker, LongChunksAreWorthWhatShortOnesAre) {
  const auto in_long = scores({20, 280}), in_short = scores({20, 140, 140});
  ASSERT_EQ(in_long.size(), 299u);
  ASSERT_EQ(in_short.size(), 299u);
  std::vector<double> differences;
  for (std::size_t i = 0; i < in_long.size(); ++i) differences.push_back(std::abs(double(in_long[i]) - in_short[i]));
  EXPECT_EQ(*std::max_element(differences.begin(), differences.begin() + 19), 0);
  EXPECT_GT(*std::max_element(differences.begin(), differences.end()), 0);  // it was the other form
  std::sort(differences.begin(), differences.end());
  EXPECT_LT(differences[differences.size() / 2], 0.03);
  EXPECT_LT(differences[differences.size() * 9 / 10], 0.2);
}

TEST_P(GpuWorker, Fp8StaysCloseToACpu) {
  if (!has_fp8()) GTEST_SKIP() << "this GPU has no FP8 kernels";
  const WorkerAnswer gpu = answer("deepseek-v3-fp8", Compute::fp8, true, true, 1),
                     cpu = answer("deepseek-v3-fp8", Compute::bf16, false, true, 1);
  ASSERT_EQ(gpu.tokens.size(), 1u);
  if (gpu.tokens == cpu.tokens) {
    EXPECT_NEAR(gpu.logprobs[0], cpu.logprobs[0], 0.5);
  }
  EXPECT_TRUE(std::isfinite(gpu.logprobs[0]));
}

INSTANTIATE_TEST_SUITE_P(Gpu, GpuWorker, gpus(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
