#include "runtime/scheduler.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "base/error.h"

namespace shoal {
namespace {

/// What a sequence that decodes adds to its lane's work, in prompt tokens: lanes work in lock-step, so the one with
/// most sequences slows down all. Where a prefix is cached outweighs it by as many tokens as it saves.
constexpr std::int64_t kTokensPerSequence = 32;

std::int32_t tokens_of(const StepPlan& plan) {
  std::size_t tokens = 0;
  for (const SequenceChunk& chunk : plan.chunks) tokens += chunk.tokens.size();
  return static_cast<std::int32_t>(tokens);
}

}  // namespace

Scheduler::Scheduler(const CoordinatorOptions& options) : options_(options) {
  if (options.ranks < 1 || options.kv_pages.size() != static_cast<std::size_t>(options.ranks)) {
    fail("the scheduler needs the number of KV pages of each of {} ranks, not of {}", options.ranks,
         options.kv_pages.size());
  }
  if (options.page_tokens < 1 || options.max_batched_tokens < 1 || options.max_prefill_tokens < 1 ||
      options.max_num_seqs < 1) {
    fail("page_tokens ({}), max_batched_tokens ({}), max_prefill_tokens ({}) and max_num_seqs ({}) must be at least 1",
         options.page_tokens, options.max_batched_tokens, options.max_prefill_tokens, options.max_num_seqs);
  }
  if (options.tensor_parallel) {
    options_.kv_pages = {*std::min_element(options.kv_pages.begin(), options.kv_pages.end())};
  }
  const auto contents = std::make_shared<PageContents>();
  for (const int pages : options_.kv_pages) {
    lanes_.emplace_back(PagePool(pages, contents, static_cast<int>(lanes_.size())), options.page_tokens);
  }
  contents->reserve(static_cast<std::size_t>(kv_pages()));
  left_.resize(static_cast<std::size_t>(options.ranks), true);
}

/// Tokens that the largest lane has room for.
std::int64_t Scheduler::largest_cache() const {
  return std::int64_t{*std::ranges::max_element(options_.kv_pages)} * options_.page_tokens;
}

int Scheduler::max_length(std::size_t prompt_tokens, int max_tokens) const {
  // The last token is sampled but never computed, so it needs no slot.
  std::int64_t length = std::min(static_cast<std::int64_t>(prompt_tokens) + max_tokens, largest_cache() + 1);
  if (options_.max_model_len > 0) length = std::min<std::int64_t>(length, options_.max_model_len);
  return static_cast<int>(std::min<std::int64_t>(length, std::numeric_limits<int>::max()));
}

void Scheduler::check(const GenerationRequest& request) const {
  const std::size_t prompt = request.prompt.size();
  const std::size_t limit = options_.max_model_len > 0 ? static_cast<std::size_t>(options_.max_model_len)
                                                       : std::numeric_limits<std::int32_t>::max();
  if (prompt == 0) fail("the prompt is empty; at least one token is needed");
  if (request.max_tokens < 0) fail("max_tokens is {}; it must not be negative", request.max_tokens);
  if (prompt > limit || (prompt == limit && request.max_tokens > 0)) {
    fail("the prompt has {} tokens, which leaves no room for an answer within max_model_len, {} tokens", prompt, limit);
  }
  if (std::cmp_greater(prompt, largest_cache())) {
    fail("the prompt has {} tokens; no rank's KV cache has room for more than {}", prompt, largest_cache());
  }
}

void Scheduler::submit(std::uint64_t request, GenerationRequest wanted) {
  check(wanted);
  const auto [at, is_new] = sequences_.try_emplace(request);
  if (!is_new) fail("request {} is already known", request);
  Sequence& sequence = at->second;
  sequence.id = request;
  sequence.tokens = std::exchange(wanted.prompt, {});
  sequence.request = std::move(wanted);
  sequence.prompt_tokens = static_cast<int>(sequence.tokens.size());
  sequence.max_length = max_length(sequence.tokens.size(), sequence.request.max_tokens);
  queue_.push(sequence.request.client, sequence.request.user, request);
}

Scheduler::Events Scheduler::cancel(std::uint64_t request) {
  const auto at = sequences_.find(request);
  if (at == sequences_.end() || at->second.over) return {};
  Sequence& sequence = at->second;
  sequence.over = true;
  if (sequence.lane >= 0) {
    if (!step_in_flight()) end_step();
  } else {
    preempted_.erase(sequence.ticket);
    queue_.leave(request);
    sequences_.erase(at);
  }
  Events events(1);
  events[0].request = request;
  events[0].event.finish = FinishReason::cancelled;
  return events;
}

std::vector<StepPlan> Scheduler::plan() {
  if (step_in_flight()) fail("step {} was planned while step {} is in flight", totals_.steps + 1, totals_.steps);
  ++totals_.steps;
  answered_.assign(left_.size(), false);
  answers_missing_ = static_cast<int>(std::ranges::count(left_, true));

  // Ranks wait for each other in every layer, so one rank's prompts hold up the answers of all.
  const bool answering = std::any_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) {
    return std::any_of(lane.running.begin(), lane.running.end(), [](const Sequence* s) { return s->decoding(); });
  });
  std::vector<StepPlan> plans(lanes_.size());
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    share_budget(lanes_[i], answering);
    find_pages(lanes_[i]);
    lanes_[i].take_stock();
    for (Sequence* sequence : lanes_[i].running) {
      if (sequence->planned > 0) add_chunk(*sequence, plans[i]);
    }
  }
  admit(plans);
  std::int32_t most_tokens = 0;
  for (const StepPlan& plan : plans) most_tokens = std::max(most_tokens, tokens_of(plan));
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    plans[i].step = totals_.steps;
    plans[i].most_tokens = most_tokens;
    plans[i].finish = std::exchange(lanes_[i].finish, {});
  }
  return plans;
}

