#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "collectives/communicator.h"
#include "collectives/dispatch_plan.h"
#include "kernels/expert_batch.h"

namespace shoal {

/// The expert-parallel exchange of one MoE layer: a token travels once to each rank that it needs an expert of, by one
/// hop or two (hops.h), with the ids and weights of all its experts there; the rank answers as `Answers` says. Every
/// rank takes part in every exchange, with no tokens too. Summed answers are added in ascending order of ranks: those
/// of a host first where there are two hops, which rounds their sum to how rows travel.
class ExpertExchange {
 public:
  /// Calls body(begin, end) for ranges that together are [0, rows), `elements` floats, on one or on many threads.
  using RowLoop = std::function<void(std::size_t rows, double elements,
                                     const std::function<void(std::size_t begin, std::size_t end)>& body)>;

  /// hidden: floats in a row; rows travel as FP32 (`bf16_wire` false) or as BF16. ranks_per_host: 0: as the
  /// communicator says; 1: by one hop. for_rows: who copies, rounds and adds rows; empty: the caller alone.
  ExpertExchange(Communicator& comm, int hidden, bool bf16_wire, Answers answers = Answers::summed,
                 int ranks_per_host = 0, RowLoop for_rows = {});
  ~ExpertExchange();

  /// Sends x [tokens, hidden] (rows `x_stride` floats apart) where expert [tokens, top_k] (global ids, ascending; a row
  /// may hold -1 for "none") says. Returns at once; other work may run before dispatched().
  void dispatch(const float* x, std::int64_t x_stride, std::int64_t tokens, const std::int32_t* expert,
                const float* weight, int top_k, ExpertMap& map);
  /// Waits for the rows that all ranks (this one too) sent here, FP32 whatever the wire; where answers go by expert, a
  /// token is here once for each of its experts. Rows are read in place, and outputs written to where they are sent
  /// from; valid until combined().
  const ExpertBatch& dispatched();
  /// Sends the results back, once they were written. Returns at once.
  void combine();
  /// Waits for the answers and adds them: out [tokens, hidden] (rows `out_stride` apart) += sum over ranks.
  void combined(float* out, std::int64_t out_stride);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace shoal
