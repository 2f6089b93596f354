#include "kernels/cuda/repetition.h"

namespace shoal::cuda {

void Repetition::run(const Key& key, const std::function<std::uint64_t()>& brought, const std::function<void()>& work) {
  if (!possible_) return work();
  if (allocated_ != DeviceBlock::allocated()) forget();
  Entry& of_key = entry(key);
  if (!of_key.executable && of_key.repeatable) {
    if (capture(of_key, work)) {
      graphs_.splice(graphs_.begin(), seen_, seen_.begin());
      shorten(graphs_, most_);
    } else {
      possible_ = false;
    }
  }
  if (of_key.executable) {
    check(cudaGraphLaunch(of_key.executable, stream_), "launching a CUDA graph");
    return;
  }
  const std::uint64_t before = brought();
  work();
  const std::uint64_t allocated = DeviceBlock::allocated();
  of_key.repeatable = before == brought() && allocated_ == allocated;
}

Repetition::Entry& Repetition::entry(const Key& key) {
  if (const auto found = found_.find(key); found != found_.end()) {
    Entries& list = found->second->executable ? graphs_ : seen_;
    list.splice(list.begin(), list, found->second);
    return list.front();
  }
  seen_.push_front({.key = key});
  found_[key] = seen_.begin();
  shorten(seen_, kMostSeen);
  return seen_.front();
}

void Repetition::shorten(Entries& entries, std::size_t most) {
  if (entries.size() <= most) return;
  if (entries.back().executable) static_cast<void>(cudaGraphExecDestroy(entries.back().executable));
  found_.erase(entries.back().key);
  entries.pop_back();
}

bool Repetition::capture(Entry& to, const std::function<void()>& work) {
  check(cudaGetLastError(), "the GPU's work");  // of before, or it would count against what follows
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
  const bool launched = cudaGetLastError() == cudaSuccess;  // else the graph lacks a kernel
  const bool captured = cudaStreamEndCapture(stream_, &graph) == cudaSuccess && launched;
  cudaGraphExec_t executable = nullptr;
  if (captured && cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess) to.executable = executable;
  if (graph) static_cast<void>(cudaGraphDestroy(graph));
  // What does not work by hand either says so then.
  if (!to.executable) static_cast<void>(cudaGetLastError());
  return to.executable != nullptr;
}

void Repetition::forget() {
  for (const Entry& entry : graphs_) static_cast<void>(cudaGraphExecDestroy(entry.executable));
  graphs_.clear();
  seen_.clear();
  found_.clear();
  allocated_ = DeviceBlock::allocated();
}

}  // namespace shoal::cuda
