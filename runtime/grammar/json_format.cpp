#include "runtime/grammar/json_format.h"

#include <fmt/format.h>

#include <map>

namespace shoal::grammar {
namespace {

/// RFC 4291: eight groups, the last two of which may be an IPv4 address, and "::" once for one or more of them.
std::string ipv6_regex(const std::string& ipv4) {
  const std::string group = "[0-9A-Fa-f]{1,4}", two = "(" + group + ":" + group + "|" + ipv4 + ")";
  std::string regex = "(" + group + ":){6}" + two;
  for (int before = 0; before <= 7; ++before) {
    regex += before == 0 ? "|" : fmt::format("|{}(:{}){{{}}}", group, group, before - 1);
    regex += "::";
    if (before < 6) regex += fmt::format("(({}:){{0,{}}}{}|{})?", group, 5 - before, two, group);
    if (before == 6) regex += "(" + group + ")?";
  }
  return regex;
}

std::map<std::string, JsonFormat> known_formats() {
  // RFC 3339. February has a 29th in years that 4 divides and 100 does not, or 400 does.
  const std::string date =
      "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|"
      "02-(0[1-9]|1[0-9]|2[0-8]))|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)";
  const std::string hour = "([01][0-9]|2[0-3])", minute = ":[0-5][0-9]";
  const std::string time =
      hour + minute + ":([0-5][0-9]|60)(\\.[0-9]{1,9})?(Z|[+-]" + hour + minute + ")";  // :60 is a leap second

  // RFC 3339's appendix, and of ISO 8601 what pydantic writes: units in between may be left out and seconds have a
  // fraction. Otherwise who is about to write PT1H30S would have to make it minutes.
  const std::string count = "[0-9]{1,10}", years = count + "Y", months = count + "M", days = count + "D";
  const std::string hours = count + "H", minutes = count + "M", seconds = count + "(\\.[0-9]{1,9})?S";
  const auto some_of = [](const std::string& a, const std::string& b, const std::string& c) {
    return fmt::format("({0}({1})?({2})?|{1}({2})?|{2})", a, b, c);
  };
  const std::string of_day = "T" + some_of(hours, minutes, seconds);
  const std::string duration = "P(" + some_of(years, months, days) + "(" + of_day + ")?|" + of_day + "|" + count + "W)";

  const std::string byte = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])", ipv4 = "(" + byte + "\\.){3}" + byte;

  // RFC 5321: at most 64 characters, "@", and 254 in all. Each range takes a node for each time it may be repeated,
  // so they are few here and below: # to ' and the like, as ASCII has them.
  const std::string atom = "[!#-'*+/-9=?A-Z^-~-]", atom_or_dot = "[!#-'*+\\--9=?A-Z^-~]";
  const std::string alnum = "[0-9A-Za-z]", in_name = "[0-9A-Za-z.-]";
  const std::string email =
      fmt::format("({0}({1}{{0,62}}{0})?|\"([ !#-Z^-~\\[\\]]|\\\\[ -~]){{0,31}}\")@", atom, atom_or_dot) +
      fmt::format("({0}({1}{{0,187}}{0})?|\\[[!-Z^-~]{{1,187}}\\])", alnum, in_name);
  const std::string hostname = fmt::format("{0}({1}{{0,251}}{0})?", alnum, in_name);

  // RFC 3986. Brackets only stand around a host's address. 2083 characters are the most that pydantic takes.
  const std::string user = "[!$-.0-;=A-Z_a-z~]";
  const std::string uri = fmt::format("[A-Za-z][A-Za-z0-9+.-]{{0,31}}:(//({0}{{0,64}}@)?\\[{0}{{2,64}}\\])?", user) +
                          "[!#-;=?-Z_a-z~]{0,1917}";

  return {{"date", {date, 10, 10}},
          {"time", {time, 9, 24}},
          {"date-time", {date + "T" + time, 20, 35}},
          {"duration", {duration, 3, 78}},
          {"email", {email, 3, 254}},
          {"hostname", {hostname, 1, 253}},
          {"ipv4", {ipv4, 7, 15}},
          {"ipv6", {ipv6_regex(ipv4), 2, 45}},
          {"uri", {uri, 2, 2083}},
          {"uuid", {"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", 36, 36}}};
}

}  // namespace

const JsonFormat* json_format(const std::string& name) {
  static const std::map<std::string, JsonFormat> known = known_formats();
  const auto at = known.find(name);
  return at == known.end() ? nullptr : &at->second;
}

}  // namespace shoal::grammar
