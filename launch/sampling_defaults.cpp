#include "launch/sampling_defaults.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "planner/json_fields.h"

namespace shoal {

SamplingDefaults SamplingDefaults::of_model(const std::filesystem::path& folder) {
  SamplingDefaults result;
  std::error_code ignored;
  const auto file = folder / "generation_config.json";
  if (!std::filesystem::exists(file, ignored)) return result;
  const auto document = read_json_file(file);
  const JsonFields fields(document, file.string());
  const auto read = [&](const char* key, float low, float high, float& value) {
    const auto given = fields.number(key);
    if (!given) return;
    if (!(*given >= low && *given <= high)) fields.reject(key, fmt::format("must be from {} to {}", low, high));
    value = *given;
  };
  read("temperature", 0, 2, result.temperature);
  read("top_p", 0, 1, result.top_p);
  read("min_p", 0, 1, result.min_p);
  read("repetition_penalty", 0.01f, 100, result.repetition_penalty);
  result.top_k = std::max(0, fields.integer_or("top_k", 0, -1, INT32_MAX));
  return result;
}

std::string SamplingDefaults::describe() const {
  const SamplingDefaults openai;
  std::vector<std::string> parts;
  if (temperature != openai.temperature) parts.push_back(fmt::format("temperature {}", temperature));
  if (top_p != openai.top_p) parts.push_back(fmt::format("top_p {}", top_p));
  if (top_k != openai.top_k) parts.push_back(fmt::format("top_k {}", top_k));
  if (min_p != openai.min_p) parts.push_back(fmt::format("min_p {}", min_p));
  if (repetition_penalty != openai.repetition_penalty)
    parts.push_back(fmt::format("repetition_penalty {}", repetition_penalty));
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace shoal
