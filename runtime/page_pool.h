#pragma once
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace shoal {

/// What is in the full pages of all pools: where a text is kept is looked up once, however many pools there are.
///
/// A content is its tokens and the *block* they follow, a number given to each content once and never again; so two
/// pages with one content had, token by token, the same past, and no hash is trusted with that.
class PageContents {
 public:
  using Block = std::uint64_t;
  static constexpr Block kNoBlock = 0;  // what a sequence's first page follows

  struct Place {
    int pool;
    std::int32_t page;
  };
  struct Kept {
    Block block;
    std::vector<Place> places;  // one a pool, in their order; never empty

    std::optional<std::int32_t> page_in(int pool) const;
  };
  /// These tokens behind `after`. `salt` tells apart who must not share; it counts for first pages, and so for all that
  /// follow them. Null where no pool keeps them.
  const Kept* find(Block after, std::span<const std::int32_t> tokens, std::string_view salt) const;
  /// Makes room for the contents of so many pages, once and not in the middle of the work.
  void reserve(std::size_t pages) { contents_.reserve(pages); }

 private:
  friend class PagePool;
  struct Hash {
    std::size_t operator()(const std::string& key) const;
  };
  using Contents = std::unordered_map<std::string, Kept, Hash>;
  using Content = Contents::value_type;

  /// The content, with one place more unless its pool has one already.
  Content& keep(std::string key, Place place);
  void drop(Content& content, int pool);

  Contents contents_;
  Block last_block_ = kNoBlock;
};

/// The KV cache pages of one rank: who owns them and what is in them. Knows numbers only, no memory; the worker owns
/// that.
///
/// A page that is full may be kept under its content. It then serves every sequence that begins with the same tokens,
/// and stays after its last owner has left until the room is needed; who was left longest ago goes first.
class PagePool {
 public:
  using Block = PageContents::Block;
  static constexpr Block kNoBlock = PageContents::kNoBlock;

  /// `number` tells apart the pools that share `contents`.
  explicit PagePool(int pages, std::shared_ptr<PageContents> contents = std::make_shared<PageContents>(),
                    int number = 0);

  int size() const { return static_cast<int>(pages_.size()); }
  /// Pages without an owner, those that are kept among them.
  int free() const { return static_cast<int>(empty_.size() + left_.size()); }
  int used() const { return size() - free(); }
  bool owned(std::int32_t page) const { return pages_[static_cast<std::size_t>(page)].owners > 0; }

  /// `n` pages with one owner each, in no particular order; contents are dropped where need be. Error when fewer are
  /// free: the caller looks at free() first.
  std::vector<std::int32_t> allocate(int n);
  /// One owner more for a page that page_of() named.
  void share(std::int32_t page);
  /// One owner less for each of a sequence's pages, given in its order. Error, and nothing is given back, when one of
  /// them has no owner: released too often, or never ours.
  void release(std::span<const std::int32_t> pages);

  /// Begins anew with `pages` pages, without owners and contents.
  void reset(int pages);

  const PageContents& contents() const { return *contents_; }
  /// The page of this pool with a content, if it has one.
  std::optional<std::int32_t> page_of(const PageContents::Kept& kept) const { return kept.page_in(number_); }
  /// Keeps an owned page, which nobody writes to any more, under its content; returns the content's block. Where
  /// another page has the same content that one stays the kept one.
  Block keep(Block after, std::span<const std::int32_t> tokens, std::string_view salt, std::int32_t page);

 private:
  struct Page {
    int owners = 0;
    PageContents::Content* content = nullptr;   // that it is kept under
    std::list<std::int32_t>::iterator place{};  // in left_, where it is there
  };

  std::vector<std::int32_t> empty_;  // a stack: what was used last is reused first, while it may still be in a cache
  std::list<std::int32_t> left_;     // kept, without an owner; the next to be dropped first
  std::vector<Page> pages_;
  std::shared_ptr<PageContents> contents_;
  int number_;
};

}  // namespace shoal
