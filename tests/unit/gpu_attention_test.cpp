// Attention on the GPU's tensor cores (--compute bf16 and fp8), against the reference with queries that BF16 holds.
#include <algorithm>

#include "tests/unit/gpu_subjects.h"

namespace shoal::kernel_test {
namespace {

/// Sequences in a paged cache: page tables in disorder, rows random.
struct Sequences {
  Sequences(Random& random, Backend& backend, KvType type, int page_tokens, int width,
            const std::vector<int>& lengths) {
    int pages = 0;
    for (const int n : lengths) pages += (n + page_tokens - 1) / page_tokens;
    std::vector<std::int32_t> order(std::size_t(pages), 0);
    for (int i = 0; i < pages; ++i) order[std::size_t(i)] = pages - 1 - i;
    std::swap(order.front(), order[order.size() / 2]);
    memory = backend.allocate(static_cast<std::size_t>(pages * page_tokens * kv_row_bytes(type, width)));
    layer = {memory.get(), type, page_tokens, width};
    auto next = order.begin();
    for (const int n : lengths) {
      tables.emplace_back(next, next + (n + page_tokens - 1) / page_tokens);
      next += std::ssize(tables.back());
      std::vector<std::int64_t> slots;
      for (int t = 0; t < n; ++t)
        slots.push_back(std::int64_t{tables.back()[std::size_t(t / page_tokens)]} * page_tokens + t % page_tokens);
      const auto rows = random.floats(std::int64_t{n} * width);
      backend.write_kv({rows.data(), n, width}, slots, 0, layer);
    }
    // What the tensor cores see of it: BF16.
    as_bf16_memory = reference->allocate(static_cast<std::size_t>(pages * page_tokens * width * 2));
    as_bf16 = {as_bf16_memory.get(), KvType::bf16, page_tokens, width};
    std::vector<float> row(static_cast<std::size_t>(width));
    for (const auto& table : tables)
      for (const std::int32_t page : table)
        for (std::int64_t slot = std::int64_t{page} * page_tokens; slot < std::int64_t{page + 1} * page_tokens;
             ++slot) {
          for (int c = 0; c < width; ++c) row[std::size_t(c)] = decode_kv(type, layer.row(slot), c, width);
          reference->write_kv({row.data(), 1, width}, {&slot, 1}, 0, as_bf16);
        }
  }
  AttentionQuery query(std::size_t sequence, int length) const { return {tables[sequence].data(), length}; }

