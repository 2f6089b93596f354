#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

namespace shoal {

/// A fixed team of threads that share loops. The caller is a member of the team (thread 0), so a pool of one runs
/// inline and owns no thread. Members wait by spinning briefly and then sleep, so that more ranks than cores do no
/// harm.
class ThreadPool {
 public:
  /// `cpus`: the logical CPUs to pin members to, one each, taken in order; empty: no pinning. The caller is pinned at
  /// its first loop, and threads it starts later inherit that. Error where the system gives fewer threads.
  explicit ThreadPool(int threads, std::vector<int> cpus = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  /// Calls body(begin, end, thread) for disjoint ranges that cover [0, count); ranges are handed out dynamically,
  /// `grain` items at a time. Returns when all are done. Not reentrant; one caller at a time. What the
  /// body throws, the first of it, is thrown here once no thread is in the body any more.
  void parallel_for(std::size_t count, std::size_t grain,
                    const std::function<void(std::size_t begin, std::size_t end, int thread)>& body);

 private:
  struct Team;
  std::unique_ptr<Team> team_;
};

}  // namespace shoal
