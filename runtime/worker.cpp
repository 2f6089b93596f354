#include "runtime/worker.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "runtime/sampler.h"

namespace shoal {
namespace {

using Duration = std::chrono::steady_clock::duration;
constexpr std::chrono::microseconds least_steering{300}, least_steering_of_one{20};

}  // namespace

Worker::Worker(Model& model, Backend& backend, const KvCache& cache, int max_logit_rows, bool outputs,
               std::shared_ptr<const grammar::TokenTable> tokens)
    : model_(model), backend_(backend), cache_(cache), max_logit_rows_(max_logit_rows), outputs_(outputs) {
  if (tokens) grammars_.emplace(std::move(tokens));
}

void Worker::start(const SequenceStart& start) {
  Sequence& sequence = sequences_[start.sequence] = {start.sampling, start.logprobs, {}, std::nullopt};
  if (!outputs_ || start.sampling.rules.empty()) return;
  sequence.steering.emplace(start.sampling.rules, grammars_ ? &*grammars_ : nullptr);
  for (const std::int32_t token : start.answer) sequence.steering->push(token);
}

Worker::Sequence& Worker::sequence_of(const SequenceChunk& chunk, const StepPlan& plan) {
  const auto found = sequences_.find(chunk.sequence);
  if (found == sequences_.end()) fail("step {} names sequence {}, which was never started", plan.step, chunk.sequence);
  return found->second;
}

TokenBatch Worker::make_batch(const StepPlan& plan, std::vector<LogitRow>& wanted, StepResult& result) const {
  TokenBatch batch{.most_tokens = plan.most_tokens};
  for (const SequenceChunk& chunk : plan.chunks) {
    const Sequence& sequence = sequences_.at(chunk.sequence);
    const auto n = static_cast<std::int32_t>(chunk.tokens.size());
    const std::int32_t known = n - chunk.drafts;  // the tokens before the guesses
    if (chunk.drafts < 0 || known < 1)
      fail("step {}: sequence {} has {} tokens, {} of them guesses", plan.step, chunk.sequence, n, chunk.drafts);
    if (static_cast<std::size_t>(chunk.position + n) >
        sequence.pages.size() * static_cast<std::size_t>(cache_.page_tokens()))
      fail("step {}: sequence {} has {} pages, too few for position {}", plan.step, chunk.sequence,
           sequence.pages.size(), chunk.position + n - 1);
    const std::int64_t first_row = batch.size();
    for (std::int32_t i = 0; i < n; ++i) {
      const std::int32_t position = chunk.position + i;
      batch.ids.push_back(chunk.tokens[static_cast<std::size_t>(i)]);
      batch.positions.push_back(position);
      batch.slots.push_back(cache_.slot(sequence.pages, position));
      batch.queries.push_back({sequence.pages.data(), position + 1});
      const std::int32_t next = i + 1 < known ? chunk.tokens[static_cast<std::size_t>(i + 1)] : chunk.next_token;
      const std::int32_t scored = chunk.score && i < known ? next : -1;
      const int sample = chunk.sample && i + 1 >= known ? i + 1 - known : -1;
      if (scored >= 0 || sample >= 0)
        wanted.push_back({first_row + i, result.outputs.size(), position, scored, sample, batch.ids.back()});
    }
    if (chunk.score || chunk.sample) result.outputs.push_back({.sequence = chunk.sequence});
  }
  return batch;
}

std::optional<std::int32_t> Worker::next_token(Sequence& sequence, std::span<const float> logits,
                                               std::int32_t position) {
  if (!sequence.steering) return sample(logits, sequence.sampling, position);
  TokenSteering& steering = *sequence.steering;
  // Half of what is left, so that those behind it get on as well.
  const auto start = std::chrono::steady_clock::now();
  const bool ready = steering.prepare(start + std::max<Duration>(steering_left_ / 2, least_steering_of_one));
  steering_left_ -= std::chrono::steady_clock::now() - start;
  if (!ready) return {};
  std::int32_t token;
  if (const auto forced = steering.forced()) {
    token = *forced;
  } else {
    steered_.assign(logits.begin(), logits.end());
    steering.apply(steered_);
    token = sample(steered_, sequence.sampling, position);
  }
  steering.push(token);
  return token;
}

bool Worker::is_next(const LogitRow& row, const SequenceOutput& output) {
  if (output.overflowed || row.sample < 0 || !std::cmp_equal(output.tokens.size(), row.sample)) return false;
  return row.sample == 0 || output.tokens.back() == row.guess;
}

bool Worker::draw_on_device(std::span<const LogitRow> wanted, std::span<const std::int64_t> rows, StepResult& result) {
  if (!model_.can_sample()) return false;
  std::vector<Draw> draws;
  for (const LogitRow& row : wanted) {
    const Sequence& sequence = sequences_.at(result.outputs[row.output].sequence);
    if (row.scored >= 0 || sequence.steering || sequence.logprobs >= 0) return false;
    draws.push_back(draw_of(sequence.sampling, row.position));
  }
  std::vector<std::int32_t> tokens(wanted.size());
  model_.sample(rows, draws, tokens);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    SequenceOutput& output = result.outputs[wanted[i].output];
    if (!is_next(wanted[i], output)) continue;
    if (tokens[i] < 0)
      give_up(output);
    else
      output.tokens.push_back(tokens[i]);
  }
  return true;
}

