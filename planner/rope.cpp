// Rotary frequencies and the softmax scale. The arithmetic follows transformers (modeling_rope_utils.py,
// models/deepseek_v3, models/deepseek_v2) in order and precision: what Python computes as a float is double here, what
// torch computes as a float32 tensor is float. attn_factor, which it does not know, is vLLM's and llama.cpp's.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "planner/model_config.h"

namespace shoal {
namespace {

/// YaRN's growth of the attention temperature with the context (arXiv 2309.00071, section 3.4).
double yarn_mscale(double factor, double mscale = 1) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

/// The dimension whose wavelength turns `rotations` times within the original context.
double correction_dim(double rotations, int dim, double theta, double context) {
  return dim * std::log(context / (rotations * 2 * std::numbers::pi)) / (2 * std::log(theta));
}

/// Fast dimensions keep their frequency, slow ones are stretched by the factor, and those between are blended.
void apply_yarn(RopeFrequencies& rope, const RopeScaling& s, int dim, float theta) {
  double low = correction_dim(double{s.beta_fast}, dim, double{theta}, s.original_max_position_embeddings);
  double high = correction_dim(double{s.beta_slow}, dim, double{theta}, s.original_max_position_embeddings);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;  // no division by zero

  for (std::size_t i = 0; i < rope.inv_freq.size(); ++i) {
    const float pos_freq = std::pow(theta, static_cast<float>(2 * i) / static_cast<float>(dim));
    const float ramp = (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float extrapolation = 1.0f - std::clamp(ramp, 0.0f, 1.0f);
    rope.inv_freq[i] = 1.0f / (s.factor * pos_freq) * (1.0f - extrapolation) + 1.0f / pos_freq * extrapolation;
  }

  if (s.attention_factor) {
    rope.magnitude = *s.attention_factor;
    return;
  }
  double magnitude = yarn_mscale(double{s.factor});
  if (s.mscale.value_or(0) != 0 && s.mscale_all_dim.value_or(0) != 0)
    magnitude =
        yarn_mscale(double{s.factor}, double{*s.mscale}) / yarn_mscale(double{s.factor}, double{*s.mscale_all_dim});
  rope.magnitude = static_cast<float>(magnitude * double{s.attn_factor});
}

/// Wavelengths beyond the original context are stretched by the factor, short ones kept, and those between are blended.
void apply_llama3(RopeFrequencies& rope, const RopeScaling& s) {
  const auto context = static_cast<float>(s.original_max_position_embeddings);
  const float low_freq_wavelength = context / s.low_freq_factor, high_freq_wavelength = context / s.high_freq_factor;
  for (float& inv_freq : rope.inv_freq) {
    const float wavelength = 2 * std::numbers::pi_v<float> / inv_freq;
    if (wavelength < high_freq_wavelength) continue;
    if (wavelength > low_freq_wavelength) {
      inv_freq /= s.factor;
    } else {
      const float smooth = (context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
      inv_freq = (1 - smooth) * inv_freq / s.factor + smooth * inv_freq;
    }
  }
}

}  // namespace

RopeFrequencies rope_frequencies(const ModelConfig& config) {
  const int dim = config.is_mla() ? config.qk_rope_head_dim : config.head_dim;
  RopeFrequencies rope;
  for (int i = 0; i < dim; i += 2) {
    rope.inv_freq.push_back(1.0f / std::pow(config.rope_theta, static_cast<float>(i) / static_cast<float>(dim)));
  }
  const RopeScaling& scaling = config.rope_scaling;
  switch (scaling.type) {
    case RopeScaling::Type::none:
      break;
    case RopeScaling::Type::linear:
      for (float& inv_freq : rope.inv_freq) inv_freq /= scaling.factor;
      break;
    case RopeScaling::Type::llama3:
      apply_llama3(rope, scaling);
      break;
    case RopeScaling::Type::yarn:
      apply_yarn(rope, scaling, dim, config.rope_theta);
      break;
    case RopeScaling::Type::factors:
      for (std::size_t i = 0; i < rope.inv_freq.size(); ++i) rope.inv_freq[i] /= scaling.factors[i];
      break;
  }
  return rope;
}

float attention_scale(const ModelConfig& config) {
  const double dim = config.is_mla() ? config.qk_head_dim() : config.head_dim;
  double scale = 1 / std::sqrt(dim);
  const RopeScaling& rope = config.rope_scaling;
  // transformers does this for MLA only, with any scaled rotation.
  if (config.is_mla() && rope.type != RopeScaling::Type::none && rope.mscale_all_dim.value_or(0) != 0) {
    const double mscale = yarn_mscale(double{rope.factor}, double{*rope.mscale_all_dim});
    scale *= mscale * mscale;
  }
  return static_cast<float>(scale);
}

}  // namespace shoal
