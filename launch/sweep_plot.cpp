#include "launch/sweep_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace shoal {
namespace {

constexpr double width = 800, height = 500, left = 80, right = 30, top = 40, bottom = 55;
constexpr std::array colours = {"#1b6ca8", "#d1495b", "#3c8d53", "#8a5fb0", "#b8860b"};

/// Largest of 1, 2, 5, 10, 20 ... up to a value, and the one behind it.
double round_down(double value) {
  const double power = std::pow(10, std::floor(std::log10(value) + 1e-9));
  return power * (value >= 5 * power * (1 - 1e-9) ? 5 : value >= 2 * power * (1 - 1e-9) ? 2 : 1);
}
double next_round(double value) { return round_down(value * 2.5); }

/// A logarithmic axis over values above zero, between round numbers.
struct Axis {
  double low, high, from, to;  // values; pixels
  Axis(double smallest, double largest, double from_pixel, double to_pixel)
      : low(round_down(smallest)), high(next_round(low)), from(from_pixel), to(to_pixel) {
    while (high < largest) high = next_round(high);
  }
  double at(double value) const { return from + std::log(value / low) / std::log(high / low) * (to - from); }
  /// 1, 2, 5 ... , or powers of ten where these would be many.
  std::vector<double> ticks() const {
    std::vector<double> values;
    for (double v = low; v <= high * (1 + 1e-9); v = next_round(v))
      if (high / low < 3e4 || std::abs(std::log10(v) - std::round(std::log10(v))) < 1e-6) values.push_back(v);
    return values;
  }
};

/// 12000 as 12,000; no more digits than it has.
std::string label_of(double value) {
  std::string text = fmt::format("{:.6g}", value);
  const std::size_t digits = std::min(text.size(), text.find('.'));  // before the point
  if (value < 1000 || text.find('e') != std::string::npos || digits <= 3) return text;
  return text.insert(digits - 3, ",");
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  return out;
}

}  // namespace

std::string sweep_plot(const std::vector<Operating>& all, const std::vector<Operating>& front, const std::string& title,
                       double target_tpot_ms) {
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n<text x=\"{2}\" y=\"24\" font-size=\"15\">{3}</text>\n",
      width, height, left, escaped(title));
  if (all.empty()) return svg + "<text x=\"70\" y=\"80\">Nothing fits.</text>\n</svg>\n";
  const auto [fast, slow] = std::ranges::minmax_element(all, {}, &Operating::tpot_ms);
  const auto [few, many] = std::ranges::minmax_element(all, {}, &Operating::decode_tokens_per_s_per_node);
  const Axis x(fast->tpot_ms, slow->tpot_ms, left, width - right);
  const Axis y(few->decode_tokens_per_s_per_node, many->decode_tokens_per_s_per_node, height - bottom, top);
  for (const double v : x.ticks())
    svg += fmt::format(
        "<path d=\"M{0:.1f} {1}V{2}\" stroke=\"#ddd\"/><text x=\"{0:.1f}\" y=\"{3}\" "
        "text-anchor=\"middle\">{4}</text>\n",
        x.at(v), top, height - bottom, height - bottom + 18, label_of(v));
  for (const double v : y.ticks())
    svg += fmt::format(
        "<path d=\"M{0} {1:.1f}H{2}\" stroke=\"#ddd\"/><text x=\"{3}\" y=\"{4:.1f}\" "
        "text-anchor=\"end\">{5}</text>\n",
        left, y.at(v), width - right, left - 6, y.at(v) + 4, label_of(v));
  if (target_tpot_ms > x.low && target_tpot_ms < x.high)
    svg += fmt::format(
        "<path d=\"M{0:.1f} {1}V{2}\" stroke=\"#888\" stroke-dasharray=\"5 4\"/><text x=\"{3:.1f}\" y=\"{4}\" "
        "fill=\"#666\" text-anchor=\"end\">target: {5} ms</text>\n",
        x.at(target_tpot_ms), top, height - bottom, x.at(target_tpot_ms) - 5, height - bottom - 8,
        label_of(target_tpot_ms));
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">milliseconds a token</text>\n",
                     (left + width - right) / 2, height - 16);
  svg += fmt::format(
      "<text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">tokens a second and node"
      "</text>\n",
      (top + height - bottom) / 2);
  std::vector<std::string> precisions;
  for (const Operating& o : all) {
    auto found = std::ranges::find(precisions, o.precision);
    if (found == precisions.end()) found = precisions.insert(precisions.end(), o.precision);
    svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\" fill=\"{}\" fill-opacity=\"0.5\"/>\n",
                       x.at(o.tpot_ms), y.at(o.decode_tokens_per_s_per_node),
                       colours[static_cast<std::size_t>(found - precisions.begin()) % colours.size()]);
  }
  svg += "<polyline fill=\"none\" stroke=\"black\" points=\"";
  for (const Operating& o : front)
    svg += fmt::format("{:.1f},{:.1f} ", x.at(o.tpot_ms), y.at(o.decode_tokens_per_s_per_node));
  svg += "\"/>\n";
  // What each of the front is, above and left of it, where nothing else can be; right of it at the edge.
  for (const Operating& o : front) {
    const double at_x = x.at(o.tpot_ms), at_y = y.at(o.decode_tokens_per_s_per_node);
    const bool edge = at_x < left + 130;
    svg += fmt::format(
        "<circle cx=\"{0:.1f}\" cy=\"{1:.1f}\" r=\"4\" fill=\"none\" stroke=\"black\"/><text x=\"{2:.1f}\" "
        "y=\"{3:.1f}\" font-size=\"11\" text-anchor=\"{4}\">{5} on {6} node{7}{8}</text>\n",
        at_x, at_y, edge ? at_x + 8 : at_x - 8, edge ? at_y - 8 : at_y - 4, edge ? "start" : "end",
        label_of(o.concurrency), o.nodes, o.nodes == 1 ? "" : "s",
        o.tensor_parallel > 1 ? fmt::format(", TP {}", o.tensor_parallel) : "");
  }
  svg += fmt::format(
      "<text x=\"{}\" y=\"{}\" font-size=\"11\" fill=\"#666\" text-anchor=\"end\">labels: sequences on nodes, of the "
      "layouts that no other beats</text>\n",
      width - right, top - 8);
  const double legend = height - bottom - 12 - 16 * static_cast<double>(precisions.size());
  for (std::size_t i = 0; i < precisions.size(); ++i)
    svg += fmt::format("<circle cx=\"{0}\" cy=\"{1}\" r=\"4\" fill=\"{2}\"/><text x=\"{3}\" y=\"{4}\">{5}</text>\n",
                       left + 16, legend + 16 * static_cast<double>(i), colours[i % colours.size()], left + 26,
                       legend + 4 + 16 * static_cast<double>(i), escaped(precisions[i]));
  return svg + "</svg>\n";
}

}  // namespace shoal