  std::unique_ptr<Backend> reference = make_reference_backend();
  std::shared_ptr<void> memory, as_bf16_memory;
  KvLayer layer, as_bf16;
  std::vector<std::vector<std::int32_t>> tables;
};

std::vector<float> bf16_floats(Random& random, std::int64_t n, float deviation = 1.0f) {
  auto q = random.floats(n, deviation);
  for (float& f : q) f = bf16_to_f32(f32_to_bf16(f));
  return q;
}

/// What is rounded to BF16 within: exp(s - m), to 2^-9 of it.
constexpr double kGpuTolerance = 6e-3;

class GpuAttention : public EveryIsa {};

TEST_P(GpuAttention, MlaMatchesReference) {
  Random random(31);
  const auto tested = backend(1, Compute::bf16), reference = make_reference_backend();
  const struct {
    MlaShape shape;
    KvType type;
  } cases[] = {{{128, 512, 64}, KvType::bf16},
               {{16, 512, 64}, KvType::fp8},
               {{5, 48, 16}, KvType::int8},
               {{70, 256, 32}, KvType::bf16}};
  for (const auto& [shape, type] : cases) {
    const int width = shape.kv_lora_rank + shape.qk_rope_head_dim;
    const Sequences s(random, *tested, type, 16, width, {43, 1});
    // A prompt's end, in tiles of several queries where heads are few, and sequences of one token.
    const std::vector<AttentionQuery> queries{s.query(0, 41), s.query(0, 42), s.query(0, 43), s.query(1, 1),
                                              s.query(0, 32)};
    const auto n = std::ssize(queries);
    const std::int64_t q_cols = std::int64_t{shape.heads} * width,
                       cols = std::int64_t{shape.heads} * shape.kv_lora_rank;
    const auto q = bf16_floats(random, n * q_cols);
    std::vector<float> actual(std::size_t(n * cols), NAN), expected(actual.size());
    const float scale = 1.0f / std::sqrt(float(width));
    tested->mla_attention({q.data(), n, q_cols}, shape, scale, queries, s.layer, {actual.data(), n, cols});
    reference->mla_attention({q.data(), n, q_cols}, shape, scale, queries, s.as_bf16, {expected.data(), n, cols});
    expect_near(actual, expected, kGpuTolerance, "MLA with " + std::to_string(shape.heads) + " heads");
  }
}

TEST_P(GpuAttention, GqaMatchesReference) {
  Random random(32);
  const auto tested = backend(1, Compute::bf16), reference = make_reference_backend();
  const struct {
    GqaShape shape;
    KvType type;
  } cases[] = {{{14, 2, 128}, KvType::bf16},
               {{4, 4, 64}, KvType::fp8},
               {{6, 3, 16}, KvType::bf16},
               {{70, 1, 32}, KvType::bf16},
               {{7, 1, 96}, KvType::int8}};
  for (const auto& [shape, type] : cases) {
    const Sequences s(random, *tested, type, 7, 2 * shape.kv_heads * shape.head_dim, {200, 1});
    std::vector<AttentionQuery> one{s.query(0, 200), s.query(1, 1)}, many;
    for (int t = 180; t <= 200; ++t) many.push_back(s.query(0, t));
    for (const auto& queries : {one, many}) {
      const auto n = std::ssize(queries);
      const std::int64_t cols = std::int64_t{shape.heads} * shape.head_dim;
      const auto q = bf16_floats(random, n * cols);
      std::vector<float> actual(q.size(), NAN), expected(q.size());
      tested->gqa_attention({q.data(), n, cols}, shape, 0.2f, queries, s.layer, {actual.data(), n, cols});
      reference->gqa_attention({q.data(), n, cols}, shape, 0.2f, queries, s.as_bf16, {expected.data(), n, cols});
      expect_near(actual, expected, kGpuTolerance, "GQA with " + std::to_string(shape.heads) + " heads");
    }
  }
}

/// Across the border of two parts, alone and in tiles of any size.
TEST_P(GpuAttention, AQueryDoesNotDependOnItsNeighbours) {
  Random random(33);
  const auto gpu = backend(1, Compute::bf16);
  const GqaShape shape{2, 1, 32};
  const Sequences s(random, *gpu, KvType::bf16, 16, 64, {1030, 70});
  std::vector<AttentionQuery> queries;
  for (const int t : {1, 63, 64, 65, 1023, 1024, 1025, 1026, 1030}) queries.push_back(s.query(0, t));
  for (int t = 61; t <= 70; ++t) queries.push_back(s.query(1, t));
  const auto n = std::ssize(queries);
  const auto q = random.floats(n * 64);
  std::vector<float> together(q.size()), alone(q.size()), short_ones(q.size());
  gpu->gqa_attention({q.data(), n, 64}, shape, 0.2f, queries, s.layer, {together.data(), n, 64});
  for (std::int64_t t = 0; t < n; ++t)
    gpu->gqa_attention({q.data() + t * 64, 1, 64}, shape, 0.2f, {&queries[std::size_t(t)], 1}, s.layer,
                       {alone.data() + t * 64, 1, 64});
  EXPECT_TRUE(same_bits(together.data(), alone.data(), n * 64));

  const MlaShape latent{9, 48, 16};
  const std::int64_t q_cols = 9 * 64, cols = 9 * 48;
  const std::vector<AttentionQuery> end(queries.end() - 9, queries.end());
  const auto latent_q = random.floats(9 * q_cols);
  std::vector<float> all(std::size_t(9 * cols)), each(all.size());
  gpu->mla_attention({latent_q.data(), 9, q_cols}, latent, 0.1f, end, s.layer, {all.data(), 9, cols});
  for (std::int64_t t = 0; t < 9; t += 4)
    gpu->mla_attention({latent_q.data() + t * q_cols, 1, q_cols}, latent, 0.1f, {&end[std::size_t(t)], 1}, s.layer,
                       {each.data() + t * cols, 1, cols});
  for (std::int64_t t = 0; t < 9; t += 4)
    EXPECT_TRUE(same_bits(&all[std::size_t(t * cols)], &each[std::size_t(t * cols)], cols));
}

/// MLA of R1's size, which Hopper has a kernel of its own for.
TEST_P(GpuAttention, MlaInPartsIsTheSameInAnyTile) {
  Random random(35);
  const auto gpu = backend(1, Compute::bf16), reference = make_reference_backend();
  const MlaShape shape{3, 512, 64};
  const std::int64_t q_cols = 3 * 576, cols = 3 * 512;
  const Sequences s(random, *gpu, KvType::bf16, 16, 576, {1030});
  std::vector<AttentionQuery> queries;
  for (const int t : {70, 1024, 1025, 1030}) queries.push_back(s.query(0, t));
  const auto n = std::ssize(queries);
  const auto q = bf16_floats(random, n * q_cols);
  std::vector<float> together(std::size_t(n * cols)), alone(together.size()), expected(together.size());
  gpu->mla_attention({q.data(), n, q_cols}, shape, 0.04f, queries, s.layer, {together.data(), n, cols});
  for (std::int64_t t = 0; t < n; ++t)
    gpu->mla_attention({q.data() + t * q_cols, 1, q_cols}, shape, 0.04f, {&queries[std::size_t(t)], 1}, s.layer,
                       {alone.data() + t * cols, 1, cols});
  EXPECT_TRUE(same_bits(together.data(), alone.data(), n * cols));
  reference->mla_attention({q.data(), n, q_cols}, shape, 0.04f, queries, s.as_bf16, {expected.data(), n, cols});
  expect_near(together, expected, 2 * kGpuTolerance, "MLA in parts");  // means of a thousand rows are small
}

/// Chunks at the end of what is cached; R1's size, which Hopper has a kernel of its own for, and others.
TEST_P(GpuAttention, PromptsMatchReferenceInTheirOwnForm) {
  Random random(36);
  const auto tested = backend(1, Compute::bf16), reference = make_reference_backend();
  const struct {
    MlaShape shape;
    int nope, value, length, run;
    KvType cache;
    DType weights;
  } cases[] = {{{2, 512, 64}, 128, 128, 270, 131, KvType::bf16, DType::f8_e4m3},
               {{1, 512, 64}, 128, 128, 129, 129, KvType::fp8, DType::bf16},
               {{3, 48, 16}, 32, 16, 150, 66, KvType::int8, DType::bf16},
               {{2, 136, 16}, 176, 128, 70, 70, KvType::bf16, DType::bf16}};
  for (const auto& c : cases) {
    const int width = c.shape.kv_lora_rank + c.shape.qk_rope_head_dim, dim = c.nope + c.shape.qk_rope_head_dim;
    const Sequences s(random, *tested, c.cache, 16, width, {9, c.length});
    const Up up = random_up(random, c.weights, c.shape, c.nope, c.value);
    std::vector<AttentionQuery> queries;
    for (int t = c.length - c.run + 1; t <= c.length; ++t) queries.push_back(s.query(1, t));
    const std::int64_t q_cols = std::int64_t{c.shape.heads} * dim, cols = std::int64_t{c.shape.heads} * c.value;
    const auto q = bf16_floats(random, c.run * q_cols);
    const float scale = 1.0f / std::sqrt(float(dim) * float(width));  // keys are sums of products
    std::vector<float> actual(std::size_t(c.run * cols), NAN), expected(actual.size());
    tested->mla_prompt_attention({q.data(), c.run, q_cols}, c.shape, up, scale, queries, s.layer,
                                 {actual.data(), c.run, cols});
    reference->mla_prompt_attention({q.data(), c.run, q_cols}, c.shape, up, scale, queries, s.as_bf16,
                                    {expected.data(), c.run, cols});
    expect_near(actual, expected, 2 * kGpuTolerance, "MLA of prompts, rank " + std::to_string(c.shape.kv_lora_rank));
  }
}

TEST_P(GpuAttention, AQueryOfAPromptDoesNotDependOnItsNeighbours) {
  Random random(37);
  const auto gpu = backend(1, Compute::bf16);
  const MlaShape shape{1, 512, 64};
  const Sequences s(random, *gpu, KvType::bf16, 16, 576, {200});
  const Up up = random_up(random, DType::bf16, shape, 128, 128);
  std::vector<AttentionQuery> queries;
  for (int t = 60; t <= 200; ++t) queries.push_back(s.query(0, t));
  const auto n = std::ssize(queries);
  const auto q = random.floats(n * 192);
  std::vector<float> together(std::size_t(n * 128)), part(together.size());
  gpu->mla_prompt_attention({q.data(), n, 192}, shape, up, 0.003f, queries, s.layer, {together.data(), n, 128});
  const std::int64_t first = 3, count = 70;
  gpu->mla_prompt_attention({q.data() + first * 192, count, 192}, shape, up, 0.003f,
                            {queries.data() + first, std::size_t(count)}, s.layer, {part.data(), count, 128});
  EXPECT_TRUE(same_bits(part.data(), together.data() + first * 128, count * 128));
}

TEST(PromptReference, IsTheAbsorbedFormsResult) {
  Random random(38);
  const auto reference = make_reference_backend();
  const MlaShape shape{3, 24, 8};
  const Sequences s(random, *reference, KvType::f32, 7, 32, {20});
  const Up up = random_up(random, DType::f32, shape, 12, 10);
  std::vector<AttentionQuery> queries;
  for (int t = 15; t <= 20; ++t) queries.push_back(s.query(0, t));
  const auto q = random.floats(6 * 60);
  std::vector<float> absorbed(6 * 96), attended(6 * 72), expected(6 * 30), actual(6 * 30);
  reference->linear_per_head({q.data(), 6, 60}, 20, up.k, {absorbed.data(), 6, 96}, 32);
  for (int t = 0; t < 6; ++t)
    for (int h = 0; h < 3; ++h)
      std::copy_n(q.begin() + t * 60 + h * 20 + 12, 8, absorbed.begin() + t * 96 + h * 32 + 24);
  reference->mla_attention({absorbed.data(), 6, 96}, shape, 0.1f, queries, s.layer, {attended.data(), 6, 72});
  reference->linear_per_head({attended.data(), 6, 72}, 24, up.v, {expected.data(), 6, 30}, 10);
  reference->mla_prompt_attention({q.data(), 6, 60}, shape, up, 0.1f, queries, s.layer, {actual.data(), 6, 30});
  expect_near(actual, expected, 1e-5, "the two forms");
}

TEST_P(GpuAttention, LargeScoresAndNotANumber) {
  Random random(34);
  const auto gpu = backend(1, Compute::bf16), reference = make_reference_backend();
  const GqaShape shape{3, 1, 32};
  const Sequences s(random, *gpu, KvType::bf16, 16, 64, {150});
  const std::vector<AttentionQuery> queries{s.query(0, 149), s.query(0, 150)};
  auto q = bf16_floats(random, 2 * 96, 60.0f);
  std::vector<float> actual(q.size()), expected(q.size());
  gpu->gqa_attention({q.data(), 2, 96}, shape, 1.0f, queries, s.layer, {actual.data(), 2, 96});
  reference->gqa_attention({q.data(), 2, 96}, shape, 1.0f, queries, s.as_bf16, {expected.data(), 2, 96});
  expect_near(actual, expected, 6e-3, "scores of some hundreds");
  q[100] = NAN;  // of the second query's first head
  gpu->gqa_attention({q.data(), 2, 96}, shape, 1.0f, queries, s.layer, {actual.data(), 2, 96});
  EXPECT_TRUE(std::all_of(actual.begin(), actual.begin() + 96, [](float f) { return std::isfinite(f); }));
  EXPECT_TRUE(std::all_of(actual.begin() + 96, actual.begin() + 128, [](float f) { return std::isnan(f); }));
  EXPECT_TRUE(std::all_of(actual.begin() + 128, actual.end(), [](float f) { return std::isfinite(f); }));
}

INSTANTIATE_TEST_SUITE_P(Gpu, GpuAttention, gpus(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
