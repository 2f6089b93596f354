#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "collectives/communicator.h"

namespace shoal {

/// A copy of an expert: where it is, its index in that rank's own list of experts, and the part of the expert's tokens
/// that go there.
struct ExpertReplica {
  std::int32_t rank = 0, local = 0;
  float share = 1;
};

/// Where each routed expert of one layer lives.
struct ExpertMap {
  std::vector<std::vector<ExpertReplica>> replicas;  // [n_routed_experts], shares of each adding up to one
  std::vector<std::uint32_t> turn;                   // [n_routed_experts] tokens that this rank has sent it

  explicit ExpertMap(std::vector<std::vector<ExpertReplica>> r = {}) : replicas(std::move(r)), turn(replicas.size()) {}

  /// Where the next token for `expert` goes from rank `from`. The choice walks through the unit interval, in which each
  /// replica has its share, by the golden ratio (Knuth, The Art of Computer Programming 3, section 6.4): whatever the
  /// number of tokens, a replica has had its share of them within a few, and ranks that send one token each at the same
  /// time spread over the replicas just as well. Null: nobody holds it.
  const ExpertReplica* next(std::int32_t expert, int from);
};

/// What a rank answers to a token whose experts it holds.
enum class Answers {
  summed,  // one row, the weighted sum of its experts there: the least traffic. The bits of the answer depend on which
           // experts share a rank.
  by_expert  // a row for each of its experts, added by the token's rank in the order of the experts' ids: the answer is
             // the same, bit for bit, wherever the experts are, and on however many ranks
};

/// Rows that other ranks (and this one) sent here for the experts of this rank. Views into receive memory, read in
/// place; valid until the combine of the same exchange was waited for. Where answers go by expert, a token is here once
/// for each of its experts.
struct DispatchedRows {
  std::vector<const std::byte*> rows;  // [n] row_bytes each, 4-byte aligned at least
  std::vector<std::byte*> results;     // [n] where the expert side writes the row's result, result_bytes each
  std::vector<std::int32_t> first;     // [n + 1] into expert, weight
  std::vector<std::int32_t> expert;    // local expert ids, ascending within a row
  std::vector<float> weight;
};

/// The expert-parallel exchange of one MoE layer: a token travels once to each rank that it needs an expert of, with
/// the ids and weights of all its experts there; the rank answers as `Answers` says. Every rank takes part in every
/// exchange, with no tokens too. Summed answers are added in ascending order of ranks.
class ExpertExchange {
 public:
  /// hidden: floats in a row; rows travel as FP32 (`bf16_wire` false) or as BF16.
  ExpertExchange(Communicator& comm, int hidden, bool bf16_wire, Answers answers = Answers::summed);
  ~ExpertExchange();

  /// Sends x [tokens, hidden] (rows `x_stride` floats apart) where expert [tokens, top_k] (global ids, ascending; a row
  /// may hold -1 for "none") says. Returns at once; other work may run before dispatched().
  void dispatch(const float* x, std::int64_t x_stride, std::int64_t tokens, const std::int32_t* expert,
                const float* weight, int top_k, ExpertMap& map);
  /// Waits for all ranks' tokens. Rows arrive as FP32 here whatever the wire.
  const DispatchedRows& dispatched();
  /// Sends the results back, once they were written. Returns at once.
  void combine();
  /// Waits for the answers and adds them: out [tokens, hidden] (rows `out_stride` apart) += sum over ranks.
  void combined(float* out, std::int64_t out_stride);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace shoal
