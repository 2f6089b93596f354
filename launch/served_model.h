#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/sampling_defaults.h"
#include "runtime/text/tokenizer.h"

namespace shoal {

struct Engine;

/// What of a model the command line and the API need to put questions to it.
struct ServedModel {
  using Json = nlohmann::ordered_json;

  std::vector<std::string> names;  // by which requests may call it; the first is its name in answers
  std::string family;              // as config.json calls it: deepseek_v3
  int vocab_size = 0;
  int max_model_len = 0;  // tokens, prompt and answer together
  SamplingDefaults sampling;
  std::vector<std::int32_t> eos_token_ids;
  std::shared_ptr<const Tokenizer> tokenizer;  // null: token ids only
  /// A conversation (OpenAI's messages) as a prompt that ends where the model is to answer; `tools` (may be null) are
  /// those it may call, `extra` further variables of the template. Throws Error when the template refuses. Empty
  /// function: the model has no chat template.
  std::function<std::string(const Json& messages, const Json* tools, const Json& extra)> render_chat;
};

/// `engine` must live as long as the result.
ServedModel served_model(const Engine& engine);

/// A conversation as a prompt, for the command line: its user may know, as clients of the API may not, that it is the
/// template of the model at `path` that fails.
std::string prompt_of_chat(const ServedModel& model, const ServedModel::Json& messages,
                           const std::filesystem::path& path);

/// Whether a rendered prompt leaves the model in the middle of thinking: R1's template ends with <think>.
bool ends_in_reasoning(std::string_view prompt);

}  // namespace shoal
