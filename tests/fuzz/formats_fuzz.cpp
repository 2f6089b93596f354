// libFuzzer target: any bytes are blocks of any format. They are worth the same packed as stored; and any finite values
// can be stored in any format, which makes finite ones of them. The first byte names the format, the second what to do.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/formats/format.h"
#include "kernels/matrix.h"

namespace {

using namespace shoal;

void require(bool holds) {
  if (!holds) std::abort();
}

/// Bit for bit but for the last one, which differs where a format multiplies its factors in another order.
bool alike(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return true;  // infinite factors: some orders give NaN, some infinity
  if (std::isinf(a) || std::isinf(b)) return true;
  return a == b || std::abs(a - b) <= 2e-7f * std::abs(b) + 1e-44f;
}

void dequantize(const QuantFormat& format, std::span<const std::uint8_t> data) {
  const PackedFormat* packed = packed_format(format);
  const std::int64_t elements = packed ? packed->record() : format.block_elements;
  const auto bytes = static_cast<std::size_t>(format.bytes(elements));
  const std::size_t rows = std::min<std::size_t>(data.size() / bytes, 40);
  if (rows == 0) return;
  std::vector<float> worth(rows * static_cast<std::size_t>(elements)), row(static_cast<std::size_t>(elements));
  const auto* blocks = reinterpret_cast<const std::byte*>(data.data());
  format.dequantize(blocks, static_cast<std::int64_t>(worth.size()), worth.data());
  if (!packed) return;
  Matrix m(*packed, static_cast<std::int64_t>(rows), elements);
  m.pack_rows(0, static_cast<std::int64_t>(rows), blocks, static_cast<std::int64_t>(bytes));
  for (std::size_t r = 0; r < rows; ++r) {
    m.unpack_row(static_cast<std::int64_t>(r), row.data());
    for (std::size_t c = 0; c < row.size(); ++c) require(alike(row[c], worth[r * row.size() + c]));
  }
}

void quantize(const QuantFormat& format, std::span<const std::uint8_t> data, bool weighted) {
  // One block: encoders search, and take their time.
  const auto n = static_cast<std::size_t>(format.block_elements);
  std::vector<float> values(n), importance(n, 1), worth(n);
  for (std::size_t i = 0; i < n; ++i) {
    if ((i + 1) * 4 <= data.size()) std::memcpy(&values[i], data.data() + i * 4, 4);
    if (!(std::abs(values[i]) <= 3.4e38f)) values[i] = 1;
    if (weighted && (n + i + 1) * 4 <= data.size()) std::memcpy(&importance[i], data.data() + (n + i) * 4, 4);
    if (!(importance[i] >= 0 && importance[i] <= 1e30f)) importance[i] = 0;
  }
  std::vector<std::byte> blocks(static_cast<std::size_t>(format.block_bytes));
  format.quantize(values.data(), format.block_elements, weighted ? importance.data() : nullptr, blocks.data());
  format.dequantize(blocks.data(), format.block_elements, worth.data());
  if (format.block_elements == 1) return;  // F16 becomes infinite where a value is too large
  for (const float f : worth) require(std::isfinite(f));
}

}  // namespace

/// Encoders make their tables at first use, which takes a while under sanitizers.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  for (const QuantFormat& format : quant_formats()) quantize(format, {}, false);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const auto formats = quant_formats();
  const QuantFormat& format = formats[data[0] % formats.size()];
  const std::span<const std::uint8_t> rest(data + 2, size - 2);
  if (data[1] % 4 == 0) {
    quantize(format, rest, data[1] & 4);
  } else {
    dequantize(format, rest);
  }
  return 0;
}
