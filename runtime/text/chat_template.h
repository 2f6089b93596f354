#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace shoal {

namespace jinja {
class Template;
}

/// A model's own way of writing a conversation as one prompt: a Jinja template, rendered as transformers'
/// apply_chat_template does (utils/chat_template_utils.py there). A template is a program that came with a model from
/// anywhere; runtime/text/jinja runs it without any access to this machine and within bounded time and memory.
class ChatTemplate {
 public:
  using Json = nlohmann::ordered_json;
  /// bos_token, eos_token, ... and the text of each.
  using SpecialTokens = std::map<std::string, std::string>;

  /// `text` is the template; `place` names where it came from, for messages ("model/chat_template.jinja"). Throws Error
  /// with place and line where it does not parse.
  ChatTemplate(const std::string& text, const std::string& place, SpecialTokens special_tokens);

  /// The template of a Hugging Face folder: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`
  /// (text, or a list of named templates: "default", and "tool_use" where tools are given). None where there is
  /// neither. Throws Error naming file and line where a file is not as it should be.
  static std::optional<ChatTemplate> from_model_dir(const std::filesystem::path& folder);

  /// The prompt for `messages` (an array of objects). `tools` (an array; may be null) and `extra` (an object of further
  /// template variables, which win over special tokens; may be null) are the request's. Throws Error: with the
  /// template's own words where it calls raise_exception, else with the line. May be called from several threads at
  /// once.
  std::string render(const Json& messages, const Json* tools, bool add_generation_prompt,
                     const Json* extra = nullptr) const;

 private:
  std::shared_ptr<const jinja::Template> template_;
  std::shared_ptr<const jinja::Template> tool_use_;  // null: the same as without tools
  SpecialTokens special_tokens_;
};

}  // namespace shoal
