#pragma once
#include <cstdint>

#include "runtime/job.h"

namespace shoal {

/// Requests that all come at once, each with a prompt of its own random tokens.
struct RoundShape {
  int requests = 1;
  int prompt_tokens = 0;
  int output_tokens = 0;  // at least so many are generated while nobody's prompt is being read
};

/// What was measured of them. Decoding is measured where all of them do it: from the step that gave the last one its
/// first token to the step that finished the first one.
struct Round {
  double ttft_ms = 0;  // mean
  double prefill_tokens_per_s = 0;
  double decode_tokens_per_s = 0;    // of all requests together
  double tpot_ms = 0;                // mean time of a decoding step
  double experts_read_per_step = 0;  // while decoding, summed over layers; on all ranks together
};

/// Runs a round; Error when a request fails. `seed` makes the prompts: other seeds, other prompts, or the prefix cache
/// would know them.
Round run_round(const Engine& engine, const RoundShape& shape, std::uint64_t seed);

}  // namespace shoal
