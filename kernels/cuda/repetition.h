#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <map>

#include "base/cuda/memory.h"

namespace shoal::cuda {

/// Launches that come again and again, as CUDA graphs: one launch instead of all, which costs a decode step less than
/// the launches do. Under a key the first time is by hand, and shows whether it can be repeated at all (nothing was
/// brought from the host, no memory was made); the second time is captured; from then on the graph is launched. When
/// any device memory has been made since, rows may lie elsewhere: everything is forgotten.
class Repetition {
 public:
  using Key = std::array<std::int64_t, 8>;

  explicit Repetition(cudaStream_t stream) : stream_(stream) {}
  ~Repetition() { forget(); }
  Repetition(const Repetition&) = delete;
  Repetition& operator=(const Repetition&) = delete;

  /// `brought`: a count that grows when something is brought from the host.
  void run(const Key& key, const std::function<std::uint64_t()>& brought, const std::function<void()>& work);

 private:
  struct Recorded {
    bool repeatable = false;
    cudaGraphExec_t executable = nullptr;
  };
  void forget();
  /// False where the driver does not want to; then none of `work` is done.
  bool capture(Recorded& to, const std::function<void()>& work);

  static constexpr std::size_t kMost = 8192;  // some 20 KB each
  cudaStream_t stream_;
  std::map<Key, Recorded> recorded_;
  std::uint64_t allocated_ = 0;
  bool possible_ = true;
};

}  // namespace shoal::cuda
