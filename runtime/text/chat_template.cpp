#include "runtime/text/chat_template.h"

#include <fstream>
#include <initializer_list>
#include <iterator>
#include <utility>

#include "base/error.h"
#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/from_json.h"
#include "runtime/text/jinja/template.h"
#include "runtime/text/json_field.h"

namespace shoal {
namespace {

using text::JsonField;

/// The names that transformers gives to templates (SpecialTokensMixin.SPECIAL_TOKENS_ATTRIBUTES).
constexpr const char* kSpecialTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                          "pad_token", "cls_token", "mask_token"};

std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("{}: cannot be opened", path.string());
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) fail("{}: cannot be read", path.string());
  return text;
}

/// A token is text, or an object with the text as "content".
ChatTemplate::SpecialTokens special_tokens(const JsonField& config) {
  ChatTemplate::SpecialTokens out;
  for (const char* name : kSpecialTokens) {
    const auto field = config.find(name);
    if (!field) continue;
    out[name] = field->value().is_object() ? field->at("content").as_string() : field->as_string();
  }
  return out;
}

struct NamedTemplates {
  std::optional<std::string> standard, tool_use;
};

NamedTemplates named_templates(const JsonField& field) {
  NamedTemplates out;
  if (field.value().is_string()) {
    out.standard = field.as_string();
    return out;
  }
  for (const JsonField& entry : field.elements()) {
    const std::string& name = entry.at("name").as_string();
    if (name == "default") out.standard = entry.at("template").as_string();
    if (name == "tool_use") out.tool_use = entry.at("template").as_string();
  }
  if (!out.standard) field.reject("none of the templates is named \"default\"");
  return out;
}

std::shared_ptr<const jinja::Template> parse(const std::string& text, const std::string& place) {
  return std::make_shared<const jinja::Template>(text, place);
}

}  // namespace

ChatTemplate::ChatTemplate(const std::string& text, const std::string& place, SpecialTokens special_tokens)
    : template_(parse(text, place)), special_tokens_(std::move(special_tokens)) {}

std::optional<ChatTemplate> ChatTemplate::from_model_dir(const std::filesystem::path& folder) {
  const auto template_path = folder / "chat_template.jinja", config_path = folder / "tokenizer_config.json";
  const bool has_file = std::filesystem::exists(template_path);
  SpecialTokens tokens;
  NamedTemplates templates;
  if (std::filesystem::exists(config_path)) {
    const nlohmann::json json = text::read_json_file(config_path.string());
    const JsonField config(json, config_path.string());
    tokens = special_tokens(config);
    if (const auto field = has_file ? std::nullopt : config.find("chat_template")) templates = named_templates(*field);
  }
  if (has_file) return ChatTemplate(read_text(template_path), template_path.string(), std::move(tokens));
  if (!templates.standard) return std::nullopt;
  const std::string place = config_path.string() + ": chat_template";
  ChatTemplate out(*templates.standard, place, std::move(tokens));
  if (templates.tool_use) out.tool_use_ = parse(*templates.tool_use, place + " \"tool_use\"");
  return out;
}

std::string ChatTemplate::render(const Json& messages, const Json* tools, bool add_generation_prompt,
                                 const Json* extra) const {
  const bool has_tools = tools && !tools->is_null();
  const jinja::Template& chosen = has_tools && tool_use_ ? *tool_use_ : *template_;
  size_t bytes = 0;
  std::map<std::string, jinja::Value> variables;
  try {
    for (const auto& [name, text] : special_tokens_) variables[name] = text;
    variables["tools"] = has_tools ? jinja::from_json(*tools, bytes) : jinja::Value(jinja::None{});
    variables["documents"] = jinja::None{};
    variables["add_generation_prompt"] = add_generation_prompt;
    if (extra && extra->is_object())
      for (const auto& [name, value] : extra->items()) variables[name] = jinja::from_json(value, bytes);
    variables["messages"] = jinja::from_json(messages, bytes);
  } catch (const jinja::Fault& e) {
    throw Error(e.what());
  }
  return chosen.render(variables, bytes);
}

}  // namespace shoal
