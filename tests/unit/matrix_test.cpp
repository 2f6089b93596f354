#include "kernels/matrix.h"

#include <cstring>

#include "base/error.h"
#include "tests/unit/kernel_test_support.h"

namespace shoal::kernel_test {
namespace {

constexpr DType kStoredTypes[] = {DType::f32, DType::f16, DType::bf16, DType::f8_e4m3};

/// Row-major source elements: element i holds a code made of i, never NaN.
std::vector<std::byte> source(DType type, std::int64_t n) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(n) * size_of(type));
  for (std::int64_t i = 0; i < n; ++i) {
    const auto f = static_cast<float>(i);
    const auto half = static_cast<std::uint16_t>(i % 0x7000);
    const auto code = static_cast<std::uint8_t>(i * 7 % 127);
    const void* from = type == DType::f32   ? static_cast<const void*>(&f)
                       : size_of(type) == 2 ? &half
                                            : static_cast<const void*>(&code);
    std::memcpy(bytes.data() + static_cast<std::size_t>(i) * size_of(type), from, size_of(type));
  }
  return bytes;
}

float value(DType type, const std::byte* p) {
  float f;
  std::uint16_t half;
  switch (type) {
    case DType::f32:
      std::memcpy(&f, p, 4);
      return f;
    case DType::f16:
      std::memcpy(&half, p, 2);
      return f16_to_f32(half);
    case DType::bf16:
      std::memcpy(&half, p, 2);
      return bf16_to_f32(half);
    case DType::f8_e4m3:
      break;
  }
  return f8_e4m3_to_f32(static_cast<std::uint8_t>(*p));
}

TEST(Matrix, HoldsWhatWasPackedWhateverTheSizes) {
  for (const DType type : kStoredTypes) {
    for (const auto& [rows, cols] :
         {std::pair<std::int64_t, std::int64_t>{16, 16}, {1, 1}, {33, 47}, {64, 129}, {100, 18}}) {
      const std::int64_t stride = cols + 3;
      const auto bytes = source(type, rows * stride);
      const auto size = static_cast<std::int64_t>(size_of(type));
      for (const std::int64_t at_once : {rows, std::int64_t{1}, std::int64_t{23}}) {
        Matrix m(type, rows, cols);
        for (std::int64_t r = 0; r < rows; r += at_once) {
          m.pack_rows(r, std::min(at_once, rows - r), bytes.data() + r * stride * size, stride * size);
        }
        std::vector<float> row(static_cast<std::size_t>(cols));
        for (std::int64_t r = 0; r < rows; ++r) {
          m.unpack_row(r, row.data());
          for (std::int64_t c = 0; c < cols; ++c) {
            ASSERT_EQ(m.at(r, c), value(type, bytes.data() + (r * stride + c) * size))
                << name_of(type) << r << "," << c;
            ASSERT_EQ(row[std::size_t(c)], m.at(r, c));
          }
        }
      }
    }
  }
}

TEST(Matrix, LayoutIsPanelsOfSixteenRows) {
  const std::int64_t rows = 20, cols = 5;
  for (const DType type : kStoredTypes) {
    Matrix m(type, rows, cols);
    const auto bytes = source(type, rows * cols);
    const std::size_t size = size_of(type);
    m.pack_rows(0, rows, bytes.data(), cols * static_cast<std::int64_t>(size));
    EXPECT_EQ(m.panels(), 2);
    EXPECT_EQ(m.padded_cols(), 6);
    EXPECT_EQ(m.panel_bytes(), 6 * 16 * static_cast<std::int64_t>(size));
    EXPECT_EQ(m.bytes(), 2 * m.panel_bytes());
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(m.panel(0)) % 64, 0u);
    for (std::size_t r = 0; r < 32; ++r) {
      for (std::size_t c = 0; c < 6; ++c) {
        const std::size_t place = size == 2 ? (c / 2 * 16 + r % 16) * 2 + c % 2 : c * 16 + r % 16;
        const std::byte* at = m.panel(std::int64_t(r) / 16) + place * size;
        const std::vector<std::byte> zero(size);
        const bool padding = r >= rows || c >= cols;
        const std::byte* expected = padding ? zero.data() : bytes.data() + (r * cols + c) * size;
        EXPECT_EQ(std::memcmp(at, expected, size), 0) << name_of(type) << " " << r << "," << c;
      }
    }
  }
}

TEST(Matrix, ScalesMultiplyTheirBlocks) {
  Matrix m(DType::f8_e4m3, 5, 7);
  const std::vector<std::uint8_t> ones(35, 0x38);
  m.pack_rows(0, 5, ones.data(), 7);
  m.set_scales({{1, 2, 3, 4, 5, 6, 7, 8, 9}, 2, 3});
  for (std::int64_t r = 0; r < 5; ++r) {
    std::vector<float> row(7);
    m.unpack_row(r, row.data());
    for (std::int64_t c = 0; c < 7; ++c) {
      EXPECT_EQ(m.at(r, c), float(r / 2 * 3 + c / 3 + 1));
      EXPECT_EQ(row[std::size_t(c)], m.at(r, c));
    }
  }
  EXPECT_THROW(m.set_scales({{1, 2}, 2, 3}), Error);
  EXPECT_THROW(m.set_scales({{1}, 0, 3}), Error);
  Matrix other(DType::bf16, 5, 7);
  EXPECT_THROW(other.set_scales({{1}, 5, 7}), Error);
}

TEST(Matrix, NoticesNanCodes) {
  std::vector<std::uint8_t> codes(16 * 20, 0x7e);
  Matrix m(DType::f8_e4m3, 16, 20);
  m.pack_rows(0, 16, codes.data(), 20);
  EXPECT_FALSE(m.has_nan_codes());
  codes[37] = 0xff;
  m.pack_rows(0, 16, codes.data(), 20);
  EXPECT_TRUE(m.has_nan_codes());
  EXPECT_TRUE(std::isnan(m.at(1, 17)));
}

TEST(Matrix, RefusesWhatCannotBe) {
  EXPECT_THROW(Matrix(DType::f32, 0, 4), Error);
  EXPECT_THROW(Matrix(DType::f32, 4, -1), Error);
  EXPECT_TRUE(Matrix().empty());
}

}  // namespace
}  // namespace shoal::kernel_test
