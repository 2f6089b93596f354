#include "collectives/expert_exchange.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "collectives/aligned_buffer.h"
#include "collectives/bf16_rows.h"
#include "collectives/row_hop.h"

namespace shoal {

struct ExpertExchange::State {
  const std::size_t hidden;
  const bool bf16_wire;
  const Answers kind;
  const std::size_t row_bytes;  // on the wire
  const Hops hops;
  const RowLoop for_rows;
  std::optional<RowHop> to_hosts;  // the first of two hops
  RowHop to_ranks;                 // the last

  ExpertBatch arrived;
  AlignedBuffer arrived_rows, result_rows;  // FP32 forms of what travels as BF16

  State(Communicator& comm, int hidden_floats, bool bf16, Answers answers_kind, int ranks_per_host, RowLoop loop)
      : hidden(static_cast<std::size_t>(hidden_floats)),
        bf16_wire(bf16),
        kind(answers_kind),
        row_bytes(hidden * (bf16 ? 2 : 4)),
        hops(comm.size(), comm.rank(), ranks_per_host > 0 ? ranks_per_host : comm.ranks_per_host()),
        for_rows(std::move(loop)),
        to_ranks(comm, hops.two() ? hops.second() : hops.first(), row_bytes, kind) {
    if (hops.two()) to_hosts.emplace(comm, hops.first(), row_bytes, kind);
  }

  RowHop& first_hop() { return to_hosts ? *to_hosts : to_ranks; }
  /// body(i) for each of so many rows.
  template <class Body>
  void each_row(std::size_t rows, const Body& body) const {
    const auto range = [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) body(i);
    };
    if (!for_rows) return range(0, rows);
    for_rows(rows, static_cast<double>(rows * hidden), range);
  }
  void pass_on();
  void list_rows();
  void pass_back();
  void write_row(const float* from, std::byte* to_row) const {
    if (bf16_wire)
      pack_bf16({from, hidden}, reinterpret_cast<std::uint16_t*>(to_row));
    else
      std::memcpy(to_row, from, row_bytes);
  }
  void add_row(const std::byte* row, float* to) const {
    if (bf16_wire) return add_bf16({reinterpret_cast<const std::uint16_t*>(row), hidden}, to);
    const auto* values = reinterpret_cast<const float*>(row);
    for (std::size_t i = 0; i < hidden; ++i) to[i] += values[i];
  }
  /// to += the answers to a token of the hop.
  void add_answers(RowHop& hop, std::size_t token, float* to) const {
    const DispatchPlan& plan = hop.plan();
    for (std::uint32_t a = plan.first_answer()[token]; a < plan.first_answer()[token + 1]; ++a)
      add_row(hop.answer(plan.answers()[a]), to);
  }
};

/// What came for this host goes to its ranks, as it came.
void ExpertExchange::State::pass_on() {
  to_hosts->receive();
  to_ranks.plan().forward(to_hosts->arrived());
  const std::vector<RowHop::Outgoing>& outgoing = to_ranks.outgoing();
  each_row(outgoing.size(), [&](std::size_t i) {
    std::memcpy(outgoing[i].row, to_hosts->rows()[static_cast<std::size_t>(outgoing[i].token)], row_bytes);
  });
  to_ranks.send();
}

/// And the answers of its ranks back, one for each row or (already in the order of its experts) as they came.
void ExpertExchange::State::pass_back() {
  to_ranks.receive_answers();
  const std::vector<std::byte*>& to = to_hosts->answers();
  each_row(to.size(), [&](std::size_t i) {
    if (kind == Answers::by_expert) {
      std::memcpy(to[i], to_ranks.answer(to_ranks.plan().answers()[i]), row_bytes);
    } else {
      thread_local std::vector<float> sum;
      sum.assign(hidden, 0.0f);
      add_answers(to_ranks, i, sum.data());
      write_row(sum.data(), to[i]);
    }
  });
  to_hosts->send_answers();
}

/// Rows as the experts take them: each once, or once for each of its experts.
void ExpertExchange::State::list_rows() {
  arrived.rows.clear();
  arrived.out.clear();
  arrived.first.assign(1, 0);
  arrived.expert = to_ranks.arrived().expert;
  arrived.weight = to_ranks.arrived().weight;
  const std::vector<const std::byte*>& rows = to_ranks.rows();
  const std::size_t fp32_stride = align_up(hidden * sizeof(float));
  if (bf16_wire) {
    arrived_rows.reserve(rows.size() * fp32_stride);
    each_row(rows.size(), [&](std::size_t i) {
      unpack_bf16({reinterpret_cast<const std::uint16_t*>(rows[i]), hidden},
                  reinterpret_cast<float*>(arrived_rows.data() + i * fp32_stride));
    });
  }
  to_ranks.arrived().for_each_answer(kind, [&](std::size_t row, std::int32_t experts) {
    const std::byte* at = bf16_wire ? arrived_rows.data() + row * fp32_stride : rows[row];
    arrived.rows.push_back(reinterpret_cast<const float*>(at));
    arrived.first.push_back(arrived.first.back() + experts);
  });
}

ExpertExchange::ExpertExchange(Communicator& comm, int hidden, bool bf16_wire, Answers answers, int ranks_per_host,
                               RowLoop for_rows)
    : state_(std::make_unique<State>(comm, hidden, bf16_wire, answers, ranks_per_host, std::move(for_rows))) {}
ExpertExchange::~ExpertExchange() = default;

void ExpertExchange::dispatch(const float* x, std::int64_t x_stride, std::int64_t tokens, const std::int32_t* expert,
                              const float* weight, int top_k, ExpertMap& map) {
  State& s = *state_;
  const auto entries = static_cast<std::size_t>(tokens * top_k);
  RowHop& hop = s.first_hop();
  hop.plan().make({expert, entries}, {weight, entries}, top_k, map, s.hops);
  const std::vector<RowHop::Outgoing>& outgoing = hop.outgoing();
  s.each_row(outgoing.size(), [&](std::size_t i) { s.write_row(x + outgoing[i].token * x_stride, outgoing[i].row); });
  hop.send();
}

const ExpertBatch& ExpertExchange::dispatched() {
  State& s = *state_;
  if (s.to_hosts) s.pass_on();
  s.to_ranks.receive();
  s.list_rows();
  const std::size_t answers = s.arrived.rows.size(), fp32_stride = align_up(s.hidden * sizeof(float));
  if (s.bf16_wire) {
    s.result_rows.reserve(answers * fp32_stride);
    for (std::size_t i = 0; i < answers; ++i)
      s.arrived.out.push_back(reinterpret_cast<float*>(s.result_rows.data() + i * fp32_stride));
  } else {
    // The experts write straight into the slots of the answer.
    for (std::byte* to : s.to_ranks.answers()) s.arrived.out.push_back(reinterpret_cast<float*>(to));
  }
  return s.arrived;
}

void ExpertExchange::combine() {
  State& s = *state_;
  if (s.bf16_wire) {
    const std::vector<std::byte*>& to = s.to_ranks.answers();
    s.each_row(to.size(), [&](std::size_t i) { s.write_row(s.arrived.out[i], to[i]); });
  }
  s.to_ranks.send_answers();
}

void ExpertExchange::combined(float* out, std::int64_t out_stride) {
  State& s = *state_;
  if (s.to_hosts) s.pass_back();
  RowHop& hop = s.first_hop();
  hop.receive_answers();
  const std::size_t tokens = hop.plan().first_answer().size() - 1;
  s.each_row(tokens, [&](std::size_t t) { s.add_answers(hop, t, out + static_cast<std::int64_t>(t) * out_stride); });
}

}  // namespace shoal
