#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/reference.h"
#ifdef SHOAL_HAS_CUDA_EMULATION
#include "kernels/cuda/emulated_backend.h"
#endif
#include "tests/unit/host_side_backend.h"

/// What the kernel tests share: random inputs, and the back ends of every instruction set this machine has.
namespace shoal::kernel_test {

/// Random numbers of a test, the same at every run.
class Random {
 public:
  explicit Random(unsigned seed = 1) : engine_(seed) {}
  float normal(float deviation = 1.0f) { return std::normal_distribution<float>(0.0f, deviation)(engine_); }
  int whole(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  std::vector<float> floats(std::int64_t n, float deviation = 1.0f) {
    std::vector<float> v(static_cast<std::size_t>(n));
    for (float& f : v) f = normal(deviation);
    return v;
  }

 private:
  std::mt19937 engine_;
};

inline std::uint16_t f32_to_f16_of_normal(float f) {
  const auto u = std::bit_cast<std::uint32_t>(f);
  const std::uint32_t sign = (u >> 16) & 0x8000u;
  const int exponent = static_cast<int>((u >> 23) & 0xffu) - 112;
  if (exponent <= 0) return static_cast<std::uint16_t>(sign);
  return static_cast<std::uint16_t>(sign | (static_cast<unsigned>(exponent) << 10) | ((u >> 13) & 0x3ffu));
}

/// A matrix of `dtype` with random values; F8 gets block scales unless `block_rows` is 0.
inline Matrix random_matrix(Random& random, DType dtype, std::int64_t rows, std::int64_t cols, int block_rows = 128,
                            int block_cols = 128) {
  Matrix m(dtype, rows, cols);
  const std::size_t size = size_of(dtype);
  std::vector<std::byte> row(static_cast<std::size_t>(cols) * size);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      const float f = random.normal();
      std::byte* to = row.data() + static_cast<std::size_t>(c) * size;
      const std::uint16_t bf16 = f32_to_bf16(f), f16 = f32_to_f16_of_normal(f);
      switch (dtype) {
        case DType::f32:
          std::memcpy(to, &f, 4);
          break;
        case DType::bf16:
          std::memcpy(to, &bf16, 2);
          break;
        case DType::f16:
          std::memcpy(to, &f16, 2);
          break;
        case DType::f8_e4m3: {
          const int code = random.whole(0, 253);  // all codes but the two of NaN
          *to = static_cast<std::byte>(code < 127 ? code : code + 1);
        }
      }
    }
    m.pack_rows(r, 1, row.data(), static_cast<std::int64_t>(row.size()));
  }
  if (dtype == DType::f8_e4m3 && block_rows > 0) {
    const std::int64_t n = ((rows + block_rows - 1) / block_rows) * ((cols + block_cols - 1) / block_cols);
    BlockScales scales{{}, block_rows, block_cols};
    for (std::int64_t i = 0; i < n; ++i) scales.values.push_back(std::exp(random.normal()) / 256.0f);
    m.set_scales(std::move(scales));
  }
  return m;
}

/// MLA's matrices that make keys and values.
struct Up {
  std::vector<Matrix> k, v;
  operator MlaUp() const { return {k, v}; }
};
inline Up random_up(Random& random, DType type, const MlaShape& shape, int nope, int value) {
  Up up;
  for (int h = 0; h < shape.heads; ++h) {
    up.k.push_back(random_matrix(random, type, shape.kv_lora_rank, nope));
    up.v.push_back(random_matrix(random, type, value, shape.kv_lora_rank));
  }
  return up;
}

/// Random bits, with scales that are ordinary numbers: in every format but IQ1_M and MXFP4 these are the FP16 fields,
/// which the struct's size tells apart from the rest only by trying.
inline std::vector<std::byte> random_blocks(Random& random, const QuantFormat& format, std::int64_t blocks) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(blocks * format.block_bytes));
  std::vector<float> worth(static_cast<std::size_t>(format.block_elements));
  for (std::int64_t b = 0; b < blocks;) {
    std::byte* block = bytes.data() + b * format.block_bytes;
    for (int i = 0; i < format.block_bytes; ++i) block[i] = static_cast<std::byte>(random.whole(0, 255));
    format.dequantize(block, format.block_elements, worth.data());
    const bool ordinary =
        std::all_of(worth.begin(), worth.end(), [](float f) { return std::isfinite(f) && std::abs(f) < 100.0f; });
    if (ordinary) ++b;
  }
  return bytes;
}

struct Quantized {
  Matrix matrix;
  std::vector<float> worth;  // [rows, cols] as the format itself says
};

inline Quantized random_quantized(Random& random, const QuantFormat& format, std::int64_t rows, std::int64_t cols) {
  const auto bytes = random_blocks(random, format, rows * cols / format.block_elements);
  Quantized q{Matrix(*packed_format(format), rows, cols), std::vector<float>(static_cast<std::size_t>(rows * cols))};
  q.matrix.pack_rows(0, rows, bytes.data(), format.bytes(cols));
  format.dequantize(bytes.data(), rows * cols, q.worth.data());
  return q;
}

inline std::unique_ptr<Backend> backend_of(Isa isa, int threads, Compute compute = Compute::f32) {
  CpuOptions options;
  options.threads = threads;
  options.compute = compute;
  options.isa = std::string(name_of(isa));
  return make_cpu_backend(options);
}

