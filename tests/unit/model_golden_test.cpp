#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>

#include "collectives/communicator.h"
#ifdef SHOAL_HAS_CUDA_EMULATION
#include "kernels/cuda/emulated_backend.h"
#endif
#include "kernels/cuda/cuda_backend.h"
#include "launch/quantize.h"
#include "runtime/sampler.h"
#include "tests/unit/scratch_folder.h"
#include "tests/unit/station.h"

// Random small checkpoints of every family against transformers (tests/golden/make_model_fixtures.py), through the same
// worker that serves, on 1 to 4 ranks inside this process.
namespace shoal {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::Station;

const fs::path kModels = fs::path(SHOAL_SOURCE_DIR) / "tests" / "fixtures" / "models";

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kModels))
    if (fs::exists(entry.path() / "golden.json")) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// A prompt that is scored and then continued greedily; `chunk` tokens of it at a time.
struct GoldenJob {
  std::vector<std::int32_t> ids;
  int greedy = 0;
  std::size_t chunk = 1000;
};
struct GoldenAnswer {
  std::vector<float> logprobs;
  std::vector<std::int32_t> tokens;
  std::vector<float> token_logprobs;
  bool operator==(const GoldenAnswer&) const = default;
};

/// Runs all jobs side by side, job i on rank i % ranks (on all ranks under tensor parallelism). Returns this rank's
/// answers by job.
std::map<std::size_t, GoldenAnswer> run_jobs(Station& station, Communicator& comm, const std::vector<GoldenJob>& jobs) {
  struct Live {
    std::size_t job;
    std::vector<std::int32_t> ids;
    std::vector<std::int32_t> pages;
    std::size_t done = 0;
    GoldenAnswer answer;
  };
  const bool tp = station.placement.tensor_parallel;
  std::vector<Live> live;
  std::size_t steps = 0;
  std::int32_t next_page = 0;
  StepPlan plan;
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    const std::size_t n = jobs[j].ids.size();
    steps = std::max(steps, (n + jobs[j].chunk - 1) / jobs[j].chunk + static_cast<std::size_t>(jobs[j].greedy));
    if (!tp && j % static_cast<std::size_t>(comm.size()) != static_cast<std::size_t>(comm.rank())) continue;
    plan.start.push_back({.sequence = j, .sampling = {.temperature = 0}, .logprobs = 0});
    live.push_back({j, jobs[j].ids, {}, 0, {}});
    auto& pages = live.back().pages;
    for (std::size_t t = 0; t < n + static_cast<std::size_t>(jobs[j].greedy); t += 16) pages.push_back(next_page++);
    std::reverse(pages.begin(), pages.end());  // pages come in any order
  }
  for (std::size_t step = 1; step <= steps; ++step) {
    plan.step = step;
    for (Live& l : live) {
      const GoldenJob& job = jobs[l.job];
      if (l.answer.tokens.size() == static_cast<std::size_t>(job.greedy) && l.done >= job.ids.size()) continue;
      const std::size_t count = std::min(job.chunk, l.ids.size() - l.done);
      SequenceChunk chunk{.sequence = l.job, .position = static_cast<std::int32_t>(l.done)};
      if (l.done == 0) chunk.pages = l.pages;
      chunk.tokens.assign(l.ids.begin() + static_cast<std::ptrdiff_t>(l.done),
                          l.ids.begin() + static_cast<std::ptrdiff_t>(l.done + count));
      l.done += count;
      chunk.score = l.done <= job.ids.size();
      chunk.sample = l.done == l.ids.size() && job.greedy > 0;
      chunk.next_token = l.done < l.ids.size() ? l.ids[l.done] : -1;
      plan.chunks.push_back(chunk);
    }
    const StepResult result = station.worker->run(plan);
    if (tp && comm.rank() != 0) {
      // Only rank 0 answers; here the others learn the sampled tokens from it, as they would from the coordinator.
      for (Live& l : live) {
        const bool sampled = l.done >= jobs[l.job].ids.size() &&
                             l.answer.tokens.size() < static_cast<std::size_t>(jobs[l.job].greedy) &&
                             l.done == l.ids.size();
        if (!sampled) continue;
        std::int32_t token = 0;
        comm.broadcast(std::as_writable_bytes(std::span(&token, 1)), 0);
        l.answer.tokens.push_back(token);
        l.ids.push_back(token);
      }
    }
    for (const SequenceOutput& out : result.outputs) {
      Live& l = *std::find_if(live.begin(), live.end(), [&](const Live& x) { return x.job == out.sequence; });
      for (const TokenLogprob& s : out.scored) l.answer.logprobs.push_back(s.logprob);
      if (out.tokens.empty()) continue;
      l.answer.tokens.push_back(out.tokens.at(0));
      l.answer.token_logprobs.push_back(out.sampled.at(0).logprob);
      l.ids.push_back(out.tokens.at(0));
      std::int32_t token = out.tokens.at(0);
      if (tp) comm.broadcast(std::as_writable_bytes(std::span(&token, 1)), 0);
    }
    plan = {};
  }
  std::map<std::size_t, GoldenAnswer> answers;
  for (Live& l : live) answers[l.job] = std::move(l.answer);
  return answers;
}

