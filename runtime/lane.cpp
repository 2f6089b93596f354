#include "runtime/lane.h"

#include <algorithm>
#include <span>

namespace shoal {

int Sequence::expected_scores() const {
  if (!scores() || computed >= prompt_tokens) return 0;
  const bool next_is_known = computed + planned < prompt_tokens;
  return next_is_known ? planned : planned - 1;
}

bool Sequence::samples() const {
  return request.max_tokens > 0 && computed + planned == static_cast<int>(tokens.size());
}

int Lane::room() const {
  int room = pool.free() - static_cast<int>(running.size());
  for (const Sequence* sequence : running) {
    room -=
        std::max(0, pages_for(static_cast<int>(sequence->tokens.size())) - static_cast<int>(sequence->pages.size()));
  }
  return room;
}

std::int64_t Lane::backlog() const {
  std::int64_t tokens = 0;
  for (const Sequence* sequence : running) {
    if (!sequence->decoding()) tokens += sequence->pending() - sequence->planned;
  }
  return tokens;
}

template <class Found>
void Lane::walk_prefix(const Sequence& sequence, const Found& found) const {
  // Who wants every position's logits computes every position.
  if (sequence.scores() || sequence.kept != sequence.pages.size()) return;
  const std::span<const std::int32_t> tokens(sequence.tokens);
  const auto size = static_cast<std::size_t>(page_tokens_);
  PagePool::Block block = sequence.block;
  for (std::size_t first = sequence.kept * size; first + size < tokens.size(); first += size) {
    const auto kept = pool.find(block, tokens.subspan(first, size), sequence.request.cache_salt);
    if (!kept) return;
    block = kept->block;
    found(*kept);
  }
}

Lane::Prefix Lane::find_prefix(const Sequence& sequence) const {
  Prefix prefix;
  walk_prefix(sequence, [&](const PagePool::Kept& kept) {
    prefix.tokens += page_tokens_;
    prefix.owned_pages += pool.owned(kept.page);
  });
  return prefix;
}

int Lane::take_prefix(Sequence& sequence) {
  std::vector<PagePool::Kept> found;
  walk_prefix(sequence, [&](const PagePool::Kept& kept) { found.push_back(kept); });
  for (const PagePool::Kept& kept : found) {
    pool.share(kept.page);
    sequence.pages.push_back(kept.page);
    sequence.block = kept.block;
  }
  sequence.kept += found.size();
  const int tokens = static_cast<int>(found.size()) * page_tokens_;
  sequence.computed += tokens;
  return tokens;
}

bool Lane::grow(Sequence& sequence, int tokens) {
  const int missing = std::max(0, pages_for(tokens) - static_cast<int>(sequence.pages.size()));
  if (missing > pool.free()) return false;
  const auto pages = pool.allocate(missing);
  sequence.pages.insert(sequence.pages.end(), pages.begin(), pages.end());
  return true;
}

void Lane::keep_full_pages(Sequence& sequence) {
  // Behind a stop token more may have been computed than the sequence has kept.
  const std::span tokens = std::span<const std::int32_t>(sequence.tokens)
                               .first(std::min(sequence.tokens.size(), static_cast<std::size_t>(sequence.computed)));
  const auto size = static_cast<std::size_t>(page_tokens_);
  for (; (sequence.kept + 1) * size <= tokens.size(); ++sequence.kept) {
    sequence.block = pool.keep(sequence.block, tokens.subspan(sequence.kept * size, size), sequence.request.cache_salt,
                               sequence.pages[sequence.kept]);
  }
}

void Lane::drop(Sequence& sequence) {
  pool.release(sequence.pages);
  std::erase(running, &sequence);
  finish.push_back(sequence.id);
  sequence.pages.clear();
  sequence.drafts.clear();
  sequence.pages_told = sequence.kept = 0;
  sequence.block = PagePool::kNoBlock;
  sequence.computed = sequence.planned = sequence.drafted = 0;
  sequence.lane = -1;
}

}  // namespace shoal
