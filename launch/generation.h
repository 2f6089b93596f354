#pragma once
#include <cstdint>
#include <functional>
#include <memory>

#include "launch/answer_stream.h"
#include "launch/request_metrics.h"
#include "runtime/coordinator.h"

namespace shoal {

/// Where answers come from: the coordinator, or something simpler in tests.
struct Generator {
  std::function<std::uint64_t(GenerationRequest, EventSink)> submit;
  std::function<void(std::uint64_t)> cancel;
};
Generator generator_of(Coordinator& coordinator);

/// A request under way.
class Generation {
 public:
  virtual ~Generation() = default;
  /// Ends it, if it has not ended: the last delta comes soon, with FinishReason::cancelled. Thread-safe.
  virtual void cancel() = 0;
};

/// Where the answer goes, in order. The stream knows the counts.
using AnswerSink = std::function<void(const AnswerDelta&, const AnswerStream&)>;

/// Runs requests and turns their tokens into text on one thread of its own, so that the coordinator's is free for the
/// next step whatever is done with the answers.
class GenerationService {
 public:
  /// tokenizer and metrics may be null.
  GenerationService(Generator generator, std::shared_ptr<const Tokenizer> tokenizer,
                    std::shared_ptr<RequestMetrics> metrics = nullptr);
  /// Sinks are not called any more.
  ~GenerationService();

  /// Throws what the coordinator's submit throws. The sink is called on the service's thread, until a delta with a
  /// finish reason; it must not wait for other answers. The request runs on if the returned handle is dropped.
  std::shared_ptr<Generation> start(GenerationRequest request, AnswerOptions options, AnswerSink sink);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace shoal
