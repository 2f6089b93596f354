#include "tests/unit/gpu_subjects.h"

/// Quantized matrices: packing loses nothing, and products with them.
namespace shoal::kernel_test {
namespace {

std::vector<const QuantFormat*> packed_ones() {
  std::vector<const QuantFormat*> formats;
  for (const QuantFormat& f : quant_formats())
    if (packed_format(f)) formats.push_back(&f);
  return formats;
}

class PackedFormats : public testing::TestWithParam<const QuantFormat*> {};

TEST_P(PackedFormats, HoldWhatWasStored) {
  Random random(5);
  for (const auto& [rows, cols] : {std::pair{16, 256}, {1, 512}, {37, 768}}) {
    const Quantized q = random_quantized(random, *GetParam(), rows, cols);
    std::vector<float> row(static_cast<std::size_t>(cols));
    for (std::int64_t r = 0; r < rows; ++r) {
      q.matrix.unpack_row(r, row.data());
      for (std::int64_t c = 0; c < cols; ++c) {
        const float expected = q.worth[static_cast<std::size_t>(r * cols + c)];
        // The same numbers; where a format multiplies its factors in another order, the last bit may differ.
        ASSERT_NEAR(row[static_cast<std::size_t>(c)], expected, 2e-7 * std::abs(expected)) << r << ", " << c;
        if (c % 100 == 0) {
          ASSERT_EQ(q.matrix.at(r, c), row[static_cast<std::size_t>(c)]);
        }
      }
    }
  }
}

TEST_P(PackedFormats, TakeAboutAsMuchMemoryAsTheyTakeInAFile) {
  const PackedFormat& f = *packed_format(*GetParam());
  const double bits = 8.0 * f.record_bytes() / (16 * f.record());
  EXPECT_LE(bits, GetParam()->bits_per_element() + 0.35);
}

const auto kFormatName = [](const auto& format) { return std::string(format.param->name); };
INSTANTIATE_TEST_SUITE_P(All, PackedFormats, testing::ValuesIn(packed_ones()), kFormatName);

TEST(PackedFormat, IsThereForEveryQuantizedFormat) { EXPECT_EQ(packed_ones().size(), quant_formats().size() - 3); }

TEST(PackedFormat, RefusesWhatFitsNoBlock) {
  const QuantFormat& q4 = *find_format("Q4_K");
  EXPECT_THROW(Matrix(*packed_format(q4), 16, 100), Error);
  Matrix m(*packed_format(q4), 40, 256);
  const std::vector<std::byte> rows(static_cast<std::size_t>(40 * q4.block_bytes));
  EXPECT_THROW(m.pack_rows(8, 16, rows.data(), q4.block_bytes), Error);
  EXPECT_THROW(m.pack_rows(0, 8, rows.data(), q4.block_bytes), Error);
  m.pack_rows(32, 8, rows.data(), q4.block_bytes);
}

class QuantizedProducts : public EveryIsa {
 protected:
  static std::unique_ptr<Backend> backend(int threads = 2) { return EveryIsa::backend(threads, GetParam().compute); }
  static std::unique_ptr<Backend> reference_backend() { return EveryIsa::reference_backend(GetParam().compute); }
};

TEST_P(QuantizedProducts, MatchReference) {
  const auto tested = backend(), reference = reference_backend();
  Random random;
  for (const QuantFormat* format : packed_ones()) {
    for (const auto& [rows, cols] : {std::pair{64, 256}, {37, 768}, {20, 288}}) {
      if (cols % format->block_elements != 0) continue;
      const Matrix w = random_quantized(random, *format, rows, cols).matrix;
      for (const std::int64_t tokens : {1, 2, 3, 5, 13, 29, 67}) {
        const auto x = random.floats(tokens * cols);
        std::vector<float> actual(std::size_t(tokens * rows), NAN), expected(actual.size());
        tested->linear({x.data(), tokens, cols}, w, {}, {actual.data(), tokens, rows});
        reference->linear({x.data(), tokens, cols}, w, {}, {expected.data(), tokens, rows});
        expect_near(actual, expected, 2e-5, std::string(format->name));
      }
    }
  }
}

/// Integers with random heads, if `ordered` in an order of columns of their own.
Matrix random_integers(Random& random, const PackedFormat& format, std::int64_t rows, std::int64_t cols, bool ordered) {
  Matrix m(format, rows, cols);
  m.pack_blocks(0, rows, [&](std::int64_t, std::int64_t, CodeBlock& block) {
    for (int i = 0; i < format.record(); ++i)
      block.code[i] = static_cast<std::uint8_t>(random.whole(0, (1 << format.bits) - 1));
    const float scale = 1e-3f * (1.0f + std::abs(random.normal()));
    block.d = format.scales == Scales::half     ? f32_to_f16(scale)
              : format.scales == Scales::bfloat ? f32_to_bf16(scale)
                                                : std::bit_cast<std::uint32_t>(scale);
    block.zero = static_cast<std::uint8_t>(random.whole(0, (1 << format.bits) - 1));
  });
  if (!ordered) return m;
  std::vector<std::int32_t> order(static_cast<std::size_t>(cols));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i * 7 % order.size());
  m.set_order(std::move(order));
  return m;
}

TEST_P(QuantizedProducts, OfIntegersMatchReference) {
  const auto tested = backend(), reference = reference_backend();
  Random random;
  for (const int bits : {2, 3, 4, 8}) {
    const int middle = 1 << (bits - 1);
    for (const Scales scales : {Scales::half, Scales::bfloat, Scales::single}) {
      for (const int columns : {32, 64, 128, 256}) {
        for (const std::optional<int> zero : {std::optional<int>{}, {middle}, {middle - 1}}) {
          // Short records leave a part of a block at a row's end.
          const std::int64_t rows = 37, cols = 1280 + (columns < 128 ? 64 + columns : 0), tokens = 13;
          const Matrix w = random_integers(random, integer_format(bits, scales, columns, zero), rows, cols, true);
          const auto x = random.floats(tokens * cols);
          std::vector<float> actual(std::size_t(tokens * rows), NAN), expected(actual.size());
          tested->linear({x.data(), tokens, cols}, w, {}, {actual.data(), tokens, rows});
          reference->linear({x.data(), tokens, cols}, w, {}, {expected.data(), tokens, rows});
          expect_near(actual, expected, 5e-5, fmt::format("{} bits, records of {}", bits, columns));
        }
      }
    }
  }
}

/// GPTQ experts, each in an order of columns of its own.
TEST_P(QuantizedProducts, ExpertsInOrdersOfTheirOwnMatchReference) {
  const auto tested = backend(), reference = reference_backend();
  Random random(12);
  const std::int64_t hidden = 256, width = 128, tokens = 11;
  const PackedFormat& format = integer_format(4, Scales::half, 128, std::nullopt);
  std::vector<FeedForward> experts;
  for (int e = 0; e < 3; ++e) {
    experts.push_back({random_integers(random, format, width, hidden, e != 1),
                       random_integers(random, format, width, hidden, e != 1),
                       random_integers(random, format, hidden, width, true)});
    std::vector<std::int32_t> order = experts.back().gate.order();
    std::rotate(order.begin(), order.begin() + std::min<std::ptrdiff_t>(e, std::ssize(order)), order.end());
    experts.back().gate.set_order(std::move(order));
  }
  const auto x = random.floats(tokens * hidden);
  const auto run = [&](Backend& b) {
    return through_experts(b, experts, x, hidden, [](std::int64_t t) {
      return std::vector{std::pair{0, 0.5f}, {1 + static_cast<std::int32_t>(t % 2), 0.5f}};
    });
  };
  expect_near(run(*tested), run(*reference), 2e-2, "experts");
}

/// Panels taken together, an odd one at the end, and as many tiles as any kernel counts as many.
TEST_P(QuantizedProducts, ManyTokensThroughManyPanelsMakeTheBitsOfOneToken) {
  if (GetParam().kind != Subject::Kind::cpu) GTEST_SKIP() << "GPUs take no panels together";
  Random random(9);
  const auto one = backend(1);
  const std::int64_t rows = 41 * Matrix::kPanel - 5, tokens = 70;
  const auto check = [&](const Matrix& w, const std::string& what) {
    const auto x = random.floats(tokens * w.cols());
    std::vector<float> together(std::size_t(tokens * rows)), alone(static_cast<std::size_t>(rows));
    one->linear({x.data(), tokens, w.cols()}, w, {}, {together.data(), tokens, rows});
    for (const std::int64_t t : {0, 17, 43, 69}) {
      one->linear({x.data() + t * w.cols(), 1, w.cols()}, w, {}, {alone.data(), 1, rows});
      EXPECT_TRUE(same_bits(together.data() + t * rows, alone.data(), rows)) << what << ", token " << t;
    }
  };
  for (const QuantFormat* format : packed_ones())
    check(random_quantized(random, *format, rows, 512).matrix, std::string(format->name));
  for (const int bits : {2, 3, 4, 8}) {
    for (const int columns : {32, 64, 256}) {
      for (const std::optional<int> zero : {std::optional<int>{}, {(1 << (bits - 1)) - 1}}) {
        const std::int64_t cols = columns == 256 ? 512 : 256 + columns;  // a part of a block at the end
        const PackedFormat& format = integer_format(bits, Scales::single, columns, zero);
        check(random_integers(random, format, rows, cols, false), fmt::format("{} bits, records of {}", bits, columns));
      }
    }
  }
}

TEST_P(QuantizedProducts, ATokenDoesNotDependOnItsNeighboursNorOnThreads) {
  Random random(7);
  const auto one = backend(1), three = backend(3);
  for (const QuantFormat* format : packed_ones()) {
    const std::int64_t rows = random.whole(1, 200), cols = 256 * random.whole(1, 4), tokens = random.whole(2, 50);
    const Matrix w = random_quantized(random, *format, rows, cols).matrix;
    const auto x = random.floats(tokens * cols);
    std::vector<float> together(std::size_t(tokens * rows)), alone(together.size());
    for (std::int64_t t = 0; t < tokens; ++t) {
      one->linear({x.data() + t * cols, 1, cols}, w, {}, {alone.data() + t * rows, 1, rows});
    }
    for (const auto* b : {&one, &three}) {
      (*b)->linear({x.data(), tokens, cols}, w, {}, {together.data(), tokens, rows});
      EXPECT_TRUE(same_bits(together.data(), alone.data(), tokens * rows)) << format->name;
    }
  }
}

/// What is not finite must be seen in the result, not become an ordinary number.
TEST_P(QuantizedProducts, NotANumberStaysOne) {
  Random random(9);
  for (const QuantFormat* format : packed_ones()) {
    const Matrix w = random_quantized(random, *format, 32, 256).matrix;
    for (const float bad : {NAN, INFINITY}) {
      auto x = random.floats(256);
      x[77] = bad;
      std::vector<float> out(32);
      backend()->linear({x.data(), 1, 256}, w, {}, {out.data(), 1, 32});
      for (const float f : out) EXPECT_FALSE(std::isfinite(f)) << format->name;
    }
  }
}

/// Offsets are taken off whole numbers: weights that are zeros give zeros, whatever they are multiplied with.
TEST_P(QuantizedProducts, CodesInTheMiddleAreZeros) {
  const auto tested = backend();
  Random random(17);
  const std::int64_t rows = 20, cols = 512, tokens = 7;
  auto x = random.floats(tokens * cols);
  for (float& f : x) f = std::abs(f) + 1.0f;
  for (const QuantFormat* stored : packed_ones()) {
    const PackedFormat& format = *packed_format(*stored);
    if (format.minima || format.has_table) continue;
    Matrix w(format, rows, cols);
    w.pack_blocks(0, rows, [&](std::int64_t, std::int64_t, CodeBlock& block) {
      std::fill(std::begin(block.code), std::end(block.code), static_cast<std::uint8_t>(format.offset));
      for (auto& scale : block.scale) scale = static_cast<std::int8_t>(random.whole(-128, 127));
      block.d = f32_to_f16(1e-3f);  // no power of two: what is rounded apart shows
    });
    std::vector<float> out(std::size_t(tokens * rows), NAN);
    tested->linear({x.data(), tokens, cols}, w, {}, {out.data(), tokens, rows});
    for (const float f : out) ASSERT_EQ(f, 0.0f) << format.name;
  }
}

/// The number of the point whose coordinates are the largest together.
std::uint16_t largest_point(const PackedFormat& format) {
  std::uint16_t largest = 0;
  float most = 0;
  for (std::uint16_t number = 0; number < 256; ++number) {
    Matrix m(format, 16, 256);
    m.pack_blocks(0, 16, [&](std::int64_t, std::int64_t, CodeBlock& block) {
      std::fill(std::begin(block.number), std::end(block.number), number);
      std::fill(std::begin(block.signs), std::end(block.signs), 0u);
      std::fill(std::begin(block.scale), std::end(block.scale), std::int8_t{1});
      block.d = f32_to_f16(1.0f);
    });
    std::vector<float> row(256);
    m.unpack_row(0, row.data());
    const float sum = std::accumulate(row.begin(), row.end(), 0.0f);
    if (sum > most) most = sum, largest = number;
  }
  return largest;
}

/// All codes at one end of their range, and activations of one magnitude with the signs of a row's weights, so that
/// sums are as large as can be: where products of bytes are added up in 16 bits, they must still fit.
TEST_P(QuantizedProducts, LargestSumsOfProductsFit) {
  const auto tested = backend(), reference = reference_backend();
  const std::int64_t rows = 32, cols = 512, tokens = 7;
  for (const QuantFormat* stored : packed_ones()) {
    const PackedFormat& format = *packed_format(*stored);
    const int highest = format.coding != Coding::trits ? (1 << format.bits) - 1 : format.has_table ? 6 : 2;
    const std::uint16_t point = format.coding == Coding::points ? largest_point(format) : std::uint16_t{0};
    for (const bool high : {false, true}) {
      Matrix w(format, rows, cols);
      w.pack_blocks(0, rows, [&](std::int64_t, std::int64_t, CodeBlock& block) {
        std::fill(std::begin(block.code), std::end(block.code), static_cast<std::uint8_t>(high ? highest : 0));
        std::fill(std::begin(block.number), std::end(block.number), point);
        std::fill(std::begin(block.signs), std::end(block.signs), high ? ~0u : 0u);
        const int scale = format.scales == Scales::nibbles ? 15 : 127;
        std::fill(std::begin(block.scale), std::end(block.scale), static_cast<std::int8_t>(scale));
        const int minimum = format.scales == Scales::nibbles ? 15 : 255;
        std::fill(std::begin(block.minimum), std::end(block.minimum), static_cast<std::uint8_t>(minimum));
        const float d = 1e-3f;
        block.d = format.scales == Scales::bfloat ? f32_to_bf16(d) : f32_to_f16(d);
        block.dmin = f32_to_f16(d);
      });
      std::vector<float> row(static_cast<std::size_t>(cols)), x(static_cast<std::size_t>(tokens * cols));
      w.unpack_row(0, row.data());
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::copysign(1.0f, row[i % row.size()]);
      std::vector<float> actual(std::size_t(tokens * rows), NAN), expected(actual.size());
      tested->linear({x.data(), tokens, cols}, w, {}, {actual.data(), tokens, rows});
      reference->linear({x.data(), tokens, cols}, w, {}, {expected.data(), tokens, rows});
      expect_near(actual, expected, 2e-5, fmt::format("{}, {} codes", format.name, high ? "highest" : "lowest"));
    }
  }
}

TEST_P(QuantizedProducts, ExpertsOfMixedFormatsMatchReference) {
  const auto tested = backend(), reference = reference_backend();
  Random random(11);
  const std::int64_t hidden = 256, width = 512, tokens = 9;
  std::vector<FeedForward> experts(4);
  const char* gates[] = {"Q4_K", "Q4_K", "IQ2_XXS", "Q8_0"};
  const char* downs[] = {"Q6_K", "Q4_K", "Q3_K", "Q8_0"};
  for (std::size_t e = 0; e < experts.size(); ++e) {
    experts[e].gate = random_quantized(random, *find_format(gates[e]), width, hidden).matrix;
    experts[e].up = e == 1 ? random_matrix(random, DType::bf16, width, hidden)
                           : random_quantized(random, *find_format(gates[e]), width, hidden).matrix;
    experts[e].down = random_quantized(random, *find_format(downs[e]), hidden, width).matrix;
  }
  const auto x = random.floats(tokens * hidden, 1e-2f);
  const auto run = [&](Backend& b) {
    return through_experts(b, experts, x, hidden, [](std::int64_t t) {
      const auto odd = static_cast<std::int32_t>(t % 2);
      return std::vector{std::pair{odd, 0.5f}, {2 + odd, 0.5f}};
    });
  };
  // A hidden value next to a rounding border may fall on either side of it.
  expect_near(run(*tested), run(*reference), 2e-2, "experts");
}

INSTANTIATE_TEST_SUITE_P(Isas, QuantizedProducts, all_isas(), isa_name);
INSTANTIATE_TEST_SUITE_P(TensorCores, QuantizedProducts, gpus(Compute::bf16), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
