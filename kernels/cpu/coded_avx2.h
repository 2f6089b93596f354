#pragma once
#include <cstring>

#include "kernels/cpu/kernel_table.h"

/// Included after the simd header of an instruction set. The codes of points and trits (packed_codes.h) with AVX2: four
/// at a time from a table, then signs and the entries of the format's table, 32 at a time.
namespace shoal::cpu {
namespace {

constexpr int kCodedQuads = 8;  // of a step

inline __m256i load_256(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

/// Replaces the codes of a step by their table entries; `set_bits(quad, half)` gives what is added to those of a quad's
/// eight rows before.
template <class SetBits>
inline void finish_codes(const QuantizedLayout& f, std::uint8_t* codes, const SetBits& set_bits) {
  const __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(f.table)));
#pragma GCC unroll 8
  for (int q = 0; q < kCodedQuads; ++q) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      auto* at = reinterpret_cast<__m256i*>(codes + q * 64 + half * 32);
      _mm256_store_si256(at, _mm256_shuffle_epi8(entries, _mm256_or_si256(_mm256_load_si256(at), set_bits(q, half))));
    }
  }
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

template <int kColumns, bool kExtra>
inline void take_points_step(const QuantizedLayout& f, const std::byte* step, std::uint8_t* codes) {
  constexpr int kRegisters = kColumns == 4 ? 2 : 1, kSign = kColumns == 4 ? 8 : 4;
  const int extra_bits = f.codes.extra_bits;
  const auto* numbers = reinterpret_cast<const std::uint8_t*>(step);
  const std::uint8_t* extra = numbers + kRegisters * 64;
  const std::uint32_t *first = f.codes.point_codes, *second = first + (256 << extra_bits);
  for (int i = 0; i < kRegisters; ++i) {
    std::uint16_t wide[64];
    if constexpr (kExtra) widen_numbers(numbers + i * 64, extra + i * extra_bits * 8, extra_bits, wide);
    for (int r = 0; r < 16; ++r) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const unsigned number = kExtra ? wide[r * 4 + k] : numbers[i * 64 + r * 4 + k];
        if constexpr (kColumns == 8) {
          std::memcpy(codes + 2 * k * 64 + r * 4, &first[number], 4);
          std::memcpy(codes + (2 * k + 1) * 64 + r * 4, &second[number], 4);
        } else {
          std::memcpy(codes + (4 * i + k) * 64 + r * 4, &first[number], 4);
        }
      }
    }
  }
  const std::uint8_t* signs = extra + kRegisters * extra_bits * 8;
  const __m256i of_rows[2] = {load_256(signs), load_256(signs + 32)};
  const __m256i dwords = _mm256_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 0, 0, 0, 0, 4, 4, 4, 4, 8,
                                          8, 8, 8, 12, 12, 12, 12);
  finish_codes(
      f, codes, [&](int q, int half) __attribute__((always_inline)) {
        const __m256i byte = _mm256_add_epi8(dwords, _mm256_set1_epi8(static_cast<char>(q / 2)));
        const __m256i bit = _mm256_set1_epi32(q % 2 == 0 ? 0x08040201 : static_cast<int>(0x80402010u));
        const __m256i eight = _mm256_shuffle_epi8(of_rows[half], byte);
        const __m256i minus = _mm256_cmpeq_epi8(_mm256_and_si256(eight, bit), bit);
        return _mm256_and_si256(minus, _mm256_set1_epi8(kSign));
      });
}

inline void take_trits_step(const QuantizedLayout& f, const std::byte* record, int step, std::uint8_t* codes) {
  const auto* area = reinterpret_cast<const std::uint8_t*>(record + f.codes.codes_at);
  const int half = step / 4;
  const std::uint8_t* fives = area + half * kHalfTritBytes;
  for (int q = 0; q < kCodedQuads; ++q) {
    const int of_half = step % 4 * kCodedQuads + q;
    std::uint8_t* to = codes + q * 64;
    if (of_half < kWholeTritQuads) {
      const std::uint8_t* bytes = fives + of_half / 4 * 64 + of_half % 4;
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) std::memcpy(to + r * 4, &f.codes.point_codes[bytes[r * 4]], 4);
    } else if (of_half < kWholeTritQuads + kFifthTritQuads) {  // 81 and more, 162 and more
      for (int i = 0; i < 64; i += 32) {
        const __m256i five = load_256(fives + (of_half - kWholeTritQuads) * 64 + i);
        const auto at_least = [&](int n) {
          const __m256i bound = _mm256_set1_epi8(static_cast<char>(n));
          return _mm256_cmpeq_epi8(_mm256_max_epu8(five, bound), five);
        };
        const __m256i minus = _mm256_add_epi8(at_least(81), at_least(162));
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + i), _mm256_sub_epi8(_mm256_setzero_si256(), minus));
      }
    } else {
      const std::uint8_t* bytes = area + 2 * kHalfTritBytes + half * 2 + of_half - kWholeTritQuads - kFifthTritQuads;
      for (int r = 0; r < 16; ++r) {
        const std::uint32_t pairs = bytes[r * 4];
        const std::uint32_t four = (pairs | pairs << 6 | pairs << 12 | pairs << 18) & 0x03030303u;
        std::memcpy(to + r * 4, &four, 4);
      }
    }
  }
  if (f.codes.deltas_at == 0) return;
  const std::byte* deltas = record + f.codes.deltas_at + step * kCodedQuads;  // 16 bits for two quads
  const __m256i bits[2] = {_mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128),
                           _mm256_setr_epi32(256, 512, 1024, 2048, 4096, 8192, 16384, 32768)};
  finish_codes(
      f, codes, [&](int q, int half_of_rows) __attribute__((always_inline)) {
        std::uint16_t greater;
        std::memcpy(&greater, deltas + q / 2 * 2, 2);
        const __m256i bit = bits[half_of_rows];
        const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(greater), bit), bit);
        return _mm256_and_si256(set, _mm256_set1_epi8(4));
      });
}

inline void take_coded_step(const QuantizedLayout& f, const std::byte* record, int step, std::uint8_t* codes) {
  if (f.codes.coding == Coding::trits) return take_trits_step(f, record, step, codes);
  const std::byte* at = record + f.codes.codes_at + step * f.step_bytes;
  if (f.codes.point_columns == 8) {
    return f.codes.extra_bits > 0 ? take_points_step<8, true>(f, at, codes) : take_points_step<8, false>(f, at, codes);
  }
  f.codes.extra_bits > 0 ? take_points_step<4, true>(f, at, codes) : take_points_step<4, false>(f, at, codes);
}

}  // namespace
}  // namespace shoal::cpu
