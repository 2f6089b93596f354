#pragma once
#include <cstring>

#include "kernels/cpu/interleave_avx512.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/vnni512_codes.h"
#include "kernels/cpu/vnni512_nibbles.h"

/// Quantized products with AVX-512, best with its VNNI.
namespace shoal::cpu {
namespace {

template <int kBits, int kGroups, bool kTable, Offsets kOffsets, int P, int T>
void multiply_direct(const QuantizedLayout& f, const DirectStep& todo) {
  using Code = Codes<kBits, kTable>;
  const std::int64_t cols = todo.cols, panel_bytes = todo.panel_bytes;
  const std::byte* x = todo.x;
  Ahead ahead = todo.ahead;
  float* const out = todo.out;
  constexpr CodeRange kRange = Code::template kRange<kOffsets == Offsets::centred>;
  constexpr bool kCentred = kOffsets == Offsets::centred && sums_need_offset(kRange);
  constexpr int kQuads = kQuadsOfStep / kGroups;  // of a scale
  constexpr int kTogether = quads_together(kRange, kBits);
  static_assert(kQuads % kTogether == 0);
  const Narrowing narrowing = Narrowing::of(Code::kShift);
  // A multiplication waits four cycles for the one before.
  constexpr int kChains = P > 1 ? 1 : T == 1 ? 4 : T <= 3 ? 2 : 1;
  const Code codes = Code::of(f);
  Head head[P];
  const std::byte* step = todo.panel;
  int left_of_record = 0;
  constexpr int kSteps = block_steps_of(kBits);
  __m512 result[P][T];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) result[p][t] = _mm512_setzero_ps();
  }

  for (std::int64_t c = 0; c < cols; c += kSteps * kStepColumns) {
    const int steps = steps_of_block(kSteps, cols, c);
    const BlockParts<const std::byte> block(x, T, steps);
    __m512 sum[P][T];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sum[p][t] = _mm512_setzero_ps();
    }
    for (int s = 0; s < steps; ++s) {
      if (left_of_record == 0) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          head[p] = Head::read<kOffsets>(f, step + p * panel_bytes, 1.0f / (1 << Code::kShift));
        }
        step += f.head_bytes;
        left_of_record = f.record;
      }
      const auto* bytes = reinterpret_cast<const int*>(block.bytes + s * T * kStepColumns);
      for (int line = 0; line < ahead.lines; ++line, ahead.from += kLine) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          _mm_prefetch(reinterpret_cast<const char*>(ahead.from + p * panel_bytes), _MM_HINT_T1);
        }
      }
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        const std::int32_t* of_bytes = block.sums + (s * 3 + (kGroups == 1 ? 0 : 1 + g)) * T;
        __m512i dot[kChains][P][T];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) {
            dot[0][p][t] = kCentred ? _mm512_set1_epi32(of_bytes[t]) : _mm512_setzero_si512();
#pragma GCC unroll 4
            for (int i = 1; i < kChains; ++i) dot[i][p][t] = _mm512_setzero_si512();
          }
        }
