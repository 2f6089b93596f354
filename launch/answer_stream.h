#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "launch/text_filters.h"
#include "launch/tool_calls.h"
#include "runtime/coordinator.h"
#include "runtime/text/tokenizer.h"

namespace shoal {

/// How tokens become an answer.
struct AnswerOptions {
  std::vector<std::string> stop;
  bool include_stop = false;  // the stop string stays in the text
  int min_tokens = 0;         // no stop string counts before the answer has more
  bool skip_special_tokens = true;
  bool split_reasoning = false;      // tell thinking from answer; else all text is content
  bool starts_in_reasoning = false;  // the prompt ended with <think>
  std::optional<ToolSyntax> tools;   // take calls of tools out of the content
};

/// What an answer grew by. A token is given out when its text is: not while that may still turn out to be part of a
/// stop string, and never if it is.
struct AnswerDelta {
  std::string reasoning, content;  // UTF-8, always of whole characters
  std::vector<ToolCall> tool_calls;
  std::vector<TokenLogprob> prompt;    // once, if the prompt was to be scored
  std::vector<std::int32_t> tokens;    // given out
  std::vector<TokenLogprob> logprobs;  // of these tokens, if asked for
  FinishReason finish = FinishReason::none;
  std::string error;  // with FinishReason::failed

  bool empty() const {
    return reasoning.empty() && content.empty() && tool_calls.empty() && prompt.empty() && tokens.empty() &&
           finish == FinishReason::none;
  }
};

/// Turns one request's events into text: decodes tokens, ends at stop strings, tells thinking from answer.
class AnswerStream {
 public:
  /// tokenizer may be null: there is no text then. The decoder looks at the prompt's last tokens, because the text of a
  /// token can depend on those in front of it.
  AnswerStream(const Tokenizer* tokenizer, AnswerOptions options, std::span<const std::int32_t> prompt);

  /// After an event that finished it, later ones give nothing.
  AnswerDelta push(const GenerationEvent& event);
  bool finished() const { return finished_; }
  /// The answer ended with a stop string, which the coordinator knows nothing of: the request is to be cancelled.
  bool met_stop_string() const { return finder_.found(); }

  /// Tokens generated so far, those of stop strings and of the end of the answer included.
  int completion_tokens() const { return completion_tokens_; }
  /// Those of them that are thinking, </think> included. 0 unless split_reasoning.
  int reasoning_tokens() const { return reasoning_tokens_; }

 private:
  struct PendingToken {
    std::int32_t token;
    std::optional<TokenLogprob> logprob;
    std::size_t begin;  // bytes of text decoded in front of it
  };
  std::string decode(std::int32_t token);
  void add_text(std::string_view certain, AnswerDelta& delta);
  void add_content(std::string content, AnswerDelta& delta);
  void give_out(AnswerDelta& delta, bool all);

  const Tokenizer* tokenizer_;
  const AnswerOptions options_;
  std::optional<StreamDecoder> decoder_;
  StopFinder finder_;
  ReasoningSplitter splitter_;
  std::optional<ToolCallFinder> calls_;
  std::deque<PendingToken> pending_;
  std::size_t decoded_bytes_ = 0, certain_bytes_ = 0;  // before and behind the stop finder
  int completion_tokens_ = 0, reasoning_tokens_ = 0;
  bool finished_ = false;
};

}  // namespace shoal
