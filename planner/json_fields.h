#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace shoal {

/// Parses a JSON file. Error names the file where it cannot be read, is larger than `max_bytes`, is not JSON, holds the
/// same key twice in one object, or nests deeper than any file of a model does.
nlohmann::json read_json_file(const std::filesystem::path& path, std::uint64_t max_bytes = 16u << 20);

/// A JSON object whose members are read with checks; every Error names the file and the field. A null member counts as
/// absent, as in the files that Python writes; where null itself says something, ask `is_null`. It views the object.
class JsonFields {
 public:
  /// `place` is what messages start with: the file, and for a nested object its path ("config.json: rope_scaling").
  JsonFields(const nlohmann::json& object, std::string place);

  bool has(const char* key) const { return find(key) != nullptr; }
  bool is_null(const char* key) const;
  /// The member itself; null where it is absent or JSON null.
  const nlohmann::json* find(const char* key) const;

  int integer(const char* key, std::int64_t low, std::int64_t high) const;  // absent: Error
  int integer_or(const char* key, int fallback, std::int64_t low, std::int64_t high) const;
  float positive_or(const char* key, float fallback) const;
  std::optional<float> number(const char* key) const;
  bool boolean_or(const char* key, bool fallback) const;
  std::string string_or(const char* key, const std::string& fallback) const;
  /// A list of integers, or one that stands alone.
  std::vector<std::int64_t> integers(const char* key) const;
  /// A nested object; none where absent.
  std::optional<JsonFields> object(const char* key) const;

  /// Throws "<place>: <key> <what>".
  [[noreturn]] void reject(std::string_view key, std::string_view what) const;

 private:
  const nlohmann::json* object_;
  std::string place_;
};

}  // namespace shoal
