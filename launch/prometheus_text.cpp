#include "launch/prometheus_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace shoal {
namespace {

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    out += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return out;
}

/// A whole number as such: exponents would round counters.
std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  return value == std::floor(value) && std::abs(value) < 1e15 ? fmt::format("{:.0f}", value) : fmt::format("{}", value);
}

}  // namespace

void Histogram::observe(double value) {
  const auto at = std::lower_bound(bounds_.begin(), bounds_.end(), value);
  ++counts_[static_cast<std::size_t>(at - bounds_.begin())];
  sum_ += value;
}

void PrometheusText::family(const std::string& name, const char* type, std::string_view help) {
  family_ = name;
  text_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

void PrometheusText::line(const std::string& name, const Labels& labels, double value) {
  text_ += name;
  const char* before = "{";
  for (const Labels* some : {&common_, &labels}) {
    for (const auto& [key, label] : *some) {
      text_ += fmt::format("{}{}=\"{}\"", before, key, escaped(label));
      before = ",";
    }
  }
  text_ += fmt::format("{} {}\n", *before == ',' ? "}" : "", number(value));
}

void PrometheusText::sample(double value, const Labels& labels) { line(family_, labels, value); }

void PrometheusText::sample(const Histogram& histogram) {
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < histogram.counts_.size(); ++i) {
    count += histogram.counts_[i];
    const double bound = i < histogram.bounds_.size() ? histogram.bounds_[i] : HUGE_VAL;
    line(family_ + "_bucket", {{"le", number(bound)}}, static_cast<double>(count));
  }
  line(family_ + "_sum", {}, histogram.sum_);
  line(family_ + "_count", {}, static_cast<double>(count));
}

}  // namespace shoal
