#include "kernels/cpu/router.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace shoal::cpu {
namespace {

constexpr float kExcluded = -std::numeric_limits<float>::infinity();

/// Marks the `keep` largest values; ties go to the lower index, and NaN (of a broken model) counts as the largest, so
/// that it shows instead of hiding.
void mark_largest(const std::vector<float>& value, int keep, std::vector<char>& marked) {
  marked.assign(value.size(), 0);
  for (int k = 0; k < keep; ++k) {
    std::size_t best = value.size();
    for (std::size_t i = 0; i < value.size(); ++i) {
      if (marked[i]) continue;
      const bool better =
          best == value.size() || value[i] > value[best] || (std::isnan(value[i]) && !std::isnan(value[best]));
      if (better) best = i;
    }
    if (best == value.size()) return;
    marked[best] = 1;
  }
}

void sigmoid(std::span<const float> logits, std::vector<float>& score) {
  for (std::size_t i = 0; i < logits.size(); ++i) score[i] = 1.0f / (1.0f + std::exp(-logits[i]));
}

void softmax(std::span<const float> logits, std::vector<float>& score) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  float sum = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) sum += score[i] = std::exp(logits[i] - largest);
  for (float& s : score) s /= sum;
}

float score_of_group(std::span<const float> choice, GroupScore rule) {
  float best = kExcluded, second = kExcluded;
  for (const float c : choice) {
    if (c > best || std::isnan(c)) {
      second = best;
      best = c;
    } else {
      second = std::max(second, c);
    }
  }
  if (rule == GroupScore::best || choice.size() < 2) return best;
  return best + second;
}

}  // namespace

void Router::route(const float* logits, std::span<const float> bias, const RouterShape& shape, std::int32_t* expert,
                   float* weight) {
  const auto n = static_cast<std::size_t>(shape.n_experts);
  score_.resize(n);
  if (shape.scoring == Scoring::sigmoid) {
    sigmoid({logits, n}, score_);
  } else {
    softmax({logits, n}, score_);
  }
  choice_ = score_;
  for (std::size_t i = 0; i < bias.size(); ++i) choice_[i] += bias[i];

  if (shape.group_score != GroupScore::none && shape.n_group > 1) {
    const std::size_t size = n / static_cast<std::size_t>(shape.n_group);
    group_.resize(static_cast<std::size_t>(shape.n_group));
    for (std::size_t g = 0; g < group_.size(); ++g) {
      group_[g] = score_of_group(std::span<const float>(choice_).subspan(g * size, size), shape.group_score);
    }
    mark_largest(group_, shape.topk_group, kept_);
    for (std::size_t i = 0; i < size * group_.size(); ++i) {
      if (!kept_[i / size]) choice_[i] = kExcluded;
    }
  }

  mark_largest(choice_, shape.top_k, kept_);
  int chosen = 0;
  float sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (!kept_[i]) continue;
    expert[chosen] = static_cast<std::int32_t>(i);
    weight[chosen] = score_[i];
    sum += score_[i];
    ++chosen;
  }
  for (int k = 0; k < chosen; ++k) {
    if (shape.norm_topk_prob) weight[k] /= sum + 1e-20f;
    weight[k] *= shape.routed_scaling_factor;
  }
}

}  // namespace shoal::cpu
