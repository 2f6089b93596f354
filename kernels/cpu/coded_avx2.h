#pragma once
#include <cstring>

#include "kernels/cpu/kernel_table.h"

/// Included after the simd header of an instruction set. The codes of points and trits (packed_codes.h) with AVX2, 32
/// at a time: points from a table, trits reckoned; then signs, or deltas, and the entries of the format's table.
namespace shoal::cpu {
namespace {

constexpr int kCodedQuads = 8;  // of a step

inline __m256i load_256(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

inline __m256i table_of_32(const std::uint8_t* table) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

/// 64 numbers of points in 16 bits, those in bytes with further bits.
inline void widen_numbers(const std::uint8_t* low, const std::uint8_t* extra, int extra_bits, std::uint16_t* numbers) {
  const __m256i bit_of_lane = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384,
                                                static_cast<short>(32768));
  for (int i = 0; i < 4; ++i) {
    __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low + i * 16)));
    for (int bit = 0; bit < extra_bits; ++bit) {
      std::int16_t sixteen;
      std::memcpy(&sixteen, extra + bit * 8 + i * 2, 2);
      const __m256i set = _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(sixteen), bit_of_lane), bit_of_lane);
      wide = _mm256_or_si256(wide, _mm256_and_si256(set, _mm256_set1_epi16(static_cast<short>(256 << bit))));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers + i * 16), wide);
  }
}

/// The codes of eight rows, put together in registers: stores of fours of bytes would take several times as long.
/// `number_of(row)` gives their points' numbers; codes[i]: of the points' columns 4 i to 4 i + 3.
template <class NumberOf>
inline void take_eight(const std::uint32_t* points, const NumberOf& number_of, __m256i (&codes)[2]) {
  const auto two = [&](int row) __attribute__((always_inline)) {
    const auto* first = reinterpret_cast<const __m64*>(points + 2 * number_of(row));
    const auto* second = reinterpret_cast<const __m64*>(points + 2 * number_of(row + 1));
    return _mm_loadh_pi(_mm_loadl_pi(_mm_setzero_ps(), first), second);
  };
  const __m256 low = _mm256_set_m128(two(4), two(0)), high = _mm256_set_m128(two(6), two(2));
  codes[0] = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88));
  codes[1] = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd));
}
template <class NumberOf>
inline void take_eight(const std::uint32_t* points, const NumberOf& number_of, __m256i (&codes)[1]) {
  const auto row = [&](int r) __attribute__((always_inline)) { return static_cast<int>(points[number_of(r)]); };
  codes[0] = _mm256_setr_epi32(row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7));
}

template <int kColumns, bool kExtra>
inline void take_points_step(const QuantizedLayout& f, const std::byte* step, std::uint8_t* codes) {
  constexpr int kRegisters = kColumns == 4 ? 2 : 1, kQuads = kColumns / 4;
  const int extra_bits = f.codes.extra_bits;
  const auto* numbers = reinterpret_cast<const std::uint8_t*>(step);
  const std::uint8_t *extra = numbers + kRegisters * 64, *signs = extra + kRegisters * extra_bits * 8;
  const __m256i entries = table_of_32(f.table), sign_bit = _mm256_set1_epi8(kColumns == 4 ? 8 : 4);
  const __m256i of_rows[2] = {load_256(signs), load_256(signs + 32)};
  const __m256i dwords = _mm256_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 0, 0, 0, 0, 4, 4, 4, 4, 8,
                                          8, 8, 8, 12, 12, 12, 12);
#pragma GCC unroll 2
  for (int i = 0; i < kRegisters; ++i) {
    std::uint16_t wide[64];
    if constexpr (kExtra) widen_numbers(numbers + i * 64, extra + i * extra_bits * 8, extra_bits, wide);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m256i taken[kQuads];
        const auto number_of = [&](int row) __attribute__((always_inline)) {
          const int at = (half * 8 + row) * 4 + k;
          return static_cast<std::size_t>(kExtra ? wide[at] : numbers[i * 64 + at]);
        };
        take_eight(f.codes.point_codes, number_of, taken);
#pragma GCC unroll 2
        for (int j = 0; j < kQuads; ++j) {
          const int q = (4 * i + k) * kQuads + j;
          const __m256i byte = _mm256_add_epi8(dwords, _mm256_set1_epi8(static_cast<char>(q / 2)));
          const __m256i bit = _mm256_set1_epi32(q % 2 == 0 ? 0x08040201 : static_cast<int>(0x80402010u));
          const __m256i eight = _mm256_shuffle_epi8(of_rows[half], byte);
          const __m256i minus = _mm256_cmpeq_epi8(_mm256_and_si256(eight, bit), bit);
          const __m256i code = _mm256_or_si256(taken[j], _mm256_and_si256(minus, sign_bit));
          _mm256_store_si256(reinterpret_cast<__m256i*>(codes + q * 64 + half * 32),
                             _mm256_shuffle_epi8(entries, code));
        }
      }
    }
  }
}

