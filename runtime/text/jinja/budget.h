#pragma once
#include <cstddef>
#include <cstdint>

#include "runtime/text/jinja/fault.h"

namespace shoal::jinja {

/// How much one rendering may do, so that a hostile template ends soon and within bounded memory. Every evaluated node
/// is a step; every byte or item that an operation reads or makes is work. Values are never changed in place and what
/// exists was made through work, so the bound on work bounds memory too.
class Budget {
 public:
  /// `input_bytes`: the size of the messages and tools, which honest templates go through a few times.
  explicit Budget(size_t input_bytes)
      : steps_left_(kSteps + kStepsPerInputByte * input_bytes), work_left_(kWork + kWorkPerInputByte * input_bytes) {}

  void step() {
    if (steps_left_ == 0) fault("the template takes too many steps");
    --steps_left_;
  }
  void work(size_t amount) {
    if (amount > work_left_) fault("the template makes or reads too much data");
    work_left_ -= amount;
  }
  /// Call before making something of `count` times `size` bytes.
  void work(size_t count, size_t size) {
    if (size != 0 && count > SIZE_MAX / size) fault("the template makes or reads too much data");
    work(count * size);
  }

  /// Nesting of evaluations in evaluations: each takes room on the machine's stack.
  void enter() {
    if (++depth_ > kDepth) fault("the template nests or recurses too deeply");
  }
  void leave() { --depth_; }

 private:
  static constexpr size_t kSteps = 10'000'000, kStepsPerInputByte = 16;
  static constexpr size_t kWork = 256u << 20, kWorkPerInputByte = 64;
  static constexpr int kDepth = 800;
  size_t steps_left_;
  size_t work_left_;
  int depth_ = 0;
};

/// Holds one level of a budget's nesting.
class Level {
 public:
  explicit Level(Budget& budget) : budget_(budget) { budget_.enter(); }
  ~Level() { budget_.leave(); }
  Level(const Level&) = delete;
  Level& operator=(const Level&) = delete;

 private:
  Budget& budget_;
};

}  // namespace shoal::jinja
