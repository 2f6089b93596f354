#include "launch/request_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "launch/api_error.h"
#include "launch/bounded_json.h"

namespace shoal {
namespace {

std::string number_text(double value) { return fmt::format("{:g}", value); }

}  // namespace

RequestFields RequestFields::parse(std::string_view body) {
  Json json;
  try {
    json = parse_bounded_json(body);
  } catch (const Json::exception& error) {
    throw ApiError(400, fmt::format("the body is not valid JSON: {}", error.what()), {}, "invalid_json");
  } catch (const Error& error) {
    throw ApiError(400, error.what());
  }
  if (!json.is_object()) throw ApiError(400, "the body must be a JSON object", {}, "invalid_json");
  return RequestFields(std::move(json));
}

RequestFields::RequestFields(Json object) : object_(std::move(object)) {}

const RequestFields::Json* RequestFields::find(const std::string& name) {
  known_.insert(name);
  const auto at = object_.find(name);
  return at == object_.end() || at->is_null() ? nullptr : &*at;
}

const RequestFields::Json& RequestFields::required(const std::string& name) {
  if (const Json* value = find(name)) return *value;
  throw ApiError(400, fmt::format("'{}' is required", name), name, "missing_required_parameter");
}

std::optional<std::int64_t> RequestFields::integer(const std::string& name, std::int64_t least, std::int64_t most) {
  const Json* value = find(name);
  if (!value) return {};
  const auto refuse = [&] {
    return bad_field(name, fmt::format("'{}' must be an integer from {} to {}, but is {}", name, least, most,
                                       to_text(*value).substr(0, 100)));
  };
  if (!value->is_number_integer()) throw refuse();
  // Beyond int64 an unsigned value would wrap around.
  if (value->is_number_unsigned() && value->get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX))
    throw refuse();
  const auto number = value->get<std::int64_t>();
  if (number < least || number > most) throw refuse();
  return number;
}

std::optional<double> RequestFields::number(const std::string& name, double least, double most) {
  const Json* value = find(name);
  if (!value) return {};
  if (value->is_number()) {
    const double number = value->get<double>();
    if (std::isfinite(number) && number >= least && number <= most) return number;
  }
  throw bad_field(name, fmt::format("'{}' must be a number from {} to {}, but is {}", name, number_text(least),
                                    number_text(most), to_text(*value).substr(0, 100)));
}

std::optional<bool> RequestFields::boolean(const std::string& name) {
  const Json* value = find(name);
  if (!value) return {};
  if (!value->is_boolean()) throw bad_field(name, fmt::format("'{}' must be true or false", name));
  return value->get<bool>();
}

std::optional<std::string> RequestFields::string(const std::string& name) {
  const Json* value = find(name);
  if (!value) return {};
  if (!value->is_string()) throw bad_field(name, fmt::format("'{}' must be a string", name));
  return value->get<std::string>();
}

std::vector<std::string> RequestFields::strings(const std::string& name, std::size_t most) {
  const Json* value = find(name);
  if (!value) return {};
  if (value->is_string()) return {value->get<std::string>()};
  const bool are_strings =
      value->is_array() && std::all_of(value->begin(), value->end(), [](const Json& item) { return item.is_string(); });
  if (!are_strings) throw bad_field(name, fmt::format("'{}' must be a string or a list of strings", name));
  if (value->size() > most) throw bad_field(name, fmt::format("'{}' has more than {} entries", name, most));
  return value->get<std::vector<std::string>>();
}

std::optional<std::vector<std::int64_t>> RequestFields::integers(const std::string& name) {
  const Json* value = find(name);
  if (!value) return {};
  const bool are_integers = value->is_array() && std::all_of(value->begin(), value->end(),
                                                             [](const Json& item) { return item.is_number_integer(); });
  if (!are_integers) throw bad_field(name, fmt::format("'{}' must be a list of integers", name));
  for (const Json& item : *value) {
    if (item.is_number_unsigned() && item.get<std::uint64_t>() > INT64_MAX)
      throw bad_field(name, fmt::format("'{}' has {}, which is too large", name, to_text(item)));
  }
  return value->get<std::vector<std::int64_t>>();
}

void RequestFields::ignore(std::initializer_list<const char*> names) {
  for (const char* name : names) known_.insert(name);
}

void RequestFields::only(const std::string& name, std::initializer_list<Json> neutral) {
  const Json* value = find(name);
  if (!value || std::find(neutral.begin(), neutral.end(), *value) != neutral.end()) return;
  throw ApiError(400, fmt::format("'{}' is not supported by this server yet", name), name, "unsupported_parameter");
}

void RequestFields::finish() const {
  for (const auto& [name, value] : object_.items()) {
    if (!known_.contains(name) && !value.is_null()) {
      throw ApiError(400, fmt::format("unknown field '{}'", name), name, "unknown_parameter");
    }
  }
}

}  // namespace shoal
