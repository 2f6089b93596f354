#pragma once
#include <filesystem>
#include <string>

#include "runtime/gguf_writer.h"

namespace shoal {

/// How a token is drawn where a request does not say: as OpenAI does, or as the model's authors recommend.
struct SamplingDefaults {
  float temperature = 1, top_p = 1, min_p = 0, repetition_penalty = 1;
  int top_k = 0;  // 0: all

  /// What the folder's generation_config.json says of these, or a GGUF file's general.sampling keys, which other
  /// servers heed too (R1's: 0.6 and 0.95); `otherwise` where they say nothing at all. Error for values that no request
  /// could have.
  static SamplingDefaults of_model(const std::filesystem::path& model, const SamplingDefaults& otherwise);
  /// The keys of a GGUF file for what differs from OpenAI's.
  void describe(GgufHeaderWriter& header) const;
  /// "temperature 0.6, top_p 0.95": what differs from OpenAI's; empty where nothing does.
  std::string describe() const;
};

}  // namespace shoal
