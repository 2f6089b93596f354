#include "kernels/cpu/amx_tile.h"
#include "kernels/cpu/vnni512.h"

namespace shoal::cpu {
namespace {

/// Sixteen tokens are a tile, fewer are VNNI's. Both make the same sums of the same integers in the same order, so a
/// token's result does not depend on which of them it meets.
struct Amx : Vnni512 {
  static constexpr int kWidths[] = {1, 2, 3, 4, 6, 8, 16};
  static constexpr int kTokensOfTiles = 16;

  template <int T, int G>
  static void multiply(const RecordProduct& p) {
    if constexpr (T == kTokensOfTiles) {
      multiply_tiles<G>(p);
    } else {
      Vnni512::multiply<T, G>(p);
    }
  }

  /// Tiles 0 to 3 take the sums of one group of columns each in turn, 4 and 5 the tokens, 6 and 7 the weights.
  static void begin(int groups) {
    const auto columns = static_cast<std::uint16_t>(kStepColumns / groups);
    const TileShape sums{16, 64}, tokens{16, columns}, weights{static_cast<std::uint8_t>(columns / 4), 64};
    const TileShape shape[8] = {sums, sums, sums, sums, tokens, tokens, weights, weights};
    HardwareTiles::configure(shape);
  }
  static void end() { HardwareTiles::release(); }

 private:
  /// The products of a group's columns, to memory.
  template <int kSum>
  static void multiply_group(const std::byte* x, const std::uint8_t* code, std::int32_t* dots) {
    constexpr int kX = 4 + kSum % 2, kCode = 6 + kSum % 2;
    HardwareTiles::zero<kSum>();
    HardwareTiles::load<kX>(x, kStepColumns);
    HardwareTiles::load<kCode>(code, 64);
    HardwareTiles::multiply_bytes<kSum, kX, kCode>();
    HardwareTiles::store<kSum>(dots, 64);
  }

  template <int G>
  static void multiply_tiles(const RecordProduct& p) {
    constexpr int kBuffers = 4, kAhead = 2;  // groups whose products are under way
    alignas(64) std::int32_t dots[kBuffers][256];
    const int groups = p.steps * G;
    const auto start = [&](int i) {
      const std::byte* x = p.x + i / G * step_bytes_of(16) + i % G * (kStepColumns / G);
      const std::uint8_t* code = p.weights->code + i * (kStepCodes / G);
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
    __m512 sum[16];
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) sum[t] = _mm512_loadu_ps(p.out + t * 16);
    for (int i = 0; i < groups; ++i) {
      if (i + kAhead < groups) start(i + kAhead);
      const auto* scales = reinterpret_cast<const float*>(p.x + i / G * step_bytes_of(16) + 16 * kStepColumns);
      const float* sums = scales + (G == 1 ? 1 : 2 + i % G) * 16;
      const std::int32_t* dot = dots[i % kBuffers];
      const __m512 scale = _mm512_load_ps(p.weights->scale[i]), minimum = _mm512_load_ps(p.weights->minimum[i]);
#pragma GCC unroll 16
      for (int t = 0; t < 16; ++t) {
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(scales[t]));
        sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dot + t * 16)), both, sum[t]);
        sum[t] = _mm512_fnmadd_ps(minimum, _mm512_set1_ps(sums[t]), sum[t]);
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) _mm512_storeu_ps(p.out + t * 16, sum[t]);
  }
};

}  // namespace

void fill_quantized_amx(KernelTable& table) { fill_quantized<Amx>(table); }

}  // namespace shoal::cpu
