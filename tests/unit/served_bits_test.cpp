#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "runtime/scheduler.h"
#include "tests/unit/station.h"

// Scheduler and real workers together, on random small checkpoints: what a request gets is the same, bit for bit, alone
// and in company, with pages from the prefix cache, after having had to leave, and with guesses.
namespace shoal {
namespace {

namespace fs = std::filesystem;

struct Served {
  std::vector<std::int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<float> prompt;
  bool operator==(const Served&) const = default;
};
struct ServedOutcome {
  std::map<std::uint64_t, Served> served;
  Scheduler::Totals totals;
};

struct Serving {
  fs::path model;
  int ranks = 1;
  int pages = 256;
  bool mtp = false;
};

/// Submits a request every `every` steps and serves them all.
ServedOutcome serve(const Serving& serving, const std::vector<GenerationRequest>& requests, int every) {
  const fs::path dir = fs::path(SHOAL_SOURCE_DIR) / "tests" / "fixtures" / "models" / serving.model;
  const bool tp = place_evenly(ModelConfig::from_file(dir), serving.ranks).tensor_parallel;
  CoordinatorOptions options;
  options.ranks = serving.ranks;
  options.tensor_parallel = tp;
  options.kv_pages.assign(static_cast<std::size_t>(serving.ranks), serving.pages);
  options.page_tokens = test::Station::kPageTokens;
  options.max_batched_tokens = 64;
  options.max_prefill_tokens = 48;
  Scheduler scheduler(options);
  ServedOutcome outcome;
  std::vector<StepPlan> plans;
  std::vector<StepResult> results(static_cast<std::size_t>(serving.ranks));
  run_in_process(serving.ranks, [&](Communicator& comm) {
    test::Station station(dir, comm, {.mtp = serving.mtp, .pages = serving.pages});
    const auto rank = static_cast<std::size_t>(comm.rank());
    for (std::size_t step = 0, next = 0;; ++step) {
      if (rank == 0) {
        for (; next < requests.size() && next * static_cast<std::size_t>(every) <= step; ++next)
          scheduler.submit(next, requests[next]);
        plans = scheduler.has_work() ? scheduler.plan() : std::vector<StepPlan>{};
      }
      comm.barrier();
      if (plans.empty()) return;
      results[rank] = station.worker->run(plans[tp ? 0 : rank]);
      comm.barrier();
      for (int r = 0; rank == 0 && r < serving.ranks; ++r) {
        for (const auto& [id, event] : scheduler.apply(r, results[static_cast<std::size_t>(r)])) {
          Served& to = outcome.served[id];
          if (event.token >= 0) to.tokens.push_back(event.token);
          for (const TokenLogprob& entry : event.logprob) to.logprobs.push_back(entry.logprob);
          for (const TokenLogprob& entry : event.prompt) to.prompt.push_back(entry.logprob);
        }
      }
    }
  });
  outcome.totals = scheduler.totals();
  return outcome;
}

/// Some begin alike; greedy and drawn; one is scored.
std::vector<GenerationRequest> conversations(bool scored) {
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 8; ++i) {
    GenerationRequest request;
    for (int t = 0; t < (i % 2 ? 70 : 33); ++t) request.prompt.push_back(2 + (t * t + i % 2) % 90);
    for (int t = 0; t < 3 + i; ++t) request.prompt.push_back(2 + (7 * t + i) % 90);
    request.max_tokens = 40 - i;
    request.sampling.temperature = i < 4 ? 0.0f : 0.8f;
    request.sampling.seed = static_cast<std::uint64_t>(i);
    request.logprobs = 0;
    request.prompt_logprobs = scored && i == 5;
    requests.push_back(request);
  }
  return requests;
}

/// Each by itself, so that there is nothing to share and nothing to wait for.
std::map<std::uint64_t, Served> alone(const Serving& serving, const std::vector<GenerationRequest>& requests) {
  std::map<std::uint64_t, Served> all;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    GenerationRequest request = requests[i];
    request.cache_salt = std::to_string(i);
    all[i] = serve({serving.model, serving.ranks, 256, false}, {request}, 1).served.at(0);
  }
  return all;
}

class ServedBits : public testing::TestWithParam<const char*> {};

TEST_P(ServedBits, SharedPagesPreemptionAndCompanyChangeNone) {
  const auto requests = conversations(true);
  for (const int ranks : {1, 2}) {
    const auto expected = alone({GetParam(), ranks}, requests);
    const ServedOutcome roomy = serve({GetParam(), ranks}, requests, 4);
    EXPECT_EQ(roomy.served, expected);
    EXPECT_GT(roomy.totals.prefix_hits, 100u);
    const ServedOutcome cramped = serve({GetParam(), ranks, 16}, requests, 1);
    EXPECT_EQ(cramped.served, expected);
    EXPECT_GT(cramped.totals.preemptions, 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, ServedBits, testing::Values("deepseek-v3", "deepseek-v2-lite", "qwen2"),
                         [](const auto& family) {
                           std::string name = family.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(ServedBits, GuessesChangeNone) {
  const auto requests = conversations(true);
  for (const int ranks : {1, 2}) {
    const auto expected = alone({"deepseek-v3-mtp", ranks}, requests);
    for (const int pages : {256, 16}) {
      const ServedOutcome guessing = serve({"deepseek-v3-mtp", ranks, pages, true}, requests, 2);
      EXPECT_EQ(guessing.served, expected) << ranks << " ranks, " << pages << " pages";
      EXPECT_GT(guessing.totals.drafted, 100u);
      RecordProperty("accepted", static_cast<int>(guessing.totals.accepted));
    }
  }
}

}  // namespace
}  // namespace shoal
