#include "collectives/expert_exchange.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"
#include "collectives/aligned_buffer.h"
#include "collectives/bf16_rows.h"

namespace shoal {
namespace {

/// A slot of the dispatch, from one rank to another; empty when no token goes there:
///
///   SlotHeader
///   u32 n_experts[rows]   experts of each row, at least one
///   i32 expert[experts]   their local ids, ascending within a row
///   f32 weight[experts]
///   (to the next multiple of 64 bytes)
///   rows, in ascending order of the sender's tokens, each starting on a multiple of 64 bytes
///
/// A slot of the combine holds only the answers, in the order of the rows (or of the experts, where each has an answer
/// of its own): the sender knows which tokens they are for.
struct SlotHeader {
  std::uint32_t rows = 0;
  std::uint32_t experts = 0;
  std::uint32_t row_bytes = 0;  // both sides must agree on hidden size and wire type
  std::uint32_t reserved = 0;
};

struct SlotLayout {
  std::size_t n_experts, expert, weight, rows, bytes;
  SlotLayout(std::size_t n_rows, std::size_t n_entries, std::size_t row_stride)
      : n_experts(sizeof(SlotHeader)),
        expert(n_experts + n_rows * 4),
        weight(expert + n_entries * 4),
        rows(align_up(weight + n_entries * 4)),
        bytes(rows + n_rows * row_stride) {}
};

template <class T>
T* at(std::byte* base, std::size_t offset) {
  return reinterpret_cast<T*>(base + offset);
}
template <class T>
const T* at(const std::byte* base, std::size_t offset) {
  return reinterpret_cast<const T*>(base + offset);
}

}  // namespace

struct ExpertExchange::State {
  Communicator& comm;
  const std::size_t hidden;
  const bool bf16_wire;
  const Answers kind;
  const std::size_t row_bytes, row_stride;  // on the wire
  const std::size_t ranks;
  std::unique_ptr<AllToAll> exchange;  // dispatch and combine take turns on it

  /// An answer that a token gets: from which rank, and the how manyth of those that come from there.
  struct Answer {
    std::uint32_t rank, row;
  };
  /// What this rank has put into the slot for another one.
  struct Outgoing {
    std::uint32_t rows = 0, experts = 0;
    std::uint32_t next_row = 0, next_expert = 0;  // while the slot is filled
    bool open = false;                            // the next row has experts already
    std::uint32_t* n_experts = nullptr;
    std::int32_t* expert = nullptr;
    float* weight = nullptr;
    std::byte* row = nullptr;
  };
  std::vector<Outgoing> to;                     // [ranks]
  std::vector<const ExpertReplica*> target;     // [tokens, top_k] where each goes; null: nowhere
  std::vector<Answer> answers;                  // tokens in order; within a token ascending by rank, or by expert
  std::vector<std::uint32_t> first_answer;      // [tokens + 1]
  std::vector<std::size_t> bytes;               // [ranks]
  std::vector<std::uint32_t> rows_from;         // [ranks] rows to be answered
  std::vector<std::uint64_t> last_token;        // [ranks] 1 + the last token seen for the rank, while counting
  std::vector<std::uint32_t> token_ranks;       // of one token
  std::vector<const std::byte*> received;       // rows of all ranks, as they travelled
  std::vector<std::uint32_t> received_experts;  // of each
  DispatchedRows arrived;
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
        to(ranks),
        bytes(ranks),
        rows_from(ranks),
        last_token(ranks) {}

