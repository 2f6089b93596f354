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
/// A slot of the combine holds only the answers, in the order of the rows: the sender knows which tokens they are for.
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
  const std::size_t row_bytes, row_stride;  // on the wire
  const std::size_t ranks;
  std::unique_ptr<AllToAll> exchange;  // dispatch and combine take turns on it

  /// A rank that a token goes to, and which of the rows sent there it is.
  struct Answer {
    std::uint32_t rank, row;
  };
  /// What this rank has put into the slot for another one.
  struct Outgoing {
    std::uint32_t rows = 0, experts = 0;
    std::uint32_t next_row = 0, next_expert = 0;  // while the slot is filled
    std::uint32_t* n_experts = nullptr;
    std::int32_t* expert = nullptr;
    float* weight = nullptr;
    std::byte* row = nullptr;
  };
  std::vector<Outgoing> to;                 // [ranks]
  std::vector<Answer> answers;              // tokens in order, ranks ascending within a token
  std::vector<std::uint32_t> first_answer;  // [tokens + 1]
  std::vector<std::size_t> bytes;           // [ranks]
  std::vector<std::uint32_t> rows_from;     // [ranks]
  std::vector<std::uint64_t> last_token;    // [ranks] 1 + the last token seen for the rank, while counting
  std::vector<std::uint32_t> token_ranks;   // of one token
  DispatchedRows arrived;
  AlignedBuffer arrived_rows, result_rows;  // FP32 forms of what travels as BF16

  State(Communicator& communicator, int hidden_floats, bool bf16)
      : comm(communicator),
        hidden(static_cast<std::size_t>(hidden_floats)),
        bf16_wire(bf16),
        row_bytes(hidden * (bf16 ? 2 : 4)),
        row_stride(align_up(row_bytes)),
        ranks(static_cast<std::size_t>(comm.size())),
        exchange(comm.make_all_to_all()),
        to(ranks),
        bytes(ranks),
        rows_from(ranks),
        last_token(ranks) {}

  struct Target {
    std::uint32_t rank;
    std::int32_t local;
  };
  Target target(const ExpertMap& map, std::int32_t expert) const {
    const auto e = static_cast<std::size_t>(expert);
    if (e >= map.rank_of.size() || static_cast<std::uint32_t>(map.rank_of[e]) >= ranks)
      fail("expert exchange: rank {} routed a token to expert {}, which no rank holds", comm.rank(), expert);
    return {static_cast<std::uint32_t>(map.rank_of[e]), map.local_of[e]};
  }

  void count(std::span<const std::int32_t> expert, std::int64_t tokens, int top_k, const ExpertMap& map);
  void open_slots();
  void fill(std::span<const std::int32_t> expert, const float* weight, const float* x, std::int64_t x_stride,
            std::int64_t tokens, int top_k, const ExpertMap& map);
  void read_slot(int src);
  void write_row(const float* from, std::byte* to_row) const {
    if (bf16_wire)
      pack_bf16({from, hidden}, reinterpret_cast<std::uint16_t*>(to_row));
    else
      std::memcpy(to_row, from, row_bytes);
  }
};

