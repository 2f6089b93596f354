#include "launch/tool_calls.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "launch/api_error.h"
#include "launch/bounded_json.h"
#include "runtime/grammar/gbnf_text.h"
#include "runtime/grammar/json_schema.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view calls_begin = "<｜tool▁calls▁begin｜>", calls_end = "<｜tool▁calls▁end｜>",
                           call_begin = "<｜tool▁call▁begin｜>", call_end = "<｜tool▁call▁end｜>",
                           separator = "<｜tool▁sep｜>", hermes_begin = "<tool_call>", hermes_end = "</tool_call>";
constexpr std::string_view blanks = " \t\r\n";

std::string_view trimmed(std::string_view text) {
  const auto begin = text.find_first_not_of(blanks);
  return begin == text.npos ? std::string_view() : text.substr(begin, text.find_last_not_of(blanks) + 1 - begin);
}

bool is_name(const Json& name) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '.';
  };
  if (!name.is_string()) return false;
  const auto& text = name.get_ref<const std::string&>();
  return !text.empty() && text.size() <= 128 && std::all_of(text.begin(), text.end(), plain);
}

bool has_parameters(const Json& function) {
  return function.contains("parameters") && !function["parameters"].is_null();
}

Json read_tool_list(const Json& list) {
  if (!list.is_array()) throw bad_field("tools", "'tools' must be a list");
  for (std::size_t i = 0; i < list.size(); ++i) {
    const Json& tool = list[i];
    const std::string place = fmt::format("tools[{}]", i);
    if (!tool.is_object() || tool.value("type", Json("function")) != "function" || !tool.contains("function") ||
        !tool["function"].is_object()) {
      throw bad_field("tools", fmt::format("'{}' must be of type 'function' and have a 'function'", place));
    }
    const Json& function = tool["function"];
    if (!function.contains("name") || !is_name(function["name"])) {
      throw bad_field("tools", fmt::format("'{}.function.name' must be of letters, digits, '_', '-' and '.'", place));
    }
    if (has_parameters(function) && !function["parameters"].is_object()) {
      throw bad_field("tools", fmt::format("'{}.function.parameters' must be a JSON schema", place));
    }
  }
  return list;
}

Json parameters_of(const Json& tool) {
  const Json& function = tool["function"];
  return has_parameters(function) ? function["parameters"] : Json{{"type", "object"}};
}

std::string name_of(const Json& tool) { return tool["function"]["name"].get<std::string>(); }

/// Where `marker` begins in `text`, or where its beginning may be at the end of it; npos if nowhere.
std::size_t find_or_begin(std::string_view text, std::string_view marker) {
  const auto whole = text.find(marker);
  if (whole != text.npos) return whole;
  for (std::size_t n = std::min(text.size(), marker.size() - 1); n > 0; --n) {
    if (text.substr(text.size() - n) == marker.substr(0, n)) return text.size() - n;
  }
  return text.npos;
}

}  // namespace

ToolSyntax tool_syntax(const Tokenizer& tokenizer) {
  return tokenizer.token_to_id(calls_begin) ? ToolSyntax::deepseek : ToolSyntax::hermes;
}

ToolFields read_tools(RequestFields& fields) {
  ToolFields result;
  if (const Json* list = fields.find("tools")) result.tools = read_tool_list(*list);
  result.one_call = !fields.boolean("parallel_tool_calls").value_or(true);
  const Json* choice = fields.find("tool_choice");
  if (!choice || *choice == "auto") return result;
  if (*choice == "none") {
    result.tools = Json::array();
    return result;
  }
  if (result.tools.empty()) throw bad_field("tool_choice", "'tool_choice' needs 'tools' to choose from");
  result.must_call = true;
  if (*choice == "required") return result;
  const bool named = choice->is_object() && choice->value("type", Json()) == "function" &&
                     choice->contains("function") && (*choice)["function"].is_object() &&
                     (*choice)["function"].contains("name");
  if (!named) throw bad_field("tool_choice", "'tool_choice' must be none, auto, required, or name a function");
  const Json& name = (*choice)["function"]["name"];
  const auto found = std::find_if(result.tools.begin(), result.tools.end(),
                                  [&](const Json& tool) { return tool["function"]["name"] == name; });
  if (found == result.tools.end()) {
    throw bad_field("tool_choice", fmt::format("'tool_choice' names {}, which is none of 'tools'", to_text(name)));
  }
  const Json only = *found;
  result.tools = Json::array({only});
  result.one_call = true;
  return result;
}

std::string tool_call_grammar(const ToolFields& fields, ToolSyntax syntax) {
  const auto literal = [](std::string_view text) { return grammar::gbnf_literal(text); };
  std::string calls, rules;
  for (std::size_t i = 0; i < fields.tools.size(); ++i) {
    const std::string name = name_of(fields.tools[i]), arguments = fmt::format("arguments{}", i);
    rules += grammar::json_schema_rules(parameters_of(fields.tools[i]), arguments);
    if (rules.size() + calls.size() > grammar::max_gbnf_bytes)
      fail("all tools together make a grammar of more than {} bytes", grammar::max_gbnf_bytes);
    if (i) calls += " | ";
    if (syntax == ToolSyntax::deepseek) {
      calls += literal(fmt::format("{}function{}{}\n```json\n", call_begin, separator, name)) + " " + arguments + " " +
               literal(fmt::format("\n```{}", call_end));
    } else {
      calls += literal(fmt::format("{}\n{{\"name\": \"{}\", \"arguments\": ", hermes_begin, name)) + " " + arguments +
               " " + literal(fmt::format("}}\n{}", hermes_end));
    }
  }
  const std::string all = fields.one_call ? "call" : "call (\"\\n\" call)*";
  const std::string root =
      syntax == ToolSyntax::deepseek ? literal(calls_begin) + " " + all + " " + literal(calls_end) : all;
  return "root ::= " + root + "\ncall ::= " + calls + "\n" + rules + grammar::common_json_rules();
}

