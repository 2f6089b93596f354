// INT4 weights with activations in BF16 (W4A16): the GPU's with --compute bf16. What is expected is made here, of the
// codes, zeros and scales that the matrices were made of.
#include "tests/unit/gpu_subjects.h"

namespace shoal::kernel_test {
namespace {

struct Int4 {
  Matrix matrix;
  std::vector<float> worth;  // [rows, cols]: of the column that meets activation c
};

struct Form {
  Scales scales;
  int columns;              // of a group
  std::optional<int> zero;  // none: one for each row of a group
};

Int4 random_int4(Random& random, const Form& form, std::int64_t rows, std::int64_t cols,
                 const std::vector<std::int32_t>& order = {}) {
  const PackedFormat& format = integer_format(4, form.scales, form.columns, form.zero);
  Int4 w{Matrix(format, rows, cols), std::vector<float>(static_cast<std::size_t>(rows * cols))};
  w.matrix.pack_blocks(0, rows, [&](std::int64_t row, std::int64_t col, CodeBlock& block) {
    float scale = 1e-2f * (1.0f + std::abs(random.normal()));
    if (random.whole(0, 9) == 0) scale = -scale;  // GPTQ has none below zero, but nothing forbids them
    if (form.scales == Scales::single) {
      block.d = std::bit_cast<std::uint32_t>(scale);
    } else if (form.scales == Scales::bfloat) {
      block.d = f32_to_bf16(scale);
      scale = bf16_to_f32(static_cast<std::uint16_t>(block.d));
    } else {
      block.d = f32_to_f16(scale);
      scale = f16_to_f32(static_cast<std::uint16_t>(block.d));
    }
    const int zero = form.zero ? *form.zero : random.whole(0, 15);
    block.zero = static_cast<std::uint8_t>(zero);
    for (int i = 0; i < form.columns; ++i) {
      const int code = random.whole(0, 15);
      block.code[i] = static_cast<std::uint8_t>(code);
      const std::int64_t c = order.empty() ? col + i : order[static_cast<std::size_t>(col + i)];
      w.worth[static_cast<std::size_t>(row * cols + c)] = static_cast<float>(code - zero) * scale;
    }
  });
  w.matrix.set_order(order);
  return w;
}

float rounded(float x) { return bf16_to_f32(f32_to_bf16(x)); }

/// x [tokens, cols] times w, x rounded to BF16 first.
std::vector<float> products(const std::vector<float>& x, const Int4& w) {
  const std::int64_t rows = w.matrix.rows(), cols = w.matrix.cols(), tokens = std::ssize(x) / cols;
  std::vector<float> out;
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (std::int64_t c = 0; c < cols; ++c)
        sum += double(rounded(x[static_cast<std::size_t>(t * cols + c)])) *
               double(w.worth[static_cast<std::size_t>(r * cols + c)]);
      out.push_back(static_cast<float>(sum));
    }
  return out;
}

class GpuInt4 : public EveryIsa {
 protected:
  static std::vector<float> by(Backend& b, const std::vector<float>& x, const Matrix& w,
                               std::span<const float> bias = {}) {
    const std::int64_t tokens = std::ssize(x) / w.cols();
    std::vector<float> out(static_cast<std::size_t>(tokens * w.rows()), NAN);
    b.linear({x.data(), tokens, w.cols()}, w, bias, {out.data(), tokens, w.rows()});
    return out;
  }
};

std::vector<Form> forms() {
  std::vector<Form> all;
  for (const Scales scales : {Scales::half, Scales::bfloat, Scales::single})
    for (const int columns : {32, 64, 128, 256})
      for (const std::optional<int> zero : {std::optional<int>{}, {8}, {7}}) all.push_back({scales, columns, zero});
  return all;
}

std::string name_of(const Form& form) {
  return fmt::format("scales {}, groups of {}, zero {}", int(form.scales), form.columns, form.zero.value_or(-1));
}

TEST_P(GpuInt4, ProductsAreThoseOfBf16Activations) {
  const auto gpu = backend(1, Compute::bf16);
  Random random(31);
  const std::int64_t tokens[] = {1, 5, 8, 9, 16, 17, 70}, rows[] = {16, 37, 1, 50, 160, 33};
  std::size_t round = 0;
  for (const Form& form : forms()) {
    for (const std::int64_t cols : {std::int64_t{1280} + form.columns, std::int64_t{form.columns}}) {
      const std::int64_t n = tokens[round % std::size(tokens)], outputs = rows[round % std::size(rows)];
      ++round;
      const Int4 w = random_int4(random, form, outputs, cols);
      const auto x = random.floats(n * cols), bias = random.floats(outputs);
      auto expected = products(x, w);
      for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += bias[i % bias.size()];
      expect_near(by(*gpu, x, w.matrix, bias), expected, 4e-6,
                  fmt::format("{}, {} x {}, {} tokens", name_of(form), outputs, cols, n));
    }
  }
}

/// GPTQ's columns in an order of their own; the third one beside others that have none.
TEST_P(GpuInt4, ColumnsInAnOrderOfTheirOwn) {
  const auto gpu = backend(1, Compute::bf16);
  Random random(32);
  const std::int64_t cols = 384;
  std::vector<std::int32_t> order(static_cast<std::size_t>(cols));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i * 7 % order.size());
  const Form form{Scales::half, 128, std::nullopt};
  const Int4 all[] = {random_int4(random, form, 40, cols), random_int4(random, form, 37, cols, order),
                      random_int4(random, form, 20, cols)};
  for (const std::int64_t tokens : {1, 19}) {
    const auto x = random.floats(tokens * cols);
    std::vector<std::vector<float>> out;
    for (const Int4& w : all) out.emplace_back(static_cast<std::size_t>(tokens * w.matrix.rows()), NAN);
    std::vector<Projection> projections;
    for (std::size_t i = 0; i < out.size(); ++i)
      projections.push_back({&all[i].matrix, {}, {out[i].data(), tokens, all[i].matrix.rows()}});
    gpu->linears({x.data(), tokens, cols}, projections);
    for (std::size_t i = 0; i < out.size(); ++i)
      expect_near(out[i], products(x, all[i]), 4e-6, fmt::format("matrix {}", i));
  }
}