/// Which ranks each token goes to, and how much goes to each rank.
void ExpertExchange::State::count(std::span<const std::int32_t> expert, std::int64_t tokens, int top_k,
                                  const ExpertMap& map) {
  std::fill(to.begin(), to.end(), Outgoing{});
  std::fill(last_token.begin(), last_token.end(), 0);
  answers.clear();
  first_answer.assign(1, 0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    token_ranks.clear();
    for (const std::int32_t e : expert.subspan(static_cast<std::size_t>(t * top_k), static_cast<std::size_t>(top_k))) {
      if (e < 0) continue;
      const std::uint32_t rank = target(map, e).rank;
      ++to[rank].experts;
      if (last_token[rank] == static_cast<std::uint64_t>(t) + 1) continue;
      last_token[rank] = static_cast<std::uint64_t>(t) + 1;
      token_ranks.push_back(rank);
    }
    std::sort(token_ranks.begin(), token_ranks.end());
    for (const std::uint32_t rank : token_ranks) answers.push_back({rank, to[rank].rows++});
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

void ExpertExchange::State::fill(std::span<const std::int32_t> expert, const float* weight, const float* x,
                                 std::int64_t x_stride, std::int64_t tokens, int top_k, const ExpertMap& map) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto n = static_cast<std::size_t>(t);
    for (int k = 0; k < top_k; ++k) {
      const auto entry = static_cast<std::size_t>(t * top_k + k);
      if (expert[entry] < 0) continue;
      const Target there = target(map, expert[entry]);
      Outgoing& o = to[there.rank];
      // Insertion keeps local ids ascending: a plan may number a rank's experts in any order.
      std::uint32_t i = o.next_expert + o.n_experts[o.next_row]++;
      for (; i > o.next_expert && o.expert[i - 1] > there.local; --i) {
        o.expert[i] = o.expert[i - 1];
        o.weight[i] = o.weight[i - 1];
      }
      o.expert[i] = there.local;
      o.weight[i] = weight[entry];
    }
    for (std::uint32_t a = first_answer[n]; a < first_answer[n + 1]; ++a) {
      Outgoing& o = to[answers[a].rank];
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
  rows_from[static_cast<std::size_t>(src)] = header.rows;
  const auto* n_experts = at<std::uint32_t>(slot.data(), layout.n_experts);
  for (std::uint32_t row = 0; row < header.rows; ++row) {
    arrived.rows.push_back(slot.data() + layout.rows + row * row_stride);
    arrived.first.push_back(arrived.first.back() + static_cast<std::int32_t>(n_experts[row]));
  }
  const auto* expert = at<std::int32_t>(slot.data(), layout.expert);
  const auto* weight = at<float>(slot.data(), layout.weight);
  arrived.expert.insert(arrived.expert.end(), expert, expert + header.experts);
  arrived.weight.insert(arrived.weight.end(), weight, weight + header.experts);
  if (arrived.first.back() != static_cast<std::int32_t>(arrived.expert.size()))
    fail("expert exchange: rank {} sent rows whose experts do not add up to {}", src, header.experts);
}

ExpertExchange::ExpertExchange(Communicator& comm, int hidden, bool bf16_wire)
    : state_(std::make_unique<State>(comm, hidden, bf16_wire)) {}
ExpertExchange::~ExpertExchange() = default;

void ExpertExchange::dispatch(const float* x, std::int64_t x_stride, std::int64_t tokens, const std::int32_t* expert,
                              const float* weight, int top_k, const ExpertMap& map) {
  State& s = *state_;
  const std::span routed(expert, static_cast<std::size_t>(tokens * top_k));
  s.count(routed, tokens, top_k, map);
  s.open_slots();
  s.fill(routed, weight, x, x_stride, tokens, top_k, map);
  s.exchange->post(s.bytes);
}

const DispatchedRows& ExpertExchange::dispatched() {
  State& s = *state_;
  s.exchange->wait();
  DispatchedRows& arrived = s.arrived;
  arrived.rows.clear();
  arrived.results.clear();
  arrived.first.assign(1, 0);
  arrived.expert.clear();
  arrived.weight.clear();
  for (int src = 0; src < s.comm.size(); ++src) s.read_slot(src);

  const std::size_t fp32_stride = align_up(s.hidden * sizeof(float));
  if (s.bf16_wire) {
    s.arrived_rows.reserve(arrived.rows.size() * fp32_stride);
    s.result_rows.reserve(arrived.rows.size() * fp32_stride);
    for (std::size_t i = 0; i < arrived.rows.size(); ++i) {
      auto* row = at<float>(s.arrived_rows.data(), i * fp32_stride);
      unpack_bf16({reinterpret_cast<const std::uint16_t*>(arrived.rows[i]), s.hidden}, row);
      arrived.rows[i] = reinterpret_cast<const std::byte*>(row);
      arrived.results.push_back(s.result_rows.data() + i * fp32_stride);
    }
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
    if (s.exchange->incoming(rank).size() != sent.rows * s.row_stride)
      fail("expert exchange: rank {} answered {} bytes to {} rows of rank {}", rank, s.exchange->incoming(rank).size(),
           sent.rows, s.comm.rank());
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
