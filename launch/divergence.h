#pragma once
#include <cstdint>
#include <vector>

#include "runtime/step.h"

namespace shoal {

/// What a reference and another model say of the same tokens, position by position.
///
/// KL divergence is sum over tokens of p * ln(p / q), p the reference's probabilities. Where only the likeliest tokens
/// of a distribution are known, all others count as one: what is computed is then a lower bound, and exact where both
/// lists hold the whole vocabulary.
class Divergence {
 public:
  /// One position: the likeliest tokens of each, most likely first, with ln of their probabilities.
  void add(const TokenLogprob& reference, const TokenLogprob& other);

  struct Summary {
    std::int64_t positions = 0;
    double mean = 0, percentile_99 = 0, max = 0;  // nats
    double top1_agreement = 0;                    // share of positions where both hold the same token the likeliest
    double reference_perplexity = 0, perplexity = 0;
  };
  /// Error where nothing was added.
  Summary summary() const;

 private:
  std::vector<double> divergences_;
  std::int64_t agreements_ = 0;
  double reference_loss_ = 0, loss_ = 0;  // sums of -ln of the probability of the token that came
};

/// KL divergence of one position.
double divergence_of(const TokenLogprob& reference, const TokenLogprob& other);

}  // namespace shoal
