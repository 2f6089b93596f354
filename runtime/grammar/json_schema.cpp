#include "runtime/grammar/json_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <regex>
#include <set>

#include "base/error.h"
#include "runtime/grammar/gbnf_text.h"
#include "runtime/grammar/json_format.h"
#include "runtime/grammar/json_number.h"
#include "runtime/grammar/schema_rules.h"
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
constexpr const char* not_expressible[] = {
    "not",          "if",       "then",        "else",        "dependentSchemas", "dependentRequired",
    "dependencies", "contains", "minContains", "maxContains", "unevaluatedItems", "$dynamicRef",
    "$recursiveRef"};

bool has_type(const Json& value, const std::string& type) {
  if (type == "integer") return value.is_number_integer();
  if (type == "number") return value.is_number();
  return type == value.type_name();
}

/// Type → keywords that only speak of it.
const std::map<std::string, std::set<std::string>> keywords_of = {
    {"object",
     {"properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties",
      "maxProperties", "unevaluatedProperties"}},
    {"array", {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"}},
    {"string", {"minLength", "maxLength", "pattern", "format"}},
    {"number", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}}};

constexpr std::size_t max_schema_bytes = 2 << 20, max_copied_bytes = 64 << 20;  // in memory
constexpr std::size_t max_required = 10000;
constexpr int max_schemas_deep = 500;

class SchemaWriter {
 public:
  SchemaWriter(const Json& root, const std::string& name) : root_(root), rules_(name) {}

  std::string write() {
    if (bytes_of(root_, max_schema_bytes) > max_schema_bytes)
      fail("the JSON schema is larger than {} bytes", max_schema_bytes);
    const std::string start = visit(root_, "#");
    return rules_.name() + " ::= " + start + "\n" + rules_.text();
  }

 private:
  [[noreturn]] static void refuse(const std::string& place, const std::string& what) { refuse_schema(place, what); }
  std::string rule(const std::string& body) { return rules_.add(body); }

  /// Memory that `json` takes, as good as; stops counting above `most`.
  static std::size_t bytes_of(const Json& json, std::size_t most) {
    std::size_t bytes = 0;
    std::vector<const Json*> open{&json};
    while (!open.empty() && bytes <= most) {
      const Json& at = *open.back();
      open.pop_back();
      bytes += sizeof(Json);
      if (at.is_string()) bytes += sizeof(std::string) + at.get_ref<const std::string&>().size();
      if (at.is_array())
        for (const Json& value : at) open.push_back(&value);
      if (at.is_object()) {
        for (const auto& [key, value] : at.get_ref<const Json::object_t&>()) {
          bytes += sizeof(std::string) + key.size();
          open.push_back(&value);
        }
      }
    }
    return bytes;
  }

  /// To be called before a part of the schema is copied, which merging does: again and again where schemas are nested.
  const Json& copied(const Json& json, const std::string& place) {
    copied_ += bytes_of(json, max_copied_bytes);
    if (copied_ > max_copied_bytes) refuse(place, "too much would have to be merged");
    return json;
  }

  /// A schema becomes an expression. Recursive: by nesting, and by references, of which a chain may be long.
  std::string visit(const Json& schema, const std::string& place) {
    if (depth_ >= max_schemas_deep)
      refuse(place, fmt::format("schemas are nested or refer to one another more than {} deep", max_schemas_deep));
    ++depth_;
    std::string expression = visit_one(schema, place);
    --depth_;
    return expression;
  }

  std::string visit_one(const Json& schema, const std::string& place) {
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
      Json both = copied(schema, place);
      both.erase("$ref");
      merge_into(both, target, place);
      if (both.contains("$ref")) refuse(place, "keywords beside a '$ref' to another '$ref' are not supported");
      return visit(both, place);
    }
    const std::string ref = schema["$ref"].get<std::string>();
    const auto [at, is_new] = references_.try_emplace(ref, "");
    if (is_new) {
      // Named before it is written: a schema may contain itself.
      at->second = fmt::format("{}-ref{}", rules_.name(), references_.size());
      const std::string name = at->second;
      const std::string body = visit(target, ref);
      rules_.add(name, body);
      return name;
    }
    return at->second;
  }

  Json merged(const Json& schema, const std::string& place) {
    if (++merges_ > 1000) refuse(place, "'allOf' is nested too deep");
    Json all = copied(schema, place);
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
        into[key] = copied(value, place);
      } else if (key == "properties" && value.is_object() && into[key].is_object()) {
        for (const auto& [name, schema] : value.items()) {
          if (!into[key].contains(name)) {
            into[key][name] = copied(schema, place);
          } else if (into[key][name] != schema) {
            refuse(place, fmt::format("'allOf' gives the property '{}' two schemas", name));
          }
        }
      } else if (key == "required" && value.is_array() && into[key].is_array()) {
        if (into[key].size() + value.size() > max_required) refuse(place, "too many names are 'required'");
        for (const Json& name : copied(value, place)) into[key].push_back(name);
      } else if (has_assertions_beside({{key, value}}, "") && into[key] != value) {
        refuse(place, fmt::format("'allOf' with several '{}' is not supported", key));
      }
    }
  }

  std::string alternatives(const Json& schema, const char* keyword, const std::string& place) {
    Json rest = copied(schema, place);
    rest.erase(keyword);
    const bool plain = !has_assertions_beside(rest, "");
    const Json& options = schema[keyword];
    if (!options.is_array() || options.empty()) refuse(place, fmt::format("'{}' must be a list", keyword));
    std::string out;
    for (std::size_t i = 0; i < options.size(); ++i) {
      const std::string at = fmt::format("{}/{}/{}", place, keyword, i);
      Json option = copied(plain ? options[i] : rest, at);
      if (!plain) merge_into(option, options[i], at);
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
    const auto wanted = types_of(schema, place);
    for (const Json& value : values) {
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
      if (type == "integer" || type == "number") one = number_rule(schema, type, place, rules_);
      out += (out.empty() ? "" : " | ") + one;
    }
    return wanted.size() == 1 ? out : rule(out);
  }

  /// A schema, or the one that it refers to.
  Json resolved(const Json& schema, const std::string& place) const {
    Json found = schema;
    for (int i = 0; i < 100 && found.is_object() && found.contains("$ref") && !has_assertions_beside(found, "$ref");
         ++i)
      found = resolve(found["$ref"], place);
    return found;
  }

  /// The values of a schema that lists them; empty where it does not.
  static std::vector<Json> listed(const Json& schema) {
    if (!schema.is_object()) return {};
    if (schema.contains("const") && !has_assertions_beside(schema, "const")) return {schema["const"]};
    Json bare = schema;
    bare.erase("type");
    if (bare.contains("enum") && bare["enum"].is_array() && !has_assertions_beside(bare, "enum"))
      return bare["enum"].get<std::vector<Json>>();
    if (schema.contains("type") && schema["type"] == "boolean" && bare.empty()) return {false, true};
    return {};
  }

  /// `propertyNames` where it lists them: they become properties, and others are not allowed.
  void take_listed_names(Json& schema, const std::string& place) const {
    const std::vector<Json> names = listed(resolved(schema["propertyNames"], place));
    if (names.empty()) return;
    Json properties = Json::object();
    const Json declared = schema.value("properties", Json::object());
    for (const Json& name : names) {
      if (!name.is_string()) continue;
      const std::string key = name.get<std::string>();
      properties[key] = declared.contains(key) ? declared[key] : schema.value("additionalProperties", Json(true));
    }
    for (const Json& name : schema.value("required", Json::array())) {
      if (!name.is_string() || !properties.contains(name.get<std::string>()))
        refuse(place, "'required' names a property that 'propertyNames' does not allow");
    }
    for (auto at = properties.begin(); at != properties.end();) at = *at == Json(false) ? properties.erase(at) : ++at;
    schema["properties"] = std::move(properties);
    schema["additionalProperties"] = false;
    schema.erase("propertyNames");
  }

  /// An object of any number of members whose names have one form, `patternProperties` or `propertyNames`.
  std::string dictionary(const Json& schema, const std::string& place) {
    const Json patterns = schema.value("patternProperties", Json::object());
    if (!patterns.is_object()) refuse(place, "'patternProperties' must be an object");
    if (!schema.value("properties", Json::object()).empty() || !schema.value("required", Json::array()).empty())
      refuse(place, "'patternProperties' and 'propertyNames' beside 'properties' or 'required' are not supported");
    if (patterns.size() > 1 || (!patterns.empty() && schema.contains("propertyNames")))
      refuse(place, "several patterns for names are not supported");
    Json name = {{"type", "string"}}, value = schema.value("additionalProperties", Json(true));
    std::string value_place = place + "/additionalProperties";
    if (!patterns.empty()) {
      name["pattern"] = patterns.begin().key();
      value = patterns.begin().value();
      value_place = place + "/patternProperties";
    } else {
      const Json form = resolved(schema["propertyNames"], place);
      if (form == Json(false) || value == Json(false)) return empty_object(schema, place);
      if (form.is_object()) name.update(form);
      if (name["type"] != "string") refuse(place, "'propertyNames' must be of strings");
    }
    const std::string member =
        rule(visit(name, place + "/propertyNames") + " ws \":\" ws " + visit(value, value_place) + " ws");
    return members_in_number(member, schema, place);
  }

  /// "{", so many members as `schema` allows, "}". A name may come twice, and then counts once.
  std::string members_in_number(const std::string& member, const Json& schema, const std::string& place) {
    const auto most = count(schema, "maxProperties", place);
    const int least = count(schema, "minProperties", place).value_or(0);
    if (least > 1) refuse(place, "'minProperties' of more than 1 is not supported where names are free");
    if (most && *most == 0) return empty_object(schema, place);
    const std::string all =
        fmt::format("{} (\",\" ws {}){}", member, member, times(0, most ? std::optional(*most - 1) : std::nullopt));
    return rule(fmt::format("\"{{\" ws {} \"}}\"", least > 0 ? all : "(" + all + ")?"));
  }

  std::string empty_object(const Json& schema, const std::string& place) {
    if (count(schema, "minProperties", place).value_or(0) > 0) refuse(place, "no object is as it must be");
    return rule("\"{\" ws \"}\"");
  }

  /// Leaves out of declared properties' schema what their number says nothing new about.
  static void check_number(const Json& schema, std::size_t declared, std::size_t required, Json& additional,
                           const std::string& place) {
    const auto most = count(schema, "maxProperties", place);
    if (count(schema, "minProperties", place).value_or(0) > static_cast<int>(required))
      refuse(place, "'minProperties' above the number of required properties is not supported");
    if (!most) return;
    if (static_cast<int>(declared) > *most)
      refuse(place, "'maxProperties' below the number of declared properties is not supported");
    additional = false;
  }

  std::string object(const Json& asked, const std::string& place) {
    Json schema = asked;
    if (schema.contains("unevaluatedProperties") && !schema.contains("additionalProperties"))
      schema["additionalProperties"] = schema["unevaluatedProperties"];
    if (schema.contains("propertyNames")) take_listed_names(schema, place);
    if (schema.contains("propertyNames") || !schema.value("patternProperties", Json::object()).empty())
      return dictionary(schema, place);
    Json properties = schema.value("properties", Json::object());
    const Json required = schema.value("required", Json::array());
    if (!properties.is_object()) refuse(place, "'properties' must be an object");
    if (!required.is_array()) refuse(place, "'required' must be a list");
    if (required.size() > max_required) refuse(place, "too many names are 'required'");
    Json additional = schema.value("additionalProperties", Json(!schema.contains("properties")));
    std::set<std::string> must;
    for (const Json& name : required) {
      if (!name.is_string()) refuse(place, "'required' must be a list of names");
      must.insert(name.get<std::string>());
      if (!properties.contains(name.get<std::string>())) {
        properties[name.get<std::string>()] = schema.value("additionalProperties", Json(true));
      }
    }
    if (schema.contains("minProperties") || schema.contains("maxProperties")) {
      if (properties.empty() && additional != Json(false)) {
        const std::string value = visit(additional, place + "/additionalProperties");
        return members_in_number(rule("string ws \":\" ws " + value + " ws"), schema, place);
      }
      check_number(schema, properties.size(), must.size(), additional, place);
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
    constexpr std::size_t longest = 500;  // each character is a rule
    for (const std::string& name : names)
      if (name.size() > longest)
        fail("the JSON schema: names of more than {} bytes beside others that may come are not supported", longest);
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

  /// An array with `uniqueItems` of which the items are listed: some of them, in the order of the list.
  std::string set(const Json& schema, const std::string& place) {
    const std::vector<Json> values = listed(resolved(schema.value("items", Json(true)), place));
    if (values.empty() || values.size() > 64 || !schema.value("prefixItems", Json::array()).empty())
      refuse(place, "'uniqueItems' is supported for items of an 'enum' of up to 64 values only");
    const int all = static_cast<int>(values.size());
    const int least = count(schema, "minItems", place).value_or(0);
    const int most = std::min(all, count(schema, "maxItems", place).value_or(all));
    if (least > most) refuse(place, fmt::format("no {} of {} items are different", least, all));
    // What may follow when values from i on are left and `taken` are there.
    std::map<std::pair<int, int>, std::string> rules;
    for (int i = all; i >= 0; --i) {
      for (int taken = std::min(i, most); taken >= 0; --taken) {
        if (taken + all - i < least) continue;
        std::string out = taken >= least ? "\"\"" : "";
        for (int next = i; next < all && taken < most; ++next) {
          const auto behind = rules.find({next + 1, taken + 1});
          if (behind == rules.end()) continue;
          const std::string text =
              values[static_cast<std::size_t>(next)].dump(-1, ' ', false, Json::error_handler_t::replace);
          out += fmt::format("{}{}{} ws {}", out.empty() ? "" : " | ", taken > 0 ? "\",\" ws " : "", gbnf_literal(text),
                             behind->second);
        }
        rules[{i, taken}] = rule(out);
      }
    }
    return rule("\"[\" ws " + rules.at({0, 0}) + " \"]\"");
  }

  std::string array(const Json& schema, const std::string& place) {
    if (schema.value("uniqueItems", Json(false)) != Json(false) &&
        !(schema.contains("maxItems") && count(schema, "maxItems", place) <= 1)) {
      return set(schema, place);
    }
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

  /// A pattern of one class of characters over and over, as names and codes have it, with its number bounded too.
  static std::string with_length(const std::string& regex, int least, std::optional<int> most,
                                 const std::string& place) {
    static const std::regex form(R"(^\^(\[(?:[^\]\\]|\\.)+\]|\\[dws]|\.)(\*|\+|\{(\d{1,5})(,(\d{1,5})?)?\})?\$$)");
    std::smatch found;
    constexpr std::size_t longest = 1000;  // std::regex calls itself for each character
    if (regex.size() > longest || !std::regex_match(regex, found, form))
      refuse(place, "a length beside 'pattern' is supported for one class of characters from ^ to $ only");
    const std::string times = found[2].str();
    int from = 1;
    std::optional<int> to = 1;
    if (times == "*" || times == "+") {
      from = times == "+";
      to.reset();
    } else if (!times.empty()) {
      from = std::stoi(found[3].str());
      to = found[5].matched ? std::optional(std::stoi(found[5].str())) : std::nullopt;
      if (!found[4].matched) to = from;
    }
    from = std::max(from, least);
    if (most) to = std::min(to.value_or(*most), *most);
    if (to && *to < from) refuse(place, "no text has this pattern and this length");
    return fmt::format("^{}{{{},{}}}$", found[1].str(), from, to ? std::to_string(*to) : "");
  }

  std::string string(const Json& schema, const std::string& place) {
    const auto least = count(schema, "minLength", place), most = count(schema, "maxLength", place);
    if (schema.contains("pattern")) {
      if (!schema["pattern"].is_string()) refuse(place, "'pattern' must be a string");
      std::string regex = schema["pattern"].get<std::string>();
      if (least || most) regex = with_length(regex, least.value_or(0), most, place);
      return quoted(regex, false);
    }
    if (schema.contains("format") && schema["format"].is_string()) {
      const std::string name = schema["format"].get<std::string>();
      const JsonFormat* format = json_format(name);
      // Lengths must hold and a format need not: it stays where its texts have them anyhow.
      if (format && least.value_or(0) <= format->least && most.value_or(format->most) >= format->most) {
        std::string& known = format_rules_[name];
        if (known.empty()) known = quoted(format->regex, true);
        return known;
      }
    }
    if (!least && !most) return "string";
    if (most && *most < least.value_or(0)) refuse(place, "'maxLength' is less than 'minLength'");
    return rule("\"\\\"\" char" + times(least.value_or(0), most) + " \"\\\"\"");
  }

  std::string quoted(const std::string& regex, bool whole) {
    return rule("\"\\\"\" " + gbnf_of_regex(regex, Quoting::json, whole) + " \"\\\"\"");
  }

  const Json& root_;
  SchemaRules rules_;
  int merges_ = 0, depth_ = 0;
  std::size_t copied_ = 0;
  std::map<std::string, std::string> references_, format_rules_;  // → the rule
};

}  // namespace

std::string gbnf_of_json_schema(const Json& schema) { return json_schema_rules(schema, "root") + json_rules; }

std::string json_schema_rules(const Json& schema, const std::string& name) {
  return SchemaWriter(schema, name).write();
}

std::string common_json_rules() { return json_rules; }

std::string gbnf_of_any_object() { return std::string("root ::= object\n") + json_rules; }

}  // namespace shoal::grammar
