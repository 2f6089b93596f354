#include "runtime/importance_recorder.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace shoal {

void ImportanceRecorder::record(Rows<const float> x, std::int64_t first_column, const Matrix& w) {
  Inputs& inputs = inputs_[&w];
  inputs.sums.resize(static_cast<std::size_t>(w.cols()));
  inputs.count += x.rows;
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const float* row = x[t] + first_column;
    for (std::size_t c = 0; c < inputs.sums.size(); ++c) inputs.sums[c] += double{row[c]} * double{row[c]};
  }
}

void ImportanceRecorder::linear(Rows<const float> x, const Matrix& w, std::span<const float> bias, Rows<float> out) {
  record(x, 0, w);
  backend_->linear(x, w, bias, out);
}

void ImportanceRecorder::linear_per_head(Rows<const float> x, std::int64_t x_step, std::span<const Matrix> w,
                                         Rows<float> out, std::int64_t out_step) {
  for (std::size_t h = 0; h < w.size(); ++h) record(x, static_cast<std::int64_t>(h) * x_step, w[h]);
  backend_->linear_per_head(x, x_step, w, out, out_step);
}

void ImportanceRecorder::feed_forward(Rows<const float> x, const FeedForward& ffn, Rows<float> out) {
  const std::int64_t width = ffn.gate.rows();
  std::vector<float> gate(static_cast<std::size_t>(x.rows * width)), up(gate.size());
  linear(x, ffn.gate, {}, {gate.data(), x.rows, width});
  linear(x, ffn.up, {}, {up.data(), x.rows, width});
  for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  linear({gate.data(), x.rows, width}, ffn.down, {}, out);
}

void ImportanceRecorder::experts(const ExpertBatch& batch, std::span<const FeedForward> experts) {
  if (experts.empty() || batch.rows.empty()) return;
  const std::int64_t hidden = experts.front().gate.cols();
  for (float* out : batch.out) std::fill_n(out, hidden, 0.0f);
  std::vector<float> inputs, outputs;
  for (std::size_t e = 0; e < experts.size(); ++e) {
    std::vector<std::pair<std::size_t, float>> chosen;  // row and weight
    for (std::size_t row = 0; row < batch.rows.size(); ++row)
      for (auto i = static_cast<std::size_t>(batch.first[row]); i < static_cast<std::size_t>(batch.first[row + 1]); ++i)
        if (batch.expert[i] == static_cast<std::int32_t>(e)) chosen.emplace_back(row, batch.weight[i]);
    if (chosen.empty()) continue;
    const auto rows = static_cast<std::int64_t>(chosen.size());
    inputs.clear();
    for (const auto& [row, weight] : chosen) inputs.insert(inputs.end(), batch.rows[row], batch.rows[row] + hidden);
    outputs.resize(inputs.size());
    feed_forward({inputs.data(), rows, hidden}, experts[e], {outputs.data(), rows, hidden});
    const float* from = outputs.data();
    for (const auto& [row, weight] : chosen)
      for (std::int64_t c = 0; c < hidden; ++c) batch.out[row][c] += weight * *from++;
  }
}

Importance ImportanceRecorder::collect(const ModelConfig& config, const ModelWeights& weights,
                                       const Placement& placement, Communicator& comm) const {
  Importance all;
  // `of(i)`: matrix i of a tensor, null where this rank has it not.
  const auto add = [&](const std::string& name, std::int64_t matrices, std::int64_t columns, const auto& of) {
    std::vector<float> values(static_cast<std::size_t>(matrices * (columns + 1)), 0.0f);
    for (std::int64_t i = 0; i < matrices; ++i) {
      const Matrix* matrix = of(i);
      const auto it = matrix ? inputs_.find(matrix) : inputs_.end();
      if (it == inputs_.end()) continue;
      std::copy(it->second.sums.begin(), it->second.sums.end(), values.begin() + i * columns);
      values[static_cast<std::size_t>(matrices * columns + i)] = static_cast<float>(it->second.count);
    }
    comm.all_reduce_sum(values);
    const auto counts = values.begin() + matrices * columns;
    if (std::all_of(counts, values.end(), [](float n) { return n == 0; })) return;
    all.add(name, {columns, {values.begin(), counts}, {counts, values.end()}});
  };
  const auto one = [&](const std::string& name, const Matrix& m) {
    if (!m.empty()) add(name, 1, m.cols(), [&](std::int64_t) { return &m; });
  };
  const auto heads = [&](const std::string& name, const std::vector<Matrix>& m) {
    if (m.empty()) return;
    add(name, static_cast<std::int64_t>(m.size()), m.front().cols(),
        [&](std::int64_t h) { return &m[static_cast<std::size_t>(h)]; });
  };
  const auto block = [&](const std::string& name, const std::string& end, const FeedForward& ffn) {
    one(name + "ffn_gate" + end, ffn.gate);
    one(name + "ffn_up" + end, ffn.up);
    one(name + "ffn_down" + end, ffn.down);
  };
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    const LayerWeights& w = weights.layers[static_cast<std::size_t>(layer)];
    const std::string p = fmt::format("blk.{}.", layer);
    one(p + "attn_q.weight", config.is_mla() ? w.mla.q_proj : w.gqa.q_proj);
    one(p + "attn_k.weight", w.gqa.k_proj);
    one(p + "attn_v.weight", w.gqa.v_proj);
    one(p + "attn_q_a.weight", w.mla.q_a_proj);
    one(p + "attn_q_b.weight", w.mla.q_b_proj);
    one(p + "attn_kv_a_mqa.weight", w.mla.kv_a_proj);
    heads(p + "attn_k_b.weight", w.mla.k_up);
    heads(p + "attn_v_b.weight", w.mla.v_up);
    one(p + "attn_output.weight", config.is_mla() ? w.mla.o_proj : w.gqa.o_proj);
    if (!config.is_moe_layer(layer)) {
      block(p, ".weight", w.dense);
      continue;
    }
    one(p + "ffn_gate_inp.weight", w.moe.router);
    block(p, "_shexp.weight", w.moe.shared);
    const auto mine = placement.experts_on(layer, comm.rank());
    const auto stack = [&](const char* name, Matrix FeedForward::*matrix, std::int64_t columns) {
      add(p + name, config.n_routed_experts, columns, [&](std::int64_t e) -> const Matrix* {
        const auto it = std::find(mine.begin(), mine.end(), static_cast<std::int32_t>(e));
        return it == mine.end() ? nullptr : &(w.moe.experts[static_cast<std::size_t>(it - mine.begin())].*matrix);
      });
    };
    stack("ffn_gate_exps.weight", &FeedForward::gate, config.hidden_size);
    stack("ffn_up_exps.weight", &FeedForward::up, config.hidden_size);
    stack("ffn_down_exps.weight", &FeedForward::down, config.moe_intermediate_size);
  }
  if (!weights.lm_head.empty()) one("output.weight", weights.lm_head);
  return all;
}

}  // namespace shoal
