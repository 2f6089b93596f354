#include <numeric>

#include "tests/unit/kernel_test_support.h"

namespace shoal::kernel_test {
namespace {

struct Shape {
  std::int64_t rows, cols;
  int block_rows = 128, block_cols = 128;
};

// Regular ones, then sizes that fit no tile, then scale blocks of every awkward kind (none, odd, unaligned, huge).
const Shape kShapes[] = {{64, 64},
                         {256, 384},
                         {16, 1},
                         {1, 1},
                         {33, 17},
                         {130, 257},
                         {144, 130, 16, 32},
                         {48, 100, 0, 0},
                         {100, 90, 7, 11},
                         {64, 1100, 64, 1100},
                         {40, 70, 1, 70},
                         {80, 64, 16, 2},
                         {32, 131, 128, 128}};
constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16, DType::f8_e4m3};

class LinearTest : public EveryIsa {};

std::string describe(const Matrix& w, std::int64_t tokens) {
  return std::string(name_of(w.dtype())) + " " + std::to_string(w.rows()) + " x " + std::to_string(w.cols()) + ", " +
         std::to_string(tokens) + " tokens";
}

/// Sums of a thousand products in FP32 differ from those in double by some 1e-6 of their spread. Rounding activations
/// to BF16 happens in the reference too; what is left there is the dot product instruction's own rounding.
constexpr double kLinearTolerance = 4e-6;

TEST_P(LinearTest, MatchesReference) {
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    const auto tested = backend(2, compute), reference = make_reference_backend(compute);
    Random random;
    for (const Shape& shape : kShapes) {
      for (const DType type : kTypes) {
        const Matrix w = random_matrix(random, type, shape.rows, shape.cols, shape.block_rows, shape.block_cols);
        for (const std::int64_t tokens : {1, 2, 5, 13, 40}) {
          const auto x = random.floats(tokens * shape.cols), bias = random.floats(shape.rows);
          std::vector<float> actual(std::size_t(tokens * shape.rows), NAN), expected(actual.size());
          const bool with_bias = tokens % 2 == 0;
          const std::span<const float> b = with_bias ? std::span<const float>(bias) : std::span<const float>();
          tested->linear({x.data(), tokens, shape.cols}, w, b, {actual.data(), tokens, shape.rows});
          reference->linear({x.data(), tokens, shape.cols}, w, b, {expected.data(), tokens, shape.rows});
          expect_near(actual, expected, kLinearTolerance, describe(w, tokens));
        }
      }
    }
  }
}

/// Some of them are packed alike, some not, and one has columns of another order.
TEST_P(LinearTest, ProductsTogetherAreThoseOneByOne) {
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    const auto tested = backend(2, compute);
    Random random(3);
    for (const std::int64_t tokens : {0, 1, 7, 30}) {
      constexpr std::int64_t kCols = 96;
      const auto x = random.floats(tokens * kCols), bias = random.floats(50);
      std::vector<Matrix> w;
      for (const DType type : {DType::bf16, DType::f8_e4m3, DType::f32, DType::f8_e4m3, DType::bf16})
        w.push_back(random_matrix(random, type, 50 + 20 * std::ssize(w), kCols, 16, 32));
      std::vector<std::int32_t> order(kCols);
      std::iota(order.rbegin(), order.rend(), 0);
      w[3].set_order(order);
      std::vector<std::vector<float>> together;
      for (const Matrix& m : w) together.emplace_back(std::size_t(tokens * m.rows()), NAN);
      std::vector<Projection> projections;
      for (std::size_t i = 0; i < w.size(); ++i) {
        const std::span<const float> b = i == 0 ? std::span<const float>(bias) : std::span<const float>();
        projections.push_back({&w[i], b, {together[i].data(), tokens, w[i].rows()}});
      }
      tested->linears({x.data(), tokens, kCols}, projections);
      for (std::size_t i = 0; i < w.size(); ++i) {
        std::vector<float> alone(together[i].size());
        tested->linear({x.data(), tokens, kCols}, w[i], projections[i].bias, {alone.data(), tokens, w[i].rows()});
        EXPECT_TRUE(same_bits(together[i].data(), alone.data(), tokens * w[i].rows())) << describe(w[i], tokens);
      }
    }
  }
}

