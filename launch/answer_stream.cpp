#include "launch/answer_stream.h"

#include <algorithm>
#include <utility>

namespace shoal {
namespace {

constexpr std::size_t context_tokens = 4;

}  // namespace

AnswerStream::AnswerStream(const Tokenizer* tokenizer, AnswerOptions options, std::span<const std::int32_t> prompt)
    : tokenizer_(tokenizer),
      options_(std::move(options)),
      finder_(options_.stop, options_.include_stop),
      splitter_(options_.split_reasoning && options_.starts_in_reasoning) {
  if (options_.tools) calls_.emplace(*options_.tools);
  if (!tokenizer) return;
  decoder_.emplace(*tokenizer, options_.skip_special_tokens);
  for (const std::int32_t token : prompt.last(std::min(prompt.size(), context_tokens))) decoder_->push(token);
}

std::string AnswerStream::decode(std::int32_t token) {
  // Where a tokenizer counts these as special, they must not be skipped: they are the structure of the answer.
  if (options_.split_reasoning && options_.skip_special_tokens && tokenizer_->is_special(token)) {
    const std::string text = tokenizer_->token_bytes(token);
    if (text == "<think>" || text == "</think>") return text;
  }
  return decoder_->push(token);
}

void AnswerStream::add_text(std::string_view certain, AnswerDelta& delta) {
  certain_bytes_ += certain.size();
  if (!options_.split_reasoning) {
    delta.content += certain;
    return;
  }
  auto [reasoning, content] = splitter_.push(certain);
  delta.reasoning += reasoning;
  add_content(std::move(content), delta);
}

void AnswerStream::add_content(std::string content, AnswerDelta& delta) {
  if (!calls_) {
    delta.content += content;
    return;
  }
  auto [text, calls] = calls_->push(content);
  delta.content += text;
  std::move(calls.begin(), calls.end(), std::back_inserter(delta.tool_calls));
}

void AnswerStream::give_out(AnswerDelta& delta, bool all) {
  while (!pending_.empty() && (all || pending_.front().begin < certain_bytes_)) {
    delta.tokens.push_back(pending_.front().token);
    if (pending_.front().logprob) delta.logprobs.push_back(std::move(*pending_.front().logprob));
    pending_.pop_front();
  }
}

AnswerDelta AnswerStream::push(const GenerationEvent& event) {
  AnswerDelta delta;
  if (finished_) return delta;
  delta.prompt = event.prompt;
  if (event.token >= 0) {
    ++completion_tokens_;
    if (options_.split_reasoning && splitter_.inside()) ++reasoning_tokens_;
    PendingToken pending{event.token, std::nullopt, decoded_bytes_};
    if (!event.logprob.empty()) pending.logprob = event.logprob.front();
    pending_.push_back(std::move(pending));
    // The token that ends an answer is no part of its text.
    if (decoder_ && event.finish != FinishReason::stop) {
      const std::string text = decode(event.token);
      decoded_bytes_ += text.size();
      add_text(completion_tokens_ > options_.min_tokens ? finder_.push(text) : text, delta);
    }
  }
  if (event.finish != FinishReason::none && decoder_ && !finder_.found()) {
    const std::string rest = decoder_->finish();
    decoded_bytes_ += rest.size();
    add_text(finder_.push(rest), delta);
    if (!finder_.found()) add_text(finder_.finish(), delta);
  }
  delta.finish = finder_.found() ? FinishReason::stop : event.finish;
  delta.error = event.error;
  finished_ = delta.finish != FinishReason::none;
  if (finished_ && options_.split_reasoning) {
    auto [reasoning, content] = splitter_.finish();
    delta.reasoning += reasoning;
    add_content(std::move(content), delta);
    if (calls_) delta.content += calls_->finish().content;
  }
  // Without a stop string under way every token is certain, even one that completes no character yet.
  give_out(delta, finder_.found() ? false : finished_ || options_.stop.empty());
  return delta;
}

}  // namespace shoal
