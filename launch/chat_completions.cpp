#include "launch/chat_completions.h"

#include <ctime>

#include "launch/chat_fields.h"
#include "launch/logprobs_json.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

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

  const ChatFields& fields() const { return fields_; }

 private:
  struct Choice {
    std::string reasoning, content;
    Json tool_calls = Json::array();
    Json logprobs = Json::array();
    std::vector<std::int32_t> token_ids;
    FinishReason finish = FinishReason::none;
    std::size_t calls = 0;  // of tools, so far
  };

  /// An answer that calls tools ends for that reason.
  Json finish_reason(const Choice& choice, FinishReason finish) const {
    return finish == FinishReason::stop && choice.calls > 0 ? Json("tool_calls") : to_json(finish);
  }

  static Json take_calls(Choice& choice, const AnswerDelta& delta, bool with_index) {
    Json calls = Json::array();
    for (const ToolCall& call : delta.tool_calls) {
      Json json = Json::object();
      if (with_index) json["index"] = choice.calls;
      json["id"] = new_id("call");
      json["type"] = "function";
      json["function"] = {{"name", call.name}, {"arguments", call.arguments}};
      calls.push_back(std::move(json));
      ++choice.calls;
    }
    return calls;
  }

  void opened() override {
    for (std::size_t i = 0; i < choices_.size(); ++i) send_delta(i, {{"role", "assistant"}, {"content", ""}}, {});
  }

  void grew(std::size_t part, const AnswerDelta& delta, const AnswerStream& answer) override {
    const bool over = delta.finish != FinishReason::none;
    if (over) {
      usage_.completion_tokens += answer.completion_tokens();
      usage_.reasoning_tokens += answer.reasoning_tokens();
      // All answers have the same prompt, which the later ones find in the cache for the first one's sake.
      if (part == 0) usage_.cached_tokens = answer.cached_tokens();
    }
    if (!streaming()) return keep(choices_[part], delta);
    Json news = Json::object();
    if (!delta.reasoning.empty()) news["reasoning_content"] = delta.reasoning;
    if (!delta.content.empty()) news["content"] = delta.content;
    if (!delta.tool_calls.empty()) news["tool_calls"] = take_calls(choices_[part], delta, true);
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
    for (Json& call : take_calls(choice, delta, false)) choice.tool_calls.push_back(std::move(call));
    for (Json& entry : chat_logprobs(tokenizer_.get(), delta.logprobs)) choice.logprobs.push_back(std::move(entry));
    choice.token_ids.insert(choice.token_ids.end(), delta.tokens.begin(), delta.tokens.end());
    choice.finish = delta.finish;
  }

  /// One chunk of a stream. The finish reason comes in a chunk of its own, without anything else.
  void send_delta(std::size_t index, Json news, const AnswerDelta& delta) {
    const bool last = news.empty() && delta.finish != FinishReason::none;
    Json choice = {{"index", index}, {"delta", std::move(news)}, {"logprobs", logprobs_of(delta)}};
    choice["finish_reason"] = last ? finish_reason(choices_[index], delta.finish) : Json(nullptr);
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
    if (choice.calls > 0) {
      if (choice.content.empty()) message["content"] = nullptr;
      message["tool_calls"] = std::move(choice.tool_calls);
    }
    Json json = {{"index", index}, {"message", std::move(message)}, {"logprobs", nullptr}};
    if (fields_.logprobs >= 0) json["logprobs"] = {{"content", std::move(choice.logprobs)}, {"refusal", nullptr}};
    json["finish_reason"] = finish_reason(choice, choice.finish);
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

void complete_chat(const ServedModel& model, GenerationService& service, RequestFields fields, Responder responder) {
  auto job = std::make_shared<ChatJob>(model, read_chat_fields(model, fields), std::move(responder));
  job->fields().start(*job, service);
}

}  // namespace shoal
