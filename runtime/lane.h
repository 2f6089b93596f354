#pragma once
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "runtime/coordinator.h"
#include "runtime/page_pool.h"
#include "runtime/step.h"

namespace shoal {

/// A request with what was made of it so far.
struct Sequence {
  std::uint64_t id = 0;
  GenerationRequest request;         // its prompt has moved to `tokens`
  std::vector<std::int32_t> tokens;  // prompt, then what was generated
  int prompt_tokens = 0;
  int max_length = 0;        // tokens at which it ends
  std::uint64_t ticket = 0;  // its place in the order of first admission; 0: was never admitted
  bool preempted = false;    // had to leave once, or more often
  bool over = false;         // finished or cancelled; leaves when the step ends
  bool scores_told = false;  // the prompt's log-probabilities are with the client
  int prompt_read = 0;       // prompt tokens that were counted as read
  int cached_tokens = 0;     // of the prompt, that the cache had when it first ran
  std::vector<TokenLogprob> prompt_logprobs;

  // While it runs.
  int lane = -1;                     // -1: waits
  int computed = 0;                  // tokens whose KV is in the cache
  int planned = 0;                   // tokens of the step in flight
  int drafted = 0;                   // guesses behind these
  std::vector<std::int32_t> drafts;  // guessed next tokens
  std::vector<std::int32_t> pages;
  bool started = false;                        // its rank knows of it
  std::size_t pages_told = 0;                  // of its pages, how many its rank knows
  std::size_t kept = 0;                        // full pages that were kept under their content, or came from there
  PagePool::Block block = PagePool::kNoBlock;  // content of the last of these

  int pending() const { return static_cast<int>(tokens.size()) - computed; }
  /// Its prompt, and what is recomputed after it left, is behind it: one token a step.
  bool decoding() const { return computed >= prompt_tokens && pending() == 1; }
  bool scores() const { return request.prompt_logprobs && !scores_told; }
  int expected_scores() const;  // entries that the planned chunk reports for `score`
  bool samples() const;         // whether the planned chunk ends with a new token
};

/// The sequences on one rank (under tensor parallelism, on all ranks) and the pages they own. A sequence owns pages for
/// what is computed, and gets more as it grows.
class Lane {
 public:
  Lane(PagePool its_pool, int page_tokens) : pool(std::move(its_pool)), page_tokens_(page_tokens) {}

  int pages_for(int tokens) const { return tokens / page_tokens_ + (tokens % page_tokens_ != 0); }
  /// Works out `room` and `backlog` anew.
  void take_stock();

  /// Takes what the cache holds of a sequence's next full pages; returns the number of tokens.
  int take_prefix(Sequence& sequence);

  /// Makes the sequence own pages for its first `tokens` tokens. False, and nothing changes, when too few are free.
  bool grow(Sequence& sequence, int tokens);
  /// Keeps the pages that have become full for others to find.
  void keep_full_pages(Sequence& sequence);
  /// The sequence leaves: its pages are free, the rank is told to forget it.
  void drop(Sequence& sequence);
  /// The rank knows nothing of those who run any more; their pages are as they were.
  void tell_anew();

  PagePool pool;
  std::vector<Sequence*> running;     // in order of admission
  std::vector<std::uint64_t> finish;  // to be told to the rank
  // Of the step being planned.
  int budget = 0;            // prompt tokens left
  int room = 0;              // pages for newcomers: free, not needed for what is known of those who run, nor for each
                             // one's next
  std::int64_t backlog = 0;  // prompt tokens still to be computed after it

 private:
  int page_tokens_;
};

/// What the caches of any lanes hold of a sequence's next full pages, in their order, as long as `found` returns true.
/// At least one token is left to compute, for its logits.
template <class Found>
void walk_prefix(const Sequence& sequence, int page_tokens, const PageContents& contents, const Found& found) {
  // Who wants every position's logits computes every position.
  if (sequence.scores() || sequence.kept != sequence.pages.size()) return;
  const std::span<const std::int32_t> tokens(sequence.tokens);
  const auto size = static_cast<std::size_t>(page_tokens);
  PagePool::Block block = sequence.block;
  for (std::size_t first = sequence.kept * size; first + size < tokens.size(); first += size) {
    const PageContents::Kept* kept = contents.find(block, tokens.subspan(first, size), sequence.request.cache_salt);
    if (!kept || !found(*kept)) return;
    block = kept->block;
  }
}

}  // namespace shoal
