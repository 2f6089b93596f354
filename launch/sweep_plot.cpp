#include "launch/sweep_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace shoal {
namespace {

constexpr double width = 800, height = 500, left = 70, right = 20, top = 40, bottom = 55;
constexpr std::array colours = {"#1b6ca8", "#d1495b", "#3c8d53", "#8a5fb0", "#b8860b"};

/// A logarithmic axis over values above zero, from one power of ten to another.
struct Axis {
  double low, high, from, to;  // powers; pixels
  Axis(double smallest, double largest, double from_pixel, double to_pixel)
      : low(std::floor(std::log10(smallest))),
        high(std::max(low + 1, std::ceil(std::log10(largest)))),
        from(from_pixel),
        to(to_pixel) {}
  double at(double value) const { return from + (std::log10(value) - low) / (high - low) * (to - from); }
};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  return out;
}

}  // namespace

std::string sweep_plot(const std::vector<Operating>& all, const std::vector<Operating>& front,
                       const std::string& title) {
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n<text x=\"{2}\" y=\"24\" font-size=\"15\">{3}</text>\n",
      width, height, left, escaped(title));
  if (all.empty()) return svg + "<text x=\"70\" y=\"80\">Nothing fits.</text>\n</svg>\n";
  const auto [fast, slow] = std::ranges::minmax_element(all, {}, &Operating::tpot_ms);
  const auto [few, many] = std::ranges::minmax_element(all, {}, &Operating::decode_tokens_per_s_per_node);
  const Axis x(fast->tpot_ms, slow->tpot_ms, left, width - right);
  const Axis y(few->decode_tokens_per_s_per_node, many->decode_tokens_per_s_per_node, height - bottom, top);
  for (double p = x.low; p <= x.high; ++p)
    svg += fmt::format(
        "<path d=\"M{0:.1f} {1}V{2}\" stroke=\"#ddd\"/><text x=\"{0:.1f}\" y=\"{3}\" "
        "text-anchor=\"middle\">{4:g}</text>\n",
        x.at(std::pow(10, p)), top, height - bottom, height - bottom + 18, std::pow(10, p));
  for (double p = y.low; p <= y.high; ++p)
    svg += fmt::format(
        "<path d=\"M{0} {1:.1f}H{2}\" stroke=\"#ddd\"/><text x=\"{3}\" y=\"{4:.1f}\" "
        "text-anchor=\"end\">{5:g}</text>\n",
        left, y.at(std::pow(10, p)), width - right, left - 6, y.at(std::pow(10, p)) + 4, std::pow(10, p));
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
  for (std::size_t i = 0; i < precisions.size(); ++i)
    svg += fmt::format("<text x=\"{}\" y=\"{}\" fill=\"{}\">{}</text>\n", left + 12,
                       top + 18 + 16 * static_cast<double>(i), colours[i % colours.size()], escaped(precisions[i]));
  return svg + "</svg>\n";
}

}  // namespace shoal
