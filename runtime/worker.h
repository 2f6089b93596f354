#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "runtime/kv_cache.h"
#include "runtime/model.h"
#include "runtime/step.h"
#include "runtime/token_steering.h"

namespace shoal {

/// One rank's part of every step: turns a StepPlan into a batch, runs the model, samples for the sequences it owns.
///
/// With an MTP layer it guesses ahead: a guess is what the sampler would draw from the MTP layer's logits. In the next
/// step the guess is computed along with the token before it, and is right if the model's own logits there yield, with
/// the draw of that position, that very token. So answers are the same, bit for bit, with guesses and without, at any
/// temperature; a draft model changes how many tokens a step yields and nothing else.
///
/// What tokens a grammar allows may take long to find out. All other answers would wait: so no more than half of a
/// step's time so far goes into that, and an answer that needs more gets its token in a later step.
class Worker {
 public:
  /// `outputs`: this rank answers for the sequences (under tensor parallelism rank 0 alone does). `tokens` may be null:
  /// answers cannot be bound to a grammar then.
  Worker(Model& model, Backend& backend, const KvCache& cache, int max_logit_rows, bool outputs,
         std::shared_ptr<const grammar::TokenTable> tokens);
  StepResult run(const StepPlan& plan);

 private:
  struct Sequence {
    SamplingParams sampling;
    int logprobs = -1;
    std::vector<std::int32_t> pages;
    std::optional<TokenSteering> steering;  // of a request that asks for it
  };
  /// One row of logits: whose it is, and what for.
  struct LogitRow {
    std::int64_t row;    // in the batch
    std::size_t output;  // in the result
    std::int32_t position;
    std::int32_t scored;  // the token whose log-probability is asked, or -1
    int sample;           // the how manyth new token of its sequence is drawn here, or -1
    std::int32_t guess;   // drawn only if the new token before is this one, which the row was computed with
  };

  Sequence& sequence_of(const SequenceChunk& chunk, const StepPlan& plan);
  TokenBatch make_batch(const StepPlan& plan, std::vector<LogitRow>& wanted, StepResult& result) const;
  void start(const SequenceStart& start);
  /// Draws for these rows of the model's last forward() where the logits are. False, with nothing done, where the host
  /// must see logits.
  bool draw_on_device(std::span<const LogitRow> wanted, std::span<const std::int64_t> rows, StepResult& result);
  /// Whether a row's token is the next of its sequence: those before it were as they were guessed.
  static bool is_next(const LogitRow& row, const SequenceOutput& output);
  static void give_up(SequenceOutput& output);
  /// Draws for these rows on the host, and scores them. Sequences by themselves share threads; those with rules, which
  /// have grammars and time in common, take turns.
  void read_logits(std::span<const LogitRow> wanted, Rows<const float> logits, StepResult& result);
  void read_row(const LogitRow& row, std::span<const float> logits, SequenceOutput& output);
  /// Nothing where the rules of its answer take longer to apply than this step may.
  std::optional<std::int32_t> next_token(Sequence& sequence, std::span<const float> logits, std::int32_t position);
  /// Guesses what comes behind the new tokens.
  void draft(const StepPlan& plan, const TokenBatch& batch, StepResult& result);

  Model& model_;
  Backend& backend_;
  const KvCache& cache_;
  const int max_logit_rows_;
  const bool outputs_;
  std::chrono::steady_clock::duration steering_left_{};  // for finding out what grammars allow, in this step
  std::optional<grammar::GrammarCache> grammars_;
  std::vector<float> steered_;  // [vocab] the row being changed
  std::unordered_map<std::uint64_t, Sequence> sequences_;
};

}  // namespace shoal
