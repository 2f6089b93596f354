#include "runtime/lane.h"

#include <algorithm>
#include <utility>

namespace shoal {

int Sequence::expected_scores() const {
  if (!scores() || computed >= prompt_tokens) return 0;
  const bool next_is_known = computed + planned < prompt_tokens;
  return next_is_known ? planned : planned - 1;
}

bool Sequence::samples() const {
  return request.max_tokens > 0 && computed + planned == static_cast<int>(tokens.size());
}

void Lane::take_stock() {
  room = pool.free() - static_cast<int>(running.size());
  backlog = 0;
  for (const Sequence* sequence : running) {
    room -=
        std::max(0, pages_for(static_cast<int>(sequence->tokens.size())) - static_cast<int>(sequence->pages.size()));
    if (!sequence->decoding()) backlog += sequence->pending() - sequence->planned;
  }
}

int Lane::take_prefix(Sequence& sequence) {
  const std::size_t before = sequence.kept;
  walk_prefix(sequence, page_tokens_, pool.contents(), [&](const PageContents::Kept& kept) {
    const auto page = pool.page_of(kept);
    if (!page) return false;
    pool.share(*page);
    sequence.pages.push_back(*page);
    sequence.block = kept.block;
    ++sequence.kept;
    return true;
  });
  const int tokens = static_cast<int>(sequence.kept - before) * page_tokens_;
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
  if (std::exchange(sequence.started, false)) finish.push_back(sequence.id);
  sequence.pages.clear();
  sequence.drafts.clear();
  sequence.pages_told = sequence.kept = 0;
  sequence.block = PagePool::kNoBlock;
  sequence.computed = sequence.planned = sequence.drafted = 0;
  sequence.lane = -1;
}

void Lane::tell_anew() {
  finish.clear();
  for (Sequence* sequence : running) {
    sequence->started = false;
    sequence->pages_told = 0;
  }
}

}  // namespace shoal
