#pragma once
#include "kernels/cpu/vnni512_expanded.h"

/// The codes of points and trits (packed_codes.h) with AVX-512 VBMI, which looks 64 bytes up at once and takes a byte
/// from any bit on.
namespace shoal::cpu {
namespace {

/// Where _mm512_multishift_epi64_epi8 takes each byte of a quad from: row r's four bytes lie in the 32 bits that hold
/// row r.
struct Places {
  alignas(64) std::uint8_t at[64];
};
/// Column c of a quad is at bit `first` + `apart` * c.
constexpr Places places_of(int first, int apart) {
  Places p{};
  for (int i = 0; i < 64; ++i) {
    p.at[i] = static_cast<std::uint8_t>((i / 4 % 2 * 32 + first + apart * (i % 4) + 64) % 64);
  }
  return p;
}
/// Fields of two bits of byte k; single bits of it, to bit 2 of the code; signs of quad q, to bit 2 or 3.
constexpr Places kPairsOfByte[4] = {places_of(0, 2), places_of(8, 2), places_of(16, 2), places_of(24, 2)};
constexpr Places kBitsOfByte[4] = {places_of(-2, 1), places_of(6, 1), places_of(14, 1), places_of(22, 1)};
template <int kSign>
constexpr Places kSignsOfQuad[8] = {places_of(0 - kSign, 1),  places_of(4 - kSign, 1),  places_of(8 - kSign, 1),
                                    places_of(12 - kSign, 1), places_of(16 - kSign, 1), places_of(20 - kSign, 1),
                                    places_of(24 - kSign, 1), places_of(28 - kSign, 1)};

SHOAL_INLINE __m512i take_from(const Places& places, __m512i bits) {
  return _mm512_multishift_epi64_epi8(_mm512_load_si512(places.at), bits);
}
/// a | (b & c)
SHOAL_INLINE __m512i or_and(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi64(a, b, c, 0xf8); }

/// 64 numbers of points: the lower eight bits, the eighth also as a mask, and further bits as masks.
template <int kExtraBits>
struct Numbers {
  __m512i low;
  __mmask64 eighth, extra[2];

  static SHOAL_INLINE Numbers load(const std::byte* low, const std::byte* extra) {
    Numbers n{};
    n.low = _mm512_loadu_si512(low);
    n.eighth = _mm512_movepi8_mask(n.low);
#pragma GCC unroll 2
    for (int i = 0; i < kExtraBits; ++i) std::memcpy(&n.extra[i], extra + i * 8, 8);
    return n;
  }

  /// The same in a table of 256 bytes that is held already.
  SHOAL_INLINE __m512i look_up(const __m512i (&table)[4]) const {
    return _mm512_mask_blend_epi8(eighth, _mm512_permutex2var_epi8(table[0], low, table[1]),
                                  _mm512_permutex2var_epi8(table[2], low, table[3]));
  }
  /// Their entries in a table of 256 << kExtraBits bytes.
  SHOAL_INLINE __m512i look_up(const std::uint8_t* table) const {
    if constexpr (kExtraBits == 0) return look_up_256(table);
    if constexpr (kExtraBits == 1) return look_up_512(table);
    return _mm512_mask_blend_epi8(extra[1], look_up_512(table), look_up_512(table + 512));
  }

 private:
  SHOAL_INLINE __m512i look_up_128(const std::uint8_t* table) const {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), low, _mm512_load_si512(table + 64));
  }
  SHOAL_INLINE __m512i look_up_256(const std::uint8_t* table) const {
    return _mm512_mask_blend_epi8(eighth, look_up_128(table), look_up_128(table + 128));
  }
  SHOAL_INLINE __m512i look_up_512(const std::uint8_t* table) const {
    return _mm512_mask_blend_epi8(extra[0], look_up_256(table), look_up_256(table + 256));
  }
};

/// A table as it is looked up in: one of 256 bytes is held in registers.
template <int kExtraBits>
struct PointTable {
  const std::uint8_t* bytes;
  explicit PointTable(const std::uint8_t* table) : bytes(table) {}
  SHOAL_INLINE __m512i operator[](const Numbers<kExtraBits>& numbers) const { return numbers.look_up(bytes); }
};
template <>
struct PointTable<0> {
  __m512i held[4];
  explicit PointTable(const std::uint8_t* table) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) held[i] = _mm512_load_si512(table + i * 64);
  }
  SHOAL_INLINE __m512i operator[](const Numbers<0>& numbers) const { return numbers.look_up(held); }
};

