#include "runtime/text/jinja/from_json.h"

#include "runtime/text/jinja/fault.h"
#include "runtime/text/utf8.h"

namespace shoal::jinja {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxJsonDepth = 200;

std::string valid_text(const std::string& text) {
  return text::is_valid_utf8(text) ? text : text::replace_invalid_utf8(text);
}

Value converted(const Json& json, size_t& bytes, int depth) {
  if (depth > kMaxJsonDepth) fault("the messages or tools are nested more than {} deep", kMaxJsonDepth);
  bytes += sizeof(Value);
  switch (json.type()) {
    case Json::value_t::null:
      return None{};
    case Json::value_t::boolean:
      return json.get<bool>();
    case Json::value_t::number_integer:
      return json.get<int64_t>();
    case Json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))
        fault("the number {} in the messages or tools does not fit 64 bits", json.get<uint64_t>());
      return json.get<int64_t>();
    case Json::value_t::number_float:
      return json.get<double>();
    case Json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      bytes += text.size();
      return valid_text(text);
    }
    case Json::value_t::array: {
      List items;
      items.reserve(json.size());
      for (const Json& item : json) items.push_back(converted(item, bytes, depth + 1));
      return make_list(std::move(items));
    }
    case Json::value_t::object: {
      Dict dict;
      for (const auto& [key, item] : json.items()) {
        bytes += key.size() + sizeof(Value);
        dict.set(valid_text(key), converted(item, bytes, depth + 1));
      }
      return make_dict(std::move(dict));
    }
    default:
      fault("the messages or tools are no JSON");
  }
}

}  // namespace

Value from_json(const Json& json, size_t& bytes) { return converted(json, bytes, 0); }

}  // namespace shoal::jinja