std::string tool_instructions(const ToolFields& fields, ToolSyntax syntax) {
  std::string text = "# Tools\n\nThese functions can be called. Each comes with the JSON schema of its arguments.\n";
  for (const Json& tool : fields.tools) {
    const Json& function = tool["function"];
    text += fmt::format("\n## {}\n", name_of(tool));
    if (function.contains("description") && function["description"].is_string()) {
      text += function["description"].get<std::string>() + "\n";
    }
    text += to_text(parameters_of(tool)) + "\n";
  }
  text += "\nTo call functions, answer with nothing but\n";
  if (syntax == ToolSyntax::deepseek) {
    text += fmt::format("{}{}function{}NAME\n```json\nARGUMENTS\n```{}{}", calls_begin, call_begin, separator, call_end,
                        calls_end);
  } else {
    text += fmt::format("{}\n{{\"name\": NAME, \"arguments\": ARGUMENTS}}\n{}", hermes_begin, hermes_end);
  }
  return text;
}

ToolCallFinder::Piece ToolCallFinder::push(std::string_view text) {
  Piece piece;
  held_ += text;
  advance(piece, false);
  return piece;
}

ToolCallFinder::Piece ToolCallFinder::finish() {
  Piece piece;
  advance(piece, true);
  return piece;
}

void ToolCallFinder::advance(Piece& piece, bool last) {
  const std::string_view begin = syntax_ == ToolSyntax::deepseek ? call_begin : hermes_begin;
  const std::string_view end = syntax_ == ToolSyntax::deepseek ? call_end : hermes_end;
  const auto give = [&](std::string_view text) {
    // What stands around a model's list of calls is no text of its own.
    std::string plain(text);
    for (const std::string_view mark : {calls_begin, calls_end}) {
      if (const auto at = plain.find(mark); syntax_ == ToolSyntax::deepseek && at != plain.npos) {
        plain.erase(at, mark.size());
        called_ |= mark == calls_begin;
      }
    }
    if (called_ && trimmed(plain).empty()) return;
    piece.content += plain;
  };
  for (;;) {
    // Text goes out up to where any mark may begin.
    std::size_t sure = find_or_begin(held_, begin);
    if (syntax_ == ToolSyntax::deepseek) {
      for (const std::string_view mark : {calls_begin, calls_end}) {
        const std::size_t at = find_or_begin(held_, mark);
        const bool whole = at != held_.npos && held_.compare(at, mark.size(), mark) == 0;
        if (!whole) sure = std::min(sure, at);
      }
    }
    const bool opens = sure != held_.npos && held_.compare(sure, begin.size(), begin) == 0;
    if (!opens) {
      const std::size_t count = last ? held_.size() : std::min(sure, held_.size());
      give(std::string_view(held_).substr(0, count));
      held_.erase(0, count);
      return;
    }
    give(std::string_view(held_).substr(0, sure));
    held_.erase(0, sure);
    const std::size_t closes = held_.find(end);
    if (closes == held_.npos) {
      if (last) piece.content += std::exchange(held_, {});
      return;
    }
    ToolCall call;
    if (parse_call(std::string_view(held_).substr(begin.size(), closes - begin.size()), call)) {
      piece.calls.push_back(std::move(call));
      called_ = true;
    } else {
      piece.content += held_.substr(0, closes + end.size());
    }
    held_.erase(0, closes + end.size());
  }
}

bool ToolCallFinder::parse_call(std::string_view body, ToolCall& call) const {
  if (syntax_ == ToolSyntax::hermes) {
    Json json;
    try {
      json = parse_bounded_json(body);
    } catch (const std::exception&) {  // no call, or none that anyone would want
      return false;
    }
    if (!json.is_object() || !json.contains("name") || !json["name"].is_string()) return false;
    call.name = json["name"].get<std::string>();
    const Json arguments = json.value("arguments", json.value("parameters", Json::object()));
    call.arguments = arguments.is_string() ? arguments.get<std::string>() : to_text(arguments);
    return true;
  }
  const auto middle = body.find(separator);
  if (middle == body.npos) return false;
  std::string_view kind = trimmed(body.substr(0, middle)), rest = body.substr(middle + separator.size());
  if (kind == "function") {  // R1, V3: the name is on a line of its own, the arguments between fences
    const auto line = rest.find('\n');
    call.name = trimmed(rest.substr(0, line));
    rest = line == rest.npos ? std::string_view() : rest.substr(line);
  } else {
    call.name = kind;
  }
  rest = trimmed(rest);
  if (rest.starts_with("```")) {
    const auto line = rest.find('\n');
    rest = line == rest.npos ? std::string_view() : rest.substr(line);
    rest = trimmed(rest);
    if (rest.ends_with("```")) rest = trimmed(rest.substr(0, rest.size() - 3));
  }
  call.arguments = rest;
  return !call.name.empty();
}

}  // namespace shoal
