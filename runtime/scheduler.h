#pragma once
#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

#include "runtime/coordinator.h"
#include "runtime/fair_queue.h"
#include "runtime/lane.h"
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
/// Invariants:
/// - Who decodes gets a token in every step, unless it has to leave or its rules take longer (SequenceOutput::later).
///   Prompts share what the step has left, at most max_prefill_tokens of it while anybody decodes, so that no prompt,
///   however long, holds up answers for longer.
/// - Pages are given as sequences grow. Where none is left the youngest in the lane leaves, keeps its tokens and comes
///   back before anybody new; so the oldest always goes on, and everyone becomes the oldest in the end.
/// - A user's requests are admitted in the order in which they came; clients take turns, and so do a client's users
///   (FairQueue).
/// - An answer depends on none of this.
class Scheduler {
 public:
  struct Event {
    std::uint64_t request = 0;
    GenerationEvent event;
  };
  using Events = std::vector<Event>;

  struct Totals {
    std::uint64_t steps = 0;
    std::uint64_t prompt_tokens = 0;  // read, computed or from the cache; what comes back counts once
    std::uint64_t generated_tokens = 0;
    std::uint64_t prefix_queries = 0;  // prompt tokens that were looked up in the cache
    std::uint64_t prefix_hits = 0;     // and found there
    std::uint64_t preemptions = 0;     // a sequence had to leave for want of pages
    std::uint64_t drafted = 0;         // guessed tokens that were verified
    std::uint64_t accepted = 0;        // and were right
  };

  /// Error when the options make no sense. `ranks`, `tensor_parallel` and the limits are used; the rest is the
  /// caller's.
  explicit Scheduler(const CoordinatorOptions& options);

  /// Throws Error when the request could not run even alone, with the options given and the ranks left.
  void check(const GenerationRequest& request) const;
  /// Puts a request at the end of its user's queue. Throws as check() does, and when the number is in use; numbers grow
  /// as requests come.
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

  /// Ranks were lost: the step in flight is void, and those left know of no sequence any more. Sequences whose cache is
  /// gone wait for a place, before anybody new, to be computed again; the others go on where they were. Answers end
  /// where the room that is left does. Returns the events of those that it does not even hold so far. `ranks`: [ranks],
  /// as many as ever.
  Events regroup(const std::vector<RankState>& ranks);
  /// Whether a rank is still one of those that answer.
  bool is_left(int rank) const { return left_[static_cast<std::size_t>(rank)]; }

  int running() const;
  int waiting() const { return queue_.waiting() + static_cast<int>(preempted_.size()); }
  /// Of a client, those never admitted.
  int waiting(const std::string& client) const { return queue_.waiting_of(client); }
  std::int64_t kv_pages() const;
  /// Pages that sequences own. What is kept of those that left is not counted: it goes when room is needed.
  std::int64_t kv_pages_used() const;
  const Totals& totals() const { return totals_; }

 private:
  std::int64_t largest_cache() const;
  int max_length(std::size_t prompt_tokens, int max_tokens) const;
  void share_budget(Lane& lane, bool answering);
  void find_pages(Lane& lane);
  void leave(Sequence& sequence);
  Sequence* next_to_admit();
  struct Prefix {
    int tokens = 0;
    int owned_pages = 0;  // that need no free page, since somebody owns them now
  };
  std::vector<Prefix> find_prefixes(const Sequence& sequence) const;
  Lane* best_lane(const Sequence& sequence);
  void admit(std::vector<StepPlan>& plans);
  void take_prefix(Lane& lane, Sequence& sequence);
  void add_chunk(Sequence& sequence, StepPlan& plan);
  void check_answer(const Sequence& sequence, const SequenceOutput& output) const;
  void advance(Sequence& sequence, SequenceOutput output, Events& events);
  void overflow(Sequence& sequence, Events& events);
  void add_tokens(Sequence& sequence, SequenceOutput& output, Events& events);
  void end_step();

  CoordinatorOptions options_;
  std::unordered_map<std::uint64_t, Sequence> sequences_;  // waiting and running; addresses are stable
  FairQueue queue_;                                        // those never admitted
  std::map<std::uint64_t, Sequence*> preempted_;           // by ticket
  std::vector<Lane> lanes_;
  std::vector<bool> left_;      // [ranks], not lost
  std::vector<bool> answered_;  // [ranks], of the step in flight
  int answers_missing_ = 0;
  std::uint64_t last_ticket_ = 0;
  Totals totals_;
};

}  // namespace shoal