/// What operations are tested on: a CPU's instruction set, the GPU's kernels under emulation, or this machine's GPU.
struct Subject {
  enum class Kind { cpu, emulated_gpu, gpu };
  Isa isa = Isa::portable;
  Kind kind = Kind::cpu;
  Compute compute = Compute::f32;  // for tests whose products have kernels of their own in another
  operator Isa() const { return isa; }
};

/// A test that runs once for each instruction set, saying so when the machine lacks it, and for the GPU.
class EveryIsa : public testing::TestWithParam<Subject> {
 protected:
  void SetUp() override {
    if (!cpu::supports(GetParam())) GTEST_SKIP() << "this machine has no " << name_of(GetParam());
    if (GetParam().kind == Subject::Kind::gpu && find_cuda_devices().count == 0)
      GTEST_SKIP() << "no GPU: " << find_cuda_devices().reason;
  }
  static std::unique_ptr<Backend> backend(int threads = 2, Compute compute = Compute::f32) {
    if (GetParam().kind == Subject::Kind::gpu)
      return std::make_unique<HostSideBackend>(make_cuda_backend({.compute = compute}));
#ifdef SHOAL_HAS_CUDA_EMULATION
    if (GetParam().kind == Subject::Kind::emulated_gpu)
      return std::make_unique<HostSideBackend>(make_emulated_cuda_backend({.compute = compute, .self_check = false}));
#endif
    return backend_of(GetParam(), threads, compute);
  }
  /// The reference that the subject's products with quantized weights follow.
  static std::unique_ptr<Backend> reference_backend(Compute compute = Compute::f32) {
    const bool on_gpu = GetParam().kind != Subject::Kind::cpu;
    return make_reference_backend(compute, on_gpu ? 32 : 128, on_gpu);
  }
  /// What activations may be rounded to here: FP8 on GPUs of sm_90 alone.
  static std::vector<Compute> computes() {
    if (GetParam().kind == Subject::Kind::cpu) return {Compute::f32, Compute::bf16};
    if (GetParam().kind == Subject::Kind::gpu) {
      try {
        make_cuda_backend({.compute = Compute::fp8, .self_check = false});
      } catch (const Error&) {
        return {Compute::f32, Compute::bf16};
      }
    }
    return {Compute::f32, Compute::bf16, Compute::fp8};
  }
  static bool has_fp8() { return computes().back() == Compute::fp8; }
  /// How often a test with random sizes is worth repeating: emulation is slow.
  static int rounds(int n) { return GetParam().kind == Subject::Kind::emulated_gpu ? (n + 5) / 6 : n; }
};

inline std::string isa_name(const testing::TestParamInfo<Subject>& info) {
  if (info.param.kind == Subject::Kind::cpu) return std::string(name_of(info.param));
  const std::string name = info.param.kind == Subject::Kind::gpu ? "gpu" : "gpu_emulated";
  return info.param.compute == Compute::f32 ? name : "tensor_cores_" + name;
}
inline auto all_isas() {
  std::vector<Subject> subjects{{Isa::portable}, {Isa::avx2},   {Isa::avxvnni},
                                {Isa::avx512bw}, {Isa::avx512}, {Isa::amx}};
#ifdef SHOAL_HAS_CUDA_EMULATION
  subjects.push_back({.kind = Subject::Kind::emulated_gpu});
#endif
  subjects.push_back({.kind = Subject::Kind::gpu});
  return testing::ValuesIn(subjects);
}

/// Every element within tolerance * (1 + |expected| + spread), spread being the root mean square of what is expected.
inline void expect_near(const std::vector<float>& actual, const std::vector<float>& expected, double tolerance,
                        const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size());
  double squares = 0;
  for (const float f : expected) squares += double(f) * f;
  const double spread = std::sqrt(squares / double(std::max<std::size_t>(1, expected.size())));
  double worst = 0;
  std::size_t at = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(double(actual[i]) - expected[i]) / (std::abs(double(expected[i])) + spread + 1e-30);
    if (!(error <= worst)) worst = error, at = i;
  }
  if (actual.empty()) return;
  EXPECT_LE(worst, tolerance) << what << ": element " << at << " is " << actual[at] << ", not " << expected[at];
}

/// x [tokens, hidden] through experts: `chosen(t)` are token t's (expert, weight), ascending.
inline std::vector<float> through_experts(
    Backend& backend, const std::vector<FeedForward>& experts, const std::vector<float>& x, std::int64_t hidden,
    const std::function<std::vector<std::pair<std::int32_t, float>>(std::int64_t)>& chosen) {
  std::vector<float> out(x.size(), NAN);
  ExpertBatch batch;
  batch.first = {0};
  for (std::int64_t t = 0; t * hidden < std::ssize(x); ++t) {
    batch.rows.push_back(x.data() + t * hidden);
    batch.out.push_back(out.data() + t * hidden);
    for (const auto& [expert, weight] : chosen(t)) {
      batch.expert.push_back(expert);
      batch.weight.push_back(weight);
    }
    batch.first.push_back(static_cast<std::int32_t>(batch.expert.size()));
  }
  backend.experts(batch, experts);
  return out;
}

inline bool same_bits(const float* a, const float* b, std::int64_t n) {
  return n == 0 || std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(float)) == 0;
}

}  // namespace shoal::kernel_test
