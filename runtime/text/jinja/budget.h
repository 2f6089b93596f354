#pragma once
#include <cstddef>
#include <cstdint>

#include "runtime/text/jinja/fault.h"

namespace shoal::jinja {

/// How much one rendering may do, so that a hostile template ends soon and within bounded memory. It is counted in
/// bytes: those that an operation reads or makes, and for every evaluated node what it may allocate. Values are never
/// changed in place, and what exists was made through work, so the bound on work bounds memory too.
class Budget {
 public:
  /// `input_bytes`: the size of the messages and tools, which honest templates go through a few times.
  explicit Budget(size_t input_bytes) : left_(kBytes + kBytesPerInputByte * input_bytes) {}

  /// Call before doing something to `amount` bytes.
  void work(size_t amount) {
    if (amount > left_) fault("the template takes too many steps or makes too much text");
    left_ -= amount;
  }
  /// The same for `count` times `size` bytes.
  void work(size_t count, size_t size) {
    size_t amount = 0;
    work(__builtin_mul_overflow(count, size, &amount) ? SIZE_MAX : amount);
  }
  void step() { work(kStepBytes); }

  /// Nesting of evaluations in evaluations: each takes room on the machine's stack.
  void enter() {
    if (++depth_ > kDepth) fault("the template nests or recurses too deeply");
  }
  void leave() { --depth_; }

 private:
  static constexpr size_t kBytes = 256u << 20, kBytesPerInputByte = 256, kStepBytes = 64;
  static constexpr int kDepth = 800;
  size_t left_;
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
