#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "kernels/backend.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu_list.h"
#include "kernels/cpu/experts.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/prompt_attention.h"
#include "kernels/cpu/router.h"
#include "kernels/huge_pages.h"

namespace shoal {
namespace cpu {
namespace {

/// The threads' CPUs: one each; when more threads are asked for than cores, they take turns.
std::vector<int> cpus_to_pin(const CpuOptions& options, const std::vector<int>& cpus, int threads) {
  if (!options.pin) return {};
  std::vector<int> pinned;
  for (int i = 0; i < threads; ++i) pinned.push_back(cpus[static_cast<std::size_t>(i) % cpus.size()]);
  return pinned;
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const CpuOptions& options, Isa isa, const std::vector<int>& cpus, int threads)
      : isa_(isa),
        pool_(threads, cpus_to_pin(options, cpus, threads)),
        team_{kernels_for(isa), options.compute, pool_, {}},
        routers_(static_cast<std::size_t>(threads)) {
    team_.scratch.resize(static_cast<std::size_t>(threads));
  }

  std::string description() const override {
    const char* compute = team_.compute == Compute::bf16 ? "bf16" : "f32";
    return fmt::format("{} ({}), {} thread{}", name_of(isa_), compute, pool_.size(), pool_.size() == 1 ? "" : "s");
  }

  std::shared_ptr<void> allocate(std::size_t bytes) override {
    bytes = std::max<std::size_t>(bytes, 1);
    std::byte* const p = map_huge_pages(bytes);
    if (!p) fail("no memory left: {:.1f} MB were asked for", 1e-6 * static_cast<double>(bytes));
    return {p, [bytes](std::byte* q) { unmap_huge_pages(q, bytes); }};
  }

  void on_host(std::size_t count, double elements, const std::function<void(std::size_t, std::size_t)>& body) override {
    team_.run(count, 1, elements, [&](std::size_t begin, std::size_t end, int) { body(begin, end); });
  }

  void embed(std::span<const std::int32_t> ids, const Matrix& table, Rows<float> out) override {
    for_tokens(std::ssize(ids), table.cols(),
               [&](std::int64_t t, int) { table.unpack_row(ids[static_cast<std::size_t>(t)], out[t]); });
  }

  void rms_norm(Rows<const float> x, std::span<const float> weight, float eps, Rows<float> out) override {
    for_tokens(x.rows, x.cols / 4,
               [&](std::int64_t t, int) { team_.kernels.rms_norm(x[t], weight.data(), eps, x.cols, out[t]); });
  }

  void add(Rows<const float> x, Rows<float> acc) override {
    for_tokens(x.rows, x.cols / 4, [&](std::int64_t t, int) { team_.kernels.add(x[t], acc[t], x.cols); });
  }

  void linear(Rows<const float> x, const Matrix& w, std::span<const float> bias, Rows<float> out) override {
    const LinearJob job{x, &w, bias, out};
    linear_.run(team_, {&job, 1});
  }

  void linears(Rows<const float> x, std::span<const Projection> projections) override {
    jobs_.clear();
    for (const Projection& p : projections) jobs_.push_back({x, p.w, p.bias, p.out});
    linear_.run(team_, jobs_);
  }

  void linear_per_head(Rows<const float> x, std::int64_t x_step, std::span<const Matrix> w, Rows<float> out,
                       std::int64_t out_step) override {
    jobs_.clear();
    for (std::size_t h = 0; h < w.size(); ++h) {
      const auto head = static_cast<std::int64_t>(h);
      jobs_.push_back({x.columns(head * x_step, w[h].cols()), &w[h], {}, out.columns(head * out_step, w[h].rows())});
    }
    linear_.run(team_, jobs_);
  }

  void feed_forward(Rows<const float> x, const FeedForward& ffn, Rows<float> out) override {
    // One expert that every row goes through with weight 1.
    whole_.rows.clear();
    whole_.out.clear();
    whole_.first.assign(1, 0);
    for (std::int64_t t = 0; t < x.rows; ++t) {
      whole_.rows.push_back(x[t]);
      whole_.out.push_back(out[t]);
      whole_.first.push_back(static_cast<std::int32_t>(t + 1));
    }
    whole_.expert.assign(static_cast<std::size_t>(x.rows), 0);
    whole_.weight.assign(static_cast<std::size_t>(x.rows), 1.0f);
    experts_.run(team_, whole_, {&ffn, 1});
  }

  void rope(Rows<float> x, int heads, std::int64_t head_step, const RopeAngles& angles, RopePairing pairing) override {
    const auto pairs = static_cast<int>(angles.cos.cols);
    for_tokens(x.rows, std::int64_t{heads} * pairs, [&](std::int64_t t, int) {
      for (int h = 0; h < heads; ++h) {
        team_.kernels.rope(x[t] + h * head_step, angles.cos[t], angles.sin[t], pairs,
                           pairing == RopePairing::interleaved);
      }
    });
  }

