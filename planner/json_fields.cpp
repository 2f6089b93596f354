#include "planner/json_fields.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <set>
#include <system_error>

#include "base/error.h"

namespace shoal {
namespace {

using nlohmann::json;

/// Deeper than any JSON file of a model, shallow enough for code that recurses over it.
constexpr int max_depth = 64;

std::string shortened(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

}  // namespace

json read_json_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
  std::error_code problem;
  const auto size = std::filesystem::file_size(path, problem);
  if (problem) fail("{}: cannot be read: {}", path.string(), problem.message());
  if (size > max_bytes) fail("{}: {} bytes are more than such a file may have ({})", path.string(), size, max_bytes);
  std::ifstream in(path, std::ios::binary);
  if (!in) fail("{}: cannot be opened", path.string());

  // The keys seen so far in every object that is still open. JSON lets a key come twice and parsers differ in which one
  // they keep, so a file that does it means different things to different programs.
  std::vector<std::set<std::string, std::less<>>> open_objects;
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > max_depth) fail("{}: nested deeper than {} levels", path.string(), max_depth);
    if (event == json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == json::parse_event_t::object_end) open_objects.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!open_objects.back().insert(key).second) fail("{}: the key {} comes twice", path.string(), parsed.dump());
    }
    return true;
  };
  try {
    return json::parse(in, watch);
  } catch (const json::exception& e) {
    fail("{}: is not valid JSON: {}", path.string(), e.what());
  }
}

JsonFields::JsonFields(const json& object, std::string place) : object_(&object), place_(std::move(place)) {
  if (!object.is_object()) fail("{}: must be a JSON object, not {}", place_, shortened(object));
}

const json* JsonFields::find(const char* key) const {
  const auto it = object_->find(key);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

bool JsonFields::is_null(const char* key) const {
  const auto it = object_->find(key);
  return it != object_->end() && it->is_null();
}

void JsonFields::reject(std::string_view key, std::string_view what) const { fail("{}: {} {}", place_, key, what); }

int JsonFields::integer(const char* key, std::int64_t low, std::int64_t high) const {
  const json* value = find(key);
  if (!value) reject(key, "is missing");
  // An unsigned number above the largest int64 would wrap around when read as int64.
  const bool fits = value->is_number_integer() &&
                    !(value->is_number_unsigned() &&
                      value->get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()});
  if (!fits) reject(key, fmt::format("must be an integer, not {}", shortened(*value)));
  const auto number = value->get<std::int64_t>();
  if (number < low || number > high) reject(key, fmt::format("is {}, outside [{}, {}]", number, low, high));
  return static_cast<int>(number);
}

int JsonFields::integer_or(const char* key, int fallback, std::int64_t low, std::int64_t high) const {
  return has(key) ? integer(key, low, high) : fallback;
}

std::optional<float> JsonFields::number(const char* key) const {
  const json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_number()) reject(key, fmt::format("must be a number, not {}", shortened(*value)));
  const double number = value->get<double>();
  if (!(std::abs(number) <= double{std::numeric_limits<float>::max()})) {
    reject(key, fmt::format("is {}, beyond what a float holds", shortened(*value)));
  }
  return static_cast<float>(number);
}

float JsonFields::positive_or(const char* key, float fallback) const {
  const auto value = number(key);
  if (value && !(*value > 0)) reject(key, fmt::format("is {}, and must be above zero", *value));
  return value.value_or(fallback);
}

bool JsonFields::boolean_or(const char* key, bool fallback) const {
  const json* value = find(key);
  if (!value) return fallback;
  if (!value->is_boolean()) reject(key, fmt::format("must be true or false, not {}", shortened(*value)));
  return value->get<bool>();
}

std::string JsonFields::string_or(const char* key, const std::string& fallback) const {
  const json* value = find(key);
  if (!value) return fallback;
  if (!value->is_string()) reject(key, fmt::format("must be a string, not {}", shortened(*value)));
  return value->get<std::string>();
}

std::vector<std::int64_t> JsonFields::integers(const char* key) const {
  const json* value = find(key);
  if (!value) return {};
  std::vector<std::int64_t> numbers;
  const auto add = [&](const json& v) {
    if (!v.is_number_integer()) reject(key, fmt::format("must be an integer or a list of them, not {}", shortened(v)));
    numbers.push_back(v.get<std::int64_t>());
  };
  if (value->is_array()) {
    for (const json& v : *value) add(v);
  } else {
    add(*value);
  }
  return numbers;
}

std::optional<JsonFields> JsonFields::object(const char* key) const {
  const json* value = find(key);
  if (!value) return std::nullopt;
  return JsonFields(*value, fmt::format("{}: {}", place_, key));
}

}  // namespace shoal
