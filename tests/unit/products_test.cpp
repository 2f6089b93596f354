#include "kernels/cpu/products.h"

#include <cmath>
#include <cstring>
#include <map>

#include "tests/unit/kernel_test_support.h"

namespace shoal::kernel_test {
namespace {

class ProductsTest : public EveryIsa {};

/// Weights are what decoding waits for: however many tokens there are, as long as their results fit, each panel is read
/// by one piece for all of them.
TEST_P(ProductsTest, FewTokensReadEveryWeightOnce) {
  if (GetParam().kind != Subject::Kind::cpu) GTEST_SKIP() << "pieces are the CPU's";
  const cpu::KernelTable& kernels = cpu::kernels_for(GetParam());
  ThreadPool pool(1);
  Random random;
  const std::int64_t rows = 1600, cols = 256;
  const Matrix matrices[] = {random_quantized(random, *find_format("Q4_K"), rows, cols).matrix,
                             random_quantized(random, *find_format("Q8_0"), rows, cols).matrix,
                             random_quantized(random, *find_format("IQ2_XS"), rows, cols).matrix,
                             random_matrix(random, DType::bf16, rows, cols)};
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    const cpu::Team team{kernels, compute, pool, {}};
    for (const Matrix& w : matrices) {
      for (std::int64_t tokens = 1; tokens <= 64; ++tokens) {
        const auto x = random.floats(cols);
        cpu::Layout layout;
        cpu::PackedRows packed;
        packed.rows.assign(static_cast<std::size_t>(tokens), x.data());
        packed.plan(team, w, layout);
        const cpu::Product product = cpu::product_of(team, w, packed);
        for (const int threads : {1, 2, 5}) {
          std::vector<cpu::Piece> pieces;
          cpu::cut(threads, {&product, 1}, pieces);
          std::map<std::int64_t, std::int64_t> tokens_of_panel;
          std::map<std::int64_t, int> reads;
          for (const cpu::Piece& piece : pieces) {
            for (std::int64_t p = piece.first_panel; p < piece.first_panel + piece.panels; ++p) {
              ++reads[p];
              for (std::size_t i = 0; i < piece.tiles; ++i) {
                tokens_of_panel[p] += packed.tiles[piece.first_tile + i].tokens;
              }
            }
          }
          ASSERT_EQ(std::ssize(reads), w.panels());
          for (const auto& [panel, times] : reads) {
            ASSERT_EQ(times, 1) << "of panel " << panel << ", " << tokens << " tokens, " << threads << " threads";
            ASSERT_EQ(tokens_of_panel[panel], tokens);
          }
        }
      }
    }
  }
}

TEST(Products, PartsOfOutputsCoverAllAndAreAlike) {
  for (std::int64_t panels = 1; panels <= 450; ++panels) {
    for (const int threads : {1, 2, 7, 64, 192}) {
      const std::int64_t n = cpu::parts_of_outputs(threads, panels, {});
      ASSERT_LE(n, panels);
      std::int64_t next = 0, least = panels, most = 0;
      for (std::int64_t i = 0; i < n; ++i) {
        const cpu::PanelRange part = cpu::part_of_panels(panels, i, n);
        ASSERT_EQ(part.first, next);
        ASSERT_GT(part.panels, 0);
        EXPECT_TRUE(i + 1 == n || n > (panels + 3) / 4 || part.panels % 4 == 0);
        next += part.panels;
        if (i + 1 < n) least = std::min(least, part.panels);
        most = std::max(most, part.panels);
      }
      ASSERT_EQ(next, panels);
      EXPECT_LE(most, least + 4) << panels << " panels in " << n;
      // Beside what each thread would have if panels were no whole: a part, or a group, more.
      EXPECT_LE((n + threads - 1) / threads * most, panels / threads + most + 4) << panels << " panels in " << n;
    }
  }
}

/// The tiles of AVX2 are laid out as portable ones are, and must hold the same bytes, sums and scales.
TEST_P(ProductsTest, ActivationsBecomeTheSameBytes) {
  if (GetParam().kind != Subject::Kind::cpu || (GetParam().isa != Isa::avx2 && GetParam().isa != Isa::avxvnni)) {
    GTEST_SKIP() << "tiles laid out in another way";
  }
  const cpu::KernelTable &kernels = cpu::kernels_for(GetParam()), &portable = cpu::kernels_for(Isa::portable);
  Random random(31);
  for (const cpu::WeightKind kind : {cpu::WeightKind::quantized, cpu::WeightKind::quantized_8}) {
    const cpu::Gemm &tested = kernels.gemm[int(kind)], &reference = portable.gemm[int(kind)];
    for (const std::int64_t cols : {32, 288, 512}) {
      for (int width = 1; width <= 3; ++width) {
        for (int tokens = 1; tokens <= width; ++tokens) {
          auto x = random.floats(tokens * cols);
          for (float& f : x) f *= std::ldexp(1.0f, random.whole(-100, 30));
          for (std::int64_t i = 0; i < 32; ++i) x[static_cast<std::size_t>(i)] = i % 2 == 0 ? 0.0f : -0.0f;
          std::vector<const float*> rows;
          for (int t = 0; t < tokens; ++t) rows.push_back(x.data() + t * cols);
          ASSERT_EQ(tested.tile_bytes(width, cols), reference.tile_bytes(width, cols));
          cpu::Scratch room, expected;
          const std::int64_t bytes = reference.tile_bytes(width, cols);
          tested.pack(rows.data(), tokens, width, cols, room.bytes(bytes));
          reference.pack(rows.data(), tokens, width, cols, expected.bytes(bytes));
          EXPECT_EQ(std::memcmp(room.bytes(0), expected.bytes(0), static_cast<std::size_t>(bytes)), 0)
              << width << " tokens wide, " << tokens << " there, " << cols << " columns";
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, ProductsTest, all_isas(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