#pragma GCC unroll 8
        for (int i = 0; i < kQuads; i += kTogether) {
          int quads[kTogether];
          __m512i code[kTogether][P];
#pragma GCC unroll 4
          for (int n = 0; n < kTogether; ++n) {
            // Quads that share a part of a plane of four bits follow one another, so that it is in a register no
            // longer.
            const int at = i + n, q = kGroups == 1 ? at % 2 * 4 + at / 2 : g * kQuads + at;
            quads[n] = q;
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
              const auto* planes = reinterpret_cast<const std::uint8_t*>(step + p * panel_bytes + f.scale_bytes);
              code[n][p] = codes.quad(planes, q);
            }
          }
          multiply_quads<kRange>(dot[i / kTogether % kChains], code, bytes, kQuadsOfStep, quads, narrowing);
        }
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          const std::byte* scales = step + p * panel_bytes;
          __m512 scale = head[p].d;
          if (f.super) {
            const __m128i of_group = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + g * 16));
            scale = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(of_group)));
          }
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
            for (int i = 1; i < kChains; ++i) dot[0][p][t] = _mm512_add_epi32(dot[0][p][t], dot[i][p][t]);
            sum[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[0][p][t]), scale, sum[p][t]);
          }
          if constexpr (kOffsets == Offsets::other) {
            __m512 minimum = head[p].dmin;
            if (!f.minima) minimum = _mm512_mul_ps(scale, head[p].zero);
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) {
              sum[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_set1_epi32(of_bytes[t])), minimum, sum[p][t]);
            }
          }
        }
      }
      step += f.step_bytes;
      left_of_record -= kStepColumns;
    }
    if constexpr (kOffsets == Offsets::paired) {  // of whole blocks: a record has 256 columns
      static_assert(kSteps == 4);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const std::byte* minima = step + p * panel_bytes - 4 * f.step_bytes + 16;
        const __m512i first = paired_minima(minima, minima + f.step_bytes);
        const __m512i second = paired_minima(minima + 2 * f.step_bytes, minima + 3 * f.step_bytes);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          __m512i taken = _mm512_setzero_si512();
          multiply_pair(taken, first, block.pairs[t]);
          multiply_pair(taken, second, block.pairs[T + t]);
          sum[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(taken), head[p].dmin, sum[p][t]);
        }
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        result[p][t] = _mm512_fmadd_ps(sum[p][t], _mm512_set1_ps(block.scales[t]), result[p][t]);
      }
    }
    x += block_bytes_of(T, steps);
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) _mm512_storeu_ps(out + (p * T + t) * 16, result[p][t]);
  }
}

/// Several tiles take two panels together, and are as wide as registers suffice for then; but not of codes that need
/// many more (vnni512_pairs.h takes those out first).
constexpr int kPair = 2, kWidestOfPair = 6;
constexpr bool takes_pairs(int bits) { return bits == 4 || bits == 8; }
/// One token uses them up faster than the memory brings one panel: it takes so many together, as streams side by side
/// (59 GB/s where one panel has 40 and plain reading 60).
constexpr int kStreams = 4;
inline bool takes_streams(int bits, int width) { return bits == 8 && width == 1; }

template <int kBits, int kGroups, bool kTable, Offsets kOffsets, int kIndex = 0>
inline DirectProduct product_of_width(int width, int panels) {
  constexpr int kWidth = kDirectWidths[kIndex];
  if constexpr (kIndex + 1 < int(sizeof kDirectWidths / sizeof(int))) {
    if (width != kWidth) return product_of_width<kBits, kGroups, kTable, kOffsets, kIndex + 1>(width, panels);
  }
  if constexpr (takes_pairs(kBits) && kWidth <= kWidestOfPair) {
    if (panels == kPair) return multiply_direct<kBits, kGroups, kTable, kOffsets, kPair, kWidth>;
  }
  return multiply_direct<kBits, kGroups, kTable, kOffsets, 1, kWidth>;
}

/// Of one panel, or of kPair where that takes_pairs().
inline DirectProduct direct_product(const QuantizedLayout& f, int width, int panels) {
  if (f.nibbles) return product_with_nibbles(f, width);
  return of_planes(f, [=]<int kBits, int kGroups, bool kTable, Offsets kOffsets>() {
    return product_of_width<kBits, kGroups, kTable, kOffsets>(width, panels);
  });
}

/// Of kStreams panels, where takes_streams().
inline DirectProduct direct_product_of_streams(const QuantizedLayout& f) {
  return is_centred(f) ? multiply_direct<8, 1, false, Offsets::centred, kStreams, 1>
                       : multiply_direct<8, 1, false, Offsets::other, kStreams, 1>;
}

/// One tile: memory is what is waited for, so a few pages ahead are asked for.
inline void run_one_tile(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile& tile) {
  constexpr std::int64_t kPages = 8192;
  const std::int64_t steps = w.cols / kStepColumns, lines = (w.panel_bytes + kLine - 1) / kLine;
  std::int64_t p = 0;
  const auto run = [&](DirectProduct product, Ahead ahead) {
    product(w.quantized, {w.cols, w.data + (first + p) * w.panel_bytes, w.panel_bytes, tile.x, ahead,
                          tile.out + p * tile.width * 16});
  };
  if (takes_streams(w.quantized.bits, tile.width)) {
    const DirectProduct product = direct_product_of_streams(w.quantized);
    for (; p + kStreams <= panels; p += kStreams) run(product, {});
  }
  const DirectProduct product = direct_product(w.quantized, tile.width, 1);
  for (; p < panels; ++p) {
    run(product, {w.data + (first + p) * w.panel_bytes + kPages, static_cast<int>((lines + steps - 1) / steps)});
  }
}

