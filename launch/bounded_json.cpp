#include "launch/bounded_json.h"

#include "base/error.h"

namespace shoal {

nlohmann::ordered_json parse_bounded_json(std::string_view text) {
  using Json = nlohmann::ordered_json;
  static constexpr int max_depth = 64, max_keys = 10000;
  int keys = 0;
  return Json::parse(text, [&keys](int depth, Json::parse_event_t event, Json&) {
    if (depth > max_depth) fail("the JSON is nested more than {} deep", max_depth);
    if (event == Json::parse_event_t::key && ++keys > max_keys) fail("the JSON has more than {} keys", max_keys);
    return true;
  });
}

}  // namespace shoal
