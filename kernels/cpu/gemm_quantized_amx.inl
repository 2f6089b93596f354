// Products of quantized weights with AMX tiles of bytes, included after amx_tile.h or, in tests, amx_emulation.h.
#include "kernels/cpu/vnni512_expanded.h"

namespace shoal::cpu {
namespace {

/// Sixteen tokens are a tile, fewer are VNNI's. Both make the same sums of the same integers in the same order, so a
/// token's result does not depend on which of them it meets.
/// Expand: Expanded512 or what expands the same codes faster.
template <class Tiles, class Expand>
struct Amx : Expand {
  static constexpr int kWidths[1] = {16}, kPanels = 1;

  template <int T, int G>
  static BlockKernel kernel(const QuantizedLayout&) {
    return multiply_block<G>;
  }

  /// Tiles 0 to 3 take the sums of one group of columns each in turn, 4 and 5 the tokens, 6 and 7 the weights.
  static void begin(int groups) {
    const auto columns = static_cast<std::uint16_t>(kStepColumns / groups);
    const TileShape sums{16, 64}, tokens{16, columns}, weights{static_cast<std::uint8_t>(columns / 4), 64};
    const TileShape shape[8] = {sums, sums, sums, sums, tokens, tokens, weights, weights};
    Tiles::configure(shape);
  }
  static void end() { Tiles::release(); }

 private:
  /// The products of a group's columns, to memory.
  template <int kSum>
  static void multiply_group(const std::byte* x, const std::uint8_t* code, std::int32_t* dots) {
    constexpr int kX = 4 + kSum % 2, kCode = 6 + kSum % 2;
    Tiles::template zero<kSum>();
    Tiles::template load<kX>(x, kStepColumns);
    Tiles::template load<kCode>(code, 64);
    Tiles::template multiply_bytes<kSum, kX, kCode>();
    Tiles::template store<kSum>(dots, 64);
  }

  template <int G>
  static void multiply_block(const BlockProduct& p) {
    constexpr int kBuffers = 4, kAhead = 2;  // groups whose products are under way
    alignas(64) std::int32_t dots[kBuffers][256];
    const int groups = p.steps * G;
    const auto start = [&](int i) {
      const std::byte* x = p.x + i / G * (16 * kStepColumns) + i % G * (kStepColumns / G);
      const std::uint8_t* code = p.codes + i * (kStepCodes / G);
      std::int32_t* to = dots[i % kBuffers];
      switch (i % kBuffers) {
        case 0:
          return multiply_group<0>(x, code, to);
        case 1:
          return multiply_group<1>(x, code, to);
        case 2:
          return multiply_group<2>(x, code, to);
        default:
          return multiply_group<3>(x, code, to);
      }
    };
    for (int i = 0; i < kAhead && i < groups; ++i) start(i);
    if (p.whole) return add_whole_factors<G>(p, dots, start);
    __m512 sum[16];
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) sum[t] = _mm512_setzero_ps();
    for (int i = 0; i < groups; ++i) {
      if (i + kAhead < groups) start(i + kAhead);
      const std::int32_t* sums = p.sums<16, G>(i / G, i % G);
      const std::int32_t* dot = dots[i % kBuffers];
      const __m512 scale = _mm512_load_ps(p.weights->scale[i]);
      if (p.minima && !p.paired) {
        const __m512 minimum = _mm512_load_ps(p.weights->minimum[i]);
#pragma GCC unroll 16
        for (int t = 0; t < 16; ++t) {
          sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dot + t * 16)), scale, sum[t]);
          sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_set1_epi32(sums[t])), minimum, sum[t]);
        }
      } else {
        const __m128i shift = _mm_cvtsi32_si128(p.start);
        const __mmask16 taken_off = p.start < 32 ? __mmask16{0xffff} : __mmask16{0};
#pragma GCC unroll 16
        for (int t = 0; t < 16; ++t) {
          const __m512i offset = _mm512_maskz_sra_epi32(taken_off, _mm512_set1_epi32(sums[t]), shift);
          const __m512i centred = _mm512_add_epi32(_mm512_load_si512(dot + t * 16), offset);
          sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(centred), scale, sum[t]);
        }
      }
    }
    if (p.paired) {
      const __m512i first = _mm512_load_si512(p.weights->pairs[0]), second = _mm512_load_si512(p.weights->pairs[1]);
      const __m512 unit = _mm512_load_ps(p.weights->pair_unit);
      const std::int32_t* pairs = p.parts<16>().pairs;
#pragma GCC unroll 16
      for (int t = 0; t < 16; ++t) {
        __m512i taken = _mm512_setzero_si512();
        multiply_pair(taken, first, pairs[t]);
        multiply_pair(taken, second, pairs[16 + t]);
        sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(taken), unit, sum[t]);
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) {
      float* to = p.out + t * 16;
      _mm512_storeu_ps(to, _mm512_fmadd_ps(sum[t], _mm512_set1_ps(p.parts<16>().scales[t]), _mm512_loadu_ps(to)));
    }
  }

  /// The rest of it where factors are whole numbers: Expanded512::multiply_whole_factors() with the dots of tiles.
  template <int G, class Start>
  static void add_whole_factors(const BlockProduct& p, const std::int32_t (*dots)[256], const Start& start) {
    constexpr int kPairs = kBlockSteps * G / 2;
    __m512i scaled[16];
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) scaled[t] = _mm512_setzero_si512();
    for (int pair = 0; pair < kPairs; ++pair) {
      // Two of the four buffers are under way already: the pair's. The other two are free.
      for (int i = 2 * pair + 2; i < 2 * pair + 4 && i < 2 * kPairs; ++i) start(i);
      const __m512i scales = _mm512_load_si512(p.weights->scale_pairs[pair]);
      const std::int32_t *first = dots[2 * pair % 4], *second = dots[(2 * pair + 1) % 4];
#pragma GCC unroll 16
      for (int t = 0; t < 16; ++t) {
        const __m512i both = pair_of(_mm512_load_si512(first + t * 16), _mm512_load_si512(second + t * 16));
        scaled[t] = _mm512_dpwssd_epi32(scaled[t], scales, both);
      }
    }
    const WholeUnits unit{_mm512_load_ps(p.weights->unit), _mm512_load_ps(p.weights->pair_unit)};
    const auto parts = p.parts<16>();
    const std::int32_t* sums = G == 2 ? parts.halves : parts.pairs;
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) {
      __m512i taken = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int pair = 0; pair < kPairs; ++pair) {
        multiply_pair(taken, _mm512_load_si512(p.weights->minimum_pairs[pair]), sums[pair * 16 + t]);
      }
      add_whole(unit, scaled[t], taken, parts.scales[t], p.out + t * 16);
    }
  }
};