/// All answers of all ranks.
std::map<std::size_t, GoldenAnswer> run_on(int ranks, const fs::path& dir, const std::vector<GoldenJob>& jobs,
                                           const test::StationOptions& options = {}) {
  std::mutex mutex;
  std::map<std::size_t, GoldenAnswer> all;
  run_in_process(ranks, [&](Communicator& comm) {
    Station station(dir, comm, options);
    auto mine = run_jobs(station, comm, jobs);
    const std::lock_guard lock(mutex);
    if (!station.placement.tensor_parallel || comm.rank() == 0) all.merge(mine);
  });
  return all;
}

class ModelGolden : public testing::TestWithParam<std::string> {
 protected:
  const fs::path dir = kModels / GetParam();
  const json golden = json::parse(std::ifstream(dir / "golden.json"));

  std::vector<GoldenJob> jobs() const {
    std::vector<GoldenJob> all;
    for (const json& p : golden.at("prompts"))
      all.push_back({p.at("ids").get<std::vector<std::int32_t>>(),
                     p.contains("greedy") ? static_cast<int>(p.at("greedy").size()) : 0});
    return all;
  }

  /// Largest difference of a log-probability from transformers'.
  double difference(const std::map<std::size_t, GoldenAnswer>& answers) const {
    double worst = 0;
    for (const auto& [j, answer] : answers) {
      const json& p = golden.at("prompts").at(j);
      const auto expected = p.at("logprobs").get<std::vector<double>>();
      EXPECT_EQ(answer.logprobs.size(), expected.size());
      for (std::size_t i = 0; i < std::min(expected.size(), answer.logprobs.size()); ++i)
        worst = std::max(worst, std::abs(expected[i] - static_cast<double>(answer.logprobs[i])));
    }
    return worst;
  }
};

TEST_P(ModelGolden, AgreesWithTransformersInFp32OnAnyNumberOfRanks) {
  // FP8 latents' up-projections are kept as BF16 (weights.h), which costs some of the agreement.
  const double tolerance = 1e-3;
  for (const int ranks : {1, 2, 3, 4}) {
    const auto answers = run_on(ranks, dir, jobs());
    EXPECT_EQ(answers.size(), golden.at("prompts").size());
    const double worst = difference(answers);
    RecordProperty("difference_" + std::to_string(ranks), std::to_string(worst));
    EXPECT_LT(worst, tolerance) << ranks << " ranks";
    for (const auto& [j, answer] : answers) {
      const json& p = golden.at("prompts").at(j);
      if (p.contains("greedy")) {
        EXPECT_EQ(answer.tokens, p.at("greedy").get<std::vector<std::int32_t>>()) << ranks << " ranks, prompt " << j;
      }
    }
  }
}

/// The GPU's kernels through the same model: this machine's GPU where it has one, else their emulation.
std::unique_ptr<Backend> gpu_backend([[maybe_unused]] Compute compute) {
  if (find_cuda_devices().count > 0) return make_cuda_backend({.compute = compute});
#ifdef SHOAL_HAS_CUDA_EMULATION
  return make_emulated_cuda_backend({.compute = compute});
#else
  return nullptr;
#endif
}

