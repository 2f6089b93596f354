#include "kernels/cpu/kernel_table.h"
#include "tests/unit/kernel_test_support.h"

namespace shoal::kernel_test {
namespace {

class OpsTest : public EveryIsa {};

/// Distance in units in the last place, of the result's own size.
double ulps(float actual, double expected) {
  if (std::isnan(expected)) return std::isnan(actual) ? 0 : INFINITY;
  if (double(float(expected)) == double(actual)) return 0;
  const double size = std::max(std::abs(expected), 0x1p-126);
  return std::abs(double(actual) - expected) / std::ldexp(1.0, std::ilogb(size) - 23);
}

TEST_P(OpsTest, ExpIsWithinTwoUlps) {
  const auto& kernels = cpu::kernels_for(GetParam());
  std::vector<float> x;
  for (float f = -105.0f; f < 90.0f; f += 0.00037f) x.push_back(f);
  Random random;
  for (int i = 0; i < 100000; ++i) x.push_back(random.normal() * std::ldexp(1.0f, random.whole(-30, 6)));
  std::vector<float> y(x.size());
  kernels.exp(x.data(), y.data(), std::ssize(x));
  double worst = 0;
  float at = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double error = ulps(y[i], std::exp(double(x[i])));
    if (error > worst) worst = error, at = x[i];
  }
  EXPECT_LE(worst, 2.0) << "at " << at;

