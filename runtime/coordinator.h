#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/step.h"

namespace shoal {

class ControlServer;

/// What a user wants generated, in tokens.
struct GenerationRequest {
  std::vector<std::int32_t> prompt;  // at least one token
  int max_tokens = 16;               // 0: nothing is generated (the prompt may still be scored)
  SamplingParams sampling;
  std::vector<std::int32_t> stop_token_ids;  // end-of-sequence ids among them, unless ignored
  int logprobs = -1;                         // as SequenceStart::logprobs, for generated and (if asked) prompt tokens
  bool prompt_logprobs = false;              // score the prompt
  std::string client;                        // whose it is (an API key, an address); clients share turns and places
  std::string user;                          // of the client's; these share its turns
  std::string cache_salt;                    // the prefix cache is shared only among requests with the same
};

enum class FinishReason { none, stop, length, cancelled, failed };

/// Told to a request's sink, in order, from the coordinator's thread; it must not block.
struct GenerationEvent {
  std::vector<TokenLogprob> prompt;   // once, before the first token, if asked: one entry a prompt token but the first
  std::int32_t token = -1;            // a new token, or -1; the stop token itself is reported too
  std::vector<TokenLogprob> logprob;  // its log-probability, if asked
  int cached_tokens = 0;              // prompt tokens that the prefix cache had
  double queue_s = -1;                // from submit to its first step; negative: it never had one
  FinishReason finish = FinishReason::none;
  std::string error;  // for people, with `failed`
};
using EventSink = std::function<void(const GenerationEvent&)>;

/// What a rank has of its sequences when ranks were lost.
struct RankState {
  bool left = true;        // false: it is lost
  int kv_pages = 0;        // that it has now
  bool cache_kept = true;  // what was in them still is
};

struct CoordinatorOptions {
  int ranks = 1;
  bool tensor_parallel = false;  // every rank computes every sequence (dense models); else one rank each
  int page_tokens = 16;
  std::vector<int> kv_pages;     // [ranks] what each rank has
  int max_model_len = 0;         // tokens, prompt and answer together
  int max_num_seqs = 256;        // sequences that run at once on one rank
  int max_batched_tokens = 512;  // tokens of one rank in one step
  int max_prefill_tokens = 256;  // of these, prompt tokens while any answer is being generated
  /// Requests that wait. A client's own may be as many as there are places left, so that nobody takes the last ones
  /// (dynamic thresholds: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches",
  /// 1998); beyond: Overloaded.
  int max_waiting = 4096;
  std::chrono::milliseconds answer_limit{300'000};  // without any rank's answer: a rank hangs (see Coordinator)
  std::function<void(const StepResult&, int rank)> on_result;  // for counters; may be empty
  std::function<std::optional<ExpertLayer>()> move_experts;    // asked in every step, for the next one; may be empty
  /// Has the ranks that are left go on without those that were lost, and says what each has [ranks]; nothing where none
  /// was lost since the last time. Called on the coordinator's thread; may take as long as it takes to read weights. It
  /// may throw when `give_up` says so (the job is ending); what else it throws ends the job. Empty: so does a lost
  /// rank.
  std::function<std::vector<RankState>(const std::function<bool()>& give_up)> regroup;
  std::function<void(const Error&)> on_failed;  // steps cannot go on, so neither can the job; may be empty
};

/// Thrown by submit when the queue is full: the client should come back later (HTTP 429).
class Overloaded : public Error {
 public:
  using Error::Error;
};

/// Continuous batching on rank 0. A loop on its own thread: plan a step (Scheduler says how), send each rank its share,
/// wait for all results, tell the sinks. It sleeps while there is nothing to do.
///
/// A rank may live without computing: its GPU never answers, or the network between ranks fails where the control
/// plane's does not. So nobody waits for answers without end. `answer_limit` is far beyond what a step takes to start,
/// with memory read back from disk, experts on their way and sanitizers; as much again is given for every 256 tokens
/// that a rank computes, which a dense model of 70 billion parameters does in that time at 120 GFLOP/s, two slow cores,
/// and more where these attend to many.
class Coordinator {
 public:
  Coordinator(ControlServer& control, CoordinatorOptions options);
  ~Coordinator();

  /// Thread-safe; returns the request's number. Throws Error when it can never run (empty, a token out of range is the
  /// caller's to check, longer than max_model_len or than the KV cache), Overloaded when too many wait.
  std::uint64_t submit(GenerationRequest request, EventSink sink);
  /// Thread-safe. The sequence leaves before the next step; its sink gets `cancelled`. Unknown or finished: nothing.
  void cancel(std::uint64_t request);

  struct Load {
    int running = 0, waiting = 0;
    std::int64_t kv_pages_used = 0, kv_pages = 0;
    std::uint64_t steps = 0, prompt_tokens = 0, generated_tokens = 0;
    std::uint64_t prefix_queries = 0, prefix_hits = 0;  // prompt tokens looked up in the prefix cache, and found
    std::uint64_t preemptions = 0;                      // sequences that had to leave for want of pages
    std::uint64_t drafted = 0, accepted = 0;            // tokens guessed ahead, and those that were right
  };
  Load load() const;

  /// A rank is lost, and the others go on without it (CoordinatorOptions::regroup): requests wait until they do.
  void rank_lost();
  /// A rank is lost or a worker failed: every request fails with this message, later ones are refused.
  void fail_all(const std::string& why);
  /// Ends the loop after the running step; requests still open are cancelled. Not to be called from a sink.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
