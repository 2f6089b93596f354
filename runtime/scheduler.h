#pragma once
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "runtime/coordinator.h"
#include "runtime/page_pool.h"
#include "runtime/step.h"

namespace shoal {

/// Which sequences run, where, and what every rank computes in the next step: continuous batching as a pure state
/// machine. No threads, no clock, no I/O; the coordinator drives it:
///
///     submit, cancel ...   at any time
///     plan()               what each rank does in the next step
///     apply(rank, result)  once for every rank; the last one ends the step
///
/// A *lane* is a set of ranks that hold the same sequences: one rank each, or all of them under tensor parallelism.
///
/// Invariants: a running sequence owns the pages for the whole of its life, so nothing ever runs out midway; a decoding
/// sequence gets its token in every step; requests are admitted in the order in which they came.
class Scheduler {
 public:
  struct Event {
    std::uint64_t request = 0;
    GenerationEvent event;
  };
  using Events = std::vector<Event>;

  struct Totals {
    std::uint64_t steps = 0, prompt_tokens = 0, generated_tokens = 0;
  };

  /// Error when the options make no sense. `ranks`, `tensor_parallel` and the limits are used; the rest is the
  /// caller's.
  explicit Scheduler(const CoordinatorOptions& options);

  /// Throws Error when the request could not run even alone. Depends on the options only.
  void check(const GenerationRequest& request) const;
  /// Puts a request at the end of the queue. Throws as check() does, and when the number is in use.
  void submit(std::uint64_t request, GenerationRequest wanted);
  /// The request gets no more tokens. Its event, or none when it is unknown or has finished. Pages that a step in
  /// flight still writes to are freed when that step ends.
  Events cancel(std::uint64_t request);

  bool has_work() const { return !sequences_.empty(); }
  /// The next step, one plan a lane (so a single one, for all ranks, under tensor parallelism). Error while a step is
  /// in flight. Sequences that left are told in `finish` of the next plan their lane gets, however much later.
  std::vector<StepPlan> plan();
  /// Takes a rank's answer to the step in flight. Error when it is not the answer to what the rank was asked; ranks
  /// then disagree about the state of things, and the scheduler is of no more use.
  Events apply(int rank, StepResult result);
  bool step_in_flight() const { return answers_missing_ > 0; }
  /// Forgets every request and the step in flight, without events. The counters stay.
  void clear();

  int running() const;
  int waiting() const { return static_cast<int>(waiting_.size()); }
  std::int64_t kv_pages() const;
  std::int64_t kv_pages_used() const;
  const Totals& totals() const { return totals_; }

 private:
  struct Sequence {
    std::uint64_t id = 0;
    GenerationRequest request;         // its prompt has moved to `tokens`
    std::vector<std::int32_t> tokens;  // prompt, then what was generated
    int prompt_tokens = 0;
    int max_length = 0;  // tokens at which it ends
    int computed = 0;    // tokens whose KV is in the cache
    int planned = 0;     // tokens of the step in flight
    int lane = -1;       // -1: waits
    bool over = false;   // finished or cancelled; leaves when the step ends
    std::vector<std::int32_t> pages;
    std::vector<TokenLogprob> prompt_logprobs;

    int pending() const { return static_cast<int>(tokens.size()) - computed; }
    bool decoding() const { return computed >= prompt_tokens; }
    int expected_scores() const;  // entries that the planned chunk reports for `score`
    bool samples() const;         // whether the planned chunk ends with a new token
  };
  struct Lane {
    PagePool pool;
    std::vector<Sequence*> running;  // in order of admission
    std::vector<std::uint64_t> finish;
    int budget = 0;  // tokens left in the step being planned
  };

  int max_length(std::size_t prompt_tokens, int max_tokens) const;
  int pages_for(const GenerationRequest& request, std::size_t prompt_tokens) const;
  Lane* roomiest(int pages);
  void admit(std::vector<StepPlan>& plans);
  void add_chunk(Sequence& sequence, StepPlan& plan);
  void advance(Sequence& sequence, SequenceOutput output, Events& events);
  void end_step();

  CoordinatorOptions options_;
  std::unordered_map<std::uint64_t, Sequence> sequences_;  // waiting and running; addresses are stable
  std::deque<Sequence*> waiting_;
  std::vector<Lane> lanes_;
  std::vector<bool> answered_;  // [ranks], of the step in flight
  int answers_missing_ = 0;
  Totals totals_;
};

}  // namespace shoal
