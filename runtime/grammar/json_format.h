#pragma once
#include <string>

namespace shoal::grammar {

/// A `format` of JSON Schema: a regular expression that matches from end to end, and how many characters such a text
/// has.
struct JsonFormat {
  std::string regex;
  int least, most;
};

/// date, time, date-time, duration, email, hostname, ipv4, ipv6, uri, uuid; null for any other name.
///
/// Every value of its RFC matches, up to generous lengths, so that no model has to write another one; T and Z are
/// upper case. Dates and addresses are exact. The others are wider where exactness would take many times the grammar:
/// a leap second may be any minute's, dots may follow one another in a host's name, `%` may stand alone.
const JsonFormat* json_format(const std::string& name);

}  // namespace shoal::grammar
