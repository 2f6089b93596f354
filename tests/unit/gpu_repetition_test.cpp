// Launches that a GPU repeats as one (CUDA graphs): they follow what is in memory, and are forgotten when it moves.
#include "tests/unit/gpu_subjects.h"

namespace shoal::kernel_test {
namespace {

class GpuRepetition : public EveryIsa {
 protected:
  std::unique_ptr<Backend> device() {
    if (GetParam().kind == Subject::Kind::gpu) return make_cuda_backend({.compute = Compute::bf16});
#ifdef SHOAL_HAS_CUDA_EMULATION
    return make_emulated_cuda_backend({.compute = Compute::bf16, .self_check = false});
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

INSTANTIATE_TEST_SUITE_P(Gpu, GpuRepetition, gpus(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
