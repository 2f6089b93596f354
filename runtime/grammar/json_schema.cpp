#include "runtime/grammar/json_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "base/error.h"
#include "runtime/grammar/gbnf_text.h"
#include "runtime/grammar/integer_range.h"
#include "runtime/grammar/utf8_ranges.h"
#include "runtime/text/utf8.h"

namespace shoal::grammar {
namespace {

using Json = nlohmann::ordered_json;

// RFC 8259, with bounds: digits and white space must come to an end.
constexpr const char* json_rules = R"(
ws ::= (" " | "\n" [ \t]{0,20})?
value ::= object | array | string | number | boolean | null
object ::= "{" ws (string ws ":" ws value ws ("," ws string ws ":" ws value ws)*)? "}"
array ::= "[" ws (value ws ("," ws value ws)*)? "]"
string ::= "\"" char* "\""
char ::= [^\"\\\x00-\x1F] | "\\" ([\"\\/bfnrt] | "u" ([0-9a-cA-Ce-fE-F] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}))
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number ::= integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?
boolean ::= "true" | "false"
null ::= "null"
)";

constexpr const char* types[] = {"object", "array", "string", "number", "integer", "boolean", "null"};

// Assertions that no grammar of this size can express.
constexpr const char* not_expressible[] = {"multipleOf",
                                           "not",
                                           "if",
                                           "then",
                                           "else",
                                           "patternProperties",
                                           "propertyNames",
                                           "dependentSchemas",
                                           "dependentRequired",
                                           "dependencies",
                                           "contains",
                                           "minContains",
                                           "maxContains",
                                           "unevaluatedProperties",
                                           "unevaluatedItems",
                                           "minProperties",
                                           "maxProperties",
                                           "$dynamicRef",
                                           "$recursiveRef"};

const std::map<std::string, const char*> formats = {
    {"date", "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])$"},
    {"time", "^([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"},
    {"date-time",
     "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?"
     "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"},
    {"uuid", "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"},
    {"ipv4", "^((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])$"}};

bool has_type(const Json& value, const std::string& type) {
  if (type == "integer") return value.is_number_integer();
  if (type == "number") return value.is_number();
  return type == value.type_name();
}

/// Type → keywords that only speak of it.
const std::map<std::string, std::set<std::string>> keywords_of = {
    {"object", {"properties", "required", "additionalProperties"}},
    {"array", {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"}},
    {"string", {"minLength", "maxLength", "pattern", "format"}},
    {"number", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}}};

class SchemaWriter {
 public:
  SchemaWriter(const Json& root, std::string name) : root_(root), name_(std::move(name)) {}

  std::string write() {
    const std::string start = visit(root_, "#");
    return name_ + " ::= " + start + "\n" + rules_;
  }

 private:
  [[noreturn]] static void refuse(const std::string& place, const std::string& what) {
    fail("the JSON schema at {}: {}", place, what);
  }

  /// Adds a rule and returns its name.
  std::string rule(const std::string& body) {
    const std::string name = fmt::format("{}-{}", name_, ++rule_count_);
    rules_ += name + " ::= " + body + "\n";
    return name;
  }

  std::string visit(const Json& schema, const std::string& place) {
    if (schema.is_boolean()) {
      if (!schema.get<bool>()) refuse(place, "nothing satisfies it (false)");
      return "value";
    }
    if (!schema.is_object()) refuse(place, "a schema is an object or a boolean");
    for (const char* keyword : not_expressible) {
      if (schema.contains(keyword)) refuse(place, fmt::format("'{}' is not supported", keyword));
    }
    if (schema.contains("$ref")) return reference(schema, place);
    if (schema.contains("allOf")) return visit(merged(schema, place), place + "/allOf");
    for (const char* any : {"anyOf", "oneOf"}) {
      if (schema.contains(any)) return alternatives(schema, any, place);
    }
    if (schema.contains("enum") || schema.contains("const")) return constants(schema, place);
    return by_type(schema, place);
  }

  const Json& resolve(const Json& target, const std::string& place) const {
    if (!target.is_string()) refuse(place, "'$ref' must be a string");
    const std::string ref = target.get<std::string>();
    if (ref.empty() || ref[0] != '#')
      refuse(place, fmt::format("'$ref' to '{}': only references within the schema", ref));
    try {
      return root_.at(Json::json_pointer(ref.substr(1)));
    } catch (const Json::exception&) {
      refuse(place, fmt::format("there is no '{}'", ref));
    }
  }

  /// Keywords that assert something, beside `name`.
  static bool has_assertions_beside(const Json& schema, const std::string& name) {
    static const std::set<std::string> silent = {"$schema",    "$id",      "$comment",    "$defs",        "definitions",
                                                 "$anchor",    "title",    "description", "default",      "examples",
                                                 "deprecated", "readOnly", "writeOnly",   "discriminator"};
    return std::any_of(schema.items().begin(), schema.items().end(),
                       [&](const auto& item) { return item.key() != name && !silent.contains(item.key()); });
  }

  std::string reference(const Json& schema, const std::string& place) {
    const Json& target = resolve(schema["$ref"], place);
    if (has_assertions_beside(schema, "$ref")) {
      Json both = schema;
      both.erase("$ref");
      merge_into(both, target, place);
      if (both.contains("$ref")) refuse(place, "keywords beside a '$ref' to another '$ref' are not supported");
      return visit(both, place);
    }
    const std::string ref = schema["$ref"].get<std::string>();
    const auto [at, is_new] = references_.try_emplace(ref, "");
    if (is_new) {
      // Named before it is written: a schema may contain itself.
      at->second = fmt::format("{}-ref{}", name_, references_.size());
      const std::string name = at->second;
      const std::string body = visit(target, ref);
      rules_ += name + " ::= " + body + "\n";
      return name;
    }
    return at->second;
  }

  Json merged(const Json& schema, const std::string& place) {
    if (++merges_ > 1000) refuse(place, "'allOf' is nested too deep");
    Json all = schema;
    all.erase("allOf");
    if (!schema["allOf"].is_array()) refuse(place, "'allOf' must be a list");
    for (const Json& part : schema["allOf"]) merge_into(all, part, place);
    return all;
  }

  /// Both `into` and `part` shall hold.
  void merge_into(Json& into, const Json& part, const std::string& place) {
    if (++merges_ > 1000) refuse(place, "too many schemas to merge");
    if (part.is_boolean() && part.get<bool>()) return;
    if (!part.is_object()) refuse(place, "a part of 'allOf' is no schema that anything satisfies");
    if (part.contains("$ref") && part.size() == 1) return merge_into(into, resolve(part["$ref"], place), place);
    for (const auto& [key, value] : part.items()) {
      if (!into.contains(key)) {
        into[key] = value;
      } else if (key == "properties" && value.is_object() && into[key].is_object()) {
        for (const auto& [name, schema] : value.items()) {
          if (!into[key].contains(name)) {
            into[key][name] = schema;
          } else if (into[key][name] != schema) {
            refuse(place, fmt::format("'allOf' gives the property '{}' two schemas", name));
          }
        }
      } else if (key == "required" && value.is_array() && into[key].is_array()) {
        for (const Json& name : value) into[key].push_back(name);
      } else if (has_assertions_beside({{key, value}}, "") && into[key] != value) {
        refuse(place, fmt::format("'allOf' with several '{}' is not supported", key));
      }
    }
  }

  std::string alternatives(const Json& schema, const char* keyword, const std::string& place) {
    Json rest = schema;
    rest.erase(keyword);
    const bool plain = !has_assertions_beside(rest, "");
    const Json& options = schema[keyword];
    if (!options.is_array() || options.empty()) refuse(place, fmt::format("'{}' must be a list", keyword));
    std::string out;
    for (std::size_t i = 0; i < options.size(); ++i) {
      const std::string at = fmt::format("{}/{}/{}", place, keyword, i);
      Json option = options[i];
      if (!plain) {
        option = rest;
        merge_into(option, options[i], at);
      }
      out += (i ? " | " : "") + visit(option, at);
    }
    return rule(out);
  }

  std::string constants(const Json& schema, const std::string& place) {
    for (const auto& [type, keywords] : keywords_of) {
      for (const std::string& keyword : keywords) {
        if (schema.contains(keyword)) refuse(place, fmt::format("'{}' beside constants is not supported", keyword));
      }
    }
    std::vector<Json> values;
    if (schema.contains("const")) {
      values = {schema["const"]};
    } else if (schema["enum"].is_array()) {
      values = schema["enum"].get<std::vector<Json>>();
    }
    std::string out;
    for (const Json& value : values) {
      const auto wanted = types_of(schema, place);
      const auto fits = [&](const std::string& type) { return has_type(value, type); };
      if (schema.contains("type") && std::none_of(wanted.begin(), wanted.end(), fits)) continue;
      if (schema.contains("const") && schema.contains("enum") &&
          std::find(schema["enum"].begin(), schema["enum"].end(), value) == schema["enum"].end()) {
        continue;
      }
      out += (out.empty() ? "" : " | ") + gbnf_literal(value.dump(-1, ' ', false, Json::error_handler_t::replace));
    }
    if (out.empty()) refuse(place, "'enum' has no value that fits");
    return rule(out);
  }

  static std::vector<std::string> types_of(const Json& schema, const std::string& place) {
    std::vector<std::string> wanted;
    if (schema.contains("type")) {
      const Json& type = schema["type"];
      for (const Json& one : type.is_array() ? type : Json::array({type})) {
        const auto is_one = [&](const char* known) { return one == known; };
        if (std::none_of(std::begin(types), std::end(types), is_one)) {
          refuse(place, fmt::format("there is no type {}", one.dump()));
        }
        wanted.push_back(one.get<std::string>());
      }
      return wanted;
    }
    for (const auto& [type, keywords] : keywords_of) {
      const auto there = [&schema](const std::string& keyword) { return schema.contains(keyword); };
      if (std::any_of(keywords.begin(), keywords.end(), there)) wanted.push_back(type);
    }
    return wanted;
  }

  std::string by_type(const Json& schema, const std::string& place) {
    const auto wanted = types_of(schema, place);
    if (wanted.empty()) return "value";
    std::string out;
    for (const std::string& type : wanted) {
      std::string one = type;
      if (type == "object") one = object(schema, place);
      if (type == "array") one = array(schema, place);
      if (type == "string") one = string(schema, place);
      if (type == "integer" || type == "number") one = number(schema, type, place);
      out += (out.empty() ? "" : " | ") + one;
    }
    return wanted.size() == 1 ? out : rule(out);
  }

  std::string object(const Json& schema, const std::string& place) {
    Json properties = schema.value("properties", Json::object());
    const Json required = schema.value("required", Json::array());
    if (!properties.is_object()) refuse(place, "'properties' must be an object");
    if (!required.is_array()) refuse(place, "'required' must be a list");
    const Json additional = schema.value("additionalProperties", Json(properties.empty() && required.empty()));
    std::set<std::string> must;
    for (const Json& name : required) {
      if (!name.is_string()) refuse(place, "'required' must be a list of names");
      must.insert(name.get<std::string>());
      if (!properties.contains(name.get<std::string>())) properties[name.get<std::string>()] = additional;
    }
    if (properties.empty() && additional == Json(true)) return "object";

    std::vector<std::string> members;
    std::vector<bool> optional;
    std::vector<std::string> names;
    for (const auto& [name, value] : properties.items()) {
      names.push_back(name);
      optional.push_back(!must.contains(name));
      const std::string key = Json(name).dump(-1, ' ', false, Json::error_handler_t::replace);
      members.push_back(gbnf_literal(key) + " ws \":\" ws " + visit(value, place + "/properties/" + name) + " ws");
    }
    std::string more, first_more = "\"\"";  // others, behind a declared one and without any
    if (additional != Json(false)) {
      const std::string member =
          rule(other_names(names) + " ws \":\" ws " + visit(additional, place + "/additionalProperties") + " ws");
      more = fmt::format("(\",\" ws {})*", member);
      first_more = fmt::format("({} {})?", member, more);
    }
    // tail: the members from i on, with one in front of them already. start: the same without.
    std::string tail = more.empty() ? "\"\"" : more, start = first_more;
    for (std::size_t i = members.size(); i-- > 0;) {
      const std::string member = rule(members[i]), behind = rule(tail);
      start = optional[i] ? fmt::format("{} {} | {}", member, behind, rule(start)) : member + " " + behind;
      tail = optional[i] ? fmt::format("(\",\" ws {})? {}", member, behind)
                         : fmt::format("\",\" ws {} {}", member, behind);
    }
    return rule("\"{\" ws (" + start + ") \"}\"");
  }

  /// Strings that are none of these names. Escapes are left out, since a name can be written in many ways with them.
  std::string other_names(const std::vector<std::string>& names) {
    return "\"\\\"\" " + other_than({names.begin(), names.end()}) + " \"\\\"\"";
  }
  std::string other_than(const std::set<std::string>& endings) {
    std::map<std::string, std::set<std::string>> by_first;
    CharacterRanges used = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
    static const std::string any = gbnf_class(complement(used)) + "*";
    for (const std::string& ending : endings) {
      if (ending.empty()) continue;
      const auto c = text::decode_utf8(ending, 0);
      by_first[ending.substr(0, c.size)].insert(ending.substr(c.size));
      used.emplace_back(c.value, c.value);
    }
    std::string out = gbnf_class(complement(used)) + " " + any;
    if (!endings.contains("")) out += " | \"\"";
    for (const auto& [first, rest] : by_first) {
      const unsigned char lead = static_cast<unsigned char>(first[0]);
      if (lead < 0x20 || lead == '"' || lead == '\\') continue;  // such a name cannot come without an escape
      out += " | " + gbnf_literal(first) + " " + other_than(rest);
    }
    return "(" + rule(out) + ")";
  }

  static std::optional<int> count(const Json& schema, const char* keyword, const std::string& place) {
    if (!schema.contains(keyword)) return {};
    const Json& value = schema[keyword];
    const double number = value.is_number() ? value.get<double>() : -1;
    if (number < 0 || number != static_cast<int>(std::min(number, 1e6))) {
      refuse(place, fmt::format("'{}' must be a whole number up to 1,000,000", keyword));
    }
    return static_cast<int>(number);
  }

  static std::string times(int least, std::optional<int> most) {
    if (most && *most < least) return "{0}";
    return most ? fmt::format("{{{},{}}}", least, *most) : fmt::format("{{{},}}", least);
  }

  std::string array(const Json& schema, const std::string& place) {
    if (schema.value("uniqueItems", Json(false)) != Json(false)) refuse(place, "'uniqueItems' is not supported");
    Json first = schema.value("prefixItems", Json::array());
    Json items = schema.value("items", Json(true));
    if (items.is_array()) {  // before 2020-12
      first = items;
      items = schema.value("additionalItems", Json(true));
    }
    if (!first.is_array()) refuse(place, "'prefixItems' must be a list");
    const int given = static_cast<int>(first.size());
    const int least = count(schema, "minItems", place).value_or(0);
    auto most = count(schema, "maxItems", place);
    if (items == Json(false)) most = std::min(most.value_or(given), given);
    if (most && (*most < least || *most < given)) {
      refuse(place, fmt::format("no list has at most {} and at least {} items", *most, std::max(least, given)));
    }
    if (most && *most == 0) return rule("\"[\" ws \"]\"");

    std::string body;
    for (int i = 0; i < given; ++i) {
      body += (i ? "\",\" ws " : "") +
              visit(first[static_cast<std::size_t>(i)], fmt::format("{}/prefixItems/{}", place, i)) + " ws ";
    }
    if (most && *most == given) return rule("\"[\" ws " + body + "\"]\"");
    const std::string item = rule(visit(items, place + "/items") + " ws");
    const auto others = [&](int already) {
      return fmt::format("(\",\" ws {}){}", item,
                         times(std::max(0, least - already), most ? std::optional(*most - already) : std::nullopt));
    };
    if (given > 0) return rule("\"[\" ws " + body + others(given) + " \"]\"");
    const std::string all = item + " " + others(1);
    return rule(fmt::format("\"[\" ws {} \"]\"", least > 0 ? all : "(" + all + ")?"));
  }

  std::string string(const Json& schema, const std::string& place) {
    const auto least = count(schema, "minLength", place), most = count(schema, "maxLength", place);
    std::string regex;
    if (schema.contains("pattern")) {
      if (!schema["pattern"].is_string()) refuse(place, "'pattern' must be a string");
      regex = schema["pattern"].get<std::string>();
    } else if (schema.contains("format") && schema["format"].is_string()) {
      if (const auto known = formats.find(schema["format"].get<std::string>()); known != formats.end()) {
        regex = known->second;
      }
    }
    if (schema.contains("pattern") || !regex.empty()) {
      if (least || most) refuse(place, "'pattern' or 'format' together with a length is not supported");
      return rule("\"\\\"\" " + gbnf_of_regex(regex, Quoting::json, false) + " \"\\\"\"");
    }
    if (!least && !most) return "string";
    if (most && *most < least.value_or(0)) refuse(place, "'maxLength' is less than 'minLength'");
    return rule("\"\\\"\" char" + times(least.value_or(0), most) + " \"\\\"\"");
  }

  std::string number(const Json& schema, const std::string& type, const std::string& place) {
    std::optional<double> least, most;
    const auto read = [&](const char* keyword) -> std::optional<double> {
      if (!schema.contains(keyword)) return {};
      if (!schema[keyword].is_number()) refuse(place, fmt::format("'{}' must be a number", keyword));
      return schema[keyword].get<double>();
    };
    if (const auto bound = read("minimum")) least = std::ceil(*bound);
    if (const auto bound = read("exclusiveMinimum")) least = std::max(least.value_or(-1e300), std::floor(*bound) + 1);
    if (const auto bound = read("maximum")) most = std::floor(*bound);
    if (const auto bound = read("exclusiveMaximum")) most = std::min(most.value_or(1e300), std::ceil(*bound) - 1);
    if (!least && !most) return type;
    // Numbers with a fraction lie within bounds too, but only whole ones can be told by their digits this simply.
    if (least.value_or(-1e15) > most.value_or(1e15)) refuse(place, "no number is within its bounds");
    const auto digits = integer_range(static_cast<std::int64_t>(std::clamp(least.value_or(-1e15), -1e15, 1e15)),
                                      static_cast<std::int64_t>(std::clamp(most.value_or(1e15), -1e15, 1e15)));
    return rule(digits);
  }

  const Json& root_;
  const std::string name_;
  std::string rules_;
  int rule_count_ = 0, merges_ = 0;
  std::map<std::string, std::string> references_;
};

}  // namespace

std::string gbnf_of_json_schema(const Json& schema) { return json_schema_rules(schema, "root") + json_rules; }

std::string json_schema_rules(const Json& schema, const std::string& name) {
  return SchemaWriter(schema, name).write();
}

std::string common_json_rules() { return json_rules; }

std::string gbnf_of_any_object() { return std::string("root ::= object\n") + json_rules; }

}  // namespace shoal::grammar
