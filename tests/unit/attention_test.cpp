#include <algorithm>

#include "kernels/cpu/prompt_attention.h"
#include "tests/unit/kernel_test_support.h"

namespace shoal::kernel_test {
namespace {

constexpr double kTolerance = 1e-5;
constexpr KvType all_types[] = {KvType::f32, KvType::bf16, KvType::fp8, KvType::int8};

/// Sequences in a paged cache filled with random numbers: pages in random order, one page table for each sequence.
struct PagedCache {
  PagedCache(Random& random, Backend& backend, KvType type, int page_tokens, int width,
             const std::vector<int>& lengths) {
    Random contents(42);  // the first sequence begins with the same rows in every cache of this width
    int pages = 0;
    for (const int n : lengths) pages += (n + page_tokens - 1) / page_tokens;
    std::vector<std::int32_t> order(static_cast<std::size_t>(pages));
    for (int i = 0; i < pages; ++i) order[std::size_t(i)] = i;
    for (std::size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[std::size_t(random.whole(0, int(i) - 1))]);

    memory = backend.allocate(static_cast<std::size_t>(pages * page_tokens * kv_row_bytes(type, width)));
    layer = {memory.get(), type, page_tokens, width};
    std::size_t next = 0;
    for (const int n : lengths) {
      const auto count = static_cast<std::size_t>((n + page_tokens - 1) / page_tokens);
      tables.emplace_back(order.begin() + std::ptrdiff_t(next), order.begin() + std::ptrdiff_t(next + count));
      next += count;
      std::vector<std::int64_t> slots;
      for (int t = 0; t < n; ++t) {
        slots.push_back(std::int64_t{tables.back()[std::size_t(t / page_tokens)]} * page_tokens + t % page_tokens);
      }
      const auto rows = contents.floats(std::int64_t{n} * width);
      // In two parts, so that writing at a column is tested too.
      const int first = width / 3 / kKvGroup * kKvGroup + (has_scales(type) ? 0 : 1);
      const Rows<const float> all(rows.data(), n, width);
      backend.write_kv(all.columns(0, first), slots, 0, layer);
      backend.write_kv(all.columns(first, width - first), slots, first, layer);
    }
  }

  AttentionQuery query(std::size_t sequence, int length) const { return {tables[sequence].data(), length}; }