  void rope_heads(Rows<const float> x, std::int64_t x_step, int heads, const RopeAngles& angles, RopePairing pairing,
                  Rows<float> out, std::int64_t out_step) override {
    const std::int64_t pairs = angles.cos.cols;
    for_tokens(x.rows, std::int64_t{heads} * pairs, [&](std::int64_t t, int) {
      for (int h = 0; h < heads; ++h) {
        float* const to = out[t] + h * out_step;
        std::copy_n(x[t] + h * x_step, 2 * pairs, to);
        team_.kernels.rope(to, angles.cos[t], angles.sin[t], static_cast<int>(pairs),
                           pairing == RopePairing::interleaved);
      }
    });
  }

  void write_kv(Rows<const float> x, std::span<const std::int64_t> slots, int column, const KvLayer& cache) override {
    for_tokens(x.rows, x.cols / 4, [&](std::int64_t t, int) {
      std::byte* row = cache.row(slots[static_cast<std::size_t>(t)]);
      if (cache.type == KvType::bf16) {
        team_.kernels.to_bf16(x[t], reinterpret_cast<std::uint16_t*>(row) + column, x.cols);
      } else {
        encode_kv(cache.type, x[t], x.cols, column, cache.width, row);
      }
    });
  }

  void mla_attention(Rows<const float> q, const MlaShape& shape, float scale, std::span<const AttentionQuery> queries,
                     const KvLayer& cache, Rows<float> out) override {
    const int width = shape.kv_lora_rank + shape.qk_rope_head_dim;
    attention_.run(team_, q, {1, shape.heads, width, shape.kv_lora_rank, 0, 0, 0, 0}, scale, queries, cache, out);
  }

  std::optional<PromptFrom> mla_prompt_from(const MlaShape& shape, const MlaUp& up, const KvLayer&) const override {
    if (!PromptAttention::takes(team_, shape, up)) return std::nullopt;
    const auto seeing = prompt_break_even(shape, up);
    return seeing ? std::optional(PromptFrom{*seeing, *seeing}) : std::nullopt;
  }

  void mla_prompt_attention(Rows<const float> q, const MlaShape& shape, const MlaUp& up, float scale,
                            std::span<const AttentionQuery> queries, const KvLayer& cache, Rows<float> out) override {
    prompt_attention_.run(team_, linear_, q, shape, up, scale, queries, cache, out);
  }

  void gqa_attention(Rows<const float> q, const GqaShape& shape, float scale, std::span<const AttentionQuery> queries,
                     const KvLayer& cache, Rows<float> out) override {
    const int dim = shape.head_dim;
    const HeadGroups groups{shape.kv_heads, shape.heads / shape.kv_heads, dim, dim, 0, dim, shape.kv_heads * dim, dim};
    attention_.run(team_, q, groups, scale, queries, cache, out);
  }

  void route(Rows<const float> logits, std::span<const float> bias, const RouterShape& shape, Rows<std::int32_t> expert,
             Rows<float> weight) override {
    for_tokens(logits.rows, std::int64_t{shape.n_experts} * 16, [&](std::int64_t t, int thread) {
      routers_[static_cast<std::size_t>(thread)].route(logits[t], bias, shape, expert[t], weight[t]);
    });
  }

  void experts(const ExpertBatch& batch, std::span<const FeedForward> experts) override {
    experts_.run(team_, batch, experts);
  }

 private:
  /// body(token, thread) for each token, each costing about `operations`. Small ones (a head of a query) are taken many
  /// at a time, since threads take turns at that.
  template <class Body>
  void for_tokens(std::int64_t tokens, std::int64_t operations, const Body& body) {
    constexpr std::int64_t kWorthTaking = 2000;
    const auto grain =
        static_cast<std::size_t>(std::max<std::int64_t>(1, kWorthTaking / std::max<std::int64_t>(1, operations)));
    team_.run(static_cast<std::size_t>(tokens), grain, static_cast<double>(tokens * operations),
              [&](std::size_t begin, std::size_t end, int thread) {
                for (std::size_t t = begin; t < end; ++t) body(static_cast<std::int64_t>(t), thread);
              });
  }

  Isa isa_;
  ThreadPool pool_;
  Team team_;
  Linear linear_;
  std::vector<LinearJob> jobs_;
  Experts experts_;
  Attention attention_;
  PromptAttention prompt_attention_;
  std::vector<Router> routers_;  // one for each thread
  ExpertBatch whole_;            // feed_forward's
};

}  // namespace
}  // namespace cpu

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options) {
  if (options.compute == Compute::fp8)
    throw Error("--compute fp8 is for GPUs; CPUs have f32 and bf16", ExitCode::usage);
  const Isa isa = cpu::choose_isa(options.isa);
  const std::vector<int> cpus = cpu::cpus_of_rank(options);
  const int threads = options.threads > 0 ? options.threads : static_cast<int>(cpus.size());
  return std::make_unique<cpu::CpuBackend>(options, isa, cpus, threads);
}

}  // namespace shoal
