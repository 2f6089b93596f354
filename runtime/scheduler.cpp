#include "runtime/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/error.h"

namespace shoal {

Scheduler::Scheduler(const CoordinatorOptions& options) : options_(options) {
  if (options.ranks < 1 || options.kv_pages.size() != static_cast<std::size_t>(options.ranks)) {
    fail("the scheduler needs the number of KV pages of each of {} ranks, not of {}", options.ranks,
         options.kv_pages.size());
  }
  if (options.page_tokens < 1 || options.max_batched_tokens < 1 || options.max_num_seqs < 1) {
    fail("page_tokens ({}), max_batched_tokens ({}) and max_num_seqs ({}) must be at least 1", options.page_tokens,
         options.max_batched_tokens, options.max_num_seqs);
  }
  if (options.tensor_parallel) {
    options_.kv_pages = {*std::min_element(options.kv_pages.begin(), options.kv_pages.end())};
  }
  for (const int pages : options_.kv_pages) lanes_.push_back({PagePool(pages), {}, {}, 0});
  answered_.resize(static_cast<std::size_t>(options.ranks));
}

int Scheduler::max_length(std::size_t prompt_tokens, int max_tokens) const {
  std::int64_t length = static_cast<std::int64_t>(prompt_tokens) + max_tokens;
  if (options_.max_model_len > 0) length = std::min<std::int64_t>(length, options_.max_model_len);
  return static_cast<int>(std::min<std::int64_t>(length, std::numeric_limits<int>::max()));
}

int Scheduler::pages_for(const GenerationRequest& request, std::size_t prompt_tokens) const {
  // The last token is sampled but never computed, so it needs no slot.
  const int slots = max_length(prompt_tokens, request.max_tokens) - (request.max_tokens > 0 ? 1 : 0);
  return slots / options_.page_tokens + (slots % options_.page_tokens != 0);
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
  const int pages = pages_for(request, prompt);
  const int most = *std::max_element(options_.kv_pages.begin(), options_.kv_pages.end());
  if (pages > most) {
    fail("a prompt of {} tokens and an answer of up to {} need {} KV pages of {} tokens; a rank has {} at most", prompt,
         request.max_tokens, pages, options_.page_tokens, most);
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
  waiting_.push_back(&sequence);
}

Scheduler::Events Scheduler::cancel(std::uint64_t request) {
  const auto at = sequences_.find(request);
  if (at == sequences_.end() || at->second.over) return {};
  Sequence& sequence = at->second;
  sequence.over = true;
  if (sequence.lane < 0) {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &sequence));
    sequences_.erase(at);
  } else if (!step_in_flight()) {
    end_step();
  }
  Events events(1);
  events[0].request = request;
  events[0].event.finish = FinishReason::cancelled;
  return events;
}

std::vector<StepPlan> Scheduler::plan() {
  if (step_in_flight()) fail("step {} was planned while step {} is in flight", totals_.steps + 1, totals_.steps);
  ++totals_.steps;
  answered_.assign(answered_.size(), false);
  answers_missing_ = options_.ranks;

  std::vector<StepPlan> plans(lanes_.size());
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    Lane& lane = lanes_[i];
    plans[i].step = totals_.steps;
    plans[i].finish = std::exchange(lane.finish, {});
    lane.budget = options_.max_batched_tokens;
    // Decoding sequences first: who already reads an answer should not notice that somebody else's prompt is long.
    for (Sequence* sequence : lane.running) {
      if (sequence->decoding()) add_chunk(*sequence, plans[i]);
    }
    for (Sequence* sequence : lane.running) {
      if (!sequence->decoding() && lane.budget > 0) add_chunk(*sequence, plans[i]);
    }
  }
  admit(plans);
  return plans;
}

Scheduler::Lane* Scheduler::roomiest(int pages) {
  Lane* best = nullptr;
  for (Lane& lane : lanes_) {
    // Budget is left only where all that run got a token, so no more run than max_batched_tokens and all can decode.
    const bool fits = lane.pool.free() >= pages && lane.budget > 0 &&
                      lane.running.size() < static_cast<std::size_t>(options_.max_num_seqs);
    const auto room = [](const Lane& l) {
      return std::pair(l.pool.free(), -static_cast<std::int64_t>(l.running.size()));
    };
    if (fits && (!best || room(lane) > room(*best))) best = &lane;
  }
  return best;
}