/// Tiles of 8, 16 and 64 rows.
TEST_P(GpuInt4, ARowDoesNotDependOnItsNeighbours) {
  const auto gpu = backend(1, Compute::bf16);
  Random random(33);
  for (const Form& form : {Form{Scales::half, 128, std::nullopt}, {Scales::bfloat, 32, 8}, {Scales::single, 256, 8}})
    for (const std::int64_t cols : {256, 1792}) {  // of few chunks some quarters are empty
      const std::int64_t rows = 90, tokens = 70;
      const Int4 w = random_int4(random, form, rows, cols);
      const auto x = random.floats(tokens * cols);
      const auto together = by(*gpu, x, w.matrix);
      for (const std::int64_t n : {1, 8, 16, 33}) {
        const std::int64_t first = tokens - n;
        const auto some = by(*gpu, {x.begin() + first * cols, x.end()}, w.matrix);
        EXPECT_TRUE(same_bits(together.data() + first * rows, some.data(), std::ssize(some)))
            << name_of(form) << ", the last " << n << " rows";
      }
    }
}

/// Beside an activation of 1,000 those of 1 are zeros in bytes that share its scale; BF16 keeps them.
TEST_P(GpuInt4, ActivationsAreRoundedAsComputeSays) {
  Random random(34);
  const std::int64_t rows = 24, cols = 256;
  const PackedFormat& format = integer_format(4, Scales::half, 128, 8);
  Matrix w(format, rows, cols);
  w.pack_blocks(0, rows, [&](std::int64_t, std::int64_t, CodeBlock& block) {
    for (int i = 0; i < format.record(); ++i) block.code[i] = i % 32 == 0 ? 8 : 9;  // 0 and 1
    block.d = f32_to_f16(1.0f);
  });
  for (const std::int64_t tokens : {1, 12, 65}) {
    std::vector<float> x(static_cast<std::size_t>(tokens * cols), 1.0f);
    for (std::size_t i = 0; i < x.size(); i += 32) x[i] = 1000.0f;
    for (const Compute compute : computes()) {
      const float expected = compute == Compute::bf16 ? 31.0f * 8 : 0.0f;
      for (const float f : by(*backend(1, compute), x, w)) ASSERT_EQ(f, expected) << int(compute);
    }
  }
}

/// Also what is rounded behind a norm.
TEST_P(GpuInt4, NormedRowsAreThoseOfTheNorm) {
  const auto gpu = backend(1, Compute::bf16);
  Random random(35);
  const std::int64_t cols = 384;
  const Int4 first = random_int4(random, {Scales::half, 128, 8}, 40, cols),
             second = random_int4(random, {Scales::bfloat, 32, std::nullopt}, 21, cols);
  for (const std::int64_t tokens : {1, 19}) {
    const auto weight = random.floats(cols);
    auto stream = random.floats(tokens * cols), branch = random.floats(tokens * cols);
    std::vector<float> h(stream.size(), NAN), a(std::size_t(tokens * 40), NAN), b(std::size_t(tokens * 21), NAN);
    const Projection both[] = {{&first.matrix, {}, {a.data(), tokens, 40}},
                               {&second.matrix, {}, {b.data(), tokens, 21}}};
    gpu->norm_linears({branch.data(), tokens, cols}, {stream.data(), tokens, cols}, weight, 1e-6f,
                      {h.data(), tokens, cols}, both);
    expect_near(a, products(h, first), 4e-6, "the first");
    expect_near(b, products(h, second), 4e-6, "the second");
  }
}

