#pragma once
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Reading a JSON file whose mistakes must be named: every accessor throws Error with the file and the field.
namespace shoal::text {

/// Steps of a tokenizer may be lists of steps ("Sequence"); lists within lists deeper than this are refused.
constexpr int kMostNested = 16;

/// A value inside a JSON file together with the place it was found at ("tokenizer.json: model.merges[3]").
class JsonField {
 public:
  JsonField(const nlohmann::json& value, std::string place) : value_(&value), place_(std::move(place)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& place() const { return place_; }
  bool is_null() const { return value_->is_null(); }

  /// The member `key`; throws where this is not an object or the member is missing.
  JsonField at(const char* key) const;
  /// The member `key`; none where it is missing or null.
  std::optional<JsonField> find(const char* key) const;
  /// The elements of an array.
  std::vector<JsonField> elements() const;

  const std::string& as_string() const;
  bool as_bool() const;
  int64_t as_int(int64_t low, int64_t high) const;
  /// The member `key` where it is present and not null, else the fallback.
  bool bool_or(const char* key, bool fallback) const;
  std::string string_or(const char* key, const char* fallback) const;

  /// Throws: "<place>: <what>".
  [[noreturn]] void reject(std::string_view what) const;

 private:
  const nlohmann::json* value_;
  std::string place_;
};

/// Parses a JSON file; throws Error naming the file where it cannot be read, is too large, or is not JSON.
nlohmann::json read_json_file(const std::string& path);

}  // namespace shoal::text
