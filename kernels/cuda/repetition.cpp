#include "kernels/cuda/repetition.h"

namespace shoal::cuda {

void Repetition::run(const Key& key, const std::function<std::uint64_t()>& brought, const std::function<void()>& work) {
  if (!possible_) return work();
  if (allocated_ != DeviceBlock::allocated() || recorded_.size() >= kMost) forget();
  Recorded& recorded = recorded_[key];
  if (!recorded.executable && recorded.repeatable && !capture(recorded, work)) possible_ = false;
  if (recorded.executable) {
    check(cudaGraphLaunch(recorded.executable, stream_), "launching a CUDA graph");
    return;
  }
  const std::uint64_t before = brought();
  work();
  const std::uint64_t allocated = DeviceBlock::allocated();
  recorded.repeatable = before == brought() && allocated_ == allocated;
}

bool Repetition::capture(Recorded& to, const std::function<void()>& work) {
  // What other threads do with other streams is no concern of this one.
  if (cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return false;
  }
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    static_cast<void>(cudaStreamEndCapture(stream_, &graph));
    if (graph) static_cast<void>(cudaGraphDestroy(graph));
    throw;
  }
  const bool captured = cudaStreamEndCapture(stream_, &graph) == cudaSuccess;
  const bool whole = captured && cudaGraphInstantiate(&to.executable, graph, 0) == cudaSuccess;
  if (graph) static_cast<void>(cudaGraphDestroy(graph));
  static_cast<void>(cudaGetLastError());
  return whole;
}

void Repetition::forget() {
  if (!recorded_.empty()) static_cast<void>(cudaStreamSynchronize(stream_));
  for (auto& [key, recorded] : recorded_)
    if (recorded.executable) static_cast<void>(cudaGraphExecDestroy(recorded.executable));
  recorded_.clear();
  allocated_ = DeviceBlock::allocated();
}

}  // namespace shoal::cuda