/// One sequence that overflowed is no reason to end the others.
void Worker::give_up(SequenceOutput& output) { output = {.sequence = output.sequence, .overflowed = true}; }

void Worker::read_row(const LogitRow& row, std::span<const float> logits, SequenceOutput& output) {
  if (output.overflowed) return;
  Sequence& sequence = sequences_.at(output.sequence);
  const int top = std::max(0, sequence.logprobs);
  try {
    if (row.scored >= 0) output.scored.push_back(log_probability(logits, row.scored, top));
    if (!is_next(row, output)) return;
    const auto token = next_token(sequence, logits, row.position);
    output.later = !token && row.sample == 0;
    if (!token) return;
    output.tokens.push_back(*token);
    if (sequence.logprobs >= 0) output.sampled.push_back(log_probability(logits, *token, top));
  } catch (const Overflowed&) {
    give_up(output);
  }
}

void Worker::read_logits(std::span<const LogitRow> wanted, Rows<const float> logits, StepResult& result) {
  // Rows of an output lie together, and depend on each other.
  std::vector<std::size_t> first;
  for (std::size_t i = 0; i < wanted.size(); ++i)
    if (i == 0 || wanted[i].output != wanted[i - 1].output) first.push_back(i);
  const std::size_t outputs = first.size();
  first.push_back(wanted.size());
  const auto read = [&](std::size_t begin, std::size_t end, bool steered) {
    for (std::size_t o = begin; o < end; ++o) {
      SequenceOutput& output = result.outputs[wanted[first[o]].output];
      if (sequences_.at(output.sequence).steering.has_value() != steered) continue;
      for (std::size_t i = first[o]; i < first[o + 1]; ++i)
        read_row(wanted[i], {logits[static_cast<std::int64_t>(i)], static_cast<std::size_t>(logits.cols)}, output);
    }
  };
  backend_.on_host(outputs, static_cast<double>(std::ssize(wanted) * logits.cols),
                   [&](std::size_t begin, std::size_t end) { read(begin, end, false); });
  read(0, outputs, true);
}

