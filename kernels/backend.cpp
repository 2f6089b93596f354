#include "kernels/backend.h"

#include <algorithm>

// What back ends whose memory the host can reach have in common.
namespace shoal {

void Backend::from_host(Rows<const float> x, Rows<float> to) {
  if (x.data == to.data) return;
  for (std::int64_t t = 0; t < x.rows; ++t) std::copy_n(x[t], x.cols, to[t]);
}

void Backend::fill_zero(Rows<float> out) {
  for (std::int64_t t = 0; t < out.rows; ++t) std::fill_n(out[t], out.cols, 0.0f);
}

void Backend::copy_heads(Rows<const float> x, std::int64_t x_step, int heads, std::int64_t width, Rows<float> out,
                         std::int64_t out_step) {
  for (std::int64_t t = 0; t < x.rows; ++t)
    for (int h = 0; h < heads; ++h) std::copy_n(x[t] + h * x_step, width, out[t] + h * out_step);
}

void Backend::gather_rows(Rows<const float> x, std::span<const std::int64_t> rows, Rows<float> out) {
  for (std::int64_t i = 0; i < out.rows; ++i) std::copy_n(x[rows[static_cast<std::size_t>(i)]], out.cols, out[i]);
}

}  // namespace shoal
