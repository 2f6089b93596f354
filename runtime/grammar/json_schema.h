#pragma once
#include <nlohmann/json.hpp>
#include <string>

namespace shoal::grammar {

/// JSON Schema as a grammar (GBNF) of the JSON texts that satisfy it.
///
/// Supported:
/// - type, enum, const, anyOf, oneOf (as anyOf), allOf of what can be merged, $ref within the schema;
/// - of objects: properties, required, additionalProperties, unevaluatedProperties (in its place), and where they are
///   simple minProperties, maxProperties, propertyNames, patternProperties;
/// - of arrays: items, prefixItems, additionalItems, minItems, maxItems, uniqueItems of an enum;
/// - of strings: minLength, maxLength, pattern, format (those of json_format());
/// - of numbers: minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf (a whole number, or 0.1, 0.01…).
/// Whatever a grammar here cannot hold to is refused by an Error that names the keyword and its place.
///
/// `format` alone asserts nothing in JSON Schema: one that is not known is left out, and so is one beside `pattern` or
/// beside a length that its texts may not have.
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
