#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "collectives/communicator.h"

namespace shoal {

/// Where each routed expert of one layer lives: rank_of[e] and its index in that rank's own list of experts.
struct ExpertMap {
  std::vector<std::int32_t> rank_of;   // [n_routed_experts]
  std::vector<std::int32_t> local_of;  // [n_routed_experts]
};

/// Rows that other ranks (and this one) sent here for the experts of this rank. Views into receive memory, read in
/// place; valid until the combine of the same exchange was waited for.
struct DispatchedRows {
  std::vector<const std::byte*> rows;  // [n] row_bytes each, 4-byte aligned at least
  std::vector<std::byte*> results;     // [n] where the expert side writes the row's result, result_bytes each
  std::vector<std::int32_t> first;     // [n + 1] into expert, weight
  std::vector<std::int32_t> expert;    // local expert ids, ascending within a row
  std::vector<float> weight;
};

/// The expert-parallel exchange of one MoE layer: a token travels once to each rank that holds one of its experts, with
/// the ids and weights of all its experts there; the rank answers with one row, already the weighted sum.
/// Every rank takes part in every exchange, with no tokens too. The answer's ranks are added in ascending order.
class ExpertExchange {
 public:
  /// hidden: floats in a row; rows travel as FP32 (`bf16_wire` false) or as BF16.
  ExpertExchange(Communicator& comm, int hidden, bool bf16_wire);
  ~ExpertExchange();

  /// Sends x [tokens, hidden] (rows `x_stride` floats apart) where expert [tokens, top_k] (global ids, ascending; a row
  /// may hold -1 for "none") says. Returns at once; other work may run before dispatched().
  void dispatch(const float* x, std::int64_t x_stride, std::int64_t tokens, const std::int32_t* expert,
                const float* weight, int top_k, const ExpertMap& map);
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
