#include "kernels/cpu/convert_portable.h"
#include "kernels/cpu/gemm_quantized.inl"

namespace shoal::cpu {
namespace {

struct Portable : ConvertPortable {
  using Pack = PackPortable;
  static constexpr int kWidths[] = {1, 2, 3};
  static void begin(int) {}
  static void end() {}

  template <int T, int G>
  static BlockKernel kernel(const QuantizedLayout&) {
    return multiply<T, G>;
  }

 private:
  template <int T, int G>
  static void multiply(const BlockProduct& p) {
    constexpr int kQuads = kQuadsOfStep / G;
    for (int t = 0; t < T; ++t) {
      float sum[16] = {};
      for (int s = 0; s < p.steps; ++s) {
        const auto* bytes = reinterpret_cast<const std::int8_t*>(p.x + s * T * kStepColumns);
        for (int g = 0; g < G; ++g) {
          const std::int32_t sum_of_bytes = p.sums<T, G>(s, g)[t];
          std::int32_t dot[16];
          for (std::int32_t& d : dot) d = p.start_of(sum_of_bytes);
          for (int q = g * kQuads; q < (g + 1) * kQuads; ++q) {
            const std::uint8_t* code = p.codes + s * kStepCodes + q * 64;
            const std::int8_t* four = bytes + (q * T + t) * 4;
            for (int r = 0; r < 16; ++r) {
              for (int i = 0; i < 4; ++i) dot[r] += code[r * 4 + i] * four[i];
            }
          }
          const float* scale = p.weights->scale[s * G + g];
          const float* minimum = p.weights->minimum[s * G + g];
          for (int r = 0; r < 16; ++r) {
            sum[r] += static_cast<float>(dot[r]) * scale[r];
            if (p.minima) sum[r] += minimum[r] * static_cast<float>(sum_of_bytes);
          }
        }
      }
      for (int r = 0; r < 16; ++r) p.out[t * 16 + r] += sum[r] * p.parts<T>().scales[t];
    }
  }
};

}  // namespace

void fill_quantized_portable(KernelTable& table) { fill_quantized<Portable>(table); }

}  // namespace shoal::cpu