TEST_P(LinearTest, ATokenDoesNotDependOnItsNeighboursNorOnThreads) {
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    Random random(7);
    const auto one = backend(1, compute), two = backend(2, compute), three = backend(3, compute);
    for (int round = 0; round < rounds(12); ++round) {
      for (const DType type : kTypes) {
        const bool odd_blocks = round % 4 == 3;
        const std::int64_t rows = random.whole(1, 300), cols = random.whole(1, 700), tokens = random.whole(2, 70);
        const Matrix w = random_matrix(random, type, rows, cols, odd_blocks ? 24 : 128, odd_blocks ? 31 : 128);
        const auto x = random.floats(tokens * cols);
        std::vector<float> together(std::size_t(tokens * rows)), alone(together.size());
        for (std::int64_t t = 0; t < tokens; ++t) {
          one->linear({x.data() + t * cols, 1, cols}, w, {}, {alone.data() + t * rows, 1, rows});
        }
        for (const auto* b : {&one, &two, &three}) {
          (*b)->linear({x.data(), tokens, cols}, w, {}, {together.data(), tokens, rows});
          EXPECT_TRUE(same_bits(together.data(), alone.data(), tokens * rows)) << describe(w, tokens);
        }
      }
    }
  }
}

TEST_P(LinearTest, PerHeadProductsWriteOnlyTheirColumns) {
  Random random(3);
  const auto tested = backend(3), reference = make_reference_backend();
  for (const DType type : kTypes) {
    const int heads = 5, in = 24, out = 40;
    std::vector<Matrix> w;
    for (int h = 0; h < heads; ++h) w.push_back(random_matrix(random, type, out, in));
    for (const std::int64_t tokens : {0, 1, 19}) {
      const std::int64_t x_step = 30, out_step = 45;
      const auto x = random.floats(tokens * heads * x_step);
      std::vector<float> actual(std::size_t(tokens * heads * out_step), 5.0f), expected = actual;
      tested->linear_per_head({x.data(), tokens, heads * x_step}, x_step, w, {actual.data(), tokens, heads * out_step},
                              out_step);
      reference->linear_per_head({x.data(), tokens, heads * x_step}, x_step, w,
                                 {expected.data(), tokens, heads * out_step}, out_step);
      expect_near(actual, expected, kLinearTolerance, "per head");
    }
  }
}

TEST_P(LinearTest, StridedRowsAndNoTokens) {
  Random random(4);
  const auto tested = backend(2), reference = make_reference_backend();
  const Matrix w = random_matrix(random, DType::bf16, 50, 60);
  const auto x = random.floats(9 * 100);
  std::vector<float> actual(9 * 70, 1.0f), expected = actual;
  tested->linear({x.data(), 9, 60, 100}, w, {}, {actual.data(), 9, 50, 70});
  reference->linear({x.data(), 9, 60, 100}, w, {}, {expected.data(), 9, 50, 70});
  expect_near(actual, expected, kLinearTolerance, "strided");
  tested->linear({x.data(), 0, 60}, w, {}, {actual.data(), 0, 50});
}

TEST_P(LinearTest, NotANumberAndInfinityPropagate) {
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    const auto tested = backend(1, compute);
    Random random(5);
    for (const DType type : kTypes) {
      const Matrix w = random_matrix(random, type, 20, 64);
      auto x = random.floats(3 * 64);
      x[5] = NAN;
      x[64 + 7] = INFINITY;
      std::vector<float> out(3 * 20);
      tested->linear({x.data(), 3, 64}, w, {}, {out.data(), 3, 20});
      EXPECT_TRUE(std::isnan(out[0])) << name_of(type);
      EXPECT_FALSE(std::isfinite(out[20])) << name_of(type);
      EXPECT_TRUE(std::isfinite(out[40])) << name_of(type);
    }
    Matrix w(DType::f8_e4m3, 17, 64);
    std::vector<std::uint8_t> codes(64, 0x38);  // 1.0
    for (std::int64_t r = 0; r < 17; ++r) {
      codes[9] = r == 3 ? 0xff : 0x38;
      w.pack_rows(r, 1, codes.data(), 64);
    }
    const std::vector<float> x(64, 1.0f);
    std::vector<float> out(17);
    tested->linear({x.data(), 1, 64}, w, {}, {out.data(), 1, 17});
    EXPECT_TRUE(std::isnan(out[3]));
    EXPECT_EQ(out[2], 64.0f);
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, LinearTest, all_isas(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
