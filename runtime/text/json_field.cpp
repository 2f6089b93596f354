#include "runtime/text/json_field.h"

#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace shoal::text {
namespace {

/// The largest real tokenizer.json files are about 35 MB.
constexpr uintmax_t kMaxFileBytes = 512u << 20;

}  // namespace

JsonField JsonField::at(const char* key) const {
  if (!value_->is_object()) reject("expected an object");
  const auto it = value_->find(key);
  if (it == value_->end()) fail("{}.{}: missing", place_, key);
  return {*it, place_ + "." + key};
}

std::optional<JsonField> JsonField::find(const char* key) const {
  if (!value_->is_object()) reject("expected an object");
  const auto it = value_->find(key);
  if (it == value_->end() || it->is_null()) return std::nullopt;
  return JsonField(*it, place_ + "." + key);
}

std::vector<JsonField> JsonField::elements() const {
  if (!value_->is_array()) reject("expected an array");
  std::vector<JsonField> out;
  out.reserve(value_->size());
  for (const auto& element : *value_) out.emplace_back(element, place_ + "[" + std::to_string(out.size()) + "]");
  return out;
}

const std::string& JsonField::as_string() const {
  if (!value_->is_string()) reject("expected a string");
  return value_->get_ref<const std::string&>();
}

bool JsonField::as_bool() const {
  if (!value_->is_boolean()) reject("expected true or false");
  return value_->get<bool>();
}

int64_t JsonField::as_int(int64_t low, int64_t high) const {
  if (!value_->is_number_integer()) reject("expected an integer");
  // Unsigned values above INT64_MAX would wrap around when read as signed.
  const bool too_large = value_->is_number_unsigned() && value_->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  const int64_t number = too_large ? INT64_MAX : value_->get<int64_t>();
  if (too_large || number < low || number > high) fail("{}: {} is outside {} to {}", place_, value_->dump(), low, high);
  return number;
}

bool JsonField::bool_or(const char* key, bool fallback) const {
  const auto member = find(key);
  return member ? member->as_bool() : fallback;
}

std::string JsonField::string_or(const char* key, const char* fallback) const {
  const auto member = find(key);
  return member ? member->as_string() : fallback;
}

void JsonField::reject(std::string_view what) const { fail("{}: {}", place_, what); }

nlohmann::json read_json_file(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) fail("{}: cannot be read ({})", path, error.message());
  if (size > kMaxFileBytes) fail("{}: {} bytes is more than the {} allowed", path, size, kMaxFileBytes);
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("{}: cannot be opened", path);
  try {
    return nlohmann::json::parse(file);
  } catch (const nlohmann::json::exception& e) {
    fail("{}: not valid JSON: {}", path, e.what());
  }
}

}  // namespace shoal::text
