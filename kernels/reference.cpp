#include "kernels/reference.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>

namespace shoal {
namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

float cache_element(const KvLayer& cache, std::int64_t row, int column) {
  return decode_kv(cache.type, cache.row(row), column, cache.width);
}

std::int64_t cache_row(const AttentionQuery& query, const KvLayer& cache, std::int64_t position) {
  return std::int64_t{query.pages[position / cache.page_tokens]} * cache.page_tokens + position % cache.page_tokens;
}

/// Indices of the `keep` largest values, ascending; ties go to the lower index.
std::vector<int> largest(const std::vector<double>& value, int keep) {
  std::vector<int> order(value.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return value[std::size_t(a)] > value[std::size_t(b)]; });
  order.resize(static_cast<std::size_t>(keep));
  std::sort(order.begin(), order.end());
  return order;
}

class ReferenceBackend final : public Backend {
 public:
  ReferenceBackend(Compute compute, int byte_columns, bool bf16_meets_int4)
      : compute_(compute), byte_columns_(byte_columns), bf16_meets_int4_(bf16_meets_int4) {}

  std::string description() const override { return "reference loops"; }

  std::shared_ptr<void> allocate(std::size_t bytes) override {
    bytes = (bytes + 63) / 64 * 64;
    std::shared_ptr<void> p(std::aligned_alloc(64, bytes), std::free);
    std::memset(p.get(), 0, bytes);
    return p;
  }

  void embed(std::span<const std::int32_t> ids, const Matrix& table, Rows<float> out) override {
    for (std::size_t t = 0; t < ids.size(); ++t) {
      for (std::int64_t c = 0; c < table.cols(); ++c) out[std::int64_t(t)][c] = table.at(ids[t], c);
    }
  }

  void rms_norm(Rows<const float> x, std::span<const float> weight, float eps, Rows<float> out) override {
    for (std::int64_t t = 0; t < x.rows; ++t) {
      double squares = 0;
      for (std::int64_t c = 0; c < x.cols; ++c) squares += double(x[t][c]) * x[t][c];
      const double scale = 1.0 / std::sqrt(squares / double(x.cols) + eps);
      for (std::int64_t c = 0; c < x.cols; ++c) out[t][c] = float(x[t][c] * scale * weight[std::size_t(c)]);
    }
  }

  void add(Rows<const float> x, Rows<float> acc) override {
    for (std::int64_t t = 0; t < x.rows; ++t) {
      for (std::int64_t c = 0; c < x.cols; ++c) acc[t][c] += x[t][c];
    }
  }

  void linear(Rows<const float> x, const Matrix& w, std::span<const float> bias, Rows<float> out) override {
    for (std::int64_t t = 0; t < x.rows; ++t) {
      for (std::int64_t r = 0; r < w.rows(); ++r) {
        out[t][r] = float(dot(x[t], w, r) + (bias.empty() ? 0.0 : double(bias[std::size_t(r)])));
      }
    }
  }

  void linear_per_head(Rows<const float> x, std::int64_t x_step, std::span<const Matrix> w, Rows<float> out,
                       std::int64_t out_step) override {
    for (std::size_t h = 0; h < w.size(); ++h) {
      const auto i = static_cast<std::int64_t>(h);
      linear(x.columns(i * x_step, w[h].cols()), w[h], {}, out.columns(i * out_step, w[h].rows()));
    }
  }

  void feed_forward(Rows<const float> x, const FeedForward& ffn, Rows<float> out) override {
    std::vector<double> y(static_cast<std::size_t>(out.cols));
    for (std::int64_t t = 0; t < x.rows; ++t) {
      swiglu(x[t], ffn, y);
      std::copy(y.begin(), y.end(), out[t]);
    }
  }

  void rope(Rows<float> x, int heads, std::int64_t head_step, const RopeAngles& angles, RopePairing pairing) override {
    const std::int64_t pairs = angles.cos.cols;
    for (std::int64_t t = 0; t < x.rows; ++t) {
      for (int h = 0; h < heads; ++h) {
        float* v = x[t] + h * head_step;
        for (std::int64_t i = 0; i < pairs; ++i) {
          float& a = pairing == RopePairing::interleaved ? v[2 * i] : v[i];
          float& b = pairing == RopePairing::interleaved ? v[2 * i + 1] : v[i + pairs];
          const double cos = angles.cos[t][i], sin = angles.sin[t][i], first = a, second = b;
          a = float(first * cos - second * sin);
          b = float(second * cos + first * sin);
        }
      }
    }
  }

