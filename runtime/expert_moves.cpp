#include "runtime/expert_moves.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "base/error.h"
#include "planner/placement.h"

namespace shoal {
namespace {

/// How the elements of a matrix are stored, for another process to find the same.
struct Storage {
  enum class Kind : std::int32_t { plain, stored, integers } kind = Kind::plain;
  DType dtype = DType::f32;   // plain
  char format[16] = {};       // stored: a name in kernels/formats
  int bits = 0, columns = 0;  // integers
  Scales scales = Scales::half;
  bool zeros = false;
  float zero = 0;  // of all rows, where they have none of their own

  static Storage of(const Matrix& m) {
    Storage s;
    if (!m.format()) {
      s.dtype = m.dtype();
    } else if (m.format()->stored) {
      s.kind = Kind::stored;
      m.format()->stored->name.copy(s.format, sizeof s.format - 1);
    } else {
      const PackedFormat& f = *m.format();
      s.kind = Kind::integers;
      s.bits = f.bits, s.columns = f.columns, s.scales = f.scales, s.zeros = f.zeros, s.zero = f.offset;
    }
    return s;
  }

  Matrix matrix(std::int64_t rows, std::int64_t cols) const {
    if (kind == Kind::plain) return {dtype, rows, cols};
    if (kind == Kind::integers)
      return {integer_format(bits, scales, columns, zeros ? std::nullopt : std::optional(static_cast<int>(zero))), rows,
              cols};
    const QuantFormat* known = find_format(format);
    const PackedFormat* packed = known ? packed_format(*known) : nullptr;
    if (!packed) fail("an expert that moved is of the type {}, which this rank does not know", format);
    return {*packed, rows, cols};
  }
};

/// What is written before the bytes of a packed matrix, its scales and its order of columns.
struct MatrixHeader {
  std::int64_t rows = 0, cols = 0, packed_bytes = 0, scales = 0, order = 0;
  std::int32_t block_rows = 0, block_cols = 0;
  Storage storage;
};

std::size_t wire_bytes(const Matrix& m) {
  return sizeof(MatrixHeader) + m.packed().size() + m.scales().values.size() * sizeof(float) +
         m.order().size() * sizeof(std::int32_t);
}

std::byte* put(std::byte* to, const void* from, std::size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return to + bytes;
}

std::byte* write(const Matrix& m, std::byte* to) {
  const MatrixHeader header{.rows = m.rows(),
                            .cols = m.cols(),
                            .packed_bytes = std::ssize(m.packed()),
                            .scales = std::ssize(m.scales().values),
                            .order = std::ssize(m.order()),
                            .block_rows = m.scales().block_rows,
                            .block_cols = m.scales().block_cols,
                            .storage = Storage::of(m)};
  to = put(to, &header, sizeof header);
  to = put(to, m.packed().data(), m.packed().size());
  to = put(to, m.scales().values.data(), m.scales().values.size() * sizeof(float));
  return put(to, m.order().data(), m.order().size() * sizeof(std::int32_t));
}

Matrix read(std::span<const std::byte>& from) {
  const auto take = [&](void* to, std::size_t bytes) {
    if (from.size() < bytes) fail("an expert that moved is cut off");
    if (bytes > 0) std::memcpy(to, from.data(), bytes);
    from = from.subspan(bytes);
  };
  MatrixHeader header;
  take(&header, sizeof header);
  Matrix m = header.storage.matrix(header.rows, header.cols);
  const auto packed_bytes = static_cast<std::size_t>(header.packed_bytes);
  if (from.size() < packed_bytes) fail("an expert that moved is cut off");
  m.set_packed(from.first(packed_bytes));
  from = from.subspan(packed_bytes);
  BlockScales scales{{}, header.block_rows, header.block_cols};
  scales.values.resize(static_cast<std::size_t>(header.scales));
  take(scales.values.data(), scales.values.size() * sizeof(float));
  m.set_scales(std::move(scales));
  std::vector<std::int32_t> order(static_cast<std::size_t>(header.order));
  take(order.data(), order.size() * sizeof(std::int32_t));
  m.set_order(std::move(order));
  return m;
}

/// An expert's way from a rank to another.
struct Move {
  std::int32_t expert, from, to;
};

/// Whether a rank has an expert under a placement.
bool places(const LayerPlacement& placement, std::int32_t expert, std::int32_t rank) {
  return std::ranges::any_of(placement[static_cast<std::size_t>(expert)],
                             [&](const Replica& r) { return r.rank == rank; });
}

/// Every replica that is new, from the rank that has the fewest to send.
std::vector<Move> moves_between(const ExpertMap& now, const LayerPlacement& then, int ranks) {
  std::vector<Move> moves;
  std::vector<int> sends(static_cast<std::size_t>(ranks));
  for (std::size_t e = 0; e < then.size(); ++e) {
    const auto& holders = now.replicas[e];
    for (const Replica& wanted : then[e]) {
      if (std::ranges::any_of(holders, [&](const ExpertReplica& r) { return r.rank == wanted.rank; })) continue;
      const auto& source = *std::ranges::min_element(
          holders, {}, [&](const ExpertReplica& r) { return sends[static_cast<std::size_t>(r.rank)]; });
      ++sends[static_cast<std::size_t>(source.rank)];
      moves.push_back({static_cast<std::int32_t>(e), source.rank, wanted.rank});
    }
  }
  return moves;
}

/// The moves of one exchange: of those left, as many as there are ranks that neither send nor receive twice.
std::vector<Move> next_round(std::vector<Move>& left, int ranks) {
  std::vector<bool> sends(static_cast<std::size_t>(ranks)), receives(static_cast<std::size_t>(ranks));
  std::vector<Move> round;
  std::erase_if(left, [&](const Move& m) {
    const auto from = static_cast<std::size_t>(m.from), to = static_cast<std::size_t>(m.to);
    if (sends[from] || receives[to]) return false;
    sends[from] = receives[to] = true;
    round.push_back(m);
    return true;
  });
  return round;
}

}  // namespace

ExpertMap expert_map(const LayerPlacement& placement) {
  std::map<std::int32_t, std::int32_t> held;
  std::vector<std::vector<ExpertReplica>> replicas(placement.size());
  for (std::size_t e = 0; e < placement.size(); ++e)
    for (const Replica& r : placement[e]) replicas[e].push_back({r.rank, held[r.rank]++, r.share});
  return ExpertMap(std::move(replicas));
}

ExpertMap slice_map(int experts, int ranks) {
  std::vector<std::vector<ExpertReplica>> replicas;
  for (int e = 0; e < experts; ++e)
    for (int r = 0; r < ranks; ++r) replicas.push_back({{r, e, 1}});
  return ExpertMap(std::move(replicas));
}

void move_experts(MoeWeights& weights, const LayerPlacement& placement, Communicator& comm, Backend& backend) {
  if (placement.size() != weights.map.replicas.size())
    fail("a layer of {} experts cannot be placed as one of {}", weights.map.replicas.size(), placement.size());
  const std::int32_t me = comm.rank();
  std::map<std::int32_t, FeedForward> mine;  // by global id
  for (std::size_t e = 0; e < placement.size(); ++e)
    for (const ExpertReplica& r : weights.map.replicas[e])
      if (r.rank == me)
        mine[static_cast<std::int32_t>(e)] = std::move(weights.experts[static_cast<std::size_t>(r.local)]);
  weights.experts.clear();

  std::vector<Move> left = moves_between(weights.map, placement, comm.size());
  if (!left.empty()) {
    const auto exchange = comm.make_all_to_all();
    std::vector<std::size_t> bytes(static_cast<std::size_t>(comm.size()));
    while (!left.empty()) {
      const std::vector<Move> round = next_round(left, comm.size());
      std::ranges::fill(bytes, 0);
      for (const Move& move : round) {
        if (move.from != me) continue;
        const FeedForward& expert = mine.at(move.expert);
        FeedForward fetched;
        if (expert.gate.placed())
          fetched = {backend.fetch(expert.gate), backend.fetch(expert.up), backend.fetch(expert.down)};
        const FeedForward& here = expert.gate.placed() ? fetched : expert;
        const std::size_t n = wire_bytes(here.gate) + wire_bytes(here.up) + wire_bytes(here.down);
        std::byte* to = exchange->outgoing(move.to, n).data();
        for (const Matrix* m : {&here.gate, &here.up, &here.down}) to = write(*m, to);
        bytes[static_cast<std::size_t>(move.to)] = n;
      }
      exchange->post(bytes);
      exchange->wait();
      for (const Move& move : round) {
        if (move.to != me) continue;
        std::span<const std::byte> from = exchange->incoming(move.from);
        FeedForward& expert = mine[move.expert];
        for (Matrix* m : {&expert.gate, &expert.up, &expert.down}) {
          *m = read(from);
          backend.place(*m);
        }
      }
      std::erase_if(mine, [&](const auto& held) {  // sent for the last time
        return !places(placement, held.first, me) &&
               std::ranges::none_of(left, [&](const Move& m) { return m.from == me && m.expert == held.first; });
      });
    }
  }

  weights.map = expert_map(placement);
  for (auto& [expert, matrices] : mine)
    if (places(placement, expert, me)) weights.experts.push_back(std::move(matrices));
}

}  // namespace shoal
