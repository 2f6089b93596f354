#include "launch/chat_completions.h"

#include <fmt/format.h>

#include <ctime>

#include "launch/answer_job.h"
#include "launch/chat_messages.h"
#include "launch/generation_fields.h"
#include "launch/logprobs_json.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

struct ChatFields : GenerationFields {
  std::vector<std::int32_t> prompt;
  bool starts_in_reasoning = false;
  int max_tokens = 0;
  int logprobs = -1;
};

/// Fields that OpenAI documents and this server cannot honour yet.
void refuse_what_is_not_there(RequestFields& fields) {
  fields.only("tools", {Json::array()});
  fields.only("tool_choice", {"none", "auto"});
  fields.only("functions", {Json::array()});
  fields.only("function_call", {"none", "auto"});
  fields.only("modalities", {Json::array({"text"})});
  for (const char* name : {"audio", "reasoning_effort", "verbosity", "web_search_options"}) fields.only(name, {});
  fields.ignore({"parallel_tool_calls", "prediction"});
}

int read_max_tokens(RequestFields& fields, const ServedModel& model, std::size_t prompt_tokens) {
  const auto newer = fields.integer("max_completion_tokens", 1, INT32_MAX);
  const auto older = fields.integer("max_tokens", 1, INT32_MAX);
  if (newer || older) return static_cast<int>(newer ? *newer : *older);
  return model.max_model_len - static_cast<int>(prompt_tokens);
}

int read_logprobs(RequestFields& fields) {
  const bool wanted = fields.boolean("logprobs").value_or(false);
  const auto top = fields.integer("top_logprobs", 0, 20);
  if (top.value_or(0) > 0 && !wanted) throw bad_field("top_logprobs", "'top_logprobs' needs 'logprobs': true");
  return wanted ? static_cast<int>(top.value_or(0)) : -1;
}

/// `max_reasoning_tokens`: at so many the model is made to end its thinking and answer.
void read_thinking_budget(RequestFields& fields, const ServedModel& model, ChatFields& result) {
  TokenRules& rules = result.sampling.rules;
  rules.starts_thinking = result.starts_in_reasoning;
  const auto end = model.tokenizer->token_to_id("</think>");
  if (end) rules.thinking.end_token = *end;
  const auto most = fields.integer("max_reasoning_tokens", 0, INT32_MAX);
  if (!most) return;
  if (!end) throw bad_field("max_reasoning_tokens", "this model has no token </think>, so its thinking has no end");
  if (!result.starts_in_reasoning) return;
  rules.thinking.max_tokens = static_cast<int>(*most);
  rules.thinking.closing = model.tokenizer->encode("\n</think>\n\n", false);
}

ChatFields read_fields(const ServedModel& model, RequestFields& fields) {
  ChatFields result{read_generation_fields(fields, model), {}};
  refuse_what_is_not_there(fields);
  result.logprobs = read_logprobs(fields);
  const std::string prompt = read_conversation(model, fields);
  result.starts_in_reasoning = ends_in_reasoning(prompt);
  // The template wrote the special tokens itself.
  result.prompt = model.tokenizer->encode(prompt, false);
  result.max_tokens = read_max_tokens(fields, model, result.prompt.size());
  read_thinking_budget(fields, model, result);
  fields.finish();
  check_prompt_length(model, "messages", result.prompt.size(), true);
  check_min_tokens(result, result.max_tokens);
  return result;
}

class ChatJob : public AnswerJob {
 public:
  ChatJob(const ServedModel& model, ChatFields fields, Responder responder)
      : AnswerJob(std::move(responder), fields.stream),
        tokenizer_(model.tokenizer),
        fields_(std::move(fields)),
        id_(new_id("chatcmpl")),
        created_(std::time(nullptr)),
        choices_(static_cast<std::size_t>(fields_.n)) {
    usage_.prompt_tokens = static_cast<int>(fields_.prompt.size());
  }

  std::vector<Part> parts() const {
    std::vector<Part> parts;
    for (int i = 0; i < fields_.n; ++i) {
      GenerationRequest request = fields_.request(fields_.prompt, fields_.max_tokens, i);
      request.logprobs = fields_.logprobs;
      AnswerOptions options = fields_.answer_options();
      options.split_reasoning = true;
      options.starts_in_reasoning = fields_.starts_in_reasoning;
      parts.push_back({std::move(request), std::move(options)});
    }
    return parts;
  }

 private:
  struct Choice {
    std::string reasoning, content;
    Json logprobs = Json::array();
    std::vector<std::int32_t> token_ids;
    FinishReason finish = FinishReason::none;
  };

  void opened() override {
    for (std::size_t i = 0; i < choices_.size(); ++i) send_delta(i, {{"role", "assistant"}, {"content", ""}}, {});
  }