/// How many tokens each running sequence would compute.
void Scheduler::share_budget(Lane& lane, bool answering) {
  lane.budget = options_.max_batched_tokens;
  std::vector<Sequence*> prompts;
  for (Sequence* sequence : lane.running) {
    if (sequence->decoding())
      lane.budget -= sequence->planned = 1;
    else
      prompts.push_back(sequence);
  }
  int guesses = lane.budget / 2;  // the other half is the prompts'
  for (Sequence* sequence : lane.running) {
    if (!sequence->decoding()) continue;
    // A step yields a token more than there were guesses.
    const int useful = sequence->max_length - static_cast<int>(sequence->tokens.size()) - 1;
    sequence->drafted = std::min({static_cast<int>(sequence->drafts.size()), useful, guesses});
    guesses -= sequence->drafted;
    lane.budget -= sequence->drafted;
  }

  if (answering) lane.budget = std::min(lane.budget, options_.max_prefill_tokens);
  std::sort(prompts.begin(), prompts.end(), [this](const Sequence* a, const Sequence* b) {
    return std::pair(queue_.served(a->id), a->ticket) < std::pair(queue_.served(b->id), b->ticket);
  });
  for (Sequence* sequence : prompts) {
    if (lane.budget == 0) break;
    take_prefix(lane, *sequence);  // what others have computed since
    sequence->planned = std::min(sequence->pending(), lane.budget);
    lane.budget -= sequence->planned;
  }
}

/// Pages for all that was planned, the oldest first; where none is left the youngest leaves. Guesses get what all
/// others leave: they are not worth anybody's leaving.
void Scheduler::find_pages(Lane& lane) {
  std::vector<Sequence*> by_age = lane.running;
  std::sort(by_age.begin(), by_age.end(), [](const auto* a, const auto* b) { return a->ticket < b->ticket; });
  for (std::size_t i = 0; i < by_age.size(); ++i) {
    Sequence& sequence = *by_age[i];
    while (i < by_age.size() && !lane.grow(sequence, sequence.computed + sequence.planned)) {
      leave(*by_age.back());
      by_age.pop_back();
      ++totals_.preemptions;
    }
  }
  for (Sequence* sequence : by_age) {
    if (!lane.grow(*sequence, sequence->computed + sequence->planned + sequence->drafted)) sequence->drafted = 0;
  }
}

/// It will come back.
void Scheduler::leave(Sequence& sequence) {
  lanes_[static_cast<std::size_t>(sequence.lane)].drop(sequence);
  sequence.prompt_logprobs.clear();
  sequence.preempted = true;
  preempted_.emplace(sequence.ticket, &sequence);
}

Sequence* Scheduler::next_to_admit() {
  if (!preempted_.empty()) return preempted_.begin()->second;
  const auto request = queue_.front();
  return request ? &sequences_.at(*request) : nullptr;
}

