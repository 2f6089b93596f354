#include "launch/sampling_defaults.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "planner/json_fields.h"
#include "runtime/gguf.h"

namespace shoal {

namespace {

/// Where a field stands in generation_config.json and in GGUF metadata.
struct Key {
  const char *folder, *gguf;
};
constexpr Key kTemperature{"temperature", "general.sampling.temp"};
constexpr Key kTopP{"top_p", "general.sampling.top_p"};
constexpr Key kMinP{"min_p", "general.sampling.min_p"};
constexpr Key kTopK{"top_k", "general.sampling.top_k"};
constexpr Key kRepetitionPenalty{"repetition_penalty", "general.sampling.penalty_repeat"};

SamplingDefaults read_fields(const nlohmann::json& document, const std::string& place, const char* Key::*spelling,
                             const SamplingDefaults& otherwise) {
  SamplingDefaults result;
  const JsonFields fields(document, place);
  const auto read = [&](Key key, float low, float high, float& value) {
    const auto given = fields.number(key.*spelling);
    if (!given) return;
    if (!(*given >= low && *given <= high))
      fields.reject(key.*spelling, fmt::format("must be from {} to {}", low, high));
    value = *given;
  };
  read(kTemperature, 0, 2, result.temperature);
  read(kTopP, 0, 1, result.top_p);
  read(kMinP, 0, 1, result.min_p);
  read(kRepetitionPenalty, 0.01f, 100, result.repetition_penalty);
  result.top_k = std::max(0, fields.integer_or(kTopK.*spelling, 0, -1, INT32_MAX));
  const Key keys[] = {kTemperature, kTopP, kMinP, kTopK, kRepetitionPenalty};
  const bool said = std::any_of(std::begin(keys), std::end(keys), [&](Key key) { return fields.has(key.*spelling); });
  return said ? result : otherwise;
}

}  // namespace

SamplingDefaults SamplingDefaults::of_model(const std::filesystem::path& model, const SamplingDefaults& otherwise) {
  if (is_gguf(model)) {
    const Gguf gguf = Gguf::open(model);
    return read_fields(gguf.metadata, gguf.place(), &Key::gguf, otherwise);
  }
  std::error_code ignored;
  const auto file = model / "generation_config.json";
  if (!std::filesystem::exists(file, ignored)) return otherwise;
  return read_fields(read_json_file(file), file.string(), &Key::folder, otherwise);
}

void SamplingDefaults::describe(GgufHeaderWriter& header) const {
  const SamplingDefaults openai;
  if (temperature != openai.temperature) header.add(kTemperature.gguf, temperature);
  if (top_p != openai.top_p) header.add(kTopP.gguf, top_p);
  if (min_p != openai.min_p) header.add(kMinP.gguf, min_p);
  if (top_k != openai.top_k) header.add(kTopK.gguf, static_cast<std::uint32_t>(top_k));
  if (repetition_penalty != openai.repetition_penalty) header.add(kRepetitionPenalty.gguf, repetition_penalty);
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