  std::shared_ptr<void> memory;
  KvLayer layer;
  std::vector<std::vector<std::int32_t>> tables;
};

ThreadPool& one_thread() {
  static ThreadPool pool(1, {});
  return pool;
}

class AttentionTest : public EveryIsa {};

TEST_P(AttentionTest, MlaMatchesReference) {
  Random random;
  const auto tested = backend(2), reference = make_reference_backend();
  for (const KvType type : all_types) {
    for (const MlaShape& shape : {MlaShape{16, 512, 64}, MlaShape{5, 33, 6}, MlaShape{1, 16, 2}, MlaShape{9, 48, 16}}) {
      const int width = shape.kv_lora_rank + shape.qk_rope_head_dim;
      const PagedCache cache(random, *tested, type, 16, width, {90, 1, 33});
      const std::vector<AttentionQuery> queries{cache.query(0, 88), cache.query(0, 89), cache.query(0, 90),
                                                cache.query(1, 1),  cache.query(2, 32), cache.query(2, 33)};
      const auto n = std::ssize(queries);
      const auto q = random.floats(n * shape.heads * width);
      std::vector<float> actual(std::size_t(n * shape.heads * shape.kv_lora_rank)), expected(actual.size());
      const float scale = 1.0f / std::sqrt(float(width));
      const std::int64_t out_cols = std::int64_t{shape.heads} * shape.kv_lora_rank;
      const Rows<const float> q_rows(q.data(), n, std::int64_t{shape.heads} * width);
      tested->mla_attention(q_rows, shape, scale, queries, cache.layer, {actual.data(), n, out_cols});
      reference->mla_attention(q_rows, shape, scale, queries, cache.layer, {expected.data(), n, out_cols});
      expect_near(actual, expected, kTolerance, "MLA with " + std::to_string(shape.heads) + " heads");
    }
  }
}

TEST_P(AttentionTest, GqaMatchesReference) {
  Random random(2);
  const auto tested = backend(2), reference = make_reference_backend();
  for (const KvType type : all_types) {
    for (const GqaShape& shape : {GqaShape{12, 2, 128}, GqaShape{4, 4, 20}, GqaShape{6, 3, 7}, GqaShape{7, 1, 64}}) {
      if (has_scales(type) && shape.head_dim % kKvGroup != 0) continue;  // refused when a job starts
      const PagedCache cache(random, *tested, type, 7, 2 * shape.kv_heads * shape.head_dim, {700, 40});
      const std::vector<AttentionQuery> queries{cache.query(0, 699), cache.query(0, 700), cache.query(1, 40)};
      const auto n = std::ssize(queries);
      const std::int64_t cols = std::int64_t{shape.heads} * shape.head_dim;
      const auto q = random.floats(n * cols);
      std::vector<float> actual(q.size()), expected(q.size());
      tested->gqa_attention({q.data(), n, cols}, shape, 0.3f, queries, cache.layer, {actual.data(), n, cols});
      reference->gqa_attention({q.data(), n, cols}, shape, 0.3f, queries, cache.layer, {expected.data(), n, cols});
      expect_near(actual, expected, kTolerance, "GQA with " + std::to_string(shape.heads) + " heads");
    }
  }
}

/// Where a CPU has them, BF16 dot products round queries (these need none) and weights as the cache's rows are.
TEST_P(AttentionTest, InBf16MatchesReference) {
  Random random(4);
  const auto tested = backend(2, Compute::bf16), reference = make_reference_backend(Compute::bf16);
  for (const MlaShape& shape : {MlaShape{16, 512, 64}, MlaShape{5, 64, 32}, MlaShape{1, 128, 64}}) {
    const int width = shape.kv_lora_rank + shape.qk_rope_head_dim;
    const PagedCache cache(random, *tested, KvType::bf16, 16, width, {90, 1, 1033});
    std::vector<AttentionQuery> queries{cache.query(1, 1), cache.query(2, 32), cache.query(2, 1033)};
    for (int length = 60; length <= 90; ++length) queries.push_back(cache.query(0, length));
    const auto n = std::ssize(queries);
    auto q = random.floats(n * shape.heads * width);
    for (float& f : q) f = bf16_to_f32(f32_to_bf16(f));
    const float scale = 1.0f / std::sqrt(float(width));
    const std::int64_t q_cols = std::int64_t{shape.heads} * width,
                       cols = std::int64_t{shape.heads} * shape.kv_lora_rank;
    std::vector<float> actual(std::size_t(n * cols)), expected(actual.size()), alone(static_cast<std::size_t>(cols));
    tested->mla_attention({q.data(), n, q_cols}, shape, scale, queries, cache.layer, {actual.data(), n, cols});
    reference->mla_attention({q.data(), n, q_cols}, shape, scale, queries, cache.layer, {expected.data(), n, cols});
    expect_near(actual, expected, 1e-2, "MLA in BF16 with " + std::to_string(shape.heads) + " heads");
    for (std::int64_t t = 0; t < n; t += 3) {
      tested->mla_attention({q.data() + t * q_cols, 1, q_cols}, shape, scale, {&queries[std::size_t(t)], 1},
                            cache.layer, {alone.data(), 1, cols});
      EXPECT_TRUE(same_bits(alone.data(), actual.data() + t * cols, cols));
    }
  }
}

/// Prompts of an MLA model in the form that makes each head's keys and values.
struct PromptCase {
  MlaShape shape;
  int nope, value, length, count;
  KvType cache;
  DType weights;

