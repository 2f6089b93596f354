#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace shoal::text {

/// What two neighbouring tokens merge into, and how early the merge was learned (lower rank: earlier).
struct Merge {
  uint32_t rank = kNoMerge;
  int32_t result = -1;

  static constexpr uint32_t kNoMerge = UINT32_MAX;
  bool exists() const { return rank != kNoMerge; }
};

/// The learned merges by pair of tokens, and the procedure that applies them.
class MergeTable {
 public:
  /// Makes room for `count` merges.
  void reserve(size_t count);
  /// Adds or replaces a merge.
  void set(int32_t left, int32_t right, Merge merge);
  Merge find(int32_t left, int32_t right) const;

  /// Merges neighbours in `symbols` until no merge applies: always the one of lowest rank, the leftmost among equals.
  /// Takes O(n log n) time.
  void apply(std::vector<int32_t>& symbols) const;

 private:
  struct Slot {
    uint64_t pair = kEmpty;
    Merge merge;
  };
  static constexpr uint64_t kEmpty = UINT64_MAX;
  static uint64_t pair_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t pair) const;
  void apply_short(std::vector<int32_t>& symbols) const;
  void apply_long(std::vector<int32_t>& symbols) const;

  std::vector<Slot> slots_;  // open addressing, a power of two in size
  size_t count_ = 0;
  int shift_ = 0;  // 64 - log2(slots_.size())
};

}  // namespace shoal::text
