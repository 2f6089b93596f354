// The AMX kernels over emulated tiles: the code that runs on the real ones, on any machine.
#include "kernels/cpu/amx_emulation.h"
#include "kernels/cpu/convert_portable.h"
// The products need the instructions above.
#include "kernels/cpu/gemm_amx.inl"
#include "kernels/cpu/products.h"
#include "tests/unit/kernel_test_support.h"

namespace shoal::kernel_test {

void fill_quantized_emulated(cpu::KernelTable& table);       // emulated_amx_bytes.cpp
void fill_quantized_emulated_vbmi(cpu::KernelTable& table);  // emulated_amx_bytes_vbmi.cpp

namespace {

using cpu::EmulatedTiles;

/// The portable kernels with AMX products over emulated tiles.
const cpu::KernelTable& emulated_kernels() {
  static const cpu::KernelTable table = [] {
    cpu::KernelTable t = cpu::kernels_for(Isa::portable);
    cpu::fill_amx<EmulatedTiles, cpu::ConvertPortable>(t);
    return t;
  }();
  return table;
}

/// Rows times w, by pieces as the back end cuts them (emulated registers are shared: one thread).
std::vector<float> multiply(Compute compute, const Matrix& w, const std::vector<float>& x, std::int64_t tokens,
                            int pretended_threads, const cpu::KernelTable& kernels = emulated_kernels()) {
  ThreadPool pool(1);
  cpu::Team team{kernels, compute, pool, {}};
  cpu::Layout layout;
  cpu::PackedRows rows;
  for (std::int64_t t = 0; t < tokens; ++t) rows.rows.push_back(x.data() + t * w.cols());
  rows.plan(team, w, layout);
  cpu::Scratch storage, scratch;
  cpu::pack(team, {&rows, 1}, storage.bytes(layout.size()));
  const cpu::Product product = cpu::product_of(team, w, rows);
  std::vector<cpu::Piece> pieces;
  cpu::cut(pretended_threads, {&product, 1}, pieces);
  std::vector<float> out(static_cast<std::size_t>(tokens * w.rows()), NAN);
  for (const cpu::Piece& piece : pieces) {
    std::byte* room = scratch.bytes(cpu::scratch_bytes(product, piece));
    float* results = cpu::multiply(product, piece, storage.bytes(0), room, nullptr);
    const std::int64_t first = piece.first_panel * Matrix::kPanel;
    const std::int64_t n = std::min(piece.panels * Matrix::kPanel, w.rows() - first);
    cpu::for_each_tile(product, piece, results, [&](const cpu::PackedRows::Tile& tile, const float* of_tile) {
      for (int t = 0; t < tile.tokens; ++t) {
        team.kernels.copy_outputs(of_tile, tile.width, t, n, nullptr, out.data() + (tile.first + t) * w.rows() + first);
      }
    });
  }
  return out;
}

struct TileShape {
  std::int64_t rows, cols;
  int block_rows, block_cols;
};
const TileShape kTileShapes[] = {{64, 128, 128, 128}, {16, 1, 128, 128},   {50, 200, 128, 128}, {33, 31, 16, 32},
                                 {40, 129, 32, 64},   {17, 600, 128, 600}, {48, 70, 0, 0},      {20, 40, 8, 8}};

TEST(AmxEmulation, TilesMultiplyPairs) {
  const cpu::TileShape a_shape{2, 8}, b_shape{2, 12}, sum_shape{2, 12};
  const cpu::TileShape shape[8] = {sum_shape, {}, {}, {}, a_shape, {}, b_shape, {}};
  EmulatedTiles::configure(shape);
  std::uint16_t a[2][4], b[2][6];
  for (int m = 0; m < 2; ++m) {
    for (int k = 0; k < 4; ++k) a[m][k] = f32_to_bf16(float(m * 4 + k + 1));
  }
  for (int k = 0; k < 4; ++k) {
    for (int n = 0; n < 3; ++n) b[k / 2][n * 2 + k % 2] = f32_to_bf16(float((k + 1) * 10 + n));
  }
  EmulatedTiles::zero<0>();
  EmulatedTiles::load<4>(a, sizeof a[0]);
  EmulatedTiles::load<6>(b, sizeof b[0]);
  EmulatedTiles::multiply_bf16<0, 4, 6>();
  EmulatedTiles::multiply_bf16<0, 4, 6>();
  float sum[2][3];
  EmulatedTiles::store<0>(sum, sizeof sum[0]);
  for (int m = 0; m < 2; ++m) {
    for (int n = 0; n < 3; ++n) {
      float expected = 0;
      for (int k = 0; k < 4; ++k) expected += 2 * float(m * 4 + k + 1) * float((k + 1) * 10 + n);
      EXPECT_EQ(sum[m][n], expected);
    }
  }
}

TEST(AmxEmulation, ThreePartsAreTheNumberItself) {
  Random random;
  for (int i = 0; i < 10000; ++i) {
    const float f = random.normal() * std::ldexp(1.0f, random.whole(-80, 80));
    std::uint16_t part[3];
    cpu::split<3>(f, part, 1);
    EXPECT_EQ(bf16_to_f32(part[0]) + (bf16_to_f32(part[1]) + bf16_to_f32(part[2])), f);
  }
  for (const float f : {INFINITY, -INFINITY, 0.0f, -0.0f, 3.4e38f}) {
    std::uint16_t part[3];
    cpu::split<3>(f, part, 1);
    EXPECT_EQ(bf16_to_f32(part[0]) + bf16_to_f32(part[1]) + bf16_to_f32(part[2]), f);
  }
  std::uint16_t part[3];
  cpu::split<3>(std::bit_cast<float>(0x7f800001u), part, 1);
  EXPECT_TRUE(std::isnan(bf16_to_f32(part[0])));
}

TEST(AmxEmulation, EveryF8CodeConverts) {
  for (std::uint32_t code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;
    const float f = bf16_to_f32(static_cast<std::uint16_t>(cpu::f8_to_bf16(code)));
    EXPECT_EQ(f, f8_e4m3_to_f32(static_cast<std::uint8_t>(code)));
    EXPECT_EQ(std::signbit(f), code >= 128);
  }
}

TEST(AmxEmulation, ProductsMatchReference) {
  Random random(2);
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    const auto reference = make_reference_backend(compute);
    for (const TileShape& s : kTileShapes) {
      for (const DType type : {DType::bf16, DType::f8_e4m3, DType::f32}) {
        const Matrix w = random_matrix(random, type, s.rows, s.cols, s.block_rows, s.block_cols);
        for (const std::int64_t tokens : {1, 3, 16, 33}) {
          const auto x = random.floats(tokens * s.cols);
          std::vector<float> expected(static_cast<std::size_t>(tokens * s.rows));
          reference->linear({x.data(), tokens, s.cols}, w, {}, {expected.data(), tokens, s.rows});
          expect_near(multiply(compute, w, x, tokens, 2), expected, 4e-6, std::string(name_of(type)));
        }
      }
    }
  }
}

/// What AVX-512 CPUs with BF16 but without VBMI run: BF16 dot products without look-ups of bytes.
TEST(WithoutVbmi, F8ProductsMatchReference) {
  if (!cpu::has_avx512_bf16()) GTEST_SKIP() << "this machine has no AVX512_BF16";
  cpu::KernelTable kernels = cpu::kernels_for(Isa::avx512);
  cpu::fill_gemm_avx512bf16(kernels);
  Random random(4);
  const auto reference = make_reference_backend(Compute::bf16);
  for (const TileShape& s : kTileShapes) {
    const Matrix w = random_matrix(random, DType::f8_e4m3, s.rows, s.cols, s.block_rows, s.block_cols);
    for (const std::int64_t tokens : {1, 3, 16, 33}) {
      const auto x = random.floats(tokens * s.cols);
      std::vector<float> expected(static_cast<std::size_t>(tokens * s.rows));
      reference->linear({x.data(), tokens, s.cols}, w, {}, {expected.data(), tokens, s.rows});
      expect_near(multiply(Compute::bf16, w, x, tokens, 2, kernels), expected, 4e-6, "F8");
    }
  }
}

/// Tiles and VNNI share the tokens of a call, so they must agree to the bit.
TEST(AmxEmulation, ProductsOfBytesAreThoseOfVnni) {
  if (!cpu::has_avx512_vnni()) GTEST_SKIP() << "this machine has no AVX512_VNNI";
  cpu::KernelTable vnni = cpu::kernels_for(Isa::avx512);
  cpu::fill_quantized_avx512vnni(vnni);
  cpu::KernelTable tiles = vnni;
  fill_quantized_emulated(tiles);
  cpu::KernelTable vbmi = vnni, vbmi_tiles = vnni;
  if (cpu::has_avx512_vbmi()) {
    cpu::fill_quantized_avx512vnnivbmi(vbmi);
    fill_quantized_emulated_vbmi(vbmi_tiles);
  }
  Random random(5);
  const auto same = [&](const Matrix& w, const std::string& what) {
    for (const std::int64_t tokens : {3, 16, 29}) {
      const auto x = random.floats(tokens * w.cols());
      const auto expected = multiply(Compute::f32, w, x, tokens, 2, vnni);
      const auto actual = multiply(Compute::f32, w, x, tokens, 2, tiles);
      EXPECT_TRUE(same_bits(actual.data(), expected.data(), tokens * w.rows())) << what << ", " << tokens << " tokens";
      if (!cpu::has_avx512_vbmi()) continue;
      // What looks bytes up, by itself and for tiles.
      for (const auto* kernels : {&vbmi, &vbmi_tiles}) {
        const auto also = multiply(Compute::f32, w, x, tokens, 2, *kernels);
        EXPECT_TRUE(same_bits(also.data(), expected.data(), tokens * w.rows())) << what << ", " << tokens << " tokens";
      }
    }
  };
  for (const QuantFormat& format : quant_formats()) {
    if (packed_format(format) == nullptr) continue;
    for (const auto& [rows, cols] : {std::pair{37, 768}, {20, 288}}) {
      if (cols % format.block_elements == 0)
        same(random_quantized(random, format, rows, cols).matrix, std::string(format.name));
    }
  }
}

TEST(AmxEmulation, ATokenDoesNotDependOnItsNeighbours) {
  Random random(3);
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    for (const DType type : {DType::bf16, DType::f8_e4m3}) {
      const std::int64_t rows = random.whole(20, 90), cols = random.whole(20, 300), tokens = 41;
      const Matrix w = random_matrix(random, type, rows, cols);
      const auto x = random.floats(tokens * cols);
      const auto together = multiply(compute, w, x, tokens, 1);
      EXPECT_TRUE(same_bits(multiply(compute, w, x, tokens, 5).data(), together.data(), tokens * rows));
      for (std::int64_t t = 0; t < tokens; ++t) {
        const std::vector<float> one(x.begin() + t * cols, x.begin() + (t + 1) * cols);
        EXPECT_TRUE(same_bits(multiply(compute, w, one, 1, 2).data(), together.data() + t * rows, rows));
      }
    }
  }
}

}  // namespace
}  // namespace shoal::kernel_test