  void write_kv(Rows<const float> x, std::span<const std::int64_t> slots, int column, const KvLayer& cache) override {
    for (std::int64_t t = 0; t < x.rows; ++t) {
      encode_kv(cache.type, x[t], x.cols, column, cache.width, cache.row(slots[std::size_t(t)]));
    }
  }

  void mla_attention(Rows<const float> q, const MlaShape& shape, float scale, std::span<const AttentionQuery> queries,
                     const KvLayer& cache, Rows<float> out) override {
    const int width = shape.kv_lora_rank + shape.qk_rope_head_dim;
    for (std::size_t t = 0; t < queries.size(); ++t) {
      for (int h = 0; h < shape.heads; ++h) {
        const auto row = static_cast<std::int64_t>(t);
        attend(q[row] + h * width, width, 0, shape.kv_lora_rank, 0, scale, queries[t], cache,
               out[row] + h * shape.kv_lora_rank);
      }
    }
  }

  void mla_prompt_attention(Rows<const float> q, const MlaShape& shape, const MlaUp& up, float scale,
                            std::span<const AttentionQuery> queries, const KvLayer& cache, Rows<float> out) override {
    const std::int64_t rank = shape.kv_lora_rank, nope = up.k_up[0].cols(), value = up.v_up[0].rows();
    const std::int64_t dim = nope + shape.qk_rope_head_dim;
    for (int h = 0; h < shape.heads; ++h) {
      const Matrix &k_up = up.k_up[std::size_t(h)], &v_up = up.v_up[std::size_t(h)];
      std::vector<std::vector<double>> keys, values;  // of each position
      for (int p = 0; p < queries.back().length; ++p) {
        const std::byte* row = cache.row(std::int64_t{queries.back().pages[p / cache.page_tokens]} * cache.page_tokens +
                                         p % cache.page_tokens);
        std::vector<double> latent, key, own(static_cast<std::size_t>(value));
        for (int c = 0; c < cache.width; ++c) latent.push_back(decode_kv(cache.type, row, c, cache.width));
        key.resize(static_cast<std::size_t>(nope));
        for (std::int64_t c = 0; c < rank; ++c) {
          for (std::int64_t i = 0; i < nope; ++i) key[std::size_t(i)] += latent[std::size_t(c)] * k_up.at(c, i);
          for (std::int64_t i = 0; i < value; ++i) own[std::size_t(i)] += latent[std::size_t(c)] * v_up.at(i, c);
        }
        key.insert(key.end(), latent.begin() + rank, latent.end());
        keys.push_back(std::move(key));
        values.push_back(std::move(own));
      }
      for (std::size_t t = 0; t < queries.size(); ++t) {
        const float* query = q[static_cast<std::int64_t>(t)] + h * dim;
        std::vector<double> share, sum(static_cast<std::size_t>(value));
        for (std::size_t p = 0; p < static_cast<std::size_t>(queries[t].length); ++p)
          share.push_back(scale * std::inner_product(keys[p].begin(), keys[p].end(), query, 0.0));
        const double most = *std::max_element(share.begin(), share.end());
        double total = 0;
        for (std::size_t p = 0; p < share.size(); ++p) {
          share[p] = std::exp(share[p] - most);
          total += share[p];
          for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += share[p] * values[p][i];
        }
        for (std::size_t i = 0; i < sum.size(); ++i)
          out[static_cast<std::int64_t>(t)][h * value + static_cast<std::int64_t>(i)] = float(sum[i] / total);
      }
    }
  }

  void gqa_attention(Rows<const float> q, const GqaShape& shape, float scale, std::span<const AttentionQuery> queries,
                     const KvLayer& cache, Rows<float> out) override {
    const int dim = shape.head_dim, values = shape.kv_heads * dim;
    for (std::size_t t = 0; t < queries.size(); ++t) {
      for (int h = 0; h < shape.heads; ++h) {
        const int key = h / (shape.heads / shape.kv_heads) * dim;
        const auto row = static_cast<std::int64_t>(t);
        attend(q[row] + h * dim, dim, key, dim, values + key, scale, queries[t], cache, out[row] + h * dim);
      }
    }
  }

