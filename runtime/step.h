#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "planner/placement.h"
#include "runtime/token_rules.h"

/// What passes between the coordinator and the workers, once a step: plain data with a compact binary form.
namespace shoal {

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  float top_p = 1.0f;
  int top_k = 0;  // 0: all
  float min_p = 0.0f;
  std::uint64_t seed = 0;  // the draw for a position depends on seed and position only
  TokenRules rules;
};

/// A sequence enters, for the first time or again after it had to leave: how to sample. Sent with its first chunk.
struct SequenceStart {
  std::uint64_t sequence = 0;
  SamplingParams sampling;
  int logprobs = -1;                 // alternatives to report with each token; 0: the chosen one only; -1: none
  std::vector<std::int32_t> answer;  // what was sampled before, where it starts again: rules go on from there
};

/// Some consecutive tokens of a sequence, to be computed in this step. The first chunk may begin behind the first
/// position: what comes before it is in the pages.
struct SequenceChunk {
  std::uint64_t sequence = 0;
  std::int32_t position = 0;        // of the first token
  std::vector<std::int32_t> pages;  // KV pages on its rank that the sequence gets in addition to those it has
  std::vector<std::int32_t> tokens;
  std::int32_t drafts = 0;       // so many of the tokens, the last ones, are guesses to be verified
  bool sample = false;           // sample a token after the last position, and after right guesses
  bool score = false;            // report the log-probability of each position's next token:
  std::int32_t next_token = -1;  // the token behind the chunk, where there is one (for `score`)
};

/// Where the experts of a layer are from now on.
struct ExpertLayer {
  std::int32_t layer = 0;
  LayerPlacement experts;
  bool operator==(const ExpertLayer&) const = default;
};

/// One rank's share of a step. A rank with nothing to do gets an empty one and still takes part in the exchanges.
struct StepPlan {
  std::uint64_t step = 0;
  std::int32_t most_tokens = 0;  // of the rank that has most; the same for all ranks
  std::vector<SequenceStart> start;
  std::vector<SequenceChunk> chunks;
  std::vector<std::uint64_t> finish;  // sequences to forget before this step
  std::vector<ExpertLayer> experts;   // to be moved before this step; the same for all ranks
};

struct TokenLogprob {
  std::int32_t token = 0;
  float logprob = 0;                                // natural log, of the unscaled distribution (temperature 1)
  std::vector<std::pair<std::int32_t, float>> top;  // most likely first
};

struct SequenceOutput {
  std::uint64_t sequence = 0;
  std::vector<std::int32_t> tokens;   // for `sample`: guesses that were right, then one more; else empty
  std::vector<TokenLogprob> sampled;  // one entry a token if log-probabilities were asked for
  std::vector<std::int32_t> drafts;   // guesses at the tokens after these
  std::vector<TokenLogprob> scored;   // for `score`: one entry a position that has a next token
  bool later = false;                 // for `sample`: no token yet, the last one is to be computed again
  bool overflowed = false;            // nothing can be said of its logits, none of which is finite; all else is empty
};

/// What a rank answers. Under tensor parallelism rank 0 alone has outputs; the others answer too, empty.
struct StepResult {
  std::uint64_t step = 0;
  std::vector<SequenceOutput> outputs;
  std::vector<std::uint32_t>
      expert_tokens;  // [MoE layers, n_routed_experts], rows routed from this rank; empty if not MoE
  std::vector<std::uint32_t> expert_work;  // [MoE layers] how often experts on this rank were gone through
  std::uint32_t compute_us = 0, exchange_us = 0;
};

/// Frame types on the control plane.
enum class Message : std::uint16_t { ready = 1, failed = 2, step = 3, result = 4, regroup = 5, cannot_regroup = 6 };

/// Ranks were lost: who is left, and what each of them has from now on.
struct Regroup {
  std::uint32_t epoch = 0;            // counts from 1
  std::vector<std::int32_t> members;  // ranks as the job was started with, ascending
  Placement placement;                // over the members, numbered from 0
};

/// What a worker tells when it has loaded its share, at the start and after each loss of ranks.
struct WorkerReady {
  std::uint32_t epoch = 0;    // of the Regroup; 0: the start
  bool cache_kept = false;    // what was in its KV cache still is
  bool outlives_one = false;  // it has room for its part of what another rank has
  std::uint64_t weight_bytes = 0;
  std::uint64_t kv_bytes = 0;
  std::int32_t kv_pages = 0;
  std::string backend;  // "avx512, 2 threads"
  std::string host;
};

std::vector<std::byte> encode(const StepPlan&);
std::vector<std::byte> encode(const StepResult&);
std::vector<std::byte> encode(const WorkerReady&);
std::vector<std::byte> encode(const Regroup&);
/// Of a failed worker: what it cannot go on for.
std::vector<std::byte> encode(const Error&);
/// Throw Error on bytes that are no such message.
StepPlan decode_step_plan(std::span<const std::byte>);
StepResult decode_step_result(std::span<const std::byte>);
WorkerReady decode_worker_ready(std::span<const std::byte>);
Regroup decode_regroup(std::span<const std::byte>);
Error decode_failure(std::span<const std::byte>);

}  // namespace shoal