/// A block of Coding::points: its codes' entries in the format's table.
template <int kColumns, int kExtraBits>
void take_points(const QuantizedLayout& f, const std::byte* step, std::uint8_t* codes) {
  constexpr int kRegisters = kColumns == 4 ? 2 : 1, kSign = kColumns == 4 ? 3 : 2;
  const int step_bytes = f.step_bytes;
  const __m512i entries = table_of_16(f.table), three = _mm512_set1_epi8(3);
  const PointTable<kExtraBits> firsts(f.codes.points), seconds(f.codes.points + (256 << kExtraBits));
  for (int s = 0; s < kBlockSteps; ++s, step += step_bytes, codes += kStepCodes) {
    const std::byte* extra = step + kRegisters * 64;
    const __m512i signs = _mm512_loadu_si512(extra + kRegisters * kExtraBits * 8);
    const auto put = [&](int q, __m512i code) {
      code = or_and(code, take_from(kSignsOfQuad<kSign>[q], signs), _mm512_set1_epi8(1 << kSign));
      _mm512_store_si512(codes + q * 64, _mm512_shuffle_epi8(entries, code));
    };
#pragma GCC unroll 2
    for (int i = 0; i < kRegisters; ++i) {
      const auto numbers = Numbers<kExtraBits>::load(step + i * 64, extra + i * kExtraBits * 8);
      const __m512i first = firsts[numbers], second = seconds[numbers];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const __m512i code = _mm512_and_si512(take_from(kPairsOfByte[k], first), three);
        if constexpr (kColumns == 8) {
          put(2 * k, code);
          put(2 * k + 1, _mm512_and_si512(take_from(kPairsOfByte[k], second), three));
        } else {
          put(4 * i + k, or_and(code, take_from(kBitsOfByte[k], second), _mm512_set1_epi8(4)));
        }
      }
    }
  }
}

/// Half a record of Coding::trits.
template <bool kDeltas>
void take_trits_of_block(const QuantizedLayout& f, const std::byte* record, int half, std::uint8_t* codes) {
  constexpr int kParts = kFifthTritQuads, kQuadsOfBlock = kBlockSteps * kQuadsOfStep;
  const std::byte* area = record + f.codes.codes_at;
  const __m512i three = _mm512_set1_epi8(3);
  __m512i entries = three;
  const std::byte* deltas = record + f.codes.deltas_at + half * kQuadsOfBlock;  // 16 bits for two quads
  if constexpr (kDeltas) entries = table_of_16(f.table);
  const auto put = [&](int q, __m512i code) {
    if constexpr (kDeltas) {
      std::uint16_t greater;
      std::memcpy(&greater, deltas + q / 2 * 2, 2);
      code = _mm512_mask_or_epi32(code, greater, code, _mm512_set1_epi8(4));
      code = _mm512_shuffle_epi8(entries, code);
    }
    _mm512_store_si512(codes + q * 64, code);
  };
  const PointTable<0> firsts(f.codes.points), fifths(f.codes.points + 256);
#pragma GCC unroll 6
  for (int part = 0; part < kParts; ++part) {
    const auto numbers = Numbers<0>::load(area + (half * kParts + part) * 64, nullptr);
    const __m512i four = firsts[numbers];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) put(part * 4 + k, _mm512_and_si512(take_from(kPairsOfByte[k], four), three));
    put(kParts * 4 + part, fifths[numbers]);
  }
  const __m512i last = _mm512_loadu_si512(area + 2 * kParts * 64);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    put(kParts * 5 + i, _mm512_and_si512(take_from(kPairsOfByte[half * 2 + i], last), three));
  }
}

