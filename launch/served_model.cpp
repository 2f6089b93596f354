#include "launch/served_model.h"

#include <fmt/format.h>

#include "base/error.h"
#include "runtime/job.h"

namespace shoal {

ServedModel served_model(const Engine& engine) {
  ServedModel model;
  model.names = {engine.model_name};
  model.family = engine.config.model_type;
  model.vocab_size = engine.config.vocab_size;
  model.max_model_len = engine.max_model_len;
  model.eos_token_ids.assign(engine.config.eos_token_ids.begin(), engine.config.eos_token_ids.end());
  model.tokenizer = engine.tokenizer;
  if (engine.tokenizer && engine.chat_template) {
    model.render_chat = [&engine](const ServedModel::Json& messages, const ServedModel::Json* tools,
                                  const ServedModel::Json& extra) {
      return engine.chat_template->render(messages, tools, true, &extra);
    };
  }
  return model;
}

std::string prompt_of_chat(const ServedModel& model, const ServedModel::Json& messages,
                           const std::filesystem::path& path) {
  try {
    return model.render_chat(messages, nullptr, ServedModel::Json::object());
  } catch (const Error& error) {
    throw Error(fmt::format("{}: its chat template: {}", path.string(), error.what()), error.exit_code);
  }
}

bool ends_in_reasoning(std::string_view prompt) {
  const auto last = prompt.find_last_not_of(" \t\r\n");
  return last != prompt.npos && prompt.substr(0, last + 1).ends_with("<think>");
}

}  // namespace shoal
