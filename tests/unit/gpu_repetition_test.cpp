// Launches that a GPU repeats as one (CUDA graphs): they follow what is in memory, and are forgotten when it moves.
#include "tests/unit/gpu_subjects.h"

namespace shoal::kernel_test {
namespace {

class GpuRepetition : public EveryIsa {
 protected:
  std::unique_ptr<Backend> device(std::int64_t most_parts = CudaOptions{}.most_parts) {
    const CudaOptions options{.compute = Compute::bf16, .self_check = false, .most_parts = most_parts};
    if (GetParam().kind == Subject::Kind::gpu) return make_cuda_backend(options);
#ifdef SHOAL_HAS_CUDA_EMULATION
    return make_emulated_cuda_backend(options);
#else
    return nullptr;
#endif
  }
};

TEST_P(GpuRepetition, RepeatsWhatWasAskedFor) {
  const auto gpu = device();
  Random random(51);
  constexpr std::int64_t kTokens = 3, kWidth = 64, kHeads = 2;
  const auto weight = random.floats(kWidth);
  gpu->place(std::span<const float>(weight));
  std::vector<Matrix> heads;
  for (int h = 0; h < kHeads; ++h) {
    heads.push_back(random_matrix(random, DType::bf16, 16, kWidth / kHeads));
    gpu->place(heads.back());
  }
  const auto memory = gpu->allocate(kTokens * kWidth * 4), normed = gpu->allocate(kTokens * kWidth * 4),
             result = gpu->allocate(kTokens * 16 * kHeads * 4);
  const auto rows = [](const std::shared_ptr<void>& of, std::int64_t width) {
    return Rows<float>(static_cast<float*>(of.get()), kTokens, width);
  };
  int asked = 0;
  const auto work = [&] {
    ++asked;
    gpu->norm_linears({}, rows(memory, kWidth), weight, 1e-6f, rows(normed, kWidth), {});
    gpu->linear_per_head(rows(normed, kWidth), kWidth / kHeads, heads, rows(result, 16 * kHeads), 16);
  };
  HostRoom room;
  const auto run = [&](bool repeats) {
    const auto x = random.floats(kTokens * kWidth);
    gpu->from_host(Rows<const float>(x.data(), kTokens, kWidth), rows(memory, kWidth));
    repeats ? gpu->repeat(7, kTokens, work) : work();
    const Rows<float> first = gpu->to_host(rows(result, 16 * kHeads), room);
    const std::vector<float> repeated(first.data, first.data + kTokens * 16 * kHeads);
    work();  // by hand
    --asked;
    const Rows<float> again = gpu->to_host(rows(result, 16 * kHeads), room);
    EXPECT_TRUE(same_bits(repeated.data(), again.data, std::ssize(repeated)));
  };
  run(false);
  asked = 0;
  for (int i = 0; i < 5; ++i) run(true);
  EXPECT_LE(asked, 3);  // by hand until nothing is brought from the host any more, then to be recorded
  const int before = asked;
  for (int i = 0; i < 3; ++i) run(true);
  EXPECT_EQ(asked, before);

  const auto more = gpu->allocate(16);  // rows may lie elsewhere now
  run(true);
  EXPECT_EQ(asked, before + 1);
}

/// Tiles of 1, 1 and 2 queries, then of 2, 1 and 1, where there is room for the parts of three: what is repeated must
/// not merge other rows than it has.
TEST_P(GpuRepetition, GroupsOfTilesAreThoseOfTheStep) {
  constexpr int kPageTokens = 16, kPages = 67, kWidth = 64, kPartsOfOne = 2 * 2 * (32 + 2);
  const auto gpu = device(3 * kPartsOfOne);
  Random random(52);
  const GqaShape shape{2, 1, 32};
  const std::int64_t cached = kPages * kPageTokens;
  const auto memory = gpu->allocate(static_cast<std::size_t>(cached * kv_row_bytes(KvType::bf16, kWidth)));
  const KvLayer layer{memory.get(), KvType::bf16, kPageTokens, kWidth};
  std::vector<std::int64_t> slots;
  for (std::int64_t s = 0; s < cached; ++s) slots.push_back(s);
  const auto on_device = [&](std::int64_t n) {
    const auto x = random.floats(n * kWidth);
    auto there = gpu->allocate(static_cast<std::size_t>(n * kWidth * 4));
    gpu->from_host({x.data(), n, kWidth}, {static_cast<float*>(there.get()), n, kWidth});
    return there;
  };
  const auto rows = [](const std::shared_ptr<void>& of, std::int64_t n) {
    return Rows<float>(static_cast<float*>(of.get()), n, kWidth);
  };
  const auto history = on_device(cached), q = on_device(4), out = on_device(4);
  gpu->write_kv(rows(history, cached), slots, 0, layer);

  std::vector<std::int32_t> pages;
  for (int p = 0; p < kPages; ++p) pages.push_back(p);
  const AttentionQuery a{pages.data(), 1030}, b{&pages[65], 5}, c{&pages[66], 5}, d{&pages[66], 6};
  const std::vector<AttentionQuery> steps[] = {{a, b, c, d}, {c, d, a, b}};
  HostRoom room;
  for (const int step : {0, 0, 0, 0, 1, 1, 0}) {
    const auto& queries = steps[step];
    const auto work = [&] { gpu->gqa_attention(rows(q, 4), shape, 0.2f, queries, layer, rows(out, 4)); };
    gpu->begin_step(std::span(slots).first(4), queries, kPageTokens);
    gpu->fill_zero(rows(out, 4));
    gpu->repeat(9, 4, work);
    const Rows<float> first = gpu->to_host(rows(out, 4), room);
    const std::vector<float> repeated(first.data, first.data + 4 * kWidth);
    work();  // by hand
    EXPECT_TRUE(same_bits(repeated.data(), gpu->to_host(rows(out, 4), room).data, 4 * kWidth));
  }
}

INSTANTIATE_TEST_SUITE_P(Gpu, GpuRepetition, gpus(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