TEST_P(ModelGolden, TheGpusKernelsAgreeWithTransformersToo) {
  if (!gpu_backend(Compute::f32)) GTEST_SKIP() << "neither a GPU nor its emulation is here";
  // Emulation takes its time: one model on several ranks is enough there, and long prompts with each kind of attention.
  const bool emulated = find_cuda_devices().count == 0;
  const bool several = !emulated || GetParam() == "deepseek-v3", long_ones = several || GetParam() == "llama3";
  std::vector<GoldenJob> asked = jobs();
  if (!long_ones)  // the last ones
    asked.erase(std::ranges::find_if(asked, [](const GoldenJob& job) { return job.ids.size() > 64; }), asked.end());
  for (const int ranks : several ? std::vector{1, 3} : std::vector{1}) {
    const auto answers = run_on(ranks, dir, asked, {.make_backend = gpu_backend});
    EXPECT_EQ(answers.size(), asked.size());
    EXPECT_LT(difference(answers), 1e-3) << ranks << " ranks";
    for (const auto& [j, answer] : answers) {
      const json& p = golden.at("prompts").at(j);
      if (p.contains("greedy")) {
        EXPECT_EQ(answer.tokens, p.at("greedy").get<std::vector<std::int32_t>>()) << ranks << " ranks, prompt " << j;
      }
    }
  }
}

TEST_P(ModelGolden, Bf16ActivationsStayClose) {
  // Rounding activations to 8 bits of mantissa moves log-probabilities of these wide-spread random models by tenths
  // where a token's experts change; the bulk must stay close.
  const auto answers = run_on(2, dir, jobs(), {.compute = Compute::bf16});
  std::vector<double> differences;
  for (const auto& [j, answer] : answers) {
    const auto expected = golden.at("prompts").at(j).at("logprobs").get<std::vector<double>>();
    for (std::size_t i = 0; i < expected.size(); ++i)
      differences.push_back(std::abs(expected[i] - static_cast<double>(answer.logprobs.at(i))));
  }
  std::sort(differences.begin(), differences.end());
  EXPECT_LT(differences[differences.size() / 2], 0.08);
  EXPECT_LT(differences[differences.size() * 9 / 10], 0.5);
}

/// A model of INT4 weights on a GPU, whose products then have activations in BF16, beside the CPU, whose are in bytes.
TEST(Int4Model, TheGpusBf16StaysCloseToTheCpu) {
  if (!gpu_backend(Compute::f32)) GTEST_SKIP() << "neither a GPU nor its emulation is here";
  const ScratchFolder scratch;
  const fs::path source = kModels / "deepseek-v2-lite", folder = scratch.path() / "int4";
  quantize_model({.in = source, .out = folder, .type = "INT4", .group_size = 32, .threads = 1, .quiet = true});
  const json golden = json::parse(std::ifstream(source / "golden.json"));
  std::vector<GoldenJob> asked;
  for (const json& p : golden.at("prompts"))
    if (auto ids = p.at("ids").get<std::vector<std::int32_t>>(); ids.size() <= 64) asked.push_back({std::move(ids)});
  const auto expected = run_on(1, folder, asked);
  const auto tested = run_on(1, folder, asked, {.compute = Compute::bf16, .make_backend = gpu_backend});
  std::vector<double> differences;
  for (const auto& [j, answer] : expected)
    for (std::size_t i = 0; i < answer.logprobs.size(); ++i)
      differences.push_back(std::abs(static_cast<double>(answer.logprobs[i]) - tested.at(j).logprobs.at(i)));
  std::sort(differences.begin(), differences.end());
  ASSERT_FALSE(differences.empty());
  RecordProperty("median", std::to_string(differences[differences.size() / 2]));
  EXPECT_LT(differences[differences.size() / 2], 0.08);
  EXPECT_LT(differences[differences.size() * 9 / 10], 0.5);
}

class MtpGolden : public ModelGolden {};
INSTANTIATE_TEST_SUITE_P(Families, MtpGolden, testing::Values("deepseek-v3-mtp"),
                         [](const auto&) { return "deepseek_v3_mtp"; });

