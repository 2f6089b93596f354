#include "kernels/packed_format.h"

#include <algorithm>
#include <cstring>

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

/// With Scales::nibbles: fields of a pair of groups.
int fields_of_pair(const PackedFormat& f) { return f.has_dmin() ? 2 : 1; }

void put_factors(const PackedFormat& f, const CodeBlock& block, int row, std::byte* record) {
  const int fields = f.factor_fields(), of_pair = fields_of_pair(f);
  for (int first = 0; first < fields; first += 4) {
    std::byte* words = record + f.factor_at() + first / 4 * PackedFormat::kFactorBytes + row * 4;
    for (int parity = 0; parity < 2; ++parity) {
      unsigned word = 0;
      for (int field = first; field < std::min(first + 4, fields); ++field) {
        const int group = field / of_pair * 2 + parity;
        const bool minimum = field % of_pair == 1;
        const auto nibble = static_cast<unsigned>(minimum ? block.minimum[group] : block.scale[group]) & 15u;
        word |= nibble << (field % 4 * 4);
      }
      const auto bits = static_cast<std::uint16_t>(word);
      std::memcpy(words + parity * 2, &bits, 2);
    }
  }
}

int nibble_of(const PackedFormat& f, const std::byte* record, int group, bool minimum, int row) {
  const int field = group / 2 * fields_of_pair(f) + (minimum ? 1 : 0);
  std::uint16_t word;
  std::memcpy(&word, record + f.factor_at() + field / 4 * PackedFormat::kFactorBytes + (row * 2 + group % 2) * 2, 2);
  return word >> (field % 4 * 4) & 15;
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
  const auto n = static_cast<std::size_t>(nibble_of(f, record, group, false, row));
  return {f.scale_of[n], f.has_dmin() ? nibble_of(f, record, group, true, row) : f.minimum_of[n]};
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
    put_factors(f, block, r, record);
    for (int g = 0; f.scales == Scales::super && g < steps * groups; ++g) {
      std::byte* step = record + f.head_bytes() + g / groups * f.step_bytes();
      step[g % groups * kPanel + r] = static_cast<std::byte>(block.scale[g]);
      if (f.minima) step[(groups + g % groups) * kPanel + r] = static_cast<std::byte>(block.minimum[g]);
    }
    switch (f.coding) {
      case Coding::points:
        put_points(f, r, block.number, block.signs, record);
        break;
      case Coding::trits:
        put_trits(f, r, block.code, record);
        break;
      case Coding::planes:
        for (int q = 0; q < steps * kQuads; ++q) std::memcpy(codes + q * kQuadBytes + r * 4, block.code + q * 4, 4);
    }
  }
  if (f.coding == Coding::planes) put_planes(f, codes, record);
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