  void count(std::span<const std::int32_t> expert, std::int64_t tokens, int top_k, ExpertMap& map);
  void open_slots();
  void fill(const float* weight, const float* x, std::int64_t x_stride, std::int64_t tokens, int top_k);
  std::size_t answered(const Outgoing& o) const { return kind == Answers::summed ? o.rows : o.experts; }
  void read_slot(int src);
  void list_rows();
  void write_row(const float* from, std::byte* to_row) const {
    if (bf16_wire)
      pack_bf16({from, hidden}, reinterpret_cast<std::uint16_t*>(to_row));
    else
      std::memcpy(to_row, from, row_bytes);
  }
};

/// Which ranks each token goes to, and how much goes to each rank.
void ExpertExchange::State::count(std::span<const std::int32_t> expert, std::int64_t tokens, int top_k,
                                  ExpertMap& map) {
  std::fill(to.begin(), to.end(), Outgoing{});
  std::fill(last_token.begin(), last_token.end(), 0);
  target.assign(expert.size(), nullptr);
  answers.clear();
  first_answer.assign(1, 0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    token_ranks.clear();
    for (auto i = static_cast<std::size_t>(t * top_k); i < static_cast<std::size_t>((t + 1) * top_k); ++i) {
      if (expert[i] < 0) continue;
      target[i] = map.next(expert[i], comm.rank());
      if (!target[i] || static_cast<std::size_t>(target[i]->rank) >= ranks)
        fail("expert exchange: rank {} routed a token to expert {}, which no rank holds", comm.rank(), expert[i]);
      const auto rank = static_cast<std::uint32_t>(target[i]->rank);
      if (kind == Answers::by_expert) answers.push_back({rank, to[rank].experts});
      ++to[rank].experts;
      if (last_token[rank] == static_cast<std::uint64_t>(t) + 1) continue;
      last_token[rank] = static_cast<std::uint64_t>(t) + 1;
      token_ranks.push_back(rank);
    }
    std::sort(token_ranks.begin(), token_ranks.end());
    for (const std::uint32_t rank : token_ranks) {
      if (kind == Answers::summed) answers.push_back({rank, to[rank].rows});
      ++to[rank].rows;
    }
    first_answer.push_back(static_cast<std::uint32_t>(answers.size()));
  }
}

void ExpertExchange::State::open_slots() {
  for (std::size_t d = 0; d < ranks; ++d) {
    Outgoing& o = to[d];
    bytes[d] = 0;
    if (o.rows == 0) continue;
    const SlotLayout layout(o.rows, o.experts, row_stride);
    bytes[d] = layout.bytes;
    std::byte* slot = exchange->outgoing(static_cast<int>(d), layout.bytes).data();
    const SlotHeader header{o.rows, o.experts, static_cast<std::uint32_t>(row_bytes), 0};
    std::memcpy(slot, &header, sizeof header);
    o.n_experts = at<std::uint32_t>(slot, layout.n_experts);
    o.expert = at<std::int32_t>(slot, layout.expert);
    o.weight = at<float>(slot, layout.weight);
    o.row = slot + layout.rows;
    std::fill_n(o.n_experts, o.rows, 0u);
  }
}

void ExpertExchange::State::fill(const float* weight, const float* x, std::int64_t x_stride, std::int64_t tokens,
                                 int top_k) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto n = static_cast<std::size_t>(t);
    for (auto entry = static_cast<std::size_t>(t * top_k); entry < static_cast<std::size_t>((t + 1) * top_k); ++entry) {
      if (!target[entry]) continue;
      const ExpertReplica& there = *target[entry];
      Outgoing& o = to[static_cast<std::size_t>(there.rank)];
      std::uint32_t i = o.next_expert + o.n_experts[o.next_row]++;
      o.open = true;
      // Insertion keeps local ids ascending, since a plan may number a rank's experts in any order. Answers by expert
      // come in the order of the token's own list.
      for (; kind == Answers::summed && i > o.next_expert && o.expert[i - 1] > there.local; --i) {
        o.expert[i] = o.expert[i - 1];
        o.weight[i] = o.weight[i - 1];
      }
      o.expert[i] = there.local;
      o.weight[i] = weight[entry];
    }
    for (std::uint32_t a = first_answer[n]; a < first_answer[n + 1]; ++a) {
      Outgoing& o = to[answers[a].rank];
      if (!o.open) continue;
      o.open = false;
      write_row(x + t * x_stride, o.row + o.next_row * row_stride);
      o.next_expert += o.n_experts[o.next_row++];
    }
  }
}

/// Appends the rows of one rank to `arrived`; rows and results are pointed to later, when the buffers have their size.
void ExpertExchange::State::read_slot(int src) {
  const std::span<const std::byte> slot = exchange->incoming(src);
  rows_from[static_cast<std::size_t>(src)] = 0;
  if (slot.empty()) return;
  SlotHeader header;
  if (slot.size() >= sizeof header) std::memcpy(&header, slot.data(), sizeof header);
  const SlotLayout layout(header.rows, header.experts, row_stride);
  if (slot.size() != layout.bytes || header.row_bytes != row_bytes)
    fail(
        "expert exchange: rank {} sent {} bytes with {} rows of {} bytes to rank {}, which expects rows of {} bytes; "
        "all ranks must have the same hidden size and wire type",
        src, slot.size(), header.rows, header.row_bytes, comm.rank(), row_bytes);
  rows_from[static_cast<std::size_t>(src)] = kind == Answers::summed ? header.rows : header.experts;
  const auto* n_experts = at<std::uint32_t>(slot.data(), layout.n_experts);
  std::uint64_t entries = 0;
  for (std::uint32_t row = 0; row < header.rows; ++row) {
    received.push_back(slot.data() + layout.rows + row * row_stride);
    received_experts.push_back(n_experts[row]);
    entries += n_experts[row];
  }
  const auto* expert = at<std::int32_t>(slot.data(), layout.expert);
  const auto* weight = at<float>(slot.data(), layout.weight);
  arrived.expert.insert(arrived.expert.end(), expert, expert + header.experts);
  arrived.weight.insert(arrived.weight.end(), weight, weight + header.experts);
  if (entries != header.experts)
    fail("expert exchange: rank {} sent rows whose experts do not add up to {}", src, header.experts);
}

