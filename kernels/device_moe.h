#pragma once
#include <cstdint>
#include <functional>
#include <span>

#include "kernels/backend.h"
#include "kernels/token_exchange.h"

namespace shoal {

struct DeviceMoeShape {
  ExchangeShape exchange;
  RouterShape router;
  int slices = 1;  // of each expert, which the map has one after the other: all of them get its tokens
  int layers = 0;  // with experts
};

/// MoE layers whose host learns of nothing before the step has ended: what the router chose, what travels between ranks
/// and what each expert has to do stay in the device's memory, so that no launch waits for an answer. What depends on
/// the router's choice has its greatest size then: each rank has a slot on every other for each of its tokens, needed
/// there or not. For few tokens, as when decoding; TokenExchange, which counts, is for many. Answers are the same.
class DeviceMoe {
 public:
  virtual ~DeviceMoe() = default;

  /// The experts of a layer are where `map` says from now on. To be told of each layer before it runs, and again after
  /// experts have moved. Error where nobody holds one.
  virtual void placed(const ExpertMap& map) = 0;

  /// Slots of a step in which this rank has `tokens` tokens, and the one that has most `most_tokens` (0: not known); 0:
  /// it is not for such a step. The same on all ranks, whose layers of the step all go this way or none.
  virtual std::int64_t begin_step(std::int64_t tokens, std::int64_t most_tokens) = 0;

  /// Whether run() may be part of what Backend::repeat() records. (An exchange by NCCL may not: whether it is recorded
  /// must be alike on all ranks, which repeat each for itself.)
  virtual bool repeats() const = 0;

  struct Layer {
    int index;             // among those with experts
    const ExpertMap* map;  // as placed()
    std::span<const float> score_bias;
    std::span<const FeedForward> experts;  // this rank's
  };
  /// out [tokens, hidden] += what the experts make of h, whose scores [tokens, n_experts] are there, once
  /// `meanwhile`, which may set out, was asked for.
  virtual void run(const Layer& layer, Rows<const float> scores, Rows<const float> h, Rows<float> out,
                   const std::function<void()>& meanwhile) = 0;

  /// After the last layer of a step: has chosen() brought to the host.
  virtual void end_step() = 0;
  struct Chosen {
    std::span<const std::int32_t> expert;  // of this rank's tokens, as the router chose; -1: none
    std::int32_t work = 0;                 // how often this rank's experts were gone through
  };
  /// Of a layer of the last step that has ended; waits for it.
  virtual Chosen chosen(int layer) = 0;
};

}  // namespace shoal
