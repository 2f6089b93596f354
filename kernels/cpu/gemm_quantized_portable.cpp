#include "kernels/cpu/convert_portable.h"
#include "kernels/cpu/gemm_quantized.inl"

namespace shoal::cpu {
namespace {

struct Portable : ConvertPortable {
  static constexpr int kWidths[] = {1, 2, 3};
  static constexpr int kTokensOfTiles = 0;
  static void begin(int) {}
  static void end() {}

  template <int T, int G>
  static void multiply(const RecordProduct& p) {
    constexpr int kQuads = kQuadsOfStep / G;
    const std::byte* x = p.x;
    for (int s = 0; s < p.steps; ++s, x += step_bytes_of(T)) {
      const auto* bytes = reinterpret_cast<const std::int8_t*>(x);
      const auto* scales = reinterpret_cast<const float*>(x + T * kStepColumns);
      for (int g = 0; g < G; ++g) {
        const float* scale = p.weights->scale[s * G + g];
        const float* minimum = p.weights->minimum[s * G + g];
        for (int t = 0; t < T; ++t) {
          std::int32_t dot[16] = {};
          for (int q = g * kQuads; q < (g + 1) * kQuads; ++q) {
            const std::uint8_t* code = p.weights->code + s * kStepCodes + q * 64;
            const std::int8_t* four = bytes + (q * T + t) * 4;
            for (int r = 0; r < 16; ++r) {
              for (int i = 0; i < 4; ++i) dot[r] += code[r * 4 + i] * four[i];
            }
          }
          const float sum = scales[(G == 1 ? 1 : 2 + g) * T + t];
          for (int r = 0; r < 16; ++r) {
            p.out[t * 16 + r] += static_cast<float>(dot[r]) * (scale[r] * scales[t]) - minimum[r] * sum;
          }
        }
      }
    }
  }
};

}  // namespace

void fill_quantized_portable(KernelTable& table) { fill_quantized<Portable>(table); }

}  // namespace shoal::cpu