/// What each lane's cache holds of a sequence that waits.
std::vector<Scheduler::Prefix> Scheduler::find_prefixes(const Sequence& sequence) const {
  std::vector<Prefix> prefixes(lanes_.size());
  int tokens = 0;
  walk_prefix(sequence, options_.page_tokens, lanes_.front().pool.contents(), [&](const PageContents::Kept& kept) {
    for (const auto [lane, page] : kept.places) {
      Prefix& prefix = prefixes[static_cast<std::size_t>(lane)];
      if (prefix.tokens < tokens) continue;  // what comes before it is not there
      prefix.tokens += options_.page_tokens;
      prefix.owned_pages += lanes_[static_cast<std::size_t>(lane)].pool.owned(page);
    }
    tokens += options_.page_tokens;
    return true;
  });
  return prefixes;
}

Lane* Scheduler::best_lane(const Sequence& sequence) {
  // All that run can decode in one step.
  const auto most = static_cast<std::size_t>(std::min(options_.max_num_seqs, options_.max_batched_tokens));
  Lane* best = nullptr;
  std::pair<std::int64_t, int> least;
  std::vector<Prefix> prefixes;
  for (Lane& lane : lanes_) {
    // Even with all the cache could hold, a newcomer needs a page for its last token.
    if (lane.budget == 0 || lane.room < 1 || lane.running.size() >= most) continue;
    if (prefixes.empty()) prefixes = find_prefixes(sequence);
    const Prefix& prefix = prefixes[static_cast<std::size_t>(&lane - lanes_.data())];
    if (lane.room < lane.pages_for(static_cast<int>(sequence.tokens.size())) - prefix.owned_pages) continue;
    const std::int64_t work =
        lane.backlog - prefix.tokens + kTokensPerSequence * static_cast<std::int64_t>(lane.running.size());
    const std::pair cost(work, -lane.pool.free());
    if (!best || cost < least) {
      best = &lane;
      least = cost;
    }
  }
  return best;
}

void Scheduler::admit(std::vector<StepPlan>& plans) {
  while (Sequence* next = next_to_admit()) {
    Sequence& sequence = *next;
    Lane* lane = best_lane(sequence);
    // Whose turn it is holds back those behind it, even ones that would fit: small requests that overtake could keep a
    // large one waiting for ever. Pages come free as what runs ends, so its turn does come.
    if (!lane) return;
    if (preempted_.erase(sequence.ticket) == 0) {
      queue_.pop();
      sequence.ticket = ++last_ticket_;
      totals_.prefix_queries += static_cast<std::uint64_t>(sequence.scores() ? 0 : sequence.prompt_tokens);
    }
    sequence.lane = static_cast<int>(lane - lanes_.data());
    lane->running.push_back(&sequence);
    take_prefix(*lane, sequence);
    sequence.planned = std::min(sequence.pending(), lane->budget);
    lane->budget -= sequence.planned;
    if (!lane->grow(sequence, sequence.computed + sequence.planned))
      fail("lane {} has less room than it said", sequence.lane);
    lane->take_stock();
    add_chunk(sequence, plans[static_cast<std::size_t>(sequence.lane)]);
  }
}

void Scheduler::take_prefix(Lane& lane, Sequence& sequence) {
  const int tokens = lane.take_prefix(sequence);
  // A sequence that comes back finds its own pages, which is no merit of the cache.
  if (sequence.preempted) return;
  sequence.cached_tokens += tokens;
  totals_.prefix_hits += static_cast<std::uint64_t>(tokens);
}

void Scheduler::add_chunk(Sequence& sequence, StepPlan& plan) {
  if (!std::exchange(sequence.started, true))
    plan.start.push_back({sequence.id,
                          sequence.request.sampling,
                          sequence.request.logprobs,
                          {sequence.tokens.begin() + sequence.prompt_tokens, sequence.tokens.end()}});
  SequenceChunk chunk;
  chunk.sequence = sequence.id;
  chunk.position = sequence.computed;
  chunk.pages.assign(sequence.pages.begin() + static_cast<std::ptrdiff_t>(sequence.pages_told), sequence.pages.end());
  sequence.pages_told = sequence.pages.size();
  const auto first = sequence.tokens.begin() + sequence.computed;
  const auto last = first + sequence.planned;
  chunk.tokens.assign(first, last);
  chunk.tokens.insert(chunk.tokens.end(), sequence.drafts.begin(), sequence.drafts.begin() + sequence.drafted);
  chunk.drafts = sequence.drafted;
  chunk.sample = sequence.samples();
  chunk.score = sequence.expected_scores() > 0;
  if (last != sequence.tokens.end()) chunk.next_token = *last;
  queue_.charge(sequence.id, sequence.planned);
  plan.chunks.push_back(std::move(chunk));
}