/// 32 numbers of 16 bits, from byte `byte` of eight rows' fours, as `digit` says of each: four for each row.
template <class Digit>
inline __m256i digits_of_eight(__m256i fours, int byte, const Digit& digit) {
  constexpr char kNone = static_cast<char>(0x80);
  const __m256i low = _mm256_setr_epi8(0, kNone, 0, kNone, 0, kNone, 0, kNone, 4, kNone, 4, kNone, 4, kNone, 4, kNone,
                                       0, kNone, 0, kNone, 0, kNone, 0, kNone, 4, kNone, 4, kNone, 4, kNone, 4, kNone);
  const __m256i from = _mm256_add_epi16(low, _mm256_set1_epi16(static_cast<short>(byte)));
  const __m256i more = _mm256_add_epi16(from, _mm256_set1_epi16(8));
  return _mm256_packus_epi16(digit(_mm256_shuffle_epi8(fours, from)), digit(_mm256_shuffle_epi8(fours, more)));
}

inline __m256i in_turn(int a, int b, int c, int d) {
  return _mm256_set1_epi64x(static_cast<long long>(static_cast<std::uint64_t>(a) | static_cast<std::uint64_t>(b) << 16 |
                                                   static_cast<std::uint64_t>(c) << 32 |
                                                   static_cast<std::uint64_t>(d) << 48));
}

/// The first four trits of a number below 243: of 2^16 times number / 3^(i + 1), the fraction times three.
inline __m256i four_trits(__m256i numbers) {
  const __m256i part = in_turn(21846, 7282, 2428, 810);  // rounded up: what that adds never reaches the next trit
  return _mm256_mulhi_epu16(_mm256_mullo_epi16(numbers, part), _mm256_set1_epi16(3));
}
/// The four pairs of bits of a byte.
inline __m256i four_pairs(__m256i numbers) {
  const __m256i moved = _mm256_srli_epi16(_mm256_mullo_epi16(numbers, in_turn(64, 16, 4, 1)), 6);
  return _mm256_and_si256(moved, _mm256_set1_epi16(3));
}

/// Step kStep of a half of a record, so that which quads are which is known here.
template <int kStep, bool kDeltas>
inline void take_trits_step(const QuantizedLayout& f, const std::byte* record, int step, std::uint8_t* codes) {
  const auto* area = reinterpret_cast<const std::uint8_t*>(record + f.codes.codes_at);
  const int half = step / 4;
  const std::uint8_t* fives = area + half * kHalfTritBytes;
  // 16 bits for two quads: eight columns of rows 0 to 7, of the others.
  const std::byte* deltas = record + f.codes.deltas_at + step * kCodedQuads;
  const __m256i entries = kDeltas ? table_of_32(f.table) : _mm256_setzero_si256();
  const __m256i bits[2] = {_mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128),
                           _mm256_setr_epi32(256, 512, 1024, 2048, 4096, 8192, 16384, 32768)};
#pragma GCC unroll 8
  for (int q = 0; q < kCodedQuads; ++q) {
    const int of_half = kStep * kCodedQuads + q;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m256i code;
      if (of_half < kWholeTritQuads) {
        code = digits_of_eight(load_256(fives + of_half / 4 * 64 + h * 32), q % 4, four_trits);
      } else if (of_half < kWholeTritQuads + kFifthTritQuads) {  // 81 and more, 162 and more
        const __m256i five = load_256(fives + (of_half - kWholeTritQuads) * 64 + h * 32);
        const auto at_least = [&](int n) {
          const __m256i bound = _mm256_set1_epi8(static_cast<char>(n));
          return _mm256_cmpeq_epi8(_mm256_max_epu8(five, bound), five);
        };
        code = _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(at_least(81), at_least(162)));
      } else {
        const int byte = half * 2 + of_half - kWholeTritQuads - kFifthTritQuads;
        code = digits_of_eight(load_256(area + 2 * kHalfTritBytes + h * 32), byte, four_pairs);
      }
      if constexpr (kDeltas) {
        std::uint16_t greater;
        std::memcpy(&greater, deltas + q / 2 * 2, 2);
        const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(greater), bits[h]), bits[h]);
        code = _mm256_shuffle_epi8(entries, _mm256_or_si256(code, _mm256_and_si256(set, _mm256_set1_epi8(4))));
      }
      _mm256_store_si256(reinterpret_cast<__m256i*>(codes + q * 64 + h * 32), code);
    }
  }
}

template <bool kDeltas>
inline void take_trits_of(const QuantizedLayout& f, const std::byte* record, int step, std::uint8_t* codes) {
  switch (step % 4) {
    case 0:
      return take_trits_step<0, kDeltas>(f, record, step, codes);
    case 1:
      return take_trits_step<1, kDeltas>(f, record, step, codes);
    case 2:
      return take_trits_step<2, kDeltas>(f, record, step, codes);
    default:
      return take_trits_step<3, kDeltas>(f, record, step, codes);
  }
}

inline void take_coded_step(const QuantizedLayout& f, const std::byte* record, int step, std::uint8_t* codes) {
  if (f.codes.coding == Coding::trits) {
    return f.codes.deltas_at > 0 ? take_trits_of<true>(f, record, step, codes)
                                 : take_trits_of<false>(f, record, step, codes);
  }
  const std::byte* at = record + f.codes.codes_at + step * f.step_bytes;
  if (f.codes.point_columns == 8) {
    return f.codes.extra_bits > 0 ? take_points_step<8, true>(f, at, codes) : take_points_step<8, false>(f, at, codes);
  }
  f.codes.extra_bits > 0 ? take_points_step<4, true>(f, at, codes) : take_points_step<4, false>(f, at, codes);
}

}  // namespace
}  // namespace shoal::cpu
