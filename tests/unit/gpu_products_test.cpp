// What the GPU's kernels have beyond the operations that all back ends share.
#include "tests/unit/gpu_subjects.h"

namespace shoal::kernel_test {
namespace {

class GpuProducts : public EveryIsa {};

/// Weights of `dtype`, activations as `compute` says, against the reference that rounds them the same way.
TEST_P(GpuProducts, TensorCoresMatchReference) {
  for (const Compute compute : computes()) {
    if (compute == Compute::f32) continue;
    const auto tested = backend(1, compute), reference = make_reference_backend(compute);
    Random random(21);
    const struct {
      std::int64_t rows, cols;
      int block;
    } shapes[] = {{128, 128, 128}, {130, 257, 128}, {64, 1024, 0},   {33, 100, 128},
                  {200, 640, 64},  {300, 384, 128}, {130, 2100, 128}};  // FP8 sums in two pieces
    for (const auto& shape : shapes)
      for (const DType type : {DType::bf16, DType::f8_e4m3}) {
        // Other blocks than R1's meet BF16 activations.
        if (compute == Compute::fp8 && shape.block == 64) continue;
        const Matrix w = random_matrix(random, type, shape.rows, shape.cols, shape.block, shape.block);
        for (const std::int64_t tokens : {1, 16, 17, 70}) {
          const auto x = random.floats(tokens * shape.cols), bias = random.floats(shape.rows);
          std::vector<float> actual(std::size_t(tokens * shape.rows), NAN), expected(actual.size());
          tested->linear({x.data(), tokens, shape.cols}, w, bias, {actual.data(), tokens, shape.rows});
          reference->linear({x.data(), tokens, shape.cols}, w, bias, {expected.data(), tokens, shape.rows});
          // On Hopper FP8 products lose bits inside a sum of 128 (some 14 are kept).
          const double tolerance = compute == Compute::fp8 ? 1e-3 : 4e-6;
          expect_near(actual, expected, tolerance,
                      std::string(name_of(type)) + " " + std::to_string(shape.rows) + " x " +
                          std::to_string(shape.cols) + ", " + std::to_string(tokens) + " tokens");
        }
      }
  }
}

TEST_P(GpuProducts, Fp8RowsDoNotDependOnTheirNeighbours) {
  if (!has_fp8()) GTEST_SKIP() << "this GPU has no FP8 kernels";
  const auto gpu = backend(1, Compute::fp8);
  Random random(22);
  for (const std::int64_t cols : {300, 2100}) {  // whose sums are in one piece and in two
    const Matrix w = random_matrix(random, DType::f8_e4m3, 150, cols);
    const auto x = random.floats(40 * cols);
    std::vector<float> together(40 * 150), alone(40 * 150);
    gpu->linear({x.data(), 40, cols}, w, {}, {together.data(), 40, 150});
    for (std::int64_t t = 0; t < 40; ++t)
      gpu->linear({x.data() + t * cols, 1, cols}, w, {}, {alone.data() + t * 150, 1, 150});
    EXPECT_TRUE(same_bits(together.data(), alone.data(), std::ssize(alone)));
  }
}

TEST_P(GpuProducts, Fp8ExpertsMatchReference) {
  if (!has_fp8()) GTEST_SKIP() << "this GPU has no FP8 kernels";
  const auto gpu = backend(1, Compute::fp8), reference = make_reference_backend(Compute::fp8);
  Random random(23);
  const std::int64_t hidden = 256, width = 128, tokens = 40;
  std::vector<FeedForward> experts;
  for (int e = 0; e < 5; ++e)
    experts.push_back({random_matrix(random, DType::f8_e4m3, width, hidden),
                       random_matrix(random, DType::f8_e4m3, width, hidden),
                       random_matrix(random, e == 2 ? DType::bf16 : DType::f8_e4m3, hidden, width)});
  const auto x = random.floats(tokens * hidden, 0.05f);
  const auto run = [&](Backend& b) {
    // Expert 3 has nobody, expert 0 everybody, token 7 nobody.
    return through_experts(b, experts, x, hidden, [](std::int64_t t) {
      std::vector<std::pair<std::int32_t, float>> chosen;
      for (const int e : {0, 1 + static_cast<int>(t % 2), 4})
        if (t != 7) chosen.emplace_back(e, 0.25f * static_cast<float>(e + 1));
      return chosen;
    });
  };
  // A hidden value next to a rounding border of E4M3 may fall on either side of it.
  expect_near(run(*gpu), run(*reference), 5e-2, "experts");
  for (FeedForward& expert : experts) expert.down = random_matrix(random, DType::f8_e4m3, hidden, width);
  expect_near(run(*gpu), run(*reference), 5e-2, "experts of FP8 alone");  // gate and up in one

  // A row that no expert here wants.
  std::vector<float> nothing(std::size_t(hidden), NAN);
  gpu->experts({{x.data()}, {nothing.data()}, {0, 0}, {}, {}}, experts);
  EXPECT_EQ(nothing, std::vector<float>(std::size_t(hidden), 0.0f));
}

TEST_P(GpuProducts, FastKernelsPassTheirSelfCheck) {
  for (const Compute compute : computes()) {  // each has kernels that the others lack
    std::string said;
    if (GetParam().kind == Subject::Kind::gpu) said = make_cuda_backend({.compute = compute})->description();
#ifdef SHOAL_HAS_CUDA_EMULATION
    if (GetParam().kind == Subject::Kind::emulated_gpu)
      said = make_emulated_cuda_backend({.compute = compute})->description();
#endif
    EXPECT_EQ(said.find("because"), std::string::npos) << said;
  }
}

INSTANTIATE_TEST_SUITE_P(Gpu, GpuProducts, gpus(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