  int width() const { return shape.kv_lora_rank + shape.qk_rope_head_dim; }
  std::int64_t q_cols() const { return std::int64_t{shape.heads} * (nope + shape.qk_rope_head_dim); }
  std::int64_t cols() const { return std::int64_t{shape.heads} * value; }
  std::vector<AttentionQuery> queries(const PagedCache& cached) const {
    std::vector<AttentionQuery> last;
    for (int t = length - count + 1; t <= length; ++t) last.push_back(cached.query(0, t));
    return last;
  }
};
const PromptCase prompt_cases[] = {{{2, 512, 64}, 128, 128, 270, 131, KvType::bf16, DType::f8_e4m3},
                                   {{1, 512, 64}, 128, 128, 1100, 100, KvType::fp8, DType::bf16},
                                   {{3, 48, 16}, 32, 32, 150, 66, KvType::int8, DType::f32},
                                   {{2, 136, 10}, 50, 64, 97, 97, KvType::f32, DType::bf16}};

TEST_P(AttentionTest, PromptsMatchReferenceInTheirOwnForm) {
  if (GetParam().kind != Subject::Kind::cpu) GTEST_SKIP() << "gpu_attention_test.cpp has the GPUs'";
  Random random(11);
  const auto tested = backend(2, Compute::bf16), reference = make_reference_backend();
  for (const PromptCase& c : prompt_cases) {
    const PagedCache cache(random, *tested, c.cache, 16, c.width(), {c.length});
    const Up up = random_up(random, c.weights, c.shape, c.nope, c.value);
    ASSERT_TRUE(tested->mla_prompt_from(c.shape, up, cache.layer));
    const auto queries = c.queries(cache);
    auto q = random.floats(c.count * c.q_cols());
    for (float& f : q) f = bf16_to_f32(f32_to_bf16(f));
    const float scale = 1.0f / std::sqrt(float(c.nope) * float(c.width()));  // keys are sums of products
    std::vector<float> actual(std::size_t(c.count * c.cols()), NAN), expected(actual.size());
    tested->mla_prompt_attention({q.data(), c.count, c.q_cols()}, c.shape, up, scale, queries, cache.layer,
                                 {actual.data(), c.count, c.cols()});
    reference->mla_prompt_attention({q.data(), c.count, c.q_cols()}, c.shape, up, scale, queries, cache.layer,
                                    {expected.data(), c.count, c.cols()});
    expect_near(actual, expected, 2e-2, "a prompt with rank " + std::to_string(c.shape.kv_lora_rank));
  }
}

TEST_P(AttentionTest, AQueryOfAPromptDoesNotDependOnItsNeighboursThreadsNorGroupsOfHeads) {
  if (GetParam().kind != Subject::Kind::cpu) GTEST_SKIP() << "gpu_attention_test.cpp has the GPUs'";
  Random random(12);
  const auto two = backend(2, Compute::bf16);
  cpu::Team team{cpu::kernels_for(GetParam().isa), Compute::bf16, one_thread(), std::vector<cpu::Scratch>(1)};
  for (const PromptCase& c : prompt_cases) {
    const PagedCache cache(random, *two, c.cache, 16, c.width(), {c.length});
    const Up up = random_up(random, c.weights, c.shape, c.nope, c.value);
    ASSERT_TRUE(two->mla_prompt_from(c.shape, up, cache.layer));
    const auto queries = c.queries(cache);
    const auto q = random.floats(c.count * c.q_cols());
    std::vector<float> together(std::size_t(c.count * c.cols())), part(together.size());
    two->mla_prompt_attention({q.data(), c.count, c.q_cols()}, c.shape, up, 0.003f, queries, cache.layer,
                              {together.data(), c.count, c.cols()});
    cpu::PromptAttention head_by_head(1);
    cpu::Linear linear;
    for (const auto& [first, count] : {std::pair{0, 1}, std::pair{3, 40}, std::pair{c.count - 17, 17}}) {
      head_by_head.run(team, linear, {q.data() + first * c.q_cols(), count, c.q_cols()}, c.shape, up, 0.003f,
                       {queries.data() + first, std::size_t(count)}, cache.layer, {part.data(), count, c.cols()});
      EXPECT_TRUE(same_bits(part.data(), together.data() + first * c.cols(), count * c.cols()));
    }
  }
}

TEST_P(AttentionTest, InfinityStaysBehindThoseOfAPromptWhoDoNotSeeIt) {
  if (GetParam().kind != Subject::Kind::cpu) GTEST_SKIP() << "GPUs weigh it with zero";
  Random random(13);
  const PromptCase c{{2, 64, 32}, 32, 32, 50, 20, KvType::bf16, DType::bf16};
  const auto tested = backend(1, Compute::bf16);
  const PagedCache cache(random, *tested, c.cache, 64, c.width(), {c.length});
  const Up up = random_up(random, c.weights, c.shape, c.nope, c.value);
  ASSERT_TRUE(tested->mla_prompt_from(c.shape, up, cache.layer));
  const auto queries = c.queries(cache);
  const auto q = random.floats(c.count * c.q_cols());
  std::vector<float> before(std::size_t(c.count * c.cols())), after(before.size());
  const auto attend = [&](std::vector<float>& out) {
    tested->mla_prompt_attention({q.data(), c.count, c.q_cols()}, c.shape, up, 0.01f, queries, cache.layer,
                                 {out.data(), c.count, c.cols()});
  };
  attend(before);
  const std::vector<float> infinite(96, INFINITY);
  const std::int64_t slot = std::int64_t{cache.tables[0][0]} * 64 + 48;  // an even position: others share its pair
  tested->write_kv({infinite.data(), 1, 96}, {&slot, 1}, 0, cache.layer);
  attend(after);
  EXPECT_TRUE(same_bits(before.data(), after.data(), 18 * c.cols()));
  EXPECT_TRUE(std::isnan(after[std::size_t(18 * c.cols())]));
}

/// Contexts on both sides of the stretches that are merged, in calls that split them over threads and calls that do
/// not.
TEST_P(AttentionTest, AQueryDoesNotDependOnItsNeighboursNorThreadsNorPages) {
  Random random(3);
  const MlaShape shape{12, 64, 16};
  const int width = 80;
  const auto one = backend(1), three = backend(3), eight = backend(8);
  for (const KvType type : all_types) {
    const std::vector<int> lengths{1400, 513, 512, 31, 1, 64};
    const PagedCache cache(random, *one, type, 16, width, lengths);
    const PagedCache other_pages(random, *one, type, 300, width, {1400});
    std::vector<AttentionQuery> queries;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      for (int i = std::min(lengths[s], rounds(20)); i > 0; --i) queries.push_back(cache.query(s, lengths[s] - i + 1));
    }
    const auto n = std::ssize(queries);
    const std::int64_t q_cols = shape.heads * width, out_cols = shape.heads * shape.kv_lora_rank;
    const auto q = random.floats(n * q_cols);
    std::vector<float> alone(std::size_t(n * out_cols)), together(alone.size());
    for (std::int64_t t = 0; t < n; ++t) {
      one->mla_attention({q.data() + t * q_cols, 1, q_cols}, shape, 0.2f, {&queries[std::size_t(t)], 1}, cache.layer,
                         {alone.data() + t * out_cols, 1, out_cols});
    }
    for (const auto* b : {&one, &three, &eight}) {
      (*b)->mla_attention({q.data(), n, q_cols}, shape, 0.2f, queries, cache.layer, {together.data(), n, out_cols});
      EXPECT_TRUE(same_bits(together.data(), alone.data(), n * out_cols));
      (*b)->mla_attention({q.data(), 1, q_cols}, shape, 0.2f, {queries.data(), 1}, cache.layer,
                          {together.data(), 1, out_cols});
      EXPECT_TRUE(same_bits(together.data(), alone.data(), out_cols));
    }
    const AttentionQuery elsewhere = other_pages.query(0, queries[0].length);
    three->mla_attention({q.data(), 1, q_cols}, shape, 0.2f, {&elsewhere, 1}, other_pages.layer,
                         {together.data(), 1, out_cols});
    EXPECT_TRUE(same_bits(together.data(), alone.data(), out_cols));
  }
}

TEST_P(AttentionTest, LargeScoresDoNotOverflow) {
  Random random(5);
  const auto tested = backend(1), reference = make_reference_backend();
  const MlaShape shape{4, 32, 8};
  const PagedCache cache(random, *tested, KvType::f32, 16, 40, {600});
  const AttentionQuery query = cache.query(0, 600);
  const auto q = random.floats(160, 60.0f);
  std::vector<float> actual(128), expected(128);
  tested->mla_attention({q.data(), 1, 160}, shape, 1.0f, {&query, 1}, cache.layer, {actual.data(), 1, 128});
  reference->mla_attention({q.data(), 1, 160}, shape, 1.0f, {&query, 1}, cache.layer, {expected.data(), 1, 128});
  expect_near(actual, expected, 1e-3, "scores of some hundreds");  // whose own rounding is 1e-5 before exp
}

TEST_P(AttentionTest, NotANumberStaysInItsToken) {
  Random random(6);
  const auto tested = backend(1);
  const MlaShape shape{4, 32, 8};
  const PagedCache cache(random, *tested, KvType::bf16, 16, 40, {50});
  const std::vector<AttentionQuery> queries{cache.query(0, 49), cache.query(0, 50)};
  auto q = random.floats(2 * 160);
  q[170] = NAN;
  std::vector<float> out(2 * 128);
  tested->mla_attention({q.data(), 2, 160}, shape, 0.1f, queries, cache.layer, {out.data(), 2, 128});
  EXPECT_TRUE(std::isfinite(out[0]));
  EXPECT_TRUE(std::isnan(out[128]));
  tested->mla_attention({q.data(), 0, 160}, shape, 0.1f, {}, cache.layer, {out.data(), 0, 128});
}

/// Blocks of positions are read whole, also for a query that sees an odd number of them.
TEST_P(AttentionTest, InfinityStaysBehindThoseWhoDoNotSeeIt) {
  if (GetParam().kind != Subject::Kind::cpu) GTEST_SKIP() << "GPUs weigh it with zero";
  Random random(7);
  const MlaShape shape{4, 64, 32};
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    const auto tested = backend(1, compute);
    const PagedCache cache(random, *tested, KvType::bf16, 64, 96, {50});
    const std::vector<float> infinite(96, INFINITY);
    const std::int64_t slot = std::int64_t{cache.tables[0][0]} * 64 + 49;
    tested->write_kv({infinite.data(), 1, 96}, {&slot, 1}, 0, cache.layer);
    const std::vector<AttentionQuery> queries{cache.query(0, 49), cache.query(0, 50)};
    const auto q = random.floats(2 * 4 * 96);
    std::vector<float> together(2 * 4 * 64), alone(4 * 64);
    tested->mla_attention({q.data(), 2, 4 * 96}, shape, 0.1f, queries, cache.layer, {together.data(), 2, 4 * 64});
    tested->mla_attention({q.data(), 1, 4 * 96}, shape, 0.1f, {queries.data(), 1}, cache.layer,
                          {alone.data(), 1, 4 * 64});
    EXPECT_TRUE(std::isfinite(alone[0]));
    EXPECT_TRUE(same_bits(together.data(), alone.data(), 4 * 64));
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, AttentionTest, all_isas(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