/// Fewer tokens than half a tile are faster without it.
int tile_width(std::int64_t remaining, std::int64_t) {
  return remaining > kWidest ? 16 : even_tile_width(remaining, kWidest);
}

/// The wide ones first, as they come.
inline int wide_tiles(const PackedTile* tiles, int n_tiles) {
  int wide = 0;
  while (wide < n_tiles && tiles[wide].width == 16) ++wide;
  return wide;
}

template <class Tiles>
void run_tiles(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
               std::byte* scratch) {
  const int wide = wide_tiles(tiles, n_tiles);
  if (wide > 0) run_quantized<Amx<Tiles, Expanded512>>(w, first, panels, tiles, wide, scratch);
  if (wide < n_tiles) run_direct(w, first, panels, tiles + wide, n_tiles - wide, scratch);
}

/// Of formats that are is_coded(). Run::Expand: the Isa of few tokens; Run::run<Isa>: the product, as run_quantized().
template <class Tiles, class Run>
void run_coded_tiles(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
                     std::byte* scratch) {
  using Expand = typename Run::Expand;
  const int wide = wide_tiles(tiles, n_tiles);
  if (wide > 0) Run::template run<Amx<Tiles, Expand>>(w, first, panels, tiles, wide, scratch);
  if (wide < n_tiles) Run::template run<Expand>(w, first, panels, tiles + wide, n_tiles - wide, scratch);
}

template <class Tiles, class Run>
void fill_quantized_tiles(KernelTable& table) {
  Gemm tiles = direct_gemm();
  tiles.tile_width = tile_width;
  tiles.scratch_bytes = quantized_scratch<Expanded512>;
  tiles.run = run_tiles<Tiles>;
  Gemm fine = tiles, coded = tiles;
  fine.tile_bytes = quantized_tile_bytes<kFineSteps>;
  fine.pack = pack_direct<kFineSteps>;
  coded.run = run_coded_tiles<Tiles, Run>;
  set_gemm(table, WeightKind::quantized, tiles);
  set_gemm(table, WeightKind::quantized_8, fine);
  set_gemm(table, WeightKind::quantized_coded, coded);
}

}  // namespace
}  // namespace shoal::cpu