/// While the tiles pass one panel, or two, the next come from memory, a part with each tile: all that reading takes is
/// then hidden behind the products.
inline void run_direct(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
                       std::byte*) {
  if (n_tiles == 1) return run_one_tile(w, first, panels, tiles[0]);
  const QuantizedLayout& f = w.quantized;
  const std::int64_t steps = w.cols / kStepColumns, lines_of_panel = (w.panel_bytes + kLine - 1) / kLine;
  const std::int64_t lines = (lines_of_panel + steps * n_tiles - 1) / (steps * n_tiles);
  const int most = takes_pairs(f.bits) && !f.nibbles && tiles[0].width <= kWidestOfPair ? kPair : 1;
  for (std::int64_t p = 0; p < panels;) {
    const int together = panels - p >= most ? most : 1;
    const bool last = p + together == panels;
    const std::byte* next = last ? w.after : w.data + (first + p + together) * w.panel_bytes;
    for (int i = 0; i < n_tiles; ++i) {
      const PackedTile& tile = tiles[i];
      const int side_by_side = tile.width <= kWidestOfPair ? together : 1;
      const DirectProduct product = direct_product(f, tile.width, side_by_side);
      const std::int64_t at = i * steps * lines;  // of the next panels' lines
      for (int j = 0; j < together; j += side_by_side) {
        Ahead ahead{};
        if (next && at < lines_of_panel) ahead = {next + j * w.panel_bytes + at * kLine, static_cast<int>(lines)};
        const std::byte* panel = w.data + (first + p + j) * w.panel_bytes;
        product(f, {w.cols, panel, w.panel_bytes, tile.x, ahead, tile.out + (p + j) * tile.width * 16});
      }
    }
    p += together;
  }
}

/// Few tokens wait for memory, and pass in as few tiles as can be; more are multiplied with pairs of panels.
inline int direct_tile_width(std::int64_t remaining, std::int64_t all) {
  return even_tile_width(remaining, all <= 2 * kWidest ? kWidest : kWidestOfPair);
}

/// The greatest element, as whole numbers, of each of four rows.
SHOAL_INLINE __m128i greatest_of_four(const __m512i (&row)[4]) {
  __m512i fours[4];
  transpose_fours(row, fours);
  const __m512i two = _mm512_max_epu32(_mm512_max_epu32(fours[0], fours[1]), _mm512_max_epu32(fours[2], fours[3]));
  const __m512i one = _mm512_max_epu32(two, _mm512_shuffle_i32x4(two, two, 0x4e));
  return _mm_max_epu32(_mm512_castsi512_si128(one), _mm512_extracti32x4_epi32(one, 1));
}

/// 64 floats times a factor as bytes, or 32 of them; nearest, ties to even.
template <bool kHalf>
SHOAL_INLINE __m512i to_bytes(const float* x, __m512 factor) {
  const auto sixteen = [&](int i) __attribute__((always_inline)) {
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i * 16), factor)));
  };
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(sixteen(0)), sixteen(1), 1);
  if constexpr (kHalf) return _mm512_zextsi256_si512(low);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(sixteen(2)), sixteen(3), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/// pack_bytes() for tiles whose bytes lie token by token, four of them at a time; PackPortable's to the bit