Scheduler::Events Scheduler::apply(int rank, StepResult result) {
  if (!step_in_flight() || result.step != totals_.steps) {
    fail("rank {} answered step {} while step {} was expected", rank, result.step, totals_.steps);
  }
  if (rank < 0 || rank >= options_.ranks || !left_[static_cast<std::size_t>(rank)] ||
      answered_[static_cast<std::size_t>(rank)]) {
    fail("rank {} answered step {} twice, or is none of {} ranks", rank, result.step, options_.ranks);
  }
  Events events;
  if (!options_.tensor_parallel || rank == 0) {
    for (SequenceOutput& output : result.outputs) {
      const auto at = sequences_.find(output.sequence);
      if (at == sequences_.end() || at->second.lane != rank || at->second.planned == 0) {
        fail("rank {} reports on sequence {}, which was no part of its step {}", rank, output.sequence, result.step);
      }
      advance(at->second, std::move(output), events);
    }
    // A chunk in the middle of a prompt has nothing to report, and a worker may leave it out.
    for (Sequence* sequence : lanes_[static_cast<std::size_t>(rank)].running) {
      if (sequence->planned > 0) advance(*sequence, {}, events);
    }
  }
  answered_[static_cast<std::size_t>(rank)] = true;
  if (--answers_missing_ == 0) end_step();
  return events;
}

void Scheduler::check_answer(const Sequence& sequence, const SequenceOutput& output) const {
  const int tokens = static_cast<int>(output.tokens.size()), scores = static_cast<int>(output.scored.size());
  const bool right_number =
      sequence.samples() && !output.later ? tokens >= 1 && tokens <= 1 + sequence.drafted : tokens == 0;
  if (output.overflowed
          ? tokens > 0 || scores > 0
          : !right_number || (output.later && !sequence.samples()) || scores != sequence.expected_scores()) {
    fail("lane {} answered sequence {} with {} tokens and {} scores; {} and {} scores were asked for", sequence.lane,
         sequence.id, tokens, scores, sequence.samples() ? "tokens" : "none", sequence.expected_scores());
  }
  // All but the last were guessed right.
  if (tokens > 1 && !std::equal(output.tokens.begin(), output.tokens.end() - 1, sequence.drafts.begin())) {
    fail("lane {} accepts guesses for sequence {} that were not made", sequence.lane, sequence.id);
  }
}

void Scheduler::advance(Sequence& sequence, SequenceOutput output, Events& events) {
  check_answer(sequence, output);
  const int right = std::max(0, static_cast<int>(output.tokens.size()) - 1);
  totals_.drafted += static_cast<std::uint64_t>(sequence.drafted);
  totals_.accepted += static_cast<std::uint64_t>(right);
  sequence.computed += sequence.planned + right - (output.later ? 1 : 0);
  const int read = std::max(sequence.prompt_read, std::min(sequence.computed, sequence.prompt_tokens));
  totals_.prompt_tokens += static_cast<std::uint64_t>(read - std::exchange(sequence.prompt_read, read));
  sequence.planned = sequence.drafted = 0;
  if (output.overflowed) return overflow(sequence, events);
  sequence.drafts = std::move(output.drafts);
  if (!sequence.over) {  // it may have been cancelled while this step ran
    std::move(output.scored.begin(), output.scored.end(), std::back_inserter(sequence.prompt_logprobs));
    if (sequence.pending() <= 0) add_tokens(sequence, output, events);
  }
  lanes_[static_cast<std::size_t>(sequence.lane)].keep_full_pages(sequence);
}

/// It alone ends, and what it computed in this step is kept for nobody.
void Scheduler::overflow(Sequence& sequence, Events& events) {
  if (std::exchange(sequence.over, true)) return;
  Event told;
  told.request = sequence.id;
  told.event.finish = FinishReason::failed;
  told.event.error = "the model has overflowed at this request: none of a token's logits is a finite number";
  events.push_back(std::move(told));
}

