#pragma once
#include <cstdint>
#include <span>

#include "base/error.h"
#include "kernels/backend.h"
#include "runtime/step.h"

namespace shoal {

/// A row of logits has no finite number: the model has overflowed.
class Overflowed : public Error {
 public:
  explicit Overflowed(std::size_t vocab);
};

/// From a row of logits [vocab] to a token. Functions of their arguments only; thread-safe.
///
/// Of logits that are no numbers: NaN counts as -inf; tokens at +inf share all of the probability; a row that is NaN or
/// -inf throughout throws Overflowed, for it says nothing.

/// Draws the token that follows `position`. temperature <= 0 is greedy: the largest logit, of equal ones the
/// lowest id. Otherwise softmax(logits / temperature) is cut down in the usual order: to the `top_k` most likely
/// tokens, then to the fewest of these that hold `top_p` of their mass, then to those at least `min_p` times as likely
/// as the likeliest. Among tokens equally likely the lower ids stay. The draw depends on seed and position alone
/// (counter-based generator), so a request's answer does not depend on who shares its batch, nor on a restart midway.
std::int32_t sample(std::span<const float> logits, const SamplingParams& params, std::int64_t position);

/// The same draw for a device's sampler (Backend::sample).
Draw draw_of(const SamplingParams& params, std::int64_t position);

/// Log-probability of `token` under softmax(logits), and the `n_top` most likely tokens, most likely first (lower id
/// first of equals; fewer where fewer are possible at all). Exact to about 1e-6. Error when `token` is outside the
/// vocabulary.
TokenLogprob log_probability(std::span<const float> logits, std::int32_t token, int n_top);

/// Uniform in [0, 1), 53 bits: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
/// with key `seed` and counter `position`.
double uniform_draw(std::uint64_t seed, std::int64_t position);

}  // namespace shoal
