#pragma once
#include <cstdint>

#include "kernels/backend.h"

namespace shoal {

struct ExpertMap;

struct ExchangeShape {
  int hidden;
  bool bf16_wire;  // rows travel as BF16, else as FP32
  Answers answers;
  /// All experts of the model have E4M3 weights with a scale for 128 x 128. Where products with these round rows to
  /// E4M3, a back end may do so before they travel.
  bool f8_experts = false;
};

/// The exchange of MoE layers between ranks, with rows in the back end's memory (collectives/dispatch_plan.h says which
/// go where). Every rank takes part in every exchange, with no tokens too. Of one layer:
///
///   dispatch(h, ...);  ... other work ...;  batch = dispatched();  arrived();
///   backend.experts(batch, ...);  combine(out);  combined(out);
class TokenExchange {
 public:
  virtual ~TokenExchange() = default;
  /// Whether rows travel by themselves while the back end computes, so that there is something to gain from a second
  /// exchange, for half of the tokens; the same on all ranks.
  virtual bool overlaps() const { return false; }
  /// Sends h [tokens, hidden], which stays as it is, where expert [tokens, top_k] (global ids, ascending; -1: none)
  /// says. Returns at once.
  virtual void dispatch(Rows<float> h, const std::int32_t* expert, const float* weight, int top_k, ExpertMap& map) = 0;
  /// Waits until it is known what came for this rank's experts: valid until the next dispatch().
  virtual const ExpertBatch& dispatched() = 0;
  /// What is asked for from now on finds its rows.
  virtual void arrived() {}
  /// Sends the results back, once they were asked for. Returns at once. `out` [tokens, hidden]: as combined() gets it.
  virtual void combine(Rows<float> out) = 0;
  /// out += the answers, those of a token in the plan's order.
  virtual void combined(Rows<float> out) = 0;
};

}  // namespace shoal