  void route(Rows<const float> logits, std::span<const float> bias, const RouterShape& shape, Rows<std::int32_t> expert,
             Rows<float> weight) override {
    const auto n = static_cast<std::size_t>(shape.n_experts);
    for (std::int64_t t = 0; t < logits.rows; ++t) {
      std::vector<double> score(n), choice(n);
      double sum = 0;
      for (std::size_t i = 0; i < n; ++i) {
        const double x = logits[t][i];
        score[i] = shape.scoring == Scoring::sigmoid ? sigmoid(x) : std::exp(x);
        sum += score[i];
      }
      if (shape.scoring == Scoring::softmax) {
        for (double& s : score) s /= sum;
      }
      for (std::size_t i = 0; i < n; ++i) choice[i] = score[i] + (bias.empty() ? 0.0 : double(bias[i]));

      if (shape.group_score != GroupScore::none) {
        const std::size_t size = n / std::size_t(shape.n_group);
        std::vector<double> group;
        for (std::size_t g = 0; g < std::size_t(shape.n_group); ++g) {
          std::vector<double> members(choice.begin() + std::ptrdiff_t(g * size),
                                      choice.begin() + std::ptrdiff_t((g + 1) * size));
          std::sort(members.rbegin(), members.rend());
          group.push_back(members[0] + (shape.group_score == GroupScore::best_two_sum && size > 1 ? members[1] : 0.0));
        }
        const std::vector<int> kept = largest(group, shape.topk_group);
        for (std::size_t i = 0; i < n; ++i) {
          if (!std::binary_search(kept.begin(), kept.end(), int(i / size))) {
            choice[i] = -std::numeric_limits<double>::infinity();
          }
        }
      }

      const std::vector<int> chosen = largest(choice, shape.top_k);
      double total = 1e-20;
      for (const int e : chosen) total += score[std::size_t(e)];
      for (std::size_t k = 0; k < chosen.size(); ++k) {
        const double s = score[std::size_t(chosen[k])];
        expert[t][k] = chosen[k];
        weight[t][k] = float((shape.norm_topk_prob ? s / total : s) * shape.routed_scaling_factor);
      }
    }
  }