  void grew(std::size_t part, const AnswerDelta& delta, const AnswerStream& answer) override {
    const bool over = delta.finish != FinishReason::none;
    if (over) {
      usage_.completion_tokens += answer.completion_tokens();
      usage_.reasoning_tokens += answer.reasoning_tokens();
    }
    if (!streaming()) return keep(choices_[part], delta);
    Json news = Json::object();
    if (!delta.reasoning.empty()) news["reasoning_content"] = delta.reasoning;
    if (!delta.content.empty()) news["content"] = delta.content;
    const bool ids = fields_.return_token_ids && !delta.tokens.empty();
    if (!news.empty() || !delta.logprobs.empty() || ids) send_delta(part, std::move(news), delta);
    if (over) {
      AnswerDelta last;
      last.finish = delta.finish;
      send_delta(part, Json::object(), last);
    }
  }

  void keep(Choice& choice, const AnswerDelta& delta) {
    choice.reasoning += delta.reasoning;
    choice.content += delta.content;
    for (Json& entry : chat_logprobs(tokenizer_.get(), delta.logprobs)) choice.logprobs.push_back(std::move(entry));
    choice.token_ids.insert(choice.token_ids.end(), delta.tokens.begin(), delta.tokens.end());
    choice.finish = delta.finish;
  }

  /// One chunk of a stream. The finish reason comes in a chunk of its own, without anything else.
  void send_delta(std::size_t index, Json news, const AnswerDelta& delta) {
    const bool last = news.empty() && delta.finish != FinishReason::none;
    Json choice = {{"index", index}, {"delta", std::move(news)}, {"logprobs", logprobs_of(delta)}};
    choice["finish_reason"] = last ? to_json(delta.finish) : Json(nullptr);
    if (fields_.return_token_ids) choice["token_ids"] = delta.tokens;
    Json chunk = object("chat.completion.chunk", Json::array({std::move(choice)}));
    if (fields_.include_usage) chunk["usage"] = nullptr;
    send_event(chunk);
  }

  Json logprobs_of(const AnswerDelta& delta) const {
    if (fields_.logprobs < 0 || delta.logprobs.empty()) return nullptr;
    return {{"content", chat_logprobs(tokenizer_.get(), delta.logprobs)}, {"refusal", nullptr}};
  }

  void completed() override {
    if (streaming()) {
      if (!fields_.include_usage) return;
      Json last = object("chat.completion.chunk", Json::array());
      last["usage"] = to_json(usage_, true);
      return send_event(last);
    }
    Json choices = Json::array();
    for (std::size_t i = 0; i < choices_.size(); ++i) choices.push_back(whole(i));
    Json response = object("chat.completion", std::move(choices));
    response["usage"] = to_json(usage_, true);
    send_json(response);
  }

  Json whole(std::size_t index) {
    Choice& choice = choices_[index];
    Json message = {{"role", "assistant"}, {"content", choice.content}, {"refusal", nullptr}};
    message["reasoning_content"] = choice.reasoning.empty() ? Json(nullptr) : Json(choice.reasoning);
    Json json = {{"index", index}, {"message", std::move(message)}, {"logprobs", nullptr}};
    if (fields_.logprobs >= 0) json["logprobs"] = {{"content", std::move(choice.logprobs)}, {"refusal", nullptr}};
    json["finish_reason"] = to_json(choice.finish);
    if (fields_.return_token_ids) json["token_ids"] = choice.token_ids;
    return json;
  }

  Json object(const char* kind, Json choices) const {
    return {{"id", id_},
            {"object", kind},
            {"created", created_},
            {"model", fields_.model},
            {"choices", std::move(choices)}};
  }

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const ChatFields fields_;
  const std::string id_;
  const std::int64_t created_;
  std::vector<Choice> choices_;
  Usage usage_;
};

}  // namespace

std::string read_conversation(const ServedModel& model, RequestFields& fields) {
  tokenizer_of(model, "messages");
  if (!model.render_chat) {
    throw ApiError(400, "this model has no chat template; use /v1/completions", "messages", "unsupported_model");
  }
  const Json messages = read_messages(fields.required("messages"));
  const Json* extra = fields.find("chat_template_kwargs");
  if (extra && !extra->is_object()) throw bad_field("chat_template_kwargs", "'chat_template_kwargs' must be an object");
  try {
    return model.render_chat(messages, extra ? *extra : Json::object());
  } catch (const Error& error) {
    throw bad_field("messages", fmt::format("the model's chat template refuses these messages: {}", error.what()));
  }
}

void complete_chat(const ServedModel& model, GenerationService& service, RequestFields fields, Responder responder) {
  auto job = std::make_shared<ChatJob>(model, read_fields(model, fields), std::move(responder));
  job->start(service, job->parts());
}

}  // namespace shoal
