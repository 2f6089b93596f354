#pragma once
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "launch/generation.h"
#include "launch/run.h"
#include "launch/served_model.h"

namespace shoal {

/// An answer and how it came about.
struct Answer {
  std::string reasoning, content;
  int prompt_tokens = 0, completion_tokens = 0;
  double ttft_ms = 0;       // time to the first token
  double tokens_per_s = 0;  // from the first text on; 0: that was too short a time
  FinishReason finish = FinishReason::none;
};

/// Puts questions to the model for the command line, one at a time, and waits for the answers.
class Asker {
 public:
  using Json = nlohmann::ordered_json;

  Asker(const Engine& engine, const RunOptions& options, const SamplingDefaults& sampling);

  /// The prompt as text continues as it is.
  Answer continue_text(const std::string& text, bool show);
  /// Answers a conversation. With `show` it is written to stdout as it comes.
  Answer answer(const Json& messages, bool show);
  bool can_chat() const { return static_cast<bool>(model_.render_chat); }

  /// Ends the answer under way; false if there is none, or it is ending already. Thread-safe.
  bool interrupt();

 private:
  Answer ask(std::vector<std::int32_t> prompt, AnswerOptions options, bool show);

  const RunOptions& options_;
  ServedModel model_;
  GenerationService service_;
  std::mutex mutex_;
  std::shared_ptr<Generation> running_;
  bool interrupted_ = false;
};

/// "143 tokens, first after 120 ms, 35.2 tokens/s".
std::string describe(const Answer& answer);

}  // namespace shoal
