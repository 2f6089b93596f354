#include "launch/divergence.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "base/error.h"

namespace shoal {

double divergence_of(const TokenLogprob& reference, const TokenLogprob& other) {
  std::unordered_map<std::int32_t, double> known;
  for (const auto& [token, logprob] : other.top) known.emplace(token, double{logprob});
  // All that one of the lists lacks counts as one token: no merging of tokens can make a divergence larger.
  double sum = 0, p_common = 0, q_common = 0;
  for (const auto& [token, logprob] : reference.top) {
    const auto it = known.find(token);
    if (it == known.end()) continue;
    const double ln_p = double{logprob};
    sum += std::exp(ln_p) * (ln_p - it->second);
    p_common += std::exp(ln_p);
    q_common += std::exp(it->second);
  }
  // Below this, what is left is rounding.
  constexpr double nothing = 1e-5;
  const double p_rest = 1 - p_common, q_rest = std::max(1 - q_common, nothing);
  if (p_rest > nothing) sum += p_rest * std::log(p_rest / q_rest);
  return std::max(sum, 0.0);
}

void Divergence::add(const TokenLogprob& reference, const TokenLogprob& other) {
  if (reference.top.empty() || other.top.empty()) fail("a position without alternatives cannot be compared");
  divergences_.push_back(divergence_of(reference, other));
  agreements_ += reference.top.front().first == other.top.front().first;
  reference_loss_ -= double{reference.logprob};
  loss_ -= double{other.logprob};
}

Divergence::Summary Divergence::summary() const {
  if (divergences_.empty()) fail("there are no positions to compare");
  std::vector<double> sorted = divergences_;
  std::sort(sorted.begin(), sorted.end());
  Summary s;
  s.positions = static_cast<std::int64_t>(sorted.size());
  const double n = static_cast<double>(sorted.size());
  for (const double d : sorted) s.mean += d / n;
  s.percentile_99 = sorted[std::min(sorted.size() - 1, static_cast<std::size_t>(0.99 * n))];
  s.max = sorted.back();
  s.top1_agreement = static_cast<double>(agreements_) / n;
  s.reference_perplexity = std::exp(reference_loss_ / n);
  s.perplexity = std::exp(loss_ / n);
  return s;
}

}  // namespace shoal
