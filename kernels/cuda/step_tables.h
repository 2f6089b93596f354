#pragma once
#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <vector>

#include "base/cuda/memory.h"
#include "kernels/cuda/expert_plan.h"
#include "kernels/cuda/operations.h"

namespace shoal::cuda {

/// Where a step's tokens are written and what they see, on the device. Queries of one sequence, which share a page
/// table, share it there too.
class StepTables {
 public:
  StepTables(cudaStream_t stream, Uploads& uploads)
      : uploads_(uploads), slots_(stream), numbers_(stream), tile_memory_(stream) {}

  /// For all layers of a step: the lists stay as they are until the next begin().
  void begin(std::span<const std::int64_t> slots, std::span<const AttentionQuery> queries, int page_tokens) {
    host_slots_ = slots;
    host_queries_ = queries;
    page_tokens_ = page_tokens;
    step_slots_ = uploads_.keep(slots, slots_);
    list(queries, page_tokens);
    step_queries_ = table_at(uploads_.keep(std::span<const std::int32_t>(lists_), numbers_), queries.size());
    step_tiles_.list.clear();
  }
  /// What of a step's shape kernels are launched by, for positions in parts of `part`: the same numbers, the same
  /// launches of the same tables (where attention takes all tiles at once: how it groups them is not in here).
  std::array<std::int64_t, 6> shape(int part) const {
    std::int32_t longest = 0, most = 0;
    for (const AttentionQuery& q : host_queries_) longest = std::max(longest, q.length);
    for (const Tile& t : step_tiles_.list) most = std::max(most, t.count);
    return {std::ssize(host_slots_),     std::ssize(host_queries_),    page_tokens_,
            (longest + part - 1) / part, std::ssize(step_tiles_.list), most};
  }
  const std::int64_t* slots(std::span<const std::int64_t> wanted) {
    return same(wanted, host_slots_) ? step_slots_ : uploads_.put(wanted);
  }
  /// Of the step's list, or a part of it; any other is brought to the device.
  QueryTable queries(std::span<const AttentionQuery> wanted, int page_tokens) {
    if (page_tokens == page_tokens_ && part_of(wanted, host_queries_)) {
      const auto first = wanted.data() - host_queries_.data();
      return {step_queries_.length + first, step_queries_.first_page + first, step_queries_.pages};
    }
    list(wanted, page_tokens);
    return table_at(uploads_.put(lists_), wanted.size());
  }

  /// Queries in tiles of one sequence each.
  struct Tiles {
    std::vector<Tile> list;
    const Tile* on_device = nullptr;
  };
  /// `most(run)`: queries of a tile, where up to `run` neighbours are of one sequence. Always the same in a step.
  template <class Most>
  const Tiles& tiles(std::span<const AttentionQuery> wanted, const Most& most) {
    const bool known = same(wanted, host_queries_);
    Tiles& tiles = known ? step_tiles_ : other_tiles_;
    if (known && !tiles.list.empty()) return tiles;
    std::vector<Tile> runs;
    int longest = 0;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      if (i == 0 || wanted[i].pages != wanted[i - 1].pages) runs.push_back({0, static_cast<std::int32_t>(i), 0});
      longest = std::max(longest, ++runs.back().count);
    }
    tiles.list = cut_into_tiles(runs, most(longest));
    tiles.on_device = known ? uploads_.keep(std::span<const Tile>(tiles.list), tile_memory_) : uploads_.put(tiles.list);
    return tiles;
  }

 private:
  /// The list itself, not one like it.
  static bool same(const auto& a, const auto& b) { return a.data() == b.data() && a.size() == b.size(); }
  static bool part_of(std::span<const AttentionQuery> part, std::span<const AttentionQuery> all) {
    const std::less_equal<> before;
    return !part.empty() && before(all.data(), part.data()) &&
           before(part.data() + part.size(), all.data() + all.size());
  }
  static QueryTable table_at(const std::int32_t* all, std::size_t queries) {
    return {all, all + queries, all + 2 * queries};
  }

  /// lists_: the lengths, where each one's pages begin, then all pages.
  void list(std::span<const AttentionQuery> queries, int page_tokens) {
    std::map<const std::int32_t*, std::int32_t> longest, first;
    for (const AttentionQuery& q : queries) longest[q.pages] = std::max(longest[q.pages], q.length);
    lists_.assign(2 * queries.size(), 0);
    for (const auto& [pages, length] : longest) {
      first[pages] = static_cast<std::int32_t>(lists_.size() - 2 * queries.size());
      lists_.insert(lists_.end(), pages, pages + (length + page_tokens - 1) / page_tokens);
    }
    for (std::size_t t = 0; t < queries.size(); ++t) {
      lists_[t] = queries[t].length;
      lists_[queries.size() + t] = first[queries[t].pages];
    }
  }

  Uploads& uploads_;
  Scratch slots_, numbers_, tile_memory_;
  std::span<const std::int64_t> host_slots_;
  std::span<const AttentionQuery> host_queries_;
  int page_tokens_ = 0;
  const std::int64_t* step_slots_ = nullptr;
  QueryTable step_queries_;
  std::vector<std::int32_t> lists_;
  Tiles step_tiles_, other_tiles_;
};

}  // namespace shoal::cuda
