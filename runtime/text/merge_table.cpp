#include "runtime/text/merge_table.h"

#include <algorithm>
#include <array>
#include <bit>
#include <queue>

namespace shoal::text {
namespace {

/// Up to this many symbols, scanning all pairs for the best one beats keeping a heap.
constexpr size_t kShort = 48;

}  // namespace

size_t MergeTable::slot_of(uint64_t pair) const {
  size_t slot = static_cast<size_t>(pair * 0x9E3779B97F4A7C15u >> shift_);
  while (slots_[slot].pair != pair && slots_[slot].pair != kEmpty) slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

void MergeTable::reserve(size_t count) {
  const size_t wanted = std::bit_ceil(std::max<size_t>(16, count * 2));
  if (wanted <= slots_.size()) return;
  std::vector<Slot> old(wanted);
  old.swap(slots_);
  shift_ = 64 - std::countr_zero(wanted);
  for (const Slot& slot : old)
    if (slot.pair != kEmpty) slots_[slot_of(slot.pair)] = slot;
}

void MergeTable::set(int32_t left, int32_t right, Merge merge) {
  reserve(count_ + 1);
  Slot& slot = slots_[slot_of(pair_of(left, right))];
  if (slot.pair == kEmpty) ++count_;
  slot = {pair_of(left, right), merge};
}

Merge MergeTable::find(int32_t left, int32_t right) const {
  if (slots_.empty()) return {};
  return slots_[slot_of(pair_of(left, right))].merge;  // an empty slot holds "no merge"
}

void MergeTable::apply(std::vector<int32_t>& symbols) const {
  if (symbols.size() < 2) return;
  if (symbols.size() <= kShort)
    apply_short(symbols);
  else
    apply_long(symbols);
}

void MergeTable::apply_short(std::vector<int32_t>& symbols) const {
  std::array<Merge, kShort> merges;  // of symbol i with its right neighbour
  size_t count = symbols.size();
  for (size_t i = 0; i + 1 < count; ++i) merges[i] = find(symbols[i], symbols[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i)
      if (merges[i].rank < merges[best].rank) best = i;
    if (!merges[best].exists()) break;
    symbols[best] = merges[best].result;
    for (size_t i = best + 1; i + 1 < count; ++i) {
      symbols[i] = symbols[i + 1];
      merges[i] = merges[i + 1];
    }
    --count;
    if (best > 0) merges[best - 1] = find(symbols[best - 1], symbols[best]);
    if (best + 1 < count) merges[best] = find(symbols[best], symbols[best + 1]);
  }
  symbols.resize(count);
}

void MergeTable::apply_long(std::vector<int32_t>& symbols) const {
  // A doubly linked list over the symbols; a merged symbol takes the left one's place and the right one is marked gone.
  constexpr int32_t kGone = -1;
  const size_t none = symbols.size();
  std::vector<uint32_t> next(symbols.size()), previous(symbols.size());
  struct Candidate {
    uint32_t rank, left;
    int32_t left_symbol, right_symbol;
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  std::vector<Candidate> initial;
  const auto candidate = [&](size_t left, size_t right, auto&& add) {
    const Merge merge = find(symbols[left], symbols[right]);
    if (merge.exists()) add(Candidate{merge.rank, static_cast<uint32_t>(left), symbols[left], symbols[right]});
  };
  for (size_t i = 0; i < symbols.size(); ++i) {
    next[i] = static_cast<uint32_t>(i + 1);
    previous[i] = static_cast<uint32_t>(i == 0 ? none : i - 1);
    if (i + 1 < symbols.size()) candidate(i, i + 1, [&](const Candidate& c) { initial.push_back(c); });
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue({}, std::move(initial));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    const size_t left = top.left;
    if (symbols[left] != top.left_symbol) continue;  // merged since
    const size_t right = next[left];
    if (right == none || symbols[right] != top.right_symbol) continue;
    symbols[left] = find(top.left_symbol, top.right_symbol).result;
    symbols[right] = kGone;
    next[left] = next[right];
    if (next[left] != none) {
      previous[next[left]] = top.left;
      candidate(left, next[left], [&](const Candidate& c) { queue.push(c); });
    }
    if (previous[left] != none) candidate(previous[left], left, [&](const Candidate& c) { queue.push(c); });
  }
  std::erase(symbols, kGone);
}

}  // namespace shoal::text
