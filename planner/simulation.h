#pragma once
#include <vector>

#include "planner/speed.h"

namespace shoal {

/// A request of a trace.
struct Arrival {
  double at_s = 0;
  int prompt = 0;
  int output = 1;  // tokens of the answer, one at least
};

/// Independent arrivals of `rate_per_s` on average (Poisson), all of one length; the same for the same seed.
std::vector<Arrival> poisson_arrivals(int count, double rate_per_s, int prompt, int output, unsigned seed);

struct SimulationOptions {
  int max_num_seqs = 256;          // of one tensor-parallel group
  int max_batched_tokens = 512;    // of one group in a step
  int max_prefill_tokens = 256;    // of these, prompt tokens while any answer is being generated
  double kv_tokens = 1e18;         // that one group's cache holds
  double prefix_hit_fraction = 0;  // of prompt tokens that need no computation
  double imbalance = 0;            // of experts, as SpeedModel::step takes it
};

struct Percentiles {
  double p50 = 0, p90 = 0, p99 = 0;
};

struct SimulationResult {
  Percentiles ttft_ms, tpot_ms;  // tpot: of requests with two tokens and more
  double seconds = 0;            // from the first arrival to the last token
  double output_tokens_per_s = 0;
  double mean_batch = 0;                            // sequences of a group in a step
  std::vector<double> first_token_s, last_token_s;  // [arrivals] when they came
};

/// Continuous batching as the scheduler does it, with the model's step times for a clock: every step each group's
/// running sequences get a token, and what is left of its token budget goes to its prompts in order of arrival, at most
/// max_prefill_tokens while anybody gets an answer. A request goes to the group with the fewest tokens in its cache,
/// and waits where no group has room for all of it.
SimulationResult simulate(const std::vector<Arrival>& arrivals, const SpeedModel& model, const Layout& layout,
                          const SimulationOptions& options);

/// The same where other ranks compute the prompts: `prefill` does them alone, `decode` goes on from the first token.
/// What a request waits for between the two is part of its time a token.
SimulationResult simulate_disaggregated(const std::vector<Arrival>& arrivals, const SpeedModel& prefill,
                                        const Layout& prefill_layout, const SimulationOptions& prefill_options,
                                        const SpeedModel& decode, const Layout& decode_layout,
                                        const SimulationOptions& decode_options);

}  // namespace shoal
