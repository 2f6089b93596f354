#include "collectives/expert_exchange.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "collectives/aligned_buffer.h"
#include "collectives/bf16_rows.h"

namespace shoal {

struct ExpertExchange::State {
  Communicator& comm;
  const std::size_t hidden;
  const bool bf16_wire;
  const Answers kind;
  const std::size_t row_bytes, row_stride;  // on the wire
  const std::size_t ranks;
  std::unique_ptr<AllToAll> exchange;  // dispatch and combine take turns on it

  const SlotRecord record;
  DispatchPlan plan;
  std::vector<std::size_t> bytes;               // [ranks]
  std::vector<std::uint32_t> rows_from;         // [ranks] rows to be answered
  std::vector<const std::byte*> received;       // rows of all ranks, as they travelled
  std::vector<std::uint32_t> received_experts;  // of each
  ExpertBatch arrived;
  AlignedBuffer arrived_rows, result_rows;  // FP32 forms of what travels as BF16

  State(Communicator& communicator, int hidden_floats, bool bf16, Answers answers_kind)
      : comm(communicator),
        hidden(static_cast<std::size_t>(hidden_floats)),
        bf16_wire(bf16),
        kind(answers_kind),
        row_bytes(hidden * (bf16 ? 2 : 4)),
        row_stride(align_up(row_bytes)),
        ranks(static_cast<std::size_t>(comm.size())),
        exchange(comm.make_all_to_all()),
        record(row_bytes, row_stride),
        plan(comm.size(), comm.rank(), kind),
        bytes(ranks),
        rows_from(ranks) {}

