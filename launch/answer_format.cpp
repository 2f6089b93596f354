#include "launch/answer_format.h"

#include <fmt/format.h>

#include <vector>

#include "base/error.h"
#include "launch/api_error.h"
#include "launch/bounded_json.h"
#include "runtime/grammar/automaton.h"
#include "runtime/grammar/gbnf_text.h"
#include "runtime/grammar/json_schema.h"

namespace shoal {
namespace {

using Json = RequestFields::Json;

const std::string& text_of(const Json& value, const std::string& field) {
  if (!value.is_string()) throw bad_field(field, fmt::format("'{}' must be a string", field));
  return value.get_ref<const std::string&>();
}

std::string of_schema(const Json& value, const std::string& field) {
  if (!value.is_string()) return grammar::gbnf_of_json_schema(value);
  try {
    return grammar::gbnf_of_json_schema(parse_bounded_json(value.get_ref<const std::string&>()));
  } catch (const Json::exception& error) {
    throw bad_field(field, fmt::format("'{}' is not valid JSON: {}", field, error.what()));
  }
}

std::string of_choice(const Json& value, const std::string& field) {
  if (!value.is_array() || value.empty()) throw bad_field(field, fmt::format("'{}' must be a list of texts", field));
  std::string gbnf = "root ::= ";
  for (const Json& option : value) {
    if (gbnf.size() > grammar::max_gbnf_bytes) break;  // and is refused
    if (gbnf.back() == '"') gbnf += " | ";
    gbnf += grammar::gbnf_literal(text_of(option, field));
  }
  return gbnf;
}

std::string of_response_format(const Json& format) {
  const std::string field = "response_format";
  if (!format.is_object() || !format.contains("type")) {
    throw bad_field(field, "'response_format' must be an object with a 'type'");
  }
  const Json& type = format["type"];
  if (type == "text") return {};
  if (type == "json_object") return grammar::gbnf_of_any_object();
  if (type != "json_schema") {
    throw bad_field(
        field, fmt::format("'response_format.type' is {}; it must be text, json_object or json_schema", to_text(type)));
  }
  const Json* schema = nullptr;
  if (format.contains("json_schema") && format["json_schema"].is_object()) {
    const Json& inner = format["json_schema"];
    schema = inner.contains("schema") ? &inner["schema"] : nullptr;
  } else if (format.contains("schema")) {
    schema = &format["schema"];  // llama.cpp's spelling
  }
  if (!schema) throw bad_field(field, "'response_format.json_schema.schema' is required");
  return grammar::gbnf_of_json_schema(*schema);
}

/// vLLM's kinds of form, by the name that `structured_outputs` has for them.
std::string of_kind(const std::string& kind, const Json& value, const std::string& field) {
  if (kind == "json") return of_schema(value, field);
  if (kind == "regex") return "root ::= " + grammar::gbnf_of_regex(text_of(value, field), grammar::Quoting::none, true);
  if (kind == "choice") return of_choice(value, field);
  if (kind == "grammar") return text_of(value, field);
  if (kind == "json_object") return value == Json(true) ? grammar::gbnf_of_any_object() : std::string();
  throw bad_field(field, fmt::format("'{}.{}' is not supported", field, kind));
}

}  // namespace

std::string read_answer_format(RequestFields& fields) {
  std::string gbnf, chosen;
  const auto read = [&](const std::string& field, const auto& convert) {
    const Json* value = fields.find(field);
    if (!value) return;
    try {
      std::string found = convert(*value);
      if (found.empty()) return;
      if (!chosen.empty()) throw bad_field(field, fmt::format("'{}' and '{}' cannot both be given", chosen, field));
      grammar::check_grammar(found);  // so that what is wrong with it is said here
      gbnf = std::move(found);
      chosen = field;
    } catch (const Error& error) {
      throw bad_field(field, error.what());
    }
  };
  read("response_format", of_response_format);
  read("grammar", [](const Json& value) { return text_of(value, "grammar"); });
  read("json_schema", [](const Json& value) { return of_schema(value, "json_schema"); });
  for (const char* kind : {"json", "regex", "choice", "grammar"}) {
    const std::string field = fmt::format("guided_{}", kind);
    read(field, [&](const Json& value) { return of_kind(kind, value, field); });
  }
  read("structured_outputs", [](const Json& value) {
    const std::string field = "structured_outputs";
    if (!value.is_object() || value.size() != 1)
      throw bad_field(field, "'structured_outputs' must have one kind of form");
    return of_kind(value.items().begin().key(), *value.begin(), field);
  });
  return gbnf;
}

}  // namespace shoal