struct Coded512 : Expanded512 {
  static void expand_coded(const QuantizedLayout& f, const std::byte* record, int first_step, Expanded& out) {
    take_scales(f, record, first_step, out);
    if (f.codes.coding == Coding::trits) {
      const int half = first_step / kBlockSteps;
      return f.codes.deltas_at > 0 ? take_trits_of_block<true>(f, record, half, out.code)
                                   : take_trits_of_block<false>(f, record, half, out.code);
    }
    const std::byte* step = record + f.codes.codes_at + first_step * f.step_bytes;
    if (f.codes.point_columns == 4) {
      return f.codes.extra_bits == 0 ? take_points<4, 0>(f, step, out.code) : take_points<4, 1>(f, step, out.code);
    }
    switch (f.codes.extra_bits) {
      case 0:
        return take_points<8, 0>(f, step, out.code);
      case 1:
        return take_points<8, 1>(f, step, out.code);
      default:
        return take_points<8, 2>(f, step, out.code);
    }
  }

 private:
  /// Of centred codes.
  template <int kGroups>
  static SHOAL_INLINE void take_scales_of(const QuantizedLayout& f, const std::byte* record, int half, Expanded& out) {
    constexpr __mmask64 kLowBytes = 0x1111111111111111u;
    const auto factors = BlockFactors<kGroups, false>::load(f, record, half);
    const __m512i scale_of = table_of_16(f.scale_of);
    const __m512 d = WholeUnits::read_halves(record, f.unit);
#pragma GCC unroll 8
    for (int g = 0; g < kBlockSteps * kGroups; ++g) {
      const __m512i factor = _mm512_maskz_shuffle_epi8(kLowBytes, scale_of, factors.group(g));
      _mm512_store_ps(out.scale[g], _mm512_mul_ps(d, _mm512_cvtepi32_ps(factor)));
    }
  }
  static SHOAL_INLINE void take_one_scale(const QuantizedLayout& f, const std::byte* record, Expanded& out) {
    const __m512 d = WholeUnits::read_halves(record, f.unit);
#pragma GCC unroll 4
    for (int s = 0; s < kBlockSteps; ++s) {
      _mm512_store_ps(out.scale[s], d);
      _mm512_store_ps(out.minimum[s], _mm512_mul_ps(d, _mm512_set1_ps(f.offset * kSumUnit)));
    }
  }

  /// Scales of a block of a format that is_coded(), whose records have 256 columns.
  static void take_scales(const QuantizedLayout& f, const std::byte* record, int first_step, Expanded& out) {
    if (has_whole_factors(f)) return take_pairs(f, record, first_step, out);
    const int half = first_step / kBlockSteps;
    if (!f.nibbles) return take_one_scale(f, record, out);
    f.groups == 2 ? take_scales_of<2>(f, record, half, out) : take_scales_of<1>(f, record, half, out);
  }
};

/// run_quantized() for formats that are is_coded(), all of which have records of 256 columns.
template <class Isa>
void run_coded(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
               std::byte* scratch) {
  constexpr std::int64_t kRecordColumns = kRecordSteps * kStepColumns, kBlockColumns = kBlockSteps * kStepColumns;
  const QuantizedLayout& f = w.quantized;
  auto* expanded = reinterpret_cast<Expanded*>(scratch);
  const std::byte *panel = w.data + first * w.panel_bytes, *const end = panel + panels * w.panel_bytes;
  clear_outputs(tiles, n_tiles, panels);
  BlockProducts<Isa> products(f);
  Isa::begin(f.groups);
  for (std::int64_t p = 0; p < panels;) {
    const int together = panels_together<Isa>(panels - p, n_tiles);
    const PanelGroup group{panel, w.panel_bytes, together, end, w.after};
    const std::byte* record = panel;
    for (std::int64_t c = 0; c < w.cols; c += kRecordColumns, record += f.record_bytes) {
      const std::byte* const later = group.later(record - panel);
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < together; ++i) {
          if (half == 0 && later) ask_for(later + i * w.panel_bytes, f.record_bytes);
          Isa::expand_coded(f, record + i * w.panel_bytes, half * kBlockSteps, expanded[i]);
        }
        products.multiply(expanded, expanded->code, kStepCodes, 0, c + half * kBlockColumns, kBlockSteps, p, together,
                          tiles, n_tiles);
      }
    }
    panel += together * w.panel_bytes;
    p += together;
  }
  Isa::end();
}

/// How these products run, as gemm_quantized_amx.inl asks: Expand, an Isa for few tokens, and the product by an Isa.
struct RunCoded {
  using Expand = Coded512;
  template <class Isa>
  static constexpr auto run = run_coded<Isa>;
};

}  // namespace
}  // namespace shoal::cpu
