#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "runtime/grammar/schema_rules.h"

namespace shoal::grammar {

/// An expression for the numbers that a schema of type "integer" or "number" allows: minimum, maximum, their exclusive
/// forms, and multipleOf a whole number or a power of ten. Where bounds are given, numbers have at most six places
/// behind the point and no exponent. Throws Error, as refuse_schema writes it, for what cannot be expressed.
std::string number_rule(const nlohmann::ordered_json& schema, const std::string& type, const std::string& place,
                        SchemaRules& rules);

}  // namespace shoal::grammar
