// Tokens drawn where the logits are: the host's sampler, token for token.
#include <limits>

#include "runtime/sampler.h"
#include "tests/unit/gpu_subjects.h"

namespace shoal::kernel_test {
namespace {

class GpuSample : public EveryIsa {
 protected:
  std::unique_ptr<Backend> device() {
    if (GetParam().kind == Subject::Kind::gpu) return make_cuda_backend({});
#ifdef SHOAL_HAS_CUDA_EMULATION
    return make_emulated_cuda_backend({});
#else
    return nullptr;
#endif
  }
  /// What the device draws from each row [rows, vocab].
  static std::vector<std::int32_t> drawn(Backend& gpu, const std::vector<float>& logits, std::int64_t vocab,
                                         const std::vector<Draw>& draws) {
    const std::int64_t rows = std::ssize(draws);
    const auto memory = gpu.allocate(logits.size() * sizeof(float));
    const Rows<float> there(static_cast<float*>(memory.get()), rows, vocab);
    gpu.from_host(Rows<const float>(logits.data(), rows, vocab), there);
    std::vector<std::int32_t> tokens(draws.size(), -7);
    gpu.sample(there, draws, tokens);
    return tokens;
  }
};

TEST_P(GpuSample, DrawsWhatTheHostDraws) {
  const auto gpu = device();
  Random random(61);
  for (const std::int64_t vocab : {1, 5, 64, 300, 1000}) {
    std::vector<float> logits;
    std::vector<SamplingParams> params;
    std::vector<std::int32_t> expected;
    std::vector<Draw> draws;
    for (int i = 0; i < (vocab < 300 ? 40 : 60); ++i) {
      auto row = random.floats(vocab, i % 3 == 0 ? 0.3f : 4.0f);
      if (i % 5 == 0)
        for (float& f : row) f = std::round(2 * f) / 2;  // many that are equally likely
      if (i % 7 == 0) row[std::size_t(random.whole(0, int(vocab) - 1))] = NAN;
      if (i % 11 == 0) row[std::size_t(random.whole(0, int(vocab) - 1))] = -INFINITY;
      if (i % 13 == 0) row[std::size_t(random.whole(0, int(vocab) - 1))] = INFINITY;
      if (std::none_of(row.begin(), row.end(), [](float f) { return f > -INFINITY; })) row[0] = 1;
      SamplingParams p;
      const float temperatures[] = {0.0f, 0.6f, 1.0f, 1e-39f, 2.5f};
      const float top_ps[] = {1.0f, 0.95f, 0.5f, 0.0f};
      const int top_ks[] = {0, 1, 3, 40, 5000};
      const float min_ps[] = {0.0f, 0.0f, 0.1f, 1.0f};
      p.temperature = temperatures[random.whole(0, 4)];
      p.top_p = top_ps[random.whole(0, 3)];
      p.top_k = top_ks[random.whole(0, 4)];
      p.min_p = min_ps[random.whole(0, 3)];
      p.seed = static_cast<std::uint64_t>(i);
      logits.insert(logits.end(), row.begin(), row.end());
      params.push_back(p);
      draws.push_back(draw_of(p, 100 + i));
      expected.push_back(sample(row, p, 100 + i));
    }
    const auto actual = drawn(*gpu, logits, vocab, draws);
    for (std::size_t i = 0; i < expected.size(); ++i)
      EXPECT_EQ(actual[i], expected[i]) << "row " << i << " of " << vocab << ": temperature " << params[i].temperature
                                        << ", top_p " << params[i].top_p << ", top_k " << params[i].top_k << ", min_p "
                                        << params[i].min_p;
  }
}

/// Shares at the very ends, where rounding could let the sum slip past the last token.
TEST_P(GpuSample, ExtremeShares) {
  const auto gpu = device();
  Random random(62);
  const std::int64_t vocab = 200;
  const auto logits = random.floats(vocab, 3.0f);
  std::vector<float> rows;
  std::vector<Draw> draws;
  for (const double share : {0.0, 1.0 - 0x1p-53, 0.5}) {
    for (const float top_p : {1.0f, 0.9f}) {
      draws.push_back({1.0f, 0, top_p, 0, share});
      rows.insert(rows.end(), logits.begin(), logits.end());
    }
  }
  for (const std::int32_t token : drawn(*gpu, rows, vocab, draws)) {
    EXPECT_GE(token, 0);
    EXPECT_LT(token, vocab);
  }
}

TEST_P(GpuSample, RowsWithoutNumbersAreTold) {
  const auto gpu = device();
  const std::vector<float> logits{NAN, NAN, -INFINITY, NAN, 1.0f, NAN};
  EXPECT_EQ(drawn(*gpu, logits, 3, {Draw{1.0f, 0, 1, 0, 0.3}, Draw{}}), (std::vector<std::int32_t>{-1, 1}));
}

INSTANTIATE_TEST_SUITE_P(Gpu, GpuSample, gpus(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
