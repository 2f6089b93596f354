#include <algorithm>

#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/characters.h"
#include "runtime/text/jinja/methods.h"
#include "runtime/text/jinja/table.h"

namespace shoal::jinja {
namespace {

/// What a split takes a value and its text each.
constexpr size_t kPieceBytes = sizeof(Value) + sizeof(Text) + 32;

Value text_list(Context& context, const std::vector<std::string_view>& pieces) {
  context.budget.work(pieces.size(), kPieceBytes);
  List out;
  out.reserve(pieces.size());
  for (const std::string_view piece : pieces) out.push_back(piece);
  return make_list(std::move(out));
}

/// At most `limit` cuts at runs of white space, which at the ends count for nothing.
std::vector<std::string_view> split_at_space(std::string_view text, size_t limit, bool from_right) {
  std::vector<std::string_view> out;
  while (true) {
    text = from_right ? strip_right(text) : strip_left(text);
    if (text.empty()) break;
    size_t word = 0;  // bytes of the first (last) word
    if (out.size() == limit) {
      // The rest is whole, without the white space at its other end too only where all cuts were made from there.
      word = text.size();
    } else if (from_right) {
      while (word < text.size()) {
        size_t at = text.size() - word - 1;
        while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
        if (is_space(text::decode_utf8(text, at).value)) break;
        word = text.size() - at;
      }
    } else {
      while (word < text.size()) {
        const auto c = text::decode_utf8(text, word);
        if (is_space(c.value)) break;
        word += c.size;
      }
    }
    out.push_back(from_right ? text.substr(text.size() - word) : text.substr(0, word));
    text = from_right ? text.substr(0, text.size() - word) : text.substr(word);
  }
  return out;
}

std::vector<std::string_view> split_at(std::string_view text, std::string_view separator, size_t limit,
                                       bool from_right) {
  std::vector<std::string_view> out;
  while (out.size() < limit) {
    const size_t found = from_right ? text.rfind(separator) : find_text(text, separator);
    if (found == text.npos) break;
    out.push_back(from_right ? text.substr(found + separator.size()) : text.substr(0, found));
    text = from_right ? text.substr(0, found) : text.substr(found + separator.size());
  }
  out.push_back(text);
  return out;
}

Value split_from(Context& context, const Value& self, const Args& args, bool from_right) {
  args.allow({"sep", "maxsplit"});
  const Value* separator = args.find(0, "sep");
  const int64_t most = integer_argument(args, 1, "maxsplit", -1);
  const size_t limit = most < 0 ? SIZE_MAX : static_cast<size_t>(most);
  std::vector<std::string_view> pieces;
  if (!separator || separator->is_none()) {
    pieces = split_at_space(self.as_string(), limit, from_right);
  } else {
    if (as_text(*separator, "the separator").empty()) fault("empty separator");
    // rfind may look at all of the separator everywhere.
    if (from_right) context.budget.work(self.as_string().size(), separator->as_string().size());
    pieces = split_at(self.as_string(), separator->as_string(), limit, from_right);
  }
  if (from_right) std::reverse(pieces.begin(), pieces.end());
  return text_list(context, pieces);
}

Value split(Context& context, const Value& self, const Args& args) { return split_from(context, self, args, false); }
Value rsplit(Context& context, const Value& self, const Args& args) { return split_from(context, self, args, true); }

Value splitlines(Context& context, const Value& self, const Args& args) {
  args.allow({"keepends"});
  return text_list(context, split_lines(self.as_string(), integer_argument(args, 0, "keepends", 0) != 0));
}

Value partition_from(Context& context, const Value& self, const Args& args, bool from_right) {
  args.allow({"sep"});
  const std::string_view text = self.as_string(), separator = text_argument(args, 0, "sep");
  if (separator.empty()) fault("empty separator");
  if (from_right) context.budget.work(text.size(), separator.size());
  const size_t found = from_right ? text.rfind(separator) : find_text(text, separator);
  if (found == text.npos) return from_right ? make_tuple({"", "", text}) : make_tuple({text, "", ""});
  return make_tuple({text.substr(0, found), separator, text.substr(found + separator.size())});
}

Value partition(Context& context, const Value& self, const Args& args) {
  return partition_from(context, self, args, false);
}
Value rpartition(Context& context, const Value& self, const Args& args) {
  return partition_from(context, self, args, true);
}

}  // namespace

Method find_split_method(std::string_view name) {
  static const Table<Method> kMethods = {{"split", split},
                                         {"rsplit", rsplit},
                                         {"splitlines", splitlines},
                                         {"partition", partition},
                                         {"rpartition", rpartition}};
  return find_in(kMethods, name);
}

}  // namespace shoal::jinja