TEST_P(GpuInt4, EachHeadHasItsMatrix) {
  const auto gpu = backend(1, Compute::bf16);
  Random random(36);
  const std::int64_t heads = 3, in = 64, out = 24, out_step = 30;
  std::vector<Int4> all;
  std::vector<Matrix> matrices;
  for (int h = 0; h < heads; ++h) {
    all.push_back(random_int4(random, {Scales::half, 32, std::nullopt}, out, in));
    matrices.push_back(all.back().matrix.clone());
  }
  for (const std::int64_t x_step : {96, 70})  // whole groups of 32 columns, and not even aligned to 16 bytes
    for (const std::int64_t tokens : {1, 19}) {
      const auto x = random.floats(tokens * heads * x_step);
      std::vector<float> actual(std::size_t(tokens * heads * out_step), 5.0f), expected = actual;
      gpu->linear_per_head({x.data(), tokens, heads * x_step}, x_step, matrices,
                           {actual.data(), tokens, heads * out_step}, out_step);
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t t = 0; t < tokens; ++t) {
          const auto from = x.begin() + (t * heads + h) * x_step;
          const auto one = products({from, from + in}, all[std::size_t(h)]);
          std::copy(one.begin(), one.end(), expected.begin() + (t * heads + h) * out_step);
        }
      expect_near(actual, expected, 4e-6, fmt::format("heads {} apart", x_step));
    }
}

/// SwiGLU blocks of several formats: expert 0 gets all tokens, 1 nobody, 2 one token, 3 half of them, columns of expert
/// 3 lie in an order of their own.
TEST_P(GpuInt4, Experts) {
  const auto gpu = backend(1, Compute::bf16);
  Random random(37);
  const std::int64_t hidden = 256, width = 160;
  const Form symmetric{Scales::bfloat, 32, 8}, zeros{Scales::half, 32, std::nullopt};
  std::vector<std::int32_t> order(static_cast<std::size_t>(hidden));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i * 11 % order.size());
  std::vector<std::array<Int4, 3>> made;
  std::vector<FeedForward> experts;
  for (int e = 0; e < 4; ++e) {
    const Form& form = e == 2 ? symmetric : zeros;
    const auto of_expert = e == 3 ? order : std::vector<std::int32_t>{};
    made.push_back({random_int4(random, form, width, hidden, of_expert),
                    random_int4(random, form, width, hidden, of_expert),
                    random_int4(random, e == 0 ? symmetric : form, hidden, width)});
    experts.push_back({made.back()[0].matrix.clone(), made.back()[1].matrix.clone(), made.back()[2].matrix.clone()});
  }
  for (const std::int64_t tokens : {3, 40, 150}) {
    const auto chosen = [&](std::int64_t t) {
      std::vector<std::pair<std::int32_t, float>> list{{0, 0.5f}};
      if (t == 1) list.emplace_back(2, 0.75f);
      if (t % 2 == 0) list.emplace_back(3, -0.25f);
      return list;
    };
    const auto x = random.floats(tokens * hidden);
    std::vector<float> expected;
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::vector<float> row(x.begin() + t * hidden, x.begin() + (t + 1) * hidden);
      std::vector<float> sum(static_cast<std::size_t>(hidden));
      for (const auto& [e, weight] : chosen(t)) {
        const auto& [gate, up, down] = made[static_cast<std::size_t>(e)];
        auto between = products(row, gate);
        const auto ups = products(row, up);
        for (std::size_t i = 0; i < between.size(); ++i)
          between[i] = between[i] / (1.0f + std::exp(-between[i])) * ups[i];
        const auto out = products(between, down);
        for (std::size_t i = 0; i < out.size(); ++i) sum[i] += weight * out[i];
      }
      expected.insert(expected.end(), sum.begin(), sum.end());
    }
    // A hidden value next to a rounding border may fall on either side of it.
    expect_near(through_experts(*gpu, experts, x, hidden, chosen), expected, 1e-3, fmt::format("{} tokens", tokens));
  }
}

INSTANTIATE_TEST_SUITE_P(Gpu, GpuInt4, gpus(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
