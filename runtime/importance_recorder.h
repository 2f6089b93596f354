#pragma once
#include <memory>
#include <unordered_map>

#include "collectives/communicator.h"
#include "kernels/backend.h"
#include "runtime/importance.h"
#include "runtime/weights.h"

namespace shoal {

/// A backend that also sums the squares of what enters each matrix. Feed-forward blocks are taken apart into their
/// products for that, so it is slower than the backend it stands before, and may differ in last bits.
class ImportanceRecorder final : public Backend {
 public:
  explicit ImportanceRecorder(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

  /// What was recorded for `weights`, which must be where they were while steps ran, under GGUF's names. A collective
  /// call: every rank gets the sums of all. Experts may be anywhere; other weights must be whole on every rank (no
  /// tensor parallelism).
  Importance collect(const ModelConfig& config, const ModelWeights& weights, const Placement& placement,
                     Communicator& comm) const;

  std::string description() const override { return backend_->description(); }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return backend_->allocate(bytes); }
  void on_host(std::size_t count, double elements, const std::function<void(std::size_t, std::size_t)>& body) override {
    backend_->on_host(count, elements, body);
  }
  void embed(std::span<const std::int32_t> ids, const Matrix& table, Rows<float> out) override {
    backend_->embed(ids, table, out);
  }
  void rms_norm(Rows<const float> x, std::span<const float> weight, float eps, Rows<float> out) override {
    backend_->rms_norm(x, weight, eps, out);
  }
  void add(Rows<const float> x, Rows<float> acc) override { backend_->add(x, acc); }
  void rope(Rows<float> x, int heads, std::int64_t head_step, const RopeAngles& angles, RopePairing pairing) override {
    backend_->rope(x, heads, head_step, angles, pairing);
  }
  void write_kv(Rows<const float> x, std::span<const std::int64_t> slots, int column, const KvLayer& cache) override {
    backend_->write_kv(x, slots, column, cache);
  }
  void mla_attention(Rows<const float> q, const MlaShape& shape, float scale, std::span<const AttentionQuery> queries,
                     const KvLayer& cache, Rows<float> out) override {
    backend_->mla_attention(q, shape, scale, queries, cache, out);
  }
  void gqa_attention(Rows<const float> q, const GqaShape& shape, float scale, std::span<const AttentionQuery> queries,
                     const KvLayer& cache, Rows<float> out) override {
    backend_->gqa_attention(q, shape, scale, queries, cache, out);
  }
  void route(Rows<const float> logits, std::span<const float> bias, const RouterShape& shape, Rows<std::int32_t> expert,
             Rows<float> weight) override {
    backend_->route(logits, bias, shape, expert, weight);
  }
  void linear(Rows<const float> x, const Matrix& w, std::span<const float> bias, Rows<float> out) override;
  void linear_per_head(Rows<const float> x, std::int64_t x_step, std::span<const Matrix> w, Rows<float> out,
                       std::int64_t out_step) override;
  void feed_forward(Rows<const float> x, const FeedForward& ffn, Rows<float> out) override;
  void experts(const ExpertBatch& batch, std::span<const FeedForward> experts) override;

 private:
  struct Inputs {
    std::vector<double> sums;  // [columns]
    std::int64_t count = 0;
  };
  void record(Rows<const float> x, std::int64_t first_column, const Matrix& w);

  std::unique_ptr<Backend> backend_;
  std::unordered_map<const Matrix*, Inputs> inputs_;
};

}  // namespace shoal
