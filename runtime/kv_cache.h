#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"

namespace shoal {

/// The paged cache of one rank: for each layer, `pages * page_tokens` rows. MLA keeps only the latent and the rotated
/// key. Under speculative decoding the MTP layer is one of the layers, the last.
class KvCache {
 public:
  /// width: elements of a row.
  KvCache(Backend& backend, int layers, int pages, int page_tokens, int width, KvType type)
      : pages_(pages), page_tokens_(page_tokens), width_(width), type_(type) {
    const auto bytes = static_cast<std::size_t>(pages) * static_cast<std::size_t>(page_tokens) *
                       static_cast<std::size_t>(kv_row_bytes(type, width));
    for (int i = 0; i < layers; ++i) memory_.push_back(backend.allocate(std::max<std::size_t>(bytes, 1)));
    bytes_ = bytes * static_cast<std::size_t>(layers);
  }

  KvLayer layer(int i) const { return {memory_[static_cast<std::size_t>(i)].get(), type_, page_tokens_, width_}; }
  int pages() const { return pages_; }
  int page_tokens() const { return page_tokens_; }
  std::uint64_t bytes() const { return bytes_; }

  /// The cache row of a sequence's token.
  std::int64_t slot(const std::vector<std::int32_t>& pages, std::int32_t position) const {
    return static_cast<std::int64_t>(pages[static_cast<std::size_t>(position / page_tokens_)]) * page_tokens_ +
           position % page_tokens_;
  }

 private:
  int pages_, page_tokens_, width_;
  KvType type_;
  std::uint64_t bytes_ = 0;
  std::vector<std::shared_ptr<void>> memory_;  // [layers]
};

}  // namespace shoal