/// where rows are finite.
template <int kSteps>
void pack_direct(const float* const* rows, int tokens, int width, std::int64_t cols, std::byte* tile) {
  for (std::int64_t c = 0; c < cols; c += kSteps * kStepColumns) {
    const int steps = kSteps == 1 ? 1 : steps_of_block(kSteps, cols, c);
    const BlockParts<std::byte> block(tile, width, steps);
    for (int first = 0; first < width; first += 4) {
      const int count = width - first < 4 ? width - first : 4;
      const int real = tokens - first < 0 ? 0 : tokens - first < count ? tokens - first : count;
      const float* x[4];  // tokens that are not there are the last one, times 0
      __m512i magnitude[4];
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        x[t] = rows[first + t < tokens ? first + t : tokens - 1] + c;
        magnitude[t] = _mm512_setzero_si512();
        for (int i = 0; i < steps * kStepColumns; i += 16) {
          const __m512i bits = _mm512_and_si512(_mm512_loadu_si512(x[t] + i), _mm512_set1_epi32(0x7fffffff));
          magnitude[t] = _mm512_max_epu32(magnitude[t], bits);
        }
      }
      const __m128i greatest =
          _mm_maskz_mov_epi32(static_cast<__mmask8>((1u << real) - 1u), greatest_of_four(magnitude));
      const __m128 most = _mm_castsi128_ps(greatest);
      const __mmask8 not_zero = _mm_test_epi32_mask(greatest, greatest);
      const __m128 inverse = _mm_maskz_div_ps(not_zero, _mm_set1_ps(127.0f), most);
      store_first(_mm_castps_si128(_mm_div_ps(most, _mm_set1_ps(127.0f))), count, block.scales + first);
      alignas(16) float factor[4];
      _mm_store_ps(factor, inverse);
      for (int s = 0; s < steps; s += 2) {  // 64 columns, or the last 32
        const bool both_steps = s + 1 < steps;
        __m512i of_quads[4], fours[4];
#pragma GCC unroll 4
        for (int t = 0; t < 4; ++t) {
          const __m512 spread = _mm512_set1_ps(factor[t]);
          const float* from = x[t] + s * kStepColumns;
          const __m512i quads = both_steps ? to_bytes<false>(from, spread) : to_bytes<true>(from, spread);
          of_quads[t] = sum_quads(quads);
          if (t >= count) continue;
          std::byte* bytes = block.bytes + (s * width + first + t) * kStepColumns;
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes), _mm512_castsi512_si256(quads));
          if (!both_steps) continue;
          bytes += width * kStepColumns;
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes), _mm512_extracti64x4_epi64(quads, 1));
        }
        transpose_fours(of_quads, fours);
        // Lanes: the first and the last 16 columns of this step, of the next.
        __m512i total = _mm512_add_epi32(_mm512_add_epi32(fours[0], fours[1]), _mm512_add_epi32(fours[2], fours[3]));
        __m512i both = _mm512_add_epi32(total, _mm512_shuffle_i32x4(total, total, 0xb1));
        const __m512i upper = _mm512_slli_epi32(_mm512_shuffle_i32x4(both, both, 0x4e), 16);
        const __m512i pair = _mm512_mask_blend_epi16(0xaaaaaaaau, both, upper);
        const __m512i last = _mm512_slli_epi32(_mm512_shuffle_i32x4(total, total, 0xb1), 16);
        const __m512i halves = _mm512_mask_blend_epi16(0xaaaaaaaau, total, last);
        total = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(total, 7));
        both = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(both, 7));
        std::int32_t* to = block.sums + s * 3 * width + first;
        store_first(_mm512_castsi512_si128(pair), count, block.pairs + s / 2 * width + first);
        store_first(_mm512_castsi512_si128(halves), count, block.halves + s * width + first);
        store_first(_mm512_castsi512_si128(both), count, to);
        store_first(_mm512_castsi512_si128(total), count, to + width);
        store_first(_mm512_extracti32x4_epi32(total, 1), count, to + 2 * width);
        if (both_steps) {
          std::int32_t* next = block.halves + (s + 1) * width + first;
          store_first(_mm512_extracti32x4_epi32(halves, 2), count, next);
          store_first(_mm512_extracti32x4_epi32(both, 2), count, to + 3 * width);
          store_first(_mm512_extracti32x4_epi32(total, 2), count, to + 4 * width);
          store_first(_mm512_extracti32x4_epi32(total, 3), count, to + 5 * width);
        }
      }
    }
    tile += block_bytes_of(width, steps);
  }
}

/// Products in which each format's codes go from memory to the multiplier.
inline Gemm direct_gemm() {
  const auto no_scratch = [](const Weights&) { return std::int64_t{0}; };
  return {direct_tile_width, quantized_tile_bytes<kBlockSteps>, pack_direct<kBlockSteps>, no_scratch, run_direct};
}

}  // namespace
}  // namespace shoal::cpu
