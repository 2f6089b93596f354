#pragma once
#include <cstdint>
#include <memory>
#include <string>

namespace shoal {

/// A line on the terminal that shows how far long work got: bar, bytes, bytes/s, time left. Redrawn a few times a
/// second; where stderr is no terminal, a plain line every ten seconds. Silent for work that ends within half a second.
class Progress {
 public:
  Progress(std::string what, std::uint64_t total_bytes, bool enabled = true);
  ~Progress();
  /// Thread-safe.
  void add(std::uint64_t bytes);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