void Scheduler::admit(std::vector<StepPlan>& plans) {
  while (!waiting_.empty()) {
    Sequence& sequence = *waiting_.front();
    const int pages = pages_for(sequence.request, sequence.tokens.size());
    Lane* lane = roomiest(pages);
    // A head that does not fit holds back those behind it, even ones that would fit: small requests that overtake could
    // keep a large one waiting for ever. Pages come free as what runs ends, so its turn does come.
    if (!lane) return;
    waiting_.pop_front();
    sequence.lane = static_cast<int>(lane - lanes_.data());
    sequence.pages = lane->pool.allocate(pages);
    lane->running.push_back(&sequence);
    StepPlan& plan = plans[static_cast<std::size_t>(sequence.lane)];
    plan.start.push_back({sequence.id, sequence.request.sampling, sequence.request.logprobs, sequence.pages});
    add_chunk(sequence, plan);
  }
}

int Scheduler::Sequence::expected_scores() const {
  if (!request.prompt_logprobs || decoding()) return 0;
  const bool next_is_known = computed + planned < prompt_tokens;
  return next_is_known ? planned : planned - 1;
}

bool Scheduler::Sequence::samples() const {
  return request.max_tokens > 0 && computed + planned == static_cast<int>(tokens.size());
}

void Scheduler::add_chunk(Sequence& sequence, StepPlan& plan) {
  Lane& lane = lanes_[static_cast<std::size_t>(sequence.lane)];
  sequence.planned = std::min(sequence.pending(), lane.budget);
  lane.budget -= sequence.planned;

  SequenceChunk chunk;
  chunk.sequence = sequence.id;
  chunk.position = sequence.computed;
  const auto first = sequence.tokens.begin() + sequence.computed;
  const auto last = first + sequence.planned;
  chunk.tokens.assign(first, last);
  chunk.sample = sequence.samples();
  chunk.score = sequence.expected_scores() > 0;
  if (last != sequence.tokens.end()) chunk.next_token = *last;
  plan.chunks.push_back(std::move(chunk));
}

Scheduler::Events Scheduler::apply(int rank, StepResult result) {
  if (!step_in_flight() || result.step != totals_.steps) {
    fail("rank {} answered step {} while step {} was expected", rank, result.step, totals_.steps);
  }
  if (rank < 0 || rank >= options_.ranks || answered_[static_cast<std::size_t>(rank)]) {
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

void Scheduler::advance(Sequence& sequence, SequenceOutput output, Events& events) {
  const bool samples = sequence.samples();
  if (samples != (output.token >= 0) || std::cmp_not_equal(output.scored.size(), sequence.expected_scores())) {
    fail("lane {} answered sequence {} with token {} and {} scores; {} and {} scores were asked for", sequence.lane,
         sequence.id, output.token, output.scored.size(), samples ? "a token" : "none", sequence.expected_scores());
  }
  const bool was_prompt = !sequence.decoding();
  sequence.computed += sequence.planned;
  if (was_prompt) totals_.prompt_tokens += static_cast<std::uint64_t>(sequence.planned);
  sequence.planned = 0;
  if (sequence.over) return;  // cancelled while this step ran

  std::move(output.scored.begin(), output.scored.end(), std::back_inserter(sequence.prompt_logprobs));
  if (!sequence.decoding()) return;
  Event told;
  told.request = sequence.id;
  if (was_prompt && !sequence.prompt_logprobs.empty()) {
    told.event.prompt = std::exchange(sequence.prompt_logprobs, {});
    if (samples) events.push_back(std::exchange(told, {sequence.id, {}}));
  }
  if (samples) {
    ++totals_.generated_tokens;
    sequence.tokens.push_back(output.token);
    told.event.token = output.token;
    told.event.logprob = std::move(output.sampled);
  }
  const auto& stops = sequence.request.stop_token_ids;
  if (samples && std::find(stops.begin(), stops.end(), output.token) != stops.end()) {
    told.event.finish = FinishReason::stop;
  } else if (std::cmp_greater_equal(sequence.tokens.size(), sequence.max_length)) {
    told.event.finish = FinishReason::length;
  }
  sequence.over = told.event.finish != FinishReason::none;
  events.push_back(std::move(told));
}

void Scheduler::end_step() {
  for (Lane& lane : lanes_) {
    std::erase_if(lane.running, [&](const Sequence* sequence) {
      if (!sequence->over) return false;
      const std::uint64_t id = sequence->id;
      lane.pool.release(sequence->pages);
      lane.finish.push_back(id);
      sequences_.erase(id);
      return true;
    });
  }
}

void Scheduler::clear() {
  for (auto& [id, sequence] : sequences_) sequence.over = true;
  answers_missing_ = 0;
  end_step();
  waiting_.clear();
  sequences_.clear();
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
