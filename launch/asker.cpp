#include "launch/asker.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <random>

#include "collectives/mpi.h"

namespace shoal {
namespace {

using Clock = std::chrono::steady_clock;

/// mpirun gives rank 0 a terminal of its own whatever the user's is, so under it colours come only where they are asked
/// for (CLICOLOR_FORCE, NO_COLOR: https://bixense.com/clicolors).
bool wants_colours() {
  if (std::getenv("NO_COLOR")) return false;
  if (std::getenv("CLICOLOR_FORCE")) return true;
  return isatty(STDOUT_FILENO) && !read_launch_environment().launched;
}

/// Writes an answer to stdout as it grows: thinking, an empty line, the answer. On a terminal the thinking is grey.
class Display {
 public:
  explicit Display(bool show) : show_(show), colours_(wants_colours()) {}

  void grow(const AnswerDelta& delta) {
    if (!show_) return;
    if (!delta.reasoning.empty()) {
      if (colours_ && !grey_) write("\x1b[90m");
      grey_ = true;
      write(delta.reasoning);
    }
    if (!delta.content.empty()) {
      if (grey_ && !content_) write(colours_ ? "\x1b[0m\n\n" : "\n\n");
      content_ = true;
      write(delta.content);
    }
    if (delta.finish != FinishReason::none) write(grey_ && !content_ && colours_ ? "\x1b[0m\n" : "\n");
    std::fflush(stdout);
  }

 private:
  static void write(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

  bool show_, colours_;
  bool grey_ = false, content_ = false;
};

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

Asker::Asker(const Engine& engine, const RunOptions& options, const SamplingDefaults& sampling)
    : options_(options), model_(served_model(engine)), service_(generator_of(*engine.coordinator), engine.tokenizer) {
  model_.sampling = sampling;
  if (!engine.tokenizer) fail("{} has no tokenizer, so there is no text to ask with", options.job.model.string());
}

Answer Asker::continue_text(const std::string& text, bool show) {
  return ask(model_.tokenizer->encode(text, true), {}, show);
}

Answer Asker::answer(const Json& messages, bool show) {
  const std::string prompt = prompt_of_chat(model_, messages, options_.job.model);
  AnswerOptions options;
  options.split_reasoning = true;
  options.starts_in_reasoning = ends_in_reasoning(prompt);
  return ask(model_.tokenizer->encode(prompt, false), std::move(options), show);
}

Answer Asker::ask(std::vector<std::int32_t> prompt, AnswerOptions options, bool show) {
  const int room = model_.max_model_len - static_cast<int>(prompt.size());
  if (room < 1) {
    fail("the prompt has {} tokens, which leaves no room for an answer in a context of {}", prompt.size(),
         model_.max_model_len);
  }
  Answer answer;
  answer.prompt_tokens = static_cast<int>(prompt.size());

  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = options_.max_tokens > 0 ? std::min(options_.max_tokens, room) : room;
  request.stop_token_ids = model_.eos_token_ids;
  const SamplingDefaults& by_default = model_.sampling;
  request.sampling.temperature = options_.temperature.value_or(by_default.temperature);
  request.sampling.top_p = options_.top_p.value_or(by_default.top_p);
  request.sampling.top_k = options_.top_k.value_or(by_default.top_k);
  request.sampling.min_p = options_.min_p.value_or(by_default.min_p);
  request.sampling.rules.repetition_penalty = options_.repetition_penalty.value_or(by_default.repetition_penalty);
  std::random_device entropy;
  request.sampling.seed = options_.seed ? *options_.seed : (std::uint64_t{entropy()} << 32) + entropy();

  struct Progress {
    explicit Progress(bool show) : display(show) {}
    Display display;
    Clock::time_point first{}, last{};
    int tokens_at_first = 0;  // several, where the first had no text that was certain
    std::string error;
    std::promise<void> over;
  };
  const auto progress = std::make_shared<Progress>(show);
  const auto start = Clock::now();
  auto generation = service_.start(std::move(request), std::move(options),
                                   [&answer, progress](const AnswerDelta& delta, const AnswerStream& stream) {
                                     progress->last = Clock::now();
                                     if (answer.completion_tokens == 0) {
                                       progress->first = progress->last;
                                       progress->tokens_at_first = stream.completion_tokens();
                                     }
                                     answer.completion_tokens = stream.completion_tokens();
                                     answer.reasoning += delta.reasoning;
                                     answer.content += delta.content;
                                     progress->display.grow(delta);
                                     if (delta.finish == FinishReason::none) return;
                                     answer.finish = delta.finish;
                                     progress->error = delta.error;
                                     progress->over.set_value();
                                   });
  {
    const std::lock_guard lock(mutex_);
    running_ = generation;
    interrupted_ = false;
  }
  progress->over.get_future().wait();
  {
    const std::lock_guard lock(mutex_);
    running_ = nullptr;
  }
  if (answer.finish == FinishReason::failed) throw Error(progress->error);
  answer.ttft_ms = seconds(progress->first - start) * 1000;
  const double decoding = seconds(progress->last - progress->first);
  // Tokens may be told of late and several at once, so that less time tells nothing.
  if (decoding >= 0.1) answer.tokens_per_s = (answer.completion_tokens - progress->tokens_at_first) / decoding;
  return answer;
}

bool Asker::interrupt() {
  const std::lock_guard lock(mutex_);
  if (!running_ || std::exchange(interrupted_, true)) return false;
  running_->cancel();
  return true;
}

std::string describe(const Answer& answer) {
  std::string text = fmt::format("{} prompt tokens, {} tokens, first after {:.0f} ms", answer.prompt_tokens,
                                 answer.completion_tokens, answer.ttft_ms);
  if (answer.tokens_per_s > 0) text += fmt::format(", {:.1f} tokens/s", answer.tokens_per_s);
  if (answer.finish == FinishReason::length) text += "; cut off at the limit of tokens";
  if (answer.finish == FinishReason::cancelled) text += "; stopped";
  return text;
}

}  // namespace shoal