/// All that is known of the sequence is computed: what follows, if anything?
void Scheduler::add_tokens(Sequence& sequence, SequenceOutput& output, Events& events) {
  Event told;
  told.request = sequence.id;
  told.event.cached_tokens = sequence.cached_tokens;
  if (sequence.scores()) {
    sequence.scores_told = true;
    told.event.prompt = std::exchange(sequence.prompt_logprobs, {});
    if (!output.tokens.empty() && !told.event.prompt.empty()) events.push_back(told);
  }
  if (output.tokens.empty()) {
    told.event.finish = FinishReason::length;
    sequence.over = true;
    events.push_back(std::move(told));
    return;
  }
  const auto& stops = sequence.request.stop_token_ids;
  for (std::size_t i = 0; i < output.tokens.size() && !sequence.over; ++i) {
    ++totals_.generated_tokens;
    sequence.tokens.push_back(output.tokens[i]);
    told.event.prompt.clear();
    told.event.token = output.tokens[i];
    told.event.logprob.clear();
    if (i < output.sampled.size()) told.event.logprob.push_back(std::move(output.sampled[i]));
    if (std::find(stops.begin(), stops.end(), output.tokens[i]) != stops.end())
      told.event.finish = FinishReason::stop;
    else if (std::cmp_greater_equal(sequence.tokens.size(), sequence.max_length))
      told.event.finish = FinishReason::length;
    sequence.over = told.event.finish != FinishReason::none;
    events.push_back(told);
  }
}

void Scheduler::end_step() {
  for (Lane& lane : lanes_) {
    const std::vector<Sequence*> running = lane.running;
    for (Sequence* sequence : running) {
      if (!sequence->over) continue;
      lane.drop(*sequence);
      queue_.leave(sequence->id);
      sequences_.erase(sequence->id);
    }
  }
}

void Scheduler::clear() {
  for (auto& [id, sequence] : sequences_) sequence.over = true;
  answers_missing_ = 0;
  end_step();
  queue_.clear();
  preempted_.clear();
  sequences_.clear();
}

Scheduler::Events Scheduler::regroup(const std::vector<RankState>& ranks) {
  if (ranks.size() != left_.size()) fail("{} ranks cannot become {}", left_.size(), ranks.size());
  answers_missing_ = 0;
  for (auto& [id, sequence] : sequences_) sequence.planned = sequence.drafted = 0;
  end_step();

  for (std::size_t r = 0; r < ranks.size(); ++r) left_[r] = ranks[r].left;
  std::vector<RankState> of_lanes = ranks;
  if (options_.tensor_parallel) {  // one lane: what its ranks all have
    RankState all{.left = true, .kv_pages = std::numeric_limits<int>::max()};
    for (const RankState& rank : ranks) {
      if (!rank.left) continue;
      all.kv_pages = std::min(all.kv_pages, rank.kv_pages);
      all.cache_kept = all.cache_kept && rank.cache_kept;
    }
    of_lanes = {all};
  }
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    Lane& lane = lanes_[i];
    const int pages = of_lanes[i].left ? of_lanes[i].kv_pages : 0;
    if (!of_lanes[i].left || !of_lanes[i].cache_kept || pages != lane.pool.size()) {
      while (!lane.running.empty()) leave(*lane.running.back());
      lane.pool.reset(pages);
    }
    lane.tell_anew();
    options_.kv_pages[i] = pages;
  }

  // Who runs may come to where the largest cache ends, who waits may not find the room that it needs.
  std::vector<std::uint64_t> too_large;
  Events events;
  for (auto& [id, sequence] : sequences_) {
    sequence.max_length = max_length(static_cast<std::size_t>(sequence.prompt_tokens), sequence.request.max_tokens);
    if (sequence.lane < 0) {
      if (std::cmp_greater(sequence.tokens.size(), largest_cache())) too_large.push_back(id);
    } else if (std::cmp_less_equal(sequence.max_length, sequence.tokens.size()) &&
               std::cmp_greater(sequence.tokens.size(), sequence.prompt_tokens)) {
      sequence.over = true;
      events.push_back({id, {}});
      events.back().event.finish = FinishReason::length;
    }
  }
  end_step();
  for (const std::uint64_t id : too_large) {
    Event event = std::move(cancel(id).front());
    event.event.finish = FinishReason::failed;
    event.event.error = fmt::format(
        "ranks were lost, and those left have no room for a request of this length ({} tokens of KV cache at most)",
        largest_cache());
    events.push_back(std::move(event));
  }
  return events;
}

int Scheduler::running() const {
  std::size_t n = 0;
  for (const Lane& lane : lanes_) n += lane.running.size();
  return static_cast<int>(n);
}

std::int64_t Scheduler::kv_pages() const {
  std::int64_t n = 0;
  for (const Lane& lane : lanes_) n += lane.pool.size();
  return n;
}

std::int64_t Scheduler::kv_pages_used() const {
  std::int64_t n = 0;
  for (const Lane& lane : lanes_) n += lane.pool.used();
  return n;
}

}  // namespace shoal
