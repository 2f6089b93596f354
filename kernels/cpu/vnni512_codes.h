#pragma once
#include <cstring>

#include "kernels/cpu/byte_dot512.h"
#include "kernels/cpu/convert_avx512.h"
// The products need the operations above.
#include "kernels/cpu/gemm_quantized.inl"

/// What products with AVX-512 share. Codes go from their planes to the multiplier through registers: taking them
/// out costs operations other units do meanwhile, and no memory.
namespace shoal::cpu {
namespace {

/// Codes of so many bits (kTable: their table entries), shifted left until the middle of their range is 128, so that
/// all formats start their sums of products alike. The scale makes the shift good, exactly.
template <int kBits, bool kTable, int kLeft = kTable ? 0 : 8 - kBits>
struct Codes {
  static constexpr int kWidth = kBits == 3 ? 2 : kBits == 5 || kBits == 6 ? 4 : kBits;  // of the first plane
  static constexpr int kRest = kBits - kWidth;                                          // of the second
  static constexpr int kShift = kLeft;
  /// kCentred: as is_centred() says.
  template <bool kCentred>
  static constexpr CodeRange kRange = range_for(kTable || kBits == 8
                                                    ? (kCentred ? CodeRange::centred : CodeRange::any)
                                                    : (kShift > 0 ? CodeRange::shifted : CodeRange::small));
  __m512i entries;

  /// Bits of a plane of kPlane bits at their place in a byte, with others around them.
  template <int kPlane, int kPlace>
  static SHOAL_INLINE __m512i plane(const std::uint8_t* from, int q) {
    const __m512i part = _mm512_loadu_si512(from + q % kPlane * 64);
    const int at = q / kPlane * kPlane;
    if (at > kPlace) return _mm512_srli_epi64(part, static_cast<unsigned>(at - kPlace));
    if (at < kPlace) return _mm512_slli_epi64(part, static_cast<unsigned>(kPlace - at));
    return part;
  }
  static SHOAL_INLINE Codes of(const QuantizedLayout& f) {
    Codes codes{};
    if constexpr (kTable) {
      codes.entries = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(f.table)));
    }
    return codes;
  }
  static constexpr char mask(int width, int place) { return static_cast<char>(((1 << width) - 1) << place); }

  /// Quad q of a step's planes.
  SHOAL_INLINE __m512i quad(const std::uint8_t* planes, int q) const {
    if constexpr (kBits == 8) return _mm512_loadu_si512(planes + q * 64);
    __m512i code = _mm512_and_si512(plane<kWidth, kShift>(planes, q), _mm512_set1_epi8(mask(kWidth, kShift)));
    if constexpr (kRest > 0) {
      constexpr int kOrAnd = 0xf8;  // a | (b & c)
      const __m512i rest = plane<kRest, kShift + kWidth>(planes + kWidth * 64, q);
      const __m512i mask_of_rest = _mm512_set1_epi8(mask(kRest, kShift + kWidth));
      code = _mm512_ternarylogic_epi64(code, rest, mask_of_rest, kOrAnd);
    }
    return kTable ? _mm512_shuffle_epi8(entries, code) : code;
  }
};

/// How what a code stands above zero is taken off: is_centred(), has_paired_minima(), any other way.
enum class Offsets { centred, paired, other };

/// use<bits, groups, table, offsets>() of a format whose codes are planes and whose factors are no nibbles.
template <int kBits, bool kTable, class Use>
inline auto of_offsets(const QuantizedLayout& f, const Use& use) {
  // Groups of 16 columns have codes of three or six bits and are centred; six bits come in nothing else.
  if constexpr (kBits == 6) return use.template operator()<kBits, 2, false, Offsets::centred>();
  if constexpr (kBits == 3) {
    if (f.groups == 2) return use.template operator()<kBits, 2, false, Offsets::centred>();
  }
  if constexpr (kTable) return use.template operator()<kBits, 1, true, Offsets::centred>();
  if (is_centred(f)) return use.template operator()<kBits, 1, false, Offsets::centred>();
  if constexpr (kBits == 4 || kBits == 5) {
    if (has_paired_minima(f)) return use.template operator()<kBits, 1, false, Offsets::paired>();
  }
  return use.template operator()<kBits, 1, false, Offsets::other>();
}
template <class Use>
inline auto of_planes(const QuantizedLayout& f, const Use& use) {
  switch (f.bits) {
    case 2:
      return of_offsets<2, false>(f, use);
    case 3:
      return of_offsets<3, false>(f, use);
    case 4:
      return f.table ? of_offsets<4, true>(f, use) : of_offsets<4, false>(f, use);
    case 5:
      return of_offsets<5, false>(f, use);
    case 6:
      return of_offsets<6, false>(f, use);
    default:
      return of_offsets<8, false>(f, use);
  }
}

/// The scales of a record's rows.
struct Head {
  __m512 d, dmin, zero;

  /// d takes in what codes are shifted by, dmin and zero what sums count in.
  template <Offsets kOffsets>
  static SHOAL_INLINE Head read(const QuantizedLayout& f, const std::byte* record, float code_unit) {
    Head head{};
    if (f.single) {
      head.d = _mm512_loadu_ps(record);
    } else {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(record));
      head.d =
          f.bfloat ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)) : _mm512_cvtph_ps(bits);
    }
    head.d = _mm512_mul_ps(head.d, _mm512_set1_ps(f.unit * code_unit));
    if constexpr (kOffsets == Offsets::paired) {
      head.dmin = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(record + 32)));
      head.dmin = _mm512_mul_ps(head.dmin, _mm512_set1_ps(-f.minimum_unit));
    }
    if constexpr (kOffsets == Offsets::other) {
      if (f.minima) {
        head.dmin = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(record + 32)));
        head.dmin = _mm512_mul_ps(head.dmin, _mm512_set1_ps(f.minimum_unit * kSumUnit));
      } else {
        head.zero = _mm512_set1_ps(f.offset);
        if (f.zeros) {
          const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(record + f.zero_at));
          head.zero = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
        }
        head.zero = _mm512_mul_ps(head.zero, _mm512_set1_ps(kSumUnit / code_unit));
      }
    }
    return head;
  }
};

/// The minima of two steps, as pairs.
SHOAL_INLINE __m512i paired_minima(const std::byte* first, const std::byte* second) {
  const auto wide = [](const std::byte* bytes) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  };
  return _mm512_or_si512(wide(first), _mm512_slli_epi32(wide(second), 16));
}

constexpr std::int64_t kLine = 64;

/// What a product fetches of the memory behind the weights it reads: from `from` on, and as far on in the other panels,
/// so many lines in each step.
struct Ahead {
  const std::byte* from;
  int lines;
};

/// P panels times one tile of T tokens.
struct DirectStep {
  std::int64_t cols;
  const std::byte* panel;
  std::int64_t panel_bytes;
  const std::byte* x;
  Ahead ahead;
  float* out;  // [P][T][16]
};
using DirectProduct = void (*)(const QuantizedLayout& f, const DirectStep& todo);

/// Of tiles.
constexpr int kDirectWidths[] = {1, 2, 3, 4, 5, 6, 7, 8};
constexpr int kWidest = 8;

}  // namespace
}  // namespace shoal::cpu