  void experts(const ExpertBatch& batch, std::span<const FeedForward> experts) override {
    if (batch.rows.empty()) return;
    const auto width = static_cast<std::size_t>(experts[0].down.rows());
    std::vector<double> y(width), sum(width);
    for (std::size_t r = 0; r < batch.rows.size(); ++r) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (std::int32_t i = batch.first[r]; i < batch.first[r + 1]; ++i) {
        swiglu(batch.rows[r], experts[std::size_t(batch.expert[std::size_t(i)])], y);
        for (std::size_t c = 0; c < width; ++c) sum[c] += double(batch.weight[std::size_t(i)]) * y[c];
      }
      std::copy(sum.begin(), sum.end(), batch.out[r]);
    }
  }

 private:
  float activation(float x, const Matrix& w) const {
    const bool rounds = w.dtype() == DType::bf16 || w.dtype() == DType::f8_e4m3;
    return compute_ != Compute::f32 && rounds ? bf16_to_f32(f32_to_bf16(x)) : x;
  }

  /// Quantized weights meet activations of 8 bits: byte_columns_ of them with one scale, the largest becoming 127.
  double dot_of_bytes(const float* x, const Matrix& w, std::int64_t row) const {
    std::vector<float> worth(static_cast<std::size_t>(w.cols()));
    w.unpack_row(row, worth.data());
    std::vector<float> ordered;
    if (const auto& order = w.order(); !order.empty()) {  // neighbours there share a scale
      const std::vector<float> plain = worth;
      for (std::size_t i = 0; i < order.size(); ++i) {
        ordered.push_back(x[order[i]]);
        worth[i] = plain[std::size_t(order[i])];
      }
      x = ordered.data();
    }
    double sum = 0;
    const int columns = w.format()->bits == 8 ? 32 : byte_columns_;
    for (std::int64_t first = 0; first < w.cols(); first += columns) {
      const std::int64_t end = std::min<std::int64_t>(w.cols(), first + columns);
      float most = 0;
      for (std::int64_t c = first; c < end; ++c) most = std::max(most, std::abs(x[c]));
      if (most == 0) continue;
      double of_bytes = 0;
      for (std::int64_t c = first; c < end; ++c) {
        of_bytes += double(std::nearbyint(x[c] * (127.0f / most))) * double(worth[std::size_t(c)]);
      }
      sum += of_bytes * double(most) / 127.0;
    }
    return sum;
  }

  static double dot_of_f8(const float* x, const Matrix& w, std::int64_t row) {
    double sum = 0;
    for (std::int64_t first = 0; first < w.cols(); first += 128) {
      const std::int64_t end = std::min(w.cols(), first + 128);
      float most = 0;
      for (std::int64_t c = first; c < end; ++c) most = std::max(most, std::abs(x[c]));
      const float scale = most / 448.0f;
      if (scale == 0) continue;
      double of_codes = 0;
      for (std::int64_t c = first; c < end; ++c)
        of_codes += double(f8_e4m3_to_f32(f32_to_f8_e4m3(x[c] / scale))) * double(w.at(row, c));
      sum += of_codes * double(scale);
    }
    return sum;
  }

  bool meets_bf16(const PackedFormat& f) const {
    return bf16_meets_int4_ && compute_ == Compute::bf16 && f.bits == 4 && f.coding == Coding::planes && !f.minima &&
           !f.has_table;
  }
  static double dot_of_halves(const float* x, const Matrix& w, std::int64_t row) {
    std::vector<float> worth(static_cast<std::size_t>(w.cols()));
    w.unpack_row(row, worth.data());
    double sum = 0;
    for (std::size_t c = 0; c < worth.size(); ++c) sum += double(bf16_to_f32(f32_to_bf16(x[c]))) * double(worth[c]);
    return sum;
  }

  double dot(const float* x, const Matrix& w, std::int64_t row) const {
    if (w.format()) return meets_bf16(*w.format()) ? dot_of_halves(x, w, row) : dot_of_bytes(x, w, row);
    if (compute_ == Compute::fp8 && w.dtype() == DType::f8_e4m3) return dot_of_f8(x, w, row);
    double sum = 0;
    for (std::int64_t c = 0; c < w.cols(); ++c) sum += double(activation(x[c], w)) * double(w.at(row, c));
    return sum;
  }

  void swiglu(const float* x, const FeedForward& ffn, std::vector<double>& out) const {
    std::vector<float> hidden(static_cast<std::size_t>(ffn.gate.rows()));
    for (std::size_t i = 0; i < hidden.size(); ++i) {
      const double gate = dot(x, ffn.gate, std::int64_t(i)), up = dot(x, ffn.up, std::int64_t(i));
      hidden[i] = float(gate * sigmoid(gate) * up);
    }
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = dot(hidden.data(), ffn.down, std::int64_t(i));
  }

  static void attend(const float* q, int key_dim, int key, int value_dim, int value, float scale,
                     const AttentionQuery& query, const KvLayer& cache, float* out) {
    std::vector<double> score(static_cast<std::size_t>(query.length));
    double best = -std::numeric_limits<double>::infinity(), sum = 0;
    for (std::size_t i = 0; i < score.size(); ++i) {
      double s = 0;
      const std::int64_t row = cache_row(query, cache, std::int64_t(i));
      for (int d = 0; d < key_dim; ++d) s += double(q[d]) * cache_element(cache, row, key + d);
      score[i] = s * scale;
      best = std::max(best, score[i]);
    }
    for (double& s : score) sum += s = std::exp(s - best);
    for (int d = 0; d < value_dim; ++d) {
      double v = 0;
      for (std::size_t i = 0; i < score.size(); ++i) {
        v += score[i] * cache_element(cache, cache_row(query, cache, std::int64_t(i)), value + d);
      }
      out[d] = float(v / sum);
    }
  }

  Compute compute_;
  int byte_columns_;
  bool bf16_meets_int4_;
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend(Compute compute, int byte_columns, bool bf16_meets_int4) {
  return std::make_unique<ReferenceBackend>(compute, byte_columns, bf16_meets_int4);
}

}  // namespace shoal
