#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <list>
#include <map>

#include "base/cuda/memory.h"

namespace shoal::cuda {

/// Launches that come again and again, as CUDA graphs: one launch instead of all, which costs a decode step less than
/// the launches do. Under a key the first time is by hand, and shows whether it can be repeated at all (nothing was
/// brought from the host, no memory was made); the second time is captured; from then on the graph is launched. When
/// any device memory has been made since, rows may lie elsewhere: everything is forgotten. Where there are too many,
/// what was not asked for the longest goes.
class Repetition {
 public:
  using Key = std::array<std::int64_t, 8>;

  /// `most`: graphs kept; for each, CUDA keeps some 40 KB (an estimate).
  explicit Repetition(cudaStream_t stream, std::size_t most = 4096) : stream_(stream), most_(most) {}
  ~Repetition() { forget(); }
  Repetition(const Repetition&) = delete;
  Repetition& operator=(const Repetition&) = delete;

  /// `brought`: a count that grows when something is brought from the host.
  void run(const Key& key, const std::function<std::uint64_t()>& brought, const std::function<void()>& work);
  /// Nothing is repeated before it was seen again. CUDA frees a graph that still runs once it has.
  void forget();

 private:
  struct Entry {
    Key key{};
    bool repeatable = false;
    cudaGraphExec_t executable = nullptr;
  };
  using Entries = std::list<Entry>;  // the one asked for last is the first
  /// Now the first of its list.
  Entry& entry(const Key& key);
  /// Of lists longer than `most` the last one.
  void shorten(Entries& entries, std::size_t most);
  /// False where the driver does not want to, or a launch failed; then none of `work` is done.
  bool capture(Entry& to, const std::function<void()>& work);

  static constexpr std::size_t kMostSeen = 65536;  // some 200 bytes each, on the host
  cudaStream_t stream_;
  std::size_t most_;
  Entries seen_, graphs_;  // without and with an executable
  std::map<Key, Entries::iterator> found_;
  std::uint64_t allocated_ = 0;
  bool possible_ = true;
};

}  // namespace shoal::cuda