void Worker::draft(const StepPlan& plan, const TokenBatch& batch, StepResult& result) {
  TokenBatch ahead{.most_tokens = plan.most_tokens};
  std::vector<std::int64_t> rows;       // of `batch`
  std::vector<std::int64_t> last_rows;  // of `ahead`, one for each output that has tokens
  std::vector<SequenceOutput*> outputs;
  std::int64_t row = 0;
  auto output = result.outputs.begin();
  for (const SequenceChunk& chunk : plan.chunks) {
    // What follows each row: the chunk's own next token, at its end what was sampled.
    const auto known = chunk.tokens.end() - chunk.drafts;
    std::vector<std::int32_t> next(chunk.tokens.begin() + 1, known);
    if (chunk.sample)
      next.insert(next.end(), output->tokens.begin(), output->tokens.end());
    else if (chunk.next_token >= 0)
      next.push_back(chunk.next_token);
    for (std::size_t i = 0; i < next.size(); ++i) {
      const auto from = static_cast<std::size_t>(row) + i;
      rows.push_back(static_cast<std::int64_t>(from));
      ahead.ids.push_back(next[i]);
      ahead.positions.push_back(batch.positions[from]);
      ahead.slots.push_back(batch.slots[from]);
      ahead.queries.push_back(batch.queries[from]);
    }
    if (chunk.sample && !output->tokens.empty()) {
      last_rows.push_back(ahead.size() - 1);
      outputs.push_back(&*output);
    }
    if (chunk.sample || chunk.score) ++output;
    row += static_cast<std::int64_t>(chunk.tokens.size());
  }
  model_.forward_mtp(ahead, rows);
  for (std::size_t first = 0; first < last_rows.size(); first += static_cast<std::size_t>(max_logit_rows_)) {
    const std::size_t count = std::min(last_rows.size() - first, static_cast<std::size_t>(max_logit_rows_));
    const auto some = std::span<const std::int64_t>(last_rows).subspan(first, count);
    const auto position_of = [&](std::size_t i) { return ahead.positions[static_cast<std::size_t>(some[i])] + 1; };
    if (model_.can_sample()) {
      std::vector<Draw> draws;
      std::vector<std::int32_t> tokens(count);
      for (std::size_t i = 0; i < count; ++i)
        draws.push_back(draw_of(sequences_.at(outputs[first + i]->sequence).sampling, position_of(i)));
      model_.mtp_sample(some, draws, tokens);
      for (std::size_t i = 0; i < count; ++i) {
        if (tokens[i] >= 0) outputs[first + i]->drafts.push_back(tokens[i]);
      }
      continue;
    }
    const Rows<const float> logits = model_.mtp_logits(some);
    backend_.on_host(count, static_cast<double>(logits.rows * logits.cols), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        SequenceOutput& to = *outputs[first + i];
        try {
          to.drafts.push_back(sample({logits[static_cast<std::int64_t>(i)], static_cast<std::size_t>(logits.cols)},
                                     sequences_.at(to.sequence).sampling, position_of(i)));
        } catch (const Overflowed&) {  // no guess, then
        }
      }
    });
  }
}

StepResult Worker::run(const StepPlan& plan) {
  const auto begin = std::chrono::steady_clock::now();
  for (const ExpertLayer& layer : plan.experts) model_.place_experts(layer.layer, layer.experts);
  for (const std::uint64_t id : plan.finish) sequences_.erase(id);
  for (const SequenceStart& s : plan.start) start(s);
  for (const SequenceChunk& chunk : plan.chunks) {
    auto& pages = sequence_of(chunk, plan).pages;
    pages.insert(pages.end(), chunk.pages.begin(), chunk.pages.end());
  }

  StepResult result;
  result.step = plan.step;
  std::vector<LogitRow> wanted;
  const TokenBatch batch = make_batch(plan, wanted, result);
  model_.forward(batch);

  // The vocabulary is wide: logits are made for a few rows at a time.
  std::vector<std::int64_t> rows;
  bool timed = false;
  for (std::size_t first = 0; first < wanted.size(); first += static_cast<std::size_t>(max_logit_rows_)) {
    const std::size_t count = std::min(wanted.size() - first, static_cast<std::size_t>(max_logit_rows_));
    rows.clear();
    for (std::size_t i = 0; i < count; ++i) rows.push_back(wanted[first + i].row);
    if (outputs_ && draw_on_device(std::span(wanted).subspan(first, count), rows, result)) continue;
    const Rows<const float> logits = model_.logits(rows);
    if (!outputs_) continue;
    // Known only now: a GPU may have been computing until here.
    if (!std::exchange(timed, true))
      steering_left_ = std::max<Duration>((std::chrono::steady_clock::now() - begin) / 2, least_steering);
    read_logits(std::span(wanted).subspan(first, count), logits, result);
  }
  if (model_.has_mtp()) draft(plan, batch, result);
  if (grammars_) grammars_->trim();
  if (!outputs_) result.outputs.clear();
  result.expert_tokens = model_.counters().expert_tokens;
  result.expert_work = model_.counters().expert_work;
  const std::chrono::duration<double, std::micro> total = std::chrono::steady_clock::now() - begin;
  result.exchange_us = static_cast<std::uint32_t>(model_.counters().exchange_us);
  result.compute_us = static_cast<std::uint32_t>(std::max(0.0, total.count() - model_.counters().exchange_us));
  return result;
}

}  // namespace shoal