/// The MTP layer's own predictions, from its model's hidden states, in chunks of any size.
TEST_P(MtpGolden, AgreesWithTransformers) {
  run_in_process(2, [&](Communicator& comm) {
    Station station(dir, comm, {.mtp = true});
    for (const json& p : golden.at("prompts")) {
      if (!p.contains("mtp_logprobs")) continue;
      const auto ids = p.at("ids").get<std::vector<std::int32_t>>();
      const auto expected = p.at("mtp_logprobs").get<std::vector<double>>();
      std::vector<std::int32_t> pages;
      for (std::int32_t i = 0; i * 16 < static_cast<std::int32_t>(ids.size()); ++i) pages.push_back(i);
      const std::size_t chunk =
          comm.rank() == 0 ? 1000 : 50;  // of ids whose next one is known; both ranks take every step
      for (std::size_t step = 0; step < 7; ++step) {
        TokenBatch batch, ahead;
        std::vector<std::int64_t> rows;
        for (std::size_t i = step * chunk; i < std::min(ids.size() - 1, (step + 1) * chunk); ++i) {
          const auto position = static_cast<std::int32_t>(i);
          for (TokenBatch* b : {&batch, &ahead}) {
            b->ids.push_back(ids[b == &batch ? i : i + 1]);
            b->positions.push_back(position);
            b->slots.push_back(station.cache->slot(pages, position));
            b->queries.push_back({pages.data(), position + 1});
          }
          rows.push_back(std::ssize(rows));
        }
        station.model->forward(batch);
        station.model->forward_mtp(ahead, rows);
        if (rows.empty()) continue;
        const Rows<const float> logits = station.model->mtp_logits(rows);
        for (std::size_t r = 0; r < rows.size() && step * chunk + r < expected.size(); ++r) {
          const std::span row(logits[static_cast<std::int64_t>(r)], static_cast<std::size_t>(logits.cols));
          const std::size_t i = step * chunk + r;
          EXPECT_NEAR(log_probability(row, ids[i + 2], 0).logprob, expected[i], 1e-3) << "position " << i;
        }
      }
    }
  });
}

/// What a smaller cache costs, on models far more sensitive than trained ones: log-probabilities here spread over 13
/// nats.
TEST_P(ModelGolden, SmallerCachesStayClose) {
  const ModelConfig config = ModelConfig::from_file(dir);
  std::map<KvType, double> typical;
  for (const KvType type : {KvType::bf16, KvType::fp8, KvType::int8}) {
    if (has_scales(type) && !config.is_mla() && config.head_dim % kKvGroup != 0) continue;
    std::vector<double> differences;
    for (const auto& [j, answer] : run_on(1, dir, jobs(), {.kv_type = type})) {
      const auto expected = golden.at("prompts").at(j).at("logprobs").get<std::vector<double>>();
      for (std::size_t i = 0; i < expected.size(); ++i)
        differences.push_back(std::abs(expected[i] - static_cast<double>(answer.logprobs.at(i))));
    }
    std::sort(differences.begin(), differences.end());
    typical[type] = differences[differences.size() / 2];
    RecordProperty(std::string("median_") + std::string(name_of(type)), std::to_string(typical[type]));
    RecordProperty(std::string("p90_") + std::string(name_of(type)),
                   std::to_string(differences[differences.size() * 9 / 10]));
  }
  EXPECT_LT(typical[KvType::bf16], 0.02);
  EXPECT_LT(typical[KvType::int8], 0.04);
  EXPECT_LT(typical[KvType::fp8], 0.15);
}

TEST_P(ModelGolden, ChunksCompanyAndDecodeChangeNoBit) {
  // Alone and whole; in chunks of 1 (decode), 7 and 64 with all others beside: the same bits each time.
  const std::vector<GoldenJob> all = jobs();
  for (const int ranks : {1, 3}) {
    std::map<std::size_t, GoldenAnswer> alone;
    for (std::size_t j = 0; j < all.size(); ++j) alone[j] = run_on(ranks, dir, {all[j]}).at(0);
    for (const std::size_t chunk : {std::size_t{1}, std::size_t{7}, std::size_t{64}}) {
      std::vector<GoldenJob> chunked = all;
      for (GoldenJob& job : chunked) job.chunk = chunk;
      EXPECT_EQ(run_on(ranks, dir, chunked), alone) << "chunks of " << chunk << ", " << ranks << " ranks";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, ModelGolden, testing::ValuesIn(model_names()), [](const auto& family) {
  std::string name = family.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace shoal
