#pragma once
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "kernels/backend.h"

namespace shoal::kernel_test {

/// A device's back end for callers whose rows, caches and matrices are all in host memory: copies them there, runs one
/// operation, copies what it wrote back. So tests of operations need not know where memory is.
class HostSideBackend final : public Backend {
 public:
  explicit HostSideBackend(std::unique_ptr<Backend> device) : device_(std::move(device)) {}

  std::string description() const override { return device_->description(); }

  std::shared_ptr<void> allocate(std::size_t bytes) override {
    device_->allocate(bytes);  // throws where the device has no room
    const std::size_t size = std::max<std::size_t>(64, (bytes + 63) / 64 * 64);
    void* p = std::aligned_alloc(64, size);
    std::memset(p, 0, size);
    cache_bytes()[p] = bytes;
    return {p, [](void* q) {
              cache_bytes().erase(q);
              std::free(q);
            }};
  }

  void embed(std::span<const std::int32_t> ids, const Matrix& table, Rows<float> out) override {
    Out o(*this, out);
    device_->embed(ids, on_device(table), o.rows);
  }
  void rms_norm(Rows<const float> x, std::span<const float> weight, float eps, Rows<float> out) override {
    Out o(*this, out);
    if (x.data == out.data) return device_->rms_norm(o.rows, weight, eps, o.rows);
    device_->rms_norm(In(*this, x).rows, weight, eps, o.rows);
  }
  void add(Rows<const float> x, Rows<float> acc) override {
    Out o(*this, acc);
    device_->add(In(*this, x).rows, o.rows);
  }
  void linear(Rows<const float> x, const Matrix& w, std::span<const float> bias, Rows<float> out) override {
    Out o(*this, out);
    device_->linear(In(*this, x).rows, on_device(w), bias, o.rows);
  }
  void linear_per_head(Rows<const float> x, std::int64_t x_step, std::span<const Matrix> w, Rows<float> out,
                       std::int64_t out_step) override {
    Out o(*this, out);
    std::vector<Matrix> heads;
    for (const Matrix& m : w) heads.push_back(placed_copy(m));
    device_->linear_per_head(In(*this, x).rows, x_step, heads, o.rows, out_step);
    o.fetch();  // before the matrices go
  }
  void feed_forward(Rows<const float> x, const FeedForward& ffn, Rows<float> out) override {
    Out o(*this, out);
    const FeedForward there = copy_of(ffn);
    device_->feed_forward(In(*this, x).rows, there, o.rows);
    o.fetch();
  }
  void rope(Rows<float> x, int heads, std::int64_t head_step, const RopeAngles& angles, RopePairing pairing) override {
    Out o(*this, x);
    const In cos(*this, angles.cos), sin(*this, angles.sin);
    device_->rope(o.rows, heads, head_step, {cos.rows, sin.rows}, pairing);
  }
  void write_kv(Rows<const float> x, std::span<const std::int64_t> slots, int column, const KvLayer& cache) override {
    CacheOnDevice there(*this, cache);
    device_->write_kv(In(*this, x).rows, slots, column, there.layer);
    there.fetch();
  }
  void mla_attention(Rows<const float> q, const MlaShape& shape, float scale, std::span<const AttentionQuery> queries,
                     const KvLayer& cache, Rows<float> out) override {
    Out o(*this, out);
    const CacheOnDevice there(*this, cache);
    device_->mla_attention(In(*this, q).rows, shape, scale, queries, there.layer, o.rows);
    o.fetch();
  }
  void mla_prompt_attention(Rows<const float> q, const MlaShape& shape, const MlaUp& up, float scale,
                            std::span<const AttentionQuery> queries, const KvLayer& cache, Rows<float> out) override {
    Out o(*this, out);
    const CacheOnDevice there(*this, cache);
    std::vector<Matrix> k_up, v_up;
    for (const Matrix& m : up.k_up) k_up.push_back(placed_copy(m));
    for (const Matrix& m : up.v_up) v_up.push_back(placed_copy(m));
    device_->mla_prompt_attention(In(*this, q).rows, shape, {k_up, v_up}, scale, queries, there.layer, o.rows);
    o.fetch();
  }
  void gqa_attention(Rows<const float> q, const GqaShape& shape, float scale, std::span<const AttentionQuery> queries,
                     const KvLayer& cache, Rows<float> out) override {
    Out o(*this, out);
    const CacheOnDevice there(*this, cache);
    device_->gqa_attention(In(*this, q).rows, shape, scale, queries, there.layer, o.rows);
    o.fetch();
  }
  void route(Rows<const float> logits, std::span<const float> bias, const RouterShape& shape, Rows<std::int32_t> expert,
             Rows<float> weight) override {
    device_->route(In(*this, logits).rows, bias, shape, expert, weight);
  }
  void experts(const ExpertBatch& batch, std::span<const FeedForward> experts) override {
    std::vector<FeedForward> there;
    for (const FeedForward& f : experts) there.push_back(copy_of(f));
    device_->experts(batch, there);
  }
  void fill_zero(Rows<float> out) override { device_->fill_zero(Out(*this, out).rows); }
  void norm_linears(Rows<const float> branch, Rows<float> stream, std::span<const float> weight, float eps,
                    Rows<float> h, std::span<const Projection> projections) override {
    std::vector<Matrix> matrices;  // which go when the results have been fetched
    matrices.reserve(projections.size());
    Out x(*this, stream);
    const In more(*this, branch);
    std::vector<std::unique_ptr<Out>> outs;
    if (h.data != stream.data) outs.push_back(std::make_unique<Out>(*this, h));
    const Rows<float> normed = outs.empty() ? x.rows : outs.back()->rows;
    std::vector<Projection> there;
    for (const Projection& p : projections) {
      outs.push_back(std::make_unique<Out>(*this, p.out));
      matrices.push_back(placed_copy(*p.w));
      there.push_back({&matrices.back(), p.bias, outs.back()->rows});
    }
    device_->norm_linears(more.rows, x.rows, weight, eps, normed, there);
  }
  void rope_heads(Rows<const float> x, std::int64_t x_step, int heads, const RopeAngles& angles, RopePairing pairing,
                  Rows<float> out, std::int64_t out_step) override {
    Out o(*this, out);
    const In in(*this, x), cos(*this, angles.cos), sin(*this, angles.sin);
    device_->rope_heads(in.rows, x_step, heads, {cos.rows, sin.rows}, pairing, o.rows, out_step);
    o.fetch();
  }
  void write_latent(Rows<float> latent, std::span<const float> weight, float eps, const RopeAngles& angles,
                    RopePairing pairing, std::span<const std::int64_t> slots, const KvLayer& cache) override {
    CacheOnDevice there(*this, cache);
    const In x(*this, latent), cos(*this, angles.cos), sin(*this, angles.sin);
    device_->write_latent(x.rows, weight, eps, {cos.rows, sin.rows}, pairing, slots, there.layer);
    there.fetch();
  }
  void gather_rows(Rows<const float> x, std::span<const std::int64_t> rows, Rows<float> out) override {
    Out o(*this, out);
    device_->gather_rows(In(*this, x).rows, rows, o.rows);
  }