  const std::vector<float> edges{INFINITY, -INFINITY, NAN, 0.0f, 88.8f, -104.5f, 1e30f, -1e30f};
  std::vector<float> e(edges.size());
  kernels.exp(edges.data(), e.data(), std::ssize(edges));
  EXPECT_EQ(e[0], INFINITY);
  EXPECT_EQ(e[1], 0.0f);
  EXPECT_TRUE(std::isnan(e[2]));
  EXPECT_EQ(e[3], 1.0f);
  EXPECT_EQ(e[4], INFINITY);
  EXPECT_EQ(e[5], 0.0f);
  EXPECT_EQ(e[6], INFINITY);
  EXPECT_EQ(e[7], 0.0f);
}

TEST_P(OpsTest, SiluMul) {
  const auto& kernels = cpu::kernels_for(GetParam());
  Random random;
  for (const std::int64_t n : {0, 1, 15, 16, 77}) {
    auto gate = random.floats(n, 4.0f), up = random.floats(n);
    if (n > 20) gate[3] = 100.0f, gate[4] = -100.0f, gate[5] = -1000.0f;
    std::vector<float> out(gate.size()), expected;
    for (std::size_t i = 0; i < gate.size(); ++i) {
      const double g = gate[i];
      expected.push_back(float(g / (1.0 + std::exp(-g)) * double(up[i])));
    }
    kernels.silu_mul(gate.data(), up.data(), out.data(), n);
    expect_near(out, expected, 1e-6, "silu");
  }
}

TEST_P(OpsTest, RmsNorm) {
  const auto tested = backend(2), reference = make_reference_backend();
  Random random;
  for (const std::int64_t cols : {1, 7, 64, 576, 2048, 7168}) {
    for (const std::int64_t tokens : {0, 1, 9}) {
      const auto x = random.floats(tokens * cols, 3.0f), weight = random.floats(cols);
      std::vector<float> actual(x.size()), expected(x.size());
      tested->rms_norm({x.data(), tokens, cols}, weight, 1e-6f, {actual.data(), tokens, cols});
      reference->rms_norm({x.data(), tokens, cols}, weight, 1e-6f, {expected.data(), tokens, cols});
      expect_near(actual, expected, 2e-6, "rms_norm");
      auto in_place = x;
      tested->rms_norm({in_place.data(), tokens, cols}, weight, 1e-6f, {in_place.data(), tokens, cols});
      EXPECT_TRUE(same_bits(in_place.data(), actual.data(), std::ssize(x)));
      for (std::int64_t t = 0; t < tokens; ++t) {
        std::vector<float> alone(static_cast<std::size_t>(cols));
        tested->rms_norm({x.data() + t * cols, 1, cols}, weight, 1e-6f, {alone.data(), 1, cols});
        EXPECT_TRUE(same_bits(alone.data(), actual.data() + t * cols, cols));
      }
    }
  }
}

TEST_P(OpsTest, Add) {
  const auto tested = backend(2);
  Random random;
  const auto x = random.floats(5 * 33), acc = random.floats(5 * 33);
  auto sum = acc;
  tested->add({x.data(), 5, 33}, {sum.data(), 5, 33});
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_EQ(sum[i], acc[i] + x[i]);
}

TEST_P(OpsTest, Rope) {
  const auto tested = backend(2), reference = make_reference_backend();
  Random random;
  for (const int pairs : {1, 3, 32}) {
    for (const RopePairing pairing : {RopePairing::interleaved, RopePairing::halves}) {
      const std::int64_t tokens = 11, heads = 3, step = 2 * pairs + 5;
      std::vector<float> cos, sin;
      for (std::int64_t i = 0; i < tokens * pairs; ++i) {
        cos.push_back(std::cos(float(i)));
        sin.push_back(std::sin(float(i)));
      }
      const RopeAngles angles{{cos.data(), tokens, pairs}, {sin.data(), tokens, pairs}};
      auto actual = random.floats(tokens * heads * step);
      auto expected = actual;
      tested->rope({actual.data(), tokens, heads * step}, int(heads), step, angles, pairing);
      reference->rope({expected.data(), tokens, heads * step}, int(heads), step, angles, pairing);
      expect_near(actual, expected, 1e-6, "rope");
    }
  }
}

TEST_P(OpsTest, Embed) {
  const auto tested = backend(2), reference = make_reference_backend();
  Random random;
  for (const DType type : {DType::f32, DType::f16, DType::bf16, DType::f8_e4m3}) {
    const Matrix table = random_matrix(random, type, 50, 75);
    const std::vector<std::int32_t> ids{0, 49, 17, 17};
    std::vector<float> actual(4 * 75), expected(4 * 75);
    tested->embed(ids, table, {actual.data(), 4, 75});
    reference->embed(ids, table, {expected.data(), 4, 75});
    EXPECT_EQ(actual, expected);
    tested->embed({}, table, {actual.data(), 0, 75});
  }
}

TEST_P(OpsTest, WriteKvRoundsLikeBf16) {
  const auto tested = backend(2), reference = make_reference_backend();
  Random random;
  auto x = random.floats(3 * 37);
  x[1] = NAN, x[2] = INFINITY, x[3] = std::bit_cast<float>(0x3f808000u), x[4] = 1e-40f;
  const std::vector<std::int64_t> slots{5, 0, 2};
  for (const KvType type : {KvType::f32, KvType::bf16}) {
    const auto bytes = static_cast<std::size_t>(6 * kv_row_bytes(type, 50));
    const auto a = tested->allocate(bytes), b = reference->allocate(bytes);
    tested->write_kv({x.data(), 3, 37}, slots, 11, {a.get(), type, 2, 50});
    reference->write_kv({x.data(), 3, 37}, slots, 11, {b.get(), type, 2, 50});
    EXPECT_EQ(std::memcmp(a.get(), b.get(), bytes), 0);
  }
}

TEST_P(OpsTest, MemoryIsZeroAndAligned) {
  const auto tested = backend(1);
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{5} << 20}) {
    const auto p = tested->allocate(bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p.get()) % 64, 0u);
    for (std::size_t i = 0; i < bytes; i += 4096) EXPECT_EQ(static_cast<const char*>(p.get())[i], 0);
  }
  EXPECT_THROW(tested->allocate(std::size_t{1} << 60), Error);
}

TEST(CpuBackend, NamesWhatItRunsOn) {
  CpuOptions options;
  options.threads = 2;
  options.isa = "portable";
  EXPECT_EQ(make_cpu_backend(options)->description(), "portable (f32), 2 threads");
  options.isa = "sse9";
  EXPECT_THROW(make_cpu_backend(options), Error);
  options.isa = "auto";
  options.threads = 0;
  EXPECT_NE(make_cpu_backend(options), nullptr);
}

INSTANTIATE_TEST_SUITE_P(Cpu, OpsTest, all_isas(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
