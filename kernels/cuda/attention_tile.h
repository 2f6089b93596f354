#pragma once
#include "kernels/cuda/mma.h"
#include "kernels/cuda/operations.h"

// What the attention kernels on tensor cores share.
namespace shoal::cuda {

/// What the kernels share: rows of a tile are heads that share keys, of as many queries of one sequence as fit.
struct AttentionCall {
  HeadGroups heads;
  float scale;
  int heads_in_tile, head_tiles;  // of a group
  int part, parts;                // positions of one; how many the longest query has, or 0: whole results
  AttentionTiles tiles;
};
inline AttentionCall attention_call(const HeadGroups& heads, float scale, std::int32_t longest,
                                    const AttentionTiles& tiles) {
  return {heads, scale, 0, 0, tiles.part, longest > tiles.part ? ceil_div(longest, tiles.part) : 0, tiles};
}
/// Row r of a tile: head head0 + r % heads_in_tile (of its group) of query r / heads_in_tile.
struct TileRows {
  Tile tile;
  int head0, heads_in_tile, heads;
  __device__ __forceinline__ std::int64_t token(int row) const {
    return std::int64_t{tile.first} + row / heads_in_tile;
  }
  __device__ __forceinline__ int head(int row) const { return head0 + row % heads_in_tile; }
  __device__ __forceinline__ bool holds(int row) const { return row / heads_in_tile < tile.count && head(row) < heads; }
};
struct CacheView {
  const std::byte* data;
  KvType type;
  int page_tokens, width;
};
/// A sequence's rows in the cache. Without a page table they follow each other.
struct CachedRows {
  CacheView cache;
  const std::int32_t* pages;
  std::int64_t row_bytes;
  __device__ __forceinline__ CachedRows(const CacheView& view, const QueryTable& queries, int query)
      : cache(view),
        pages(queries.pages == nullptr ? nullptr : queries.pages + queries.first_page[query]),
        row_bytes(kv_row_bytes(view.type, view.width)) {}
  __device__ __forceinline__ const std::byte* operator[](int position) const {
    const std::int64_t row = pages == nullptr ? position
                                              : std::int64_t{pages[position / cache.page_tokens]} * cache.page_tokens +
                                                    position % cache.page_tokens;
    return cache.data + row * row_bytes;
  }
};

__device__ __forceinline__ void store_pair(void* to, unsigned pair) { *static_cast<unsigned*>(to) = pair; }

/// Eight columns of a cached row of 8-bit values.
__device__ __forceinline__ uint4 eight_of_bytes(const CacheView& cache, const std::byte* row, int column) {
  const float scale =
      __uint_as_float(static_cast<unsigned>(reinterpret_cast<const std::uint16_t*>(row)[column / kKvGroup]) << 16);
  const auto* words = reinterpret_cast<const unsigned*>(row + 2 * kv_groups(cache.width) + column);
  unsigned pair[4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const unsigned word = words[i];
    float value[4];
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const unsigned code = word >> (8 * b) & 0xffu;
      value[b] =
          scale * (cache.type == KvType::fp8 ? widen_f8(code) : static_cast<float>(static_cast<std::int8_t>(code)));
    }
    pair[2 * i] = bf16_pair(value[0], value[1]);
    pair[2 * i + 1] = bf16_pair(value[2], value[3]);
  }
  return make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

}  // namespace shoal::cuda