 private:
  static std::int64_t extent(std::int64_t rows, std::int64_t cols, std::int64_t stride) {
    return rows == 0 ? 0 : (rows - 1) * stride + cols;
  }

  /// Rows with what lies between them, on the device.
  struct In {
    In(HostSideBackend& owner, Rows<const float> x) {
      const std::int64_t n = extent(x.rows, x.cols, x.stride);
      memory = owner.device_->allocate(static_cast<std::size_t>(n) * sizeof(float));
      auto* data = static_cast<float*>(memory.get());
      if (n > 0) owner.device_->from_host(Rows<const float>(x.data, 1, n), Rows<float>(data, 1, n));
      rows = Rows<float>(data, x.rows, x.cols, x.stride);
    }
    std::shared_ptr<void> memory;
    Rows<float> rows;
  };
  struct Out : In {
    Out(HostSideBackend& o, Rows<float> x) : In(o, x), owner(o), host(x) {}
    ~Out() { fetch(); }
    void fetch() {
      const std::int64_t n = extent(host.rows, host.cols, host.stride);
      if (n == 0 || fetched) return;
      fetched = true;
      const Rows<float> back = owner.device_->to_host({rows.data, 1, n}, owner.room_);
      std::copy_n(back.data, n, host.data);
    }
    HostSideBackend& owner;
    Rows<float> host;
    bool fetched = false;
  };
  struct CacheOnDevice {
    CacheOnDevice(HostSideBackend& o, const KvLayer& cache)
        : owner(o), host(cache), floats((cache_bytes().at(cache.data) + 3) / 4), layer(cache) {
      std::vector<float> contents(floats);
      std::memcpy(contents.data(), cache.data, cache_bytes().at(cache.data));
      memory = owner.device_->allocate(floats * sizeof(float));
      owner.device_->from_host(Rows<const float>(contents.data(), 1, std::ssize(contents)),
                               Rows<float>(static_cast<float*>(memory.get()), 1, std::ssize(contents)));
      layer.data = memory.get();
    }
    void fetch() {
      const Rows<float> back = owner.device_->to_host(
          {static_cast<float*>(memory.get()), 1, static_cast<std::int64_t>(floats)}, owner.room_);
      std::memcpy(host.data, back.data, cache_bytes().at(host.data));
    }
    HostSideBackend& owner;
    const KvLayer host;
    const std::size_t floats;
    KvLayer layer;
    std::shared_ptr<void> memory;
  };

  Matrix placed_copy(const Matrix& m) {
    Matrix copy = m.clone();
    device_->place(copy);
    return copy;
  }
  FeedForward copy_of(const FeedForward& f) { return {placed_copy(f.gate), placed_copy(f.up), placed_copy(f.down)}; }
  /// A matrix that stays on the device until the next one is asked for.
  const Matrix& on_device(const Matrix& m) { return last_ = placed_copy(m); }

  /// Bytes of each cache that any of these back ends gave out: tests fill one with one of them and read it with
  /// another.
  static std::map<const void*, std::size_t>& cache_bytes() {
    static std::map<const void*, std::size_t> instance;
    return instance;
  }

  std::unique_ptr<Backend> device_;
  HostRoom room_;
  Matrix last_;
};

}  // namespace shoal::kernel_test
