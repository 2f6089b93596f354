#include "kernels/packed_format.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "kernels/dtype.h"

namespace shoal {
namespace {

constexpr int kPanel = PackedFormat::kPanel, kQuads = PackedFormat::kQuads, kQuadBytes = PackedFormat::kQuadBytes;

float half_at(const std::byte* p) {
  std::uint16_t bits;
  std::memcpy(&bits, p, 2);
  return f16_to_f32(bits);
}
/// The scale of a row of a record.
float d_of(const PackedFormat& f, const std::byte* record, int row) {
  const std::byte* p = record + row * f.d_bytes();
  switch (f.scales) {
    case Scales::single:
      return element_to_f32(DType::f32, p);
    case Scales::bfloat:
      return element_to_f32(DType::bf16, p);
    case Scales::half:
    case Scales::super:
    case Scales::nibbles:
      break;
  }
  return half_at(p);
}

/// Where the nibble of a group's scale or minimum is in a record: bits [shift, shift + 4) of a word.
struct Nibble {
  std::int64_t at;
  int shift;
};
Nibble nibble_of(const PackedFormat& f, int group, bool minimum, int row) {
  const int field = group / 2 * (f.has_dmin() ? 2 : 1) + (minimum ? 1 : 0);
  return {f.factor_at() + field / 4 * PackedFormat::kFactorBytes + (row * 2 + group % 2) * 2, field % 4 * 4};
}

void put_nibble(const Nibble& n, int value, std::byte* record) {
  std::uint16_t word;
  std::memcpy(&word, record + n.at, 2);
  word = static_cast<std::uint16_t>(word | value << n.shift);
  std::memcpy(record + n.at, &word, 2);
}
int get_nibble(const Nibble& n, const std::byte* record) {
  std::uint16_t word;
  std::memcpy(&word, record + n.at, 2);
  return word >> n.shift & 15;
}

/// The nibble that means this scale, and the minimum if that comes with it.
int nibble_for(const PackedFormat& f, std::int8_t scale, std::uint8_t minimum) {
  for (std::size_t n = 0; n < f.scale_of.size(); ++n)
    if (f.scale_of[n] == scale && (!f.minima_of_scale || f.minimum_of[n] == minimum)) return static_cast<int>(n);
  fail("{} has no factor {}", f.name, scale);
}

/// The scale and the minimum of a group of a record, as whole numbers.
struct Factors {
  int scale = 1, minimum = 1;
};
Factors factors_of(const PackedFormat& f, const std::byte* record, int group, int row) {
  const int groups = f.groups();
  if (f.scales == Scales::super) {
    const std::byte* step = record + f.head_bytes() + group / groups * f.step_bytes();
    const int in_step = group % groups;
    return {static_cast<std::int8_t>(step[in_step * kPanel + row]),
            f.minima ? static_cast<std::uint8_t>(step[(groups + in_step) * kPanel + row]) : 1};
  }
  if (f.scales != Scales::nibbles) return {};
  const auto n = static_cast<std::size_t>(get_nibble(nibble_of(f, group, false, row), record));
  return {f.scale_of[n], f.has_dmin() ? get_nibble(nibble_of(f, group, true, row), record) : f.minimum_of[n]};
}

}  // namespace

void pack_record(const PackedFormat& f, int rows, const BlockOfRow& block_of, std::byte* record) {
  const int steps = f.record() / PackedFormat::kStep, groups = f.groups();
  std::memset(record, 0, static_cast<std::size_t>(f.record_bytes()));
  alignas(64) std::uint8_t codes[ExpandedRecord::kSteps * kQuads * kQuadBytes] = {};
  for (int r = 0; r < rows; ++r) {
    CodeBlock block;
    block_of(r, block);
    std::memcpy(record + r * f.d_bytes(), &block.d, static_cast<std::size_t>(f.d_bytes()));
    if (f.has_dmin()) std::memcpy(record + kPanel * 2 + r * 2, &block.dmin, 2);
    if (f.zeros) record[f.zero_at() + r] = static_cast<std::byte>(block.zero);
    for (int q = 0; q < steps * kQuads; ++q) std::memcpy(codes + q * kQuadBytes + r * 4, block.code + q * 4, 4);
    for (int g = 0; f.scales == Scales::nibbles && g < steps * groups; ++g) {
      put_nibble(nibble_of(f, g, false, r), nibble_for(f, block.scale[g], block.minimum[g]), record);
      if (f.has_dmin()) put_nibble(nibble_of(f, g, true, r), block.minimum[g] & 15, record);
    }
    for (int g = 0; f.scales == Scales::super && g < steps * groups; ++g) {
      std::byte* step = record + f.head_bytes() + g / groups * f.step_bytes();
      step[g % groups * kPanel + r] = static_cast<std::byte>(block.scale[g]);
      if (f.minima) step[(groups + g % groups) * kPanel + r] = static_cast<std::byte>(block.minimum[g]);
    }
  }
  put_codes(f, rows, codes, record);
}

void pack_record(const PackedFormat& f, const std::byte* blocks, std::int64_t stride_bytes, int rows,
                 std::byte* record) {
  const auto stored = [&](int row, CodeBlock& out) { f.decode(blocks + row * stride_bytes, out); };
  pack_record(f, rows, stored, record);
}

void expand_record(const PackedFormat& f, const std::byte* record, ExpandedRecord& out) {
  const int steps = f.record() / PackedFormat::kStep, groups = f.groups();
  for (int r = 0; r < kPanel; ++r) {
    out.offset[r] = f.zeros ? static_cast<float>(static_cast<std::uint8_t>(record[f.zero_at() + r])) : f.offset;
  }
  const CodeLayout layout = code_layout(f);
  auto* codes = reinterpret_cast<std::uint8_t*>(out.code);
  for (int s = 0; s < steps; ++s) take_codes(layout, record, s, codes + s * kQuads * kQuadBytes);
  if (f.has_table)
    for (int i = 0; i < steps * kQuads * kQuadBytes; ++i) codes[i] = f.table[codes[i]];
  for (int s = 0; s < steps; ++s) {
    for (int g = 0; g < groups; ++g) {
      for (int r = 0; r < kPanel; ++r) {
        const float d = d_of(f, record, r);
        const float dmin = f.has_dmin() ? half_at(record + kPanel * 2 + r * 2) : d;
        const Factors factors = factors_of(f, record, s * groups + g, r);
        const float scale = f.unit * d * static_cast<float>(factors.scale);
        const float minimum = f.minimum_unit * dmin * static_cast<float>(factors.minimum);
        out.scale[s * groups + g][r] = scale;
        out.minimum[s * groups + g][r] = f.minima ? minimum : scale * out.offset[r];
      }
    }
  }
}

void dequantize_row(const PackedFormat& f, const std::byte* panel, int row, std::int64_t count, float* out) {
  ExpandedRecord e;
  for (std::int64_t c = 0; c < count; c += f.record(), panel += f.record_bytes()) {
    expand_record(f, panel, e);
    for (int i = 0; i < f.record(); ++i) {
      const int g = i / f.group;
      const auto code = static_cast<float>(e.code[i / 4][row][i % 4]);
      // With an offset, the difference first: it is exact.
      out[c + i] = f.minima ? e.scale[g][row] * code - e.minimum[g][row] : e.scale[g][row] * (code - e.offset[row]);
    }
  }
}

}  // namespace shoal
