#pragma once
#include <nlohmann/json.hpp>
#include <string>

namespace shoal::grammar {

/// JSON Schema as a grammar (GBNF) of the JSON texts that satisfy it.
///
/// Supported: type, enum, const, properties, required, additionalProperties, items, prefixItems, minItems, maxItems,
/// minLength, maxLength, pattern, format (date, time, date-time, uuid, ipv4), minimum and maximum of integers, anyOf,
/// oneOf (as anyOf), allOf of what can be merged, $ref within the schema. Whatever a grammar here cannot hold to is
/// refused by an Error that names the keyword and its place.
///
/// Every text that matches satisfies the schema, oneOf aside. Not every text that satisfies it matches: properties come
/// in the order of the schema, there are no others unless `additionalProperties` asks for them, and white space is
/// bounded, so that a model cannot fill its answer with it.
std::string gbnf_of_json_schema(const nlohmann::ordered_json& schema);

/// The same as a part of a larger grammar: the rule `name`, and others whose names begin with it. The grammar needs
/// common_json_rules() too, once.
std::string json_schema_rules(const nlohmann::ordered_json& schema, const std::string& name);
std::string common_json_rules();

/// Any JSON object.
std::string gbnf_of_any_object();

}  // namespace shoal::grammar