const ExpertReplica* ExpertMap::next(std::int32_t expert, int from) {
  const auto e = static_cast<std::size_t>(expert);
  if (e >= replicas.size() || replicas[e].empty()) return nullptr;
  const auto& all = replicas[e];
  if (all.size() == 1) return all.data();
  const auto point = static_cast<double>((turn[e]++ + static_cast<std::uint32_t>(from)) * 0x9E3779B9u) / 4294967296.0;
  double edge = 0;
  for (const ExpertReplica& replica : all) {
    edge += static_cast<double>(replica.share);
    if (point < edge) return &replica;
  }
  return &all.back();
}

ExpertExchange::ExpertExchange(Communicator& comm, int hidden, bool bf16_wire, Answers answers)
    : state_(std::make_unique<State>(comm, hidden, bf16_wire, answers)) {}
ExpertExchange::~ExpertExchange() = default;

void ExpertExchange::dispatch(const float* x, std::int64_t x_stride, std::int64_t tokens, const std::int32_t* expert,
                              const float* weight, int top_k, ExpertMap& map) {
  State& s = *state_;
  const std::span routed(expert, static_cast<std::size_t>(tokens * top_k));
  s.count(routed, tokens, top_k, map);
  s.open_slots();
  s.fill(weight, x, x_stride, tokens, top_k);
  s.exchange->post(s.bytes);
}

/// Rows as the experts take them: each once, or once for each of its experts.
void ExpertExchange::State::list_rows() {
  const std::size_t fp32_stride = align_up(hidden * sizeof(float));
  if (bf16_wire) arrived_rows.reserve(received.size() * fp32_stride);
  for (std::size_t i = 0; i < received.size(); ++i) {
    const std::byte* row = received[i];
    if (bf16_wire) {
      auto* wide = at<float>(arrived_rows.data(), i * fp32_stride);
      unpack_bf16({reinterpret_cast<const std::uint16_t*>(row), hidden}, wide);
      row = reinterpret_cast<const std::byte*>(wide);
    }
    const std::uint32_t times = kind == Answers::summed ? 1 : received_experts[i];
    for (std::uint32_t n = 0; n < times; ++n) {
      arrived.rows.push_back(row);
      const std::uint32_t experts = kind == Answers::summed ? received_experts[i] : 1;
      arrived.first.push_back(arrived.first.back() + static_cast<std::int32_t>(experts));
    }
  }
}

const DispatchedRows& ExpertExchange::dispatched() {
  State& s = *state_;
  s.exchange->wait();
  DispatchedRows& arrived = s.arrived;
  s.received.clear();
  s.received_experts.clear();
  arrived.rows.clear();
  arrived.results.clear();
  arrived.first.assign(1, 0);
  arrived.expert.clear();
  arrived.weight.clear();
  for (int src = 0; src < s.comm.size(); ++src) s.read_slot(src);
  s.list_rows();

  if (s.bf16_wire) {
    const std::size_t fp32_stride = align_up(s.hidden * sizeof(float));
    s.result_rows.reserve(arrived.rows.size() * fp32_stride);
    for (std::size_t i = 0; i < arrived.rows.size(); ++i)
      arrived.results.push_back(s.result_rows.data() + i * fp32_stride);
    return arrived;
  }
  // The experts write straight into the slots of the answer.
  for (std::size_t src = 0; src < s.ranks; ++src) {
    if (s.rows_from[src] == 0) continue;
    std::byte* slot = s.exchange->outgoing(static_cast<int>(src), s.rows_from[src] * s.row_stride).data();
    for (std::uint32_t row = 0; row < s.rows_from[src]; ++row) arrived.results.push_back(slot + row * s.row_stride);
  }
  return arrived;
}

void ExpertExchange::combine() {
  State& s = *state_;
  const std::byte* const* result = reinterpret_cast<const std::byte* const*>(s.arrived.results.data());
  for (std::size_t src = 0; src < s.ranks; ++src) {
    s.bytes[src] = s.rows_from[src] * s.row_stride;
    if (!s.bf16_wire || s.rows_from[src] == 0) continue;
    std::byte* slot = s.exchange->outgoing(static_cast<int>(src), s.bytes[src]).data();
    for (std::uint32_t row = 0; row < s.rows_from[src]; ++row, ++result)
      s.write_row(reinterpret_cast<const float*>(*result), slot + row * s.row_stride);
  }
  s.exchange->post(s.bytes);
}

void ExpertExchange::combined(float* out, std::int64_t out_stride) {
  State& s = *state_;
  s.exchange->wait();
  for (int rank = 0; rank < s.comm.size(); ++rank) {
    const auto& sent = s.to[static_cast<std::size_t>(rank)];
    if (s.exchange->incoming(rank).size() != s.answered(sent) * s.row_stride)
      fail("expert exchange: rank {} answered {} bytes to {} rows of rank {}", rank, s.exchange->incoming(rank).size(),
           s.answered(sent), s.comm.rank());
  }
  for (std::size_t t = 0; t + 1 < s.first_answer.size(); ++t) {
    float* row = out + static_cast<std::int64_t>(t) * out_stride;
    for (std::uint32_t a = s.first_answer[t]; a < s.first_answer[t + 1]; ++a) {
      const auto [rank, index] = s.answers[a];
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
