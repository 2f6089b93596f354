#pragma once
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace shoal {

/// The fields of a JSON request. Every reader checks type and range and throws ApiError 400 naming the field; null
/// counts as absent. What nobody asked for is refused in the end, so that no wish is ignored silently.
class RequestFields {
 public:
  using Json = nlohmann::ordered_json;

  /// Parses a body: an object, of UTF-8, within the bounds of parse_bounded_json().
  static RequestFields parse(std::string_view body);
  explicit RequestFields(Json object);

  /// Whose request it is, for those who share fairly between clients: not a field.
  std::string client;

  /// Null where absent.
  const Json* find(const std::string& name);
  /// The field, or ApiError.
  const Json& required(const std::string& name);

  std::optional<std::int64_t> integer(const std::string& name, std::int64_t least, std::int64_t most);
  std::optional<double> number(const std::string& name, double least, double most);
  std::optional<bool> boolean(const std::string& name);
  std::optional<std::string> string(const std::string& name);
  /// A string, or a list of strings.
  std::vector<std::string> strings(const std::string& name, std::size_t most);
  std::optional<std::vector<std::int64_t>> integers(const std::string& name);

  /// Fields that ask for nothing that an answer depends on.
  void ignore(std::initializer_list<const char*> names);
  /// A field that is documented but not supported: only these values of it, which ask for nothing, are taken.
  void only(const std::string& name, std::initializer_list<Json> neutral);
  /// To be called when all fields were read: refuses any other.
  void finish() const;

 private:
  Json object_;
  std::set<std::string, std::less<>> known_;
};

}  // namespace shoal
