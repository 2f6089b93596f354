#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/answer_job.h"
#include "launch/generation_fields.h"
#include "launch/tool_calls.h"

namespace shoal {

/// A request to answer a conversation, whichever API it came through.
struct ChatFields : GenerationFields {
  std::vector<std::int32_t> prompt;
  bool starts_in_reasoning = false;
  std::optional<ToolSyntax> tools;  // calls of tools are taken out of the answer
  int max_tokens = 0;
  int logprobs = -1;

  /// Starts the job that answers them.
  void start(AnswerJob& job, GenerationService& service) const;
};

/// Reads OpenAI's chat fields and what vLLM and DeepSeek's API add to them. Throws ApiError.
ChatFields read_chat_fields(const ServedModel& model, RequestFields& fields);

/// The conversation in `messages` (with `chat_template_kwargs`) as the model's chat template writes it.
std::string read_conversation(const ServedModel& model, RequestFields& fields, const ToolFields& tools = {});

}  // namespace shoal
