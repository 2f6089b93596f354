#pragma once
#include <nlohmann/json.hpp>

#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

/// `json` as Python's json.loads would give it. Adds the bytes it takes to `bytes`. Faults where it is nested too
/// deeply or has an integer that does not fit 64 bits.
Value from_json(const nlohmann::ordered_json& json, size_t& bytes);

}  // namespace shoal::jinja