  void fill_slots(const float* x, std::int64_t x_stride);
  void read_slot(int src);
  void list_rows();
  void write_row(const float* from, std::byte* to_row) const {
    if (bf16_wire)
      pack_bf16({from, hidden}, reinterpret_cast<std::uint16_t*>(to_row));
    else
      std::memcpy(to_row, from, row_bytes);
  }
};

void ExpertExchange::State::fill_slots(const float* x, std::int64_t x_stride) {
  for (std::size_t d = 0; d < ranks; ++d) {
    const RankSlot& slot = plan.to()[d];
    bytes[d] = record.bytes(slot);
    if (bytes[d] == 0) continue;
    std::byte* row = record.write(slot, exchange->outgoing(static_cast<int>(d), bytes[d]));
    for (const std::int32_t token : slot.token) {
      write_row(x + token * x_stride, row);
      row += row_stride;
    }
  }
}

/// Appends the rows of one rank to `arrived`; rows and results are pointed to later, when the buffers have their size.
void ExpertExchange::State::read_slot(int src) {
  const SlotRecord::View slot = record.read(exchange->incoming(src), src, comm.rank());
  rows_from[static_cast<std::size_t>(src)] = static_cast<std::uint32_t>(slot.answers(kind));
  for (std::size_t row = 0; row < slot.n_experts.size(); ++row) {
    received.push_back(slot.rows + row * row_stride);
    received_experts.push_back(slot.n_experts[row]);
  }
  arrived.expert.insert(arrived.expert.end(), slot.expert.begin(), slot.expert.end());
  arrived.weight.insert(arrived.weight.end(), slot.weight.begin(), slot.weight.end());
}

ExpertExchange::ExpertExchange(Communicator& comm, int hidden, bool bf16_wire, Answers answers)
    : state_(std::make_unique<State>(comm, hidden, bf16_wire, answers)) {}
ExpertExchange::~ExpertExchange() = default;

void ExpertExchange::dispatch(const float* x, std::int64_t x_stride, std::int64_t tokens, const std::int32_t* expert,
                              const float* weight, int top_k, ExpertMap& map) {
  State& s = *state_;
  const auto entries = static_cast<std::size_t>(tokens * top_k);
  s.plan.make({expert, entries}, {weight, entries}, top_k, map);
  s.fill_slots(x, x_stride);
  s.exchange->post(s.bytes);
}

/// Rows as the experts take them: each once, or once for each of its experts.
void ExpertExchange::State::list_rows() {
  const std::size_t fp32_stride = align_up(hidden * sizeof(float));
  if (bf16_wire) arrived_rows.reserve(received.size() * fp32_stride);
  for (std::size_t i = 0; i < received.size(); ++i) {
    const std::byte* row = received[i];
    if (bf16_wire) {
      auto* wide = reinterpret_cast<float*>(arrived_rows.data() + i * fp32_stride);
      unpack_bf16({reinterpret_cast<const std::uint16_t*>(row), hidden}, wide);
      row = reinterpret_cast<const std::byte*>(wide);
    }
    const std::uint32_t times = kind == Answers::summed ? 1 : received_experts[i];
    for (std::uint32_t n = 0; n < times; ++n) {
      arrived.rows.push_back(reinterpret_cast<const float*>(row));
      const std::uint32_t experts = kind == Answers::summed ? received_experts[i] : 1;
      arrived.first.push_back(arrived.first.back() + static_cast<std::int32_t>(experts));
    }
  }
}

const ExpertBatch& ExpertExchange::dispatched() {
  State& s = *state_;
  s.exchange->wait();
  ExpertBatch& arrived = s.arrived;
  s.received.clear();
  s.received_experts.clear();
  arrived.rows.clear();
  arrived.out.clear();
  arrived.first.assign(1, 0);
  arrived.expert.clear();
  arrived.weight.clear();
  for (int src = 0; src < s.comm.size(); ++src) s.read_slot(src);
  s.list_rows();

  if (s.bf16_wire) {
    const std::size_t fp32_stride = align_up(s.hidden * sizeof(float));
    s.result_rows.reserve(arrived.rows.size() * fp32_stride);
    for (std::size_t i = 0; i < arrived.rows.size(); ++i)
      arrived.out.push_back(reinterpret_cast<float*>(s.result_rows.data() + i * fp32_stride));
    return arrived;
  }
  // The experts write straight into the slots of the answer.
  for (std::size_t src = 0; src < s.ranks; ++src) {
    if (s.rows_from[src] == 0) continue;
    std::byte* slot = s.exchange->outgoing(static_cast<int>(src), s.rows_from[src] * s.row_stride).data();
    for (std::uint32_t row = 0; row < s.rows_from[src]; ++row)
      arrived.out.push_back(reinterpret_cast<float*>(slot + row * s.row_stride));
  }
  return arrived;
}

void ExpertExchange::combine() {
  State& s = *state_;
  const float* const* result = s.arrived.out.data();
  for (std::size_t src = 0; src < s.ranks; ++src) {
    s.bytes[src] = s.rows_from[src] * s.row_stride;
    if (!s.bf16_wire || s.rows_from[src] == 0) continue;
    std::byte* slot = s.exchange->outgoing(static_cast<int>(src), s.bytes[src]).data();
    for (std::uint32_t row = 0; row < s.rows_from[src]; ++row, ++result)
      s.write_row(*result, slot + row * s.row_stride);
  }
  s.exchange->post(s.bytes);
}

void ExpertExchange::combined(float* out, std::int64_t out_stride) {
  State& s = *state_;
  s.exchange->wait();
  for (int rank = 0; rank < s.comm.size(); ++rank) {
    const std::size_t answers = s.plan.to()[static_cast<std::size_t>(rank)].answers(s.kind);
    if (s.exchange->incoming(rank).size() != answers * s.row_stride)
      fail("expert exchange: rank {} answered {} bytes to {} rows of rank {}", rank, s.exchange->incoming(rank).size(),
           answers, s.comm.rank());
  }
  const std::vector<std::uint32_t>& first = s.plan.first_answer();
  for (std::size_t t = 0; t + 1 < first.size(); ++t) {
    float* row = out + static_cast<std::int64_t>(t) * out_stride;
    for (std::uint32_t a = first[t]; a < first[t + 1]; ++a) {
      const auto [rank, index] = s.plan.answers()[a];
      const std::byte* answer = s.exchange->incoming(static_cast<int>(rank)).data() + index * s.row_stride;
      if (s.bf16_wire) {
        add_bf16({reinterpret_cast<const std::uint16_t*>(answer), s.hidden}, row);
      } else {
        const auto* values = reinterpret_cast<const float*>(answer);
        for (std::size_t i = 0; i < s.hidden; ++i) row[i] += values[i];
      }
    }
  }
}

}  // namespace shoal
