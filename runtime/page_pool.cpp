#include "runtime/page_pool.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "base/error.h"

namespace shoal {
namespace {

/// A content as bytes. Only first pages, which follow nothing, carry the salt.
std::string key_of(PagePool::Block after, std::span<const std::int32_t> tokens, std::string_view salt) {
  std::string key(reinterpret_cast<const char*>(&after), sizeof after);
  key.append(reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes());
  if (after == PagePool::kNoBlock) key.append(salt);
  return key;
}

}  // namespace

std::size_t PageContents::Hash::operator()(const std::string& key) const {
  // Users choose the keys; a secret seed keeps them from choosing ones that all fall into one bucket.
  static const std::uint64_t seed = std::uint64_t{std::random_device()()} << 32 | std::random_device()();
  return XXH3_64bits_withSeed(key.data(), key.size(), seed);
}

std::optional<std::int32_t> PageContents::Kept::page_in(int pool) const {
  const auto at = std::ranges::lower_bound(places, pool, {}, &Place::pool);
  return at != places.end() && at->pool == pool ? std::optional(at->page) : std::nullopt;
}

const PageContents::Kept* PageContents::find(Block after, std::span<const std::int32_t> tokens,
                                             std::string_view salt) const {
  const auto at = contents_.find(key_of(after, tokens, salt));
  return at == contents_.end() ? nullptr : &at->second;
}

PageContents::Content& PageContents::keep(std::string key, Place place) {
  const auto [content, is_new] = contents_.try_emplace(std::move(key), Kept{last_block_ + 1, {}});
  if (is_new) ++last_block_;
  auto& places = content->second.places;
  const auto at = std::ranges::lower_bound(places, place.pool, {}, &Place::pool);
  if (at == places.end() || at->pool != place.pool) places.insert(at, place);
  return *content;
}

void PageContents::drop(Content& content, int pool) {
  auto& places = content.second.places;
  places.erase(std::ranges::lower_bound(places, pool, {}, &Place::pool));
  if (places.empty()) contents_.erase(contents_.find(content.first));
}

PagePool::PagePool(int pages, std::shared_ptr<PageContents> contents, int number)
    : contents_(std::move(contents)), number_(number) {
  reset(pages);
}

void PagePool::reset(int pages) {
  if (pages < 0) fail("a KV cache cannot have {} pages", pages);
  for (const Page& page : pages_)
    if (page.content) contents_->drop(*page.content, number_);
  left_.clear();
  pages_.clear();
  empty_.resize(static_cast<std::size_t>(pages));
  std::iota(empty_.rbegin(), empty_.rend(), 0);  // low numbers are handed out first
  pages_.resize(empty_.size());
}

std::vector<std::int32_t> PagePool::allocate(int n) {
  if (n < 0 || n > free()) fail("{} KV pages were asked for where {} of {} are free", n, free(), size());
  std::vector<std::int32_t> pages;
  for (int i = 0; i < n; ++i) {
    if (empty_.empty()) {
      Page& dropped = pages_[static_cast<std::size_t>(left_.front())];
      contents_->drop(*std::exchange(dropped.content, nullptr), number_);
      empty_.push_back(left_.front());
      left_.pop_front();
    }
    pages.push_back(empty_.back());
    empty_.pop_back();
    pages_[static_cast<std::size_t>(pages.back())].owners = 1;
  }
  return pages;
}

void PagePool::share(std::int32_t page) {
  Page& shared = pages_[static_cast<std::size_t>(page)];
  if (!shared.content) fail("KV page {} is not kept, so it cannot be shared", page);
  if (shared.owners++ == 0) left_.erase(shared.place);
}

void PagePool::release(std::span<const std::int32_t> pages) {
  const auto add_owners = [this](std::span<const std::int32_t> to, int owners) {
    for (const std::int32_t page : to) pages_[static_cast<std::size_t>(page)].owners += owners;
  };
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (pages[i] < 0 || pages[i] >= size() || !owned(pages[i])) {
      add_owners(pages.first(i), 1);
      fail("KV page {} of {} was released but has no owner", pages[i], size());
    }
    add_owners(pages.subspan(i, 1), -1);
  }
  add_owners(pages, 1);
  // The end of a text is dropped before its beginning, without which it could not be found.
  for (std::size_t i = pages.size(); i-- > 0;) {
    Page& page = pages_[static_cast<std::size_t>(pages[i])];
    if (--page.owners > 0) continue;
    if (!page.content)
      empty_.push_back(pages[i]);
    else
      page.place = left_.insert(left_.end(), pages[i]);
  }
}

PagePool::Block PagePool::keep(Block after, std::span<const std::int32_t> tokens, std::string_view salt,
                               std::int32_t page) {
  Page& kept = pages_[static_cast<std::size_t>(page)];
  if (kept.owners == 0 || kept.content) fail("KV page {} has no owner or is kept already", page);
  PageContents::Content& content = contents_->keep(key_of(after, tokens, salt), {number_, page});
  if (page_of(content.second) == page) kept.content = &content;
  return content.second.block;
}

}  // namespace shoal
