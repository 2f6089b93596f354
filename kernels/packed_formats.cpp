// Which codes, scales and minima the blocks of each stored format are: the table behind packed_format().
#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <mutex>
#include <span>
#include <tuple>
#include <vector>

#include "kernels/formats/codebook.h"
#include "kernels/formats/iq_grids.h"
#include "kernels/formats/iq_quants.h"
#include "kernels/formats/k_quants.h"
#include "kernels/formats/legacy.h"
#include "kernels/formats/ternary.h"
#include "kernels/packed_format.h"

namespace shoal {
namespace {

using namespace formats;  // the blocks this file takes apart

/// Codes of formats whose levels have signs are indices into a table of level + 128.
constexpr float kTableOffset = 128;

template <class Block, void (*Take)(const Block&, CodeBlock&)>
void decode_block(const std::byte* from, CodeBlock& out) {
  Block block;  // a copy: the source need not be aligned
  std::memcpy(&block, from, sizeof block);
  Take(block, out);
}

// ---- Blocks of 32 ----

void take_nibbles(const std::uint8_t* qs, std::uint8_t* code) {
  for (int i = 0; i < 16; ++i) {
    code[i] = qs[i] & 15;
    code[i + 16] = qs[i] >> 4;
  }
}
void take_fifth_bits(const std::uint8_t* qh, std::uint8_t* code) {
  for (int i = 0; i < 32; ++i) code[i] = static_cast<std::uint8_t>(code[i] | ((qh[i / 8] >> (i % 8)) & 1) << 4);
}

void take(const BlockQ4_0& b, CodeBlock& out) {
  out.d = b.d.bits;
  take_nibbles(b.qs, out.code);
}
void take(const BlockQ4_1& b, CodeBlock& out) {
  out.d = b.d.bits;
  out.dmin = b.m.bits;
  take_nibbles(b.qs, out.code);
}
void take(const BlockQ5_0& b, CodeBlock& out) {
  out.d = b.d.bits;
  take_nibbles(b.qs, out.code);
  take_fifth_bits(b.qh, out.code);
}
void take(const BlockQ5_1& b, CodeBlock& out) {
  out.d = b.d.bits;
  out.dmin = b.m.bits;
  take_nibbles(b.qs, out.code);
  take_fifth_bits(b.qh, out.code);
}
void take(const BlockQ8_0& b, CodeBlock& out) {
  out.d = b.d.bits;
  for (int i = 0; i < 32; ++i) out.code[i] = static_cast<std::uint8_t>(b.qs[i] + 128);
}
void take(const BlockIQ4_NL& b, CodeBlock& out) {
  out.d = b.d.bits;
  take_nibbles(b.qs, out.code);
}
void take(const BlockMXFP4& b, CodeBlock& out) {
  out.d = f32_to_bf16(std::bit_cast<float>(b.e < 2 ? 0x00200000u << b.e : (b.e - 1u) << 23));
  take_nibbles(b.qs, out.code);
}

// ---- K formats ----

/// Two bits at a time: element 32 k + j of half h is in bits 2 k of qs[32 h + j].
void take_pairs_of_bits(const std::uint8_t* qs, std::uint8_t* code) {
  for (int i = 0; i < kSuper; ++i) code[i] = (qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
}

void take(const BlockQ2_K& b, CodeBlock& out) {
  out.d = b.d.bits;
  out.dmin = b.dmin.bits;
  for (int g = 0; g < 16; ++g) {
    out.scale[g] = static_cast<std::int8_t>(b.scales[g] & 15);
    out.minimum[g] = b.scales[g] >> 4;
  }
  take_pairs_of_bits(b.qs, out.code);
}
void take(const BlockQ3_K& b, CodeBlock& out) {
  out.d = b.d.bits;
  std::uint8_t scales[16];
  unpack_scales_q3(b.scales, scales);
  for (int g = 0; g < 16; ++g) out.scale[g] = static_cast<std::int8_t>(scales[g] - 32);
  take_pairs_of_bits(b.qs, out.code);
  for (int i = 0; i < kSuper; ++i) {
    out.code[i] = static_cast<std::uint8_t>(out.code[i] | ((b.hmask[i % 32] >> (i / 32)) & 1) << 2);
  }
}
template <class Block>
void take_scales_and_mins(const Block& b, CodeBlock& out) {
  out.d = b.d.bits;
  out.dmin = b.dmin.bits;
  const ScalesAndMins s = unpack_scales(b.scales);
  for (int g = 0; g < 8; ++g) {
    out.scale[g] = static_cast<std::int8_t>(s.scale[g]);
    out.minimum[g] = s.min[g];
  }
  for (int i = 0; i < kSuper; ++i) out.code[i] = (b.qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4)) & 15;
}
void take(const BlockQ4_K& b, CodeBlock& out) { take_scales_and_mins(b, out); }
void take(const BlockQ5_K& b, CodeBlock& out) {
  take_scales_and_mins(b, out);
  for (int i = 0; i < kSuper; ++i) {
    out.code[i] = static_cast<std::uint8_t>(out.code[i] | ((b.qh[i % 32] >> (i / 32)) & 1) << 4);
  }
}
void take(const BlockQ6_K& b, CodeBlock& out) {
  out.d = b.d.bits;
  std::copy_n(b.scales, 16, out.scale);
  for (int i = 0; i < kSuper; ++i) {
    const int h = i / 128, k = i % 128 / 32, j = i % 32;
    const int low = (b.ql[64 * h + 32 * (k % 2) + j] >> (k / 2 * 4)) & 15;
    out.code[i] = static_cast<std::uint8_t>(low | ((b.qh[32 * h + j] >> (2 * k)) & 3) << 4);
  }
}

// ---- IQ formats ----

unsigned half_byte(const std::uint8_t* bytes, int i) { return (bytes[i / 2] >> (4 * (i % 2))) & 15u; }

void take(const BlockIQ4_XS& b, CodeBlock& out) {
  out.d = b.d.bits;
  for (int g = 0; g < 8; ++g) {
    const unsigned s = half_byte(b.scales_low, g) | ((b.scales_high >> (2 * g)) & 3u) << 4;
    out.scale[g] = static_cast<std::int8_t>(static_cast<int>(s) - 32);
    take_nibbles(b.qs + 16 * g, out.code + 32 * g);
  }
}

constexpr std::array<int, 3> kIq2Magnitudes = {8, 25, 43};
constexpr std::array<int, 8> kIq3XxsMagnitudes = {4, 12, 20, 28, 36, 44, 52, 62};
int iq2_code(int magnitude) { return magnitude == 8 ? 0 : magnitude == 25 ? 1 : 2; }
int iq3_xxs_code(int magnitude) { return magnitude / 8; }  // 62 is the last, as 60 would be
int iq3_s_code(int magnitude) { return magnitude / 2; }    // 1, 3, .. 15

/// Four scales of four bits after the other, as they are.
void take_nibbles_of_scales(const std::uint8_t* scales, int groups, CodeBlock& out) {
  for (int g = 0; g < groups; ++g) out.scale[g] = static_cast<std::int8_t>(half_byte(scales, g));
}
/// The signs of 32 columns, eight of them by seven bits.
std::uint32_t four_even_signs(std::uint32_t bits) {
  std::uint32_t signs = 0;
  for (int k = 0; k < 4; ++k) signs |= std::uint32_t{even_signs((bits >> (7 * k)) & 127u)} << (8 * k);
  return signs;
}

void take(const BlockIQ2_XXS& b, CodeBlock& out) {
  out.d = b.d.bits;
  for (int g = 0; g < 8; ++g) {
    const std::uint16_t* q = b.qs + 4 * g;
    const std::uint32_t rest = q[2] | static_cast<std::uint32_t>(q[3]) << 16;
    out.scale[g] = static_cast<std::int8_t>(rest >> 28);
    out.signs[g] = four_even_signs(rest);
    for (int k = 0; k < 4; ++k) out.number[4 * g + k] = (q[k / 2] >> (8 * (k % 2))) & 255u;
  }
}
void take(const BlockIQ2_XS& b, CodeBlock& out) {
  out.d = b.d.bits;
  take_nibbles_of_scales(b.scales, 16, out);
  std::fill_n(out.signs, 8, 0u);
  for (int k = 0; k < 32; ++k) {
    out.number[k] = b.qs[k] & 511u;
    out.signs[k / 4] |= std::uint32_t{even_signs(b.qs[k] >> 9)} << (k % 4 * 8);
  }
}
void take(const BlockIQ2_S& b, CodeBlock& out) {
  out.d = b.d.bits;
  take_nibbles_of_scales(b.scales, 16, out);
  std::memcpy(out.signs, b.signs, sizeof out.signs);
  for (int k = 0; k < 32; ++k) {
    out.number[k] = static_cast<std::uint16_t>(b.qs[k] | ((b.qh[k / 4] >> (2 * (k % 4))) & 3u) << 8);
  }
}
void take(const BlockIQ3_XXS& b, CodeBlock& out) {
  out.d = b.d.bits;
  std::copy_n(b.qs, 64, out.number);
  for (int g = 0; g < 8; ++g) {
    std::uint32_t rest;
    std::memcpy(&rest, b.signs_and_scales + 4 * g, 4);
    out.scale[g] = static_cast<std::int8_t>(rest >> 28);
    out.signs[g] = four_even_signs(rest);
  }
}
void take(const BlockIQ3_S& b, CodeBlock& out) {
  out.d = b.d.bits;
  take_nibbles_of_scales(b.scales, 8, out);
  std::memcpy(out.signs, b.signs, sizeof out.signs);
  for (int k = 0; k < 64; ++k) {
    out.number[k] = static_cast<std::uint16_t>(b.qs[k] | ((b.qh[k / 8] >> (k % 8)) & 1u) << 8);
  }
}
/// scale * (code - 1 + delta): the minimum is scale / 8 times 7 or 9.
void take(const BlockIQ1_S& b, CodeBlock& out) {
  out.d = b.d.bits;
  for (int g = 0; g < 8; ++g) {
    out.scale[g] = static_cast<std::int8_t>(b.qh[g] >> 12);
    for (int k = 4 * g; k < 4 * g + 4; ++k) {
      const std::uint64_t point = iq1_grid()[b.qs[k] | ((b.qh[g] >> (3 * (k % 4))) & 7u) << 8];
      for (int i = 0; i < 8; ++i) out.code[8 * k + i] = static_cast<std::uint8_t>(point >> (8 * i)) + 1;
    }
  }
}
/// The delta changes every 8 elements, so it goes into the codes: eight times point + delta is one of six numbers.
void take(const BlockIQ1_M& b, CodeBlock& out) {
  out.d = b.d().bits;
  for (int g = 0; g < 16; ++g) {
    out.scale[g] = static_cast<std::int8_t>((b.scales[g / 4] >> (3 * (g % 4))) & 7);
  }
  for (int k = 0; k < 32; ++k) {
    const unsigned high = half_byte(b.qh, k);
    const std::uint64_t point = iq1_grid()[b.qs[k] | (high & 7u) << 8];
    for (int i = 0; i < 8; ++i) {
      const int trit = static_cast<std::int8_t>(point >> (8 * i)) + 1;
      out.code[8 * k + i] = static_cast<std::uint8_t>(trit + (high & 8u ? 0 : 4));
    }
  }
}

// ---- Ternary ----

void take(const BlockTQ1_0& b, CodeBlock& out) {
  out.d = b.d.bits;
  float values[kSuper];
  BlockTQ1_0 one = b;
  one.d = Half::of(1.0f);
  decode(one, values);  // its digits are simplest read where they are defined
  for (int i = 0; i < kSuper; ++i) out.code[i] = static_cast<std::uint8_t>(values[i] + 1.0f);
}
void take(const BlockTQ2_0& b, CodeBlock& out) {
  out.d = b.d.bits;
  take_pairs_of_bits(b.qs, out.code);
}

/// Level + 128 for each code; those that mean nothing are zeros.
template <class Levels>
constexpr std::array<std::uint8_t, 16> table_of(const Levels& levels) {
  std::array<std::uint8_t, 16> table;
  table.fill(128);
  for (std::size_t i = 0; i < std::size(levels); ++i) table[i] = static_cast<std::uint8_t>(levels[i] + 128);
  return table;
}
/// Magnitudes, then the same below zero from code `negative` on.
template <std::size_t kCount>
constexpr std::array<std::uint8_t, 16> signed_table(const std::array<int, kCount>& magnitudes, std::size_t negative) {
  std::array<std::uint8_t, 16> table;
  table.fill(128);
  for (std::size_t i = 0; i < kCount; ++i) {
    table[i] = static_cast<std::uint8_t>(128 + magnitudes[i]);
    table[negative + i] = static_cast<std::uint8_t>(128 - magnitudes[i]);
  }
  return table;
}
constexpr std::array<int, 8> kIq3SMagnitudes = {1, 3, 5, 7, 9, 11, 13, 15};
constexpr std::array<int, 7> kIq1mLevels = {-9, -1, 7, 0, -7, 1, 9};  // eight times -1, 0, 1 with delta -1/8, then 1/8

struct Meaning {
  float offset = 0;
  bool minima = false;
  float unit = 1, minimum_unit = 1;
};

template <class Block>
PackedFormat packed(const char* name, int bits, Scales scales, int group, const Meaning& m) {
  PackedFormat f;
  f.name = name;
  f.stored = find_format(name);
  f.bits = bits;
  f.scales = scales;
  f.columns = f.stored->block_elements;
  f.group = group;
  f.offset = m.offset;
  f.minima = m.minima;
  f.unit = m.unit;
  f.minimum_unit = m.minimum_unit;
  f.decode = decode_block<Block, take>;
  return f;
}
PackedFormat with_table(PackedFormat f, const std::array<std::uint8_t, 16>& table) {
  f.has_table = true;
  f.table = table;
  f.offset = kTableOffset;
  return f;
}

/// Scales that are odd numbers.
PackedFormat with_odd_scales(PackedFormat f) {
  for (int n = 0; n < 16; ++n) f.scale_of[static_cast<std::size_t>(n)] = static_cast<std::int8_t>(2 * n + 1);
  return f;
}
/// Q2_K's: scales and minima are the nibbles themselves.
PackedFormat with_plain_factors(PackedFormat f) {
  for (int n = 0; n < 16; ++n) f.scale_of[static_cast<std::size_t>(n)] = static_cast<std::int8_t>(n);
  return f;
}
/// IQ1_S's: three bits are a scale, the fourth says which of two minima.
PackedFormat with_scales_and_deltas(PackedFormat f) {
  for (int n = 0; n < 16; ++n) {
    const int scale = 2 * (n & 7) + 1;
    f.scale_of[static_cast<std::size_t>(n)] = static_cast<std::int8_t>(scale);
    f.minimum_of[static_cast<std::size_t>(n)] = static_cast<std::uint8_t>(scale * (n & 8 ? 9 : 7));
  }
  f.minima_of_scale = true;
  return f;
}

/// The points of a grid whose coordinates' numbers are `number_of`.
template <class Point, std::size_t kCount>
PointSet points_of(std::span<const Point, kCount> grid, int (*number_of)(int)) {
  constexpr int kColumns = sizeof(Point), kExtraBits = std::bit_width(kCount) - 9;
  PointSet set{.columns = kColumns, .extra_bits = kExtraBits};
  for (std::size_t i = 0; i < kCount; ++i) {
    unsigned first = 0, second = 0;
    for (int c = 0; c < kColumns; ++c) {
      const auto number = static_cast<unsigned>(number_of(static_cast<int>(grid[i] >> (8 * c) & 255)));
      if (c < 4) first |= (number & 3u) << (2 * c);
      if (c >= 4) second |= number << (2 * (c - 4));
      if (kColumns == 4) second |= number >> 2 << c;
    }
    set.table[i] = static_cast<std::uint8_t>(first);
    set.table[kCount + i] = static_cast<std::uint8_t>(second);
  }
  spread_table(set);
  return set;
}
PackedFormat with_points(PackedFormat f, const PointSet& points) {
  f.coding = Coding::points;
  f.points = &points;
  return f;
}
PackedFormat with_trits(PackedFormat f, bool deltas = false) {
  f.coding = Coding::trits;
  f.points = &trit_set();
  f.deltas = deltas;
  return f;
}

/// IQ2's and IQ3's: signs and points, and scales that are odd numbers.
template <class Block>
PackedFormat of_points(const char* name, int bits, int group, float unit, const std::array<std::uint8_t, 16>& table,
                       const PointSet& points) {
  const PackedFormat f = packed<Block>(name, bits, Scales::nibbles, group, {.unit = unit});
  return with_odd_scales(with_table(with_points(f, points), table));
}

const std::array<PackedFormat, 22>& all() {
  static const auto iq2 = signed_table(kIq2Magnitudes, 4), iq3_xxs = signed_table(kIq3XxsMagnitudes, 8),
                    iq3_s = signed_table(kIq3SMagnitudes, 8);
  static const PointSet iq2_xxs_points = points_of(iq2_xxs_grid(), iq2_code);
  static const PointSet iq2_xs_points = points_of(iq2_xs_grid(), iq2_code);
  static const PointSet iq2_s_points = points_of(iq2_s_grid(), iq2_code);
  static const PointSet iq3_xxs_points = points_of(iq3_xxs_grid(), iq3_xxs_code);
  static const PointSet iq3_s_points = points_of(iq3_s_grid(), iq3_s_code);
  static const std::array<PackedFormat, 22> formats = {
      packed<BlockQ4_0>("Q4_0", 4, Scales::half, 32, {.offset = 8}),
      packed<BlockQ4_1>("Q4_1", 4, Scales::half, 32, {.minima = true, .minimum_unit = -1}),
      packed<BlockQ5_0>("Q5_0", 5, Scales::half, 32, {.offset = 16}),
      packed<BlockQ5_1>("Q5_1", 5, Scales::half, 32, {.minima = true, .minimum_unit = -1}),
      packed<BlockQ8_0>("Q8_0", 8, Scales::half, 32, {.offset = 128}),
      with_plain_factors(packed<BlockQ2_K>("Q2_K", 2, Scales::nibbles, 16, {.minima = true})),
      packed<BlockQ3_K>("Q3_K", 3, Scales::super, 16, {.offset = 4}),
      packed<BlockQ4_K>("Q4_K", 4, Scales::super, 32, {.minima = true}),
      packed<BlockQ5_K>("Q5_K", 5, Scales::super, 32, {.minima = true}),
      packed<BlockQ6_K>("Q6_K", 6, Scales::super, 16, {.offset = 32}),
      with_table(packed<BlockIQ4_NL>("IQ4_NL", 4, Scales::half, 32, {}), table_of(kIq4Levels)),
      with_table(packed<BlockIQ4_XS>("IQ4_XS", 4, Scales::super, 32, {}), table_of(kIq4Levels)),
      of_points<BlockIQ2_XXS>("IQ2_XXS", 3, 32, 0.125f, iq2, iq2_xxs_points),
      of_points<BlockIQ2_XS>("IQ2_XS", 3, 16, 0.125f, iq2, iq2_xs_points),
      of_points<BlockIQ2_S>("IQ2_S", 3, 16, 0.125f, iq2, iq2_s_points),
      of_points<BlockIQ3_XXS>("IQ3_XXS", 4, 32, 0.25f, iq3_xxs, iq3_xxs_points),
      of_points<BlockIQ3_S>("IQ3_S", 4, 32, 1.0f, iq3_s, iq3_s_points),
      with_trits(with_scales_and_deltas(
          packed<BlockIQ1_S>("IQ1_S", 2, Scales::nibbles, 32, {.minima = true, .minimum_unit = 0.125f}))),
      with_trits(with_odd_scales(with_table(packed<BlockIQ1_M>("IQ1_M", 3, Scales::nibbles, 16, {.unit = 0.125f}),
                                            table_of(kIq1mLevels))),
                 true),
      with_trits(packed<BlockTQ1_0>("TQ1_0", 2, Scales::half, 32, {.offset = 1})),
      packed<BlockTQ2_0>("TQ2_0", 2, Scales::half, 32, {.offset = 1}),
      with_table(packed<BlockMXFP4>("MXFP4", 4, Scales::bfloat, 32, {}), table_of(kE2m1Levels)),
  };
  return formats;
}

}  // namespace

const PackedFormat* packed_format(const QuantFormat& format) {
  for (const PackedFormat& f : all())
    if (f.stored == &format) return &f;
  return nullptr;
}

const PackedFormat& integer_format(int bits, Scales scales, int columns, std::optional<int> zero) {
  static std::mutex mutex;
  static std::map<std::tuple<int, Scales, int, std::optional<int>>, PackedFormat> made;
  const std::lock_guard lock(mutex);
  PackedFormat& f = made[{bits, scales, columns, zero}];
  if (f.bits == 0) {
    f.name = bits == 8 ? "INT8" : "INT4";
    f.bits = bits;
    f.scales = scales;
    f.columns = columns;
    f.zeros = !zero;
    f.offset = static_cast<float>(zero.value_or(0));
  }
  return f;
}

}  // namespace shoal
