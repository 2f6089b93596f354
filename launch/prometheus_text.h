#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace shoal {

/// Counts of values up to each of some bounds, as Prometheus keeps them. Not thread-safe.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void observe(double value);

 private:
  friend class PrometheusText;
  std::vector<double> bounds_;         // ascending; what is above the last counts too
  std::vector<std::uint64_t> counts_;  // [bounds + 1], each for its interval alone
  double sum_ = 0;
};

/// Writes metrics in Prometheus' text format, version 0.0.4
/// (prometheus.io/docs/instrumenting/exposition_formats/#text-based-format).
class PrometheusText {
 public:
  using Labels = std::vector<std::pair<std::string, std::string>>;
  static constexpr const char* content_type = "text/plain; version=0.0.4; charset=utf-8";

  /// `common` are on every sample.
  explicit PrometheusText(Labels common) : common_(std::move(common)) {}

  /// type: "counter", "gauge" or "histogram". Its samples follow.
  void family(const std::string& name, const char* type, std::string_view help);
  void sample(double value, const Labels& labels = {});
  void sample(const Histogram& histogram);

  std::string take() { return std::move(text_); }

 private:
  void line(const std::string& name, const Labels& labels, double value);

  const Labels common_;
  std::string family_, text_;
};

}  // namespace shoal
