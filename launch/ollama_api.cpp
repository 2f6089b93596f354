#include "launch/ollama_api.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <chrono>

#include "launch/answer_job.h"
#include "launch/bounded_json.h"
#include "launch/chat_fields.h"

namespace shoal::ollama {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

std::string rfc3339(std::int64_t unix_seconds) {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(unix_seconds)));
}
std::string now() { return rfc3339(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now())); }
std::int64_t nanoseconds(Clock::duration time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
}

/// Ollama's names carry a tag, which stands for nothing here.
std::string without_tag(std::string name) {
  static constexpr std::string_view latest = ":latest";
  if (name.ends_with(latest)) name.resize(name.size() - latest.size());
  return name;
}

/// Ollama's fields in OpenAI's words, so that they are read and checked in one way.
Json translated(RequestFields& fields) {
  Json body = Json::object();
  const auto name = fields.string("model");
  if (!name) fields.required("model");
  body["model"] = without_tag(*name);
  body["stream"] = fields.boolean("stream").value_or(true);
  if (const Json* options = fields.find("options")) {
    if (!options->is_object()) throw bad_field("options", "'options' must be an object");
    RequestFields inner(*options);
    for (const char* same :
         {"temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty"}) {
      if (const Json* value = inner.find(same)) body[same] = *value;
    }
    if (const Json* value = inner.find("repeat_penalty")) body["repetition_penalty"] = *value;
    // -1: until the model ends, which is what happens without it.
    if (const auto most = inner.integer("num_predict", -2, INT32_MAX); most && *most > 0) body["max_tokens"] = *most;
    // Of the way Ollama runs models, not of the answer.
    inner.ignore({"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "numa",
                  "num_keep", "low_vram", "vocab_only", "repeat_last_n", "mirostat_eta", "mirostat_tau"});
    // Other ways to sample, where they are switched off.
    inner.only("mirostat", {0});
    inner.only("tfs_z", {1});
    inner.only("typical_p", {1});
    inner.finish();
  }
  if (const Json* format = fields.find("format"); format && *format != "") {
    if (*format == "json") {
      body["response_format"] = {{"type", "json_object"}};
    } else {
      body["json_schema"] = *format;
    }
  }
  // A level ("low") or true asks for thinking, which R1 does anyway.
  if (const Json* think = fields.find("think"); think && *think == Json(false)) body["max_reasoning_tokens"] = 0;
  fields.only("logprobs", {false});
  fields.only("top_logprobs", {0});
  fields.ignore({"keep_alive"});
  return body;
}

/// Ollama's arguments of a call are an object, OpenAI's a string with JSON in it.
Json translated_messages(const Json& messages) {
  Json result = messages;
  if (!result.is_array()) return result;
  for (Json& message : result) {
    if (!message.is_object()) continue;
    if (message.contains("images") && !message["images"].empty()) {
      throw bad_field("messages", "a message has 'images'; this model takes text only");
    }
    for (const char* name : {"images", "thinking", "tool_name"}) message.erase(name);
    if (!message.contains("tool_calls") || !message["tool_calls"].is_array()) continue;
    for (Json& call : message["tool_calls"]) {
      if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
      Json& function = call["function"];
      if (function.contains("arguments") && function["arguments"].is_object()) {
        function["arguments"] = to_text(function["arguments"]);
      }
    }
  }
  return result;
}

class OllamaJob : public AnswerJob {
 public:
  enum class Kind { chat, generate };

  OllamaJob(Kind kind, ChatFields fields, Responder responder)
      : AnswerJob(std::move(responder), fields.stream, Framing::lines), kind_(kind), fields_(std::move(fields)) {}

  const ChatFields& fields() const { return fields_; }

 private:
  void grew(std::size_t, const AnswerDelta& delta, const AnswerStream& answer) override {
    if (first_ == Clock::time_point() && answer.completion_tokens() > 0) first_ = Clock::now();
    tokens_ = answer.completion_tokens();
    if (delta.finish != FinishReason::none) finish_ = delta.finish;
    thinking_ += delta.reasoning;
    content_ += delta.content;
    for (const ToolCall& call : delta.tool_calls) {
      Json arguments = Json::object();
      try {
        arguments = parse_bounded_json(call.arguments);
      } catch (const std::exception&) {  // the model wrote something else
      }
      calls_.push_back({{"function", {{"name", call.name}, {"arguments", arguments}}}});
    }
    if (streaming() && (!thinking_.empty() || !content_.empty() || !calls_.empty())) send_event(take(false));
  }

  void completed() override {
    Json last = take(true);
    last["done_reason"] = finish_ == FinishReason::length ? "length" : "stop";
    const auto end = Clock::now();
    const auto first = first_ == Clock::time_point() ? end : first_;
    last["total_duration"] = nanoseconds(end - begin_);
    last["load_duration"] = 0;
    last["prompt_eval_count"] = fields_.prompt.size();
    last["prompt_eval_duration"] = nanoseconds(first - begin_);
    last["eval_count"] = tokens_;
    last["eval_duration"] = nanoseconds(end - first);
    streaming() ? send_event(last) : send_json(last);
  }

  Json take(bool done) {
    Json json = {{"model", fields_.model}, {"created_at", now()}};
    Json& place = kind_ == Kind::chat ? json["message"] : json;
    if (kind_ == Kind::chat) place["role"] = "assistant";
    place[kind_ == Kind::chat ? "content" : "response"] = std::exchange(content_, {});
    if (!thinking_.empty()) place["thinking"] = std::exchange(thinking_, {});
    if (!calls_.empty()) place["tool_calls"] = std::exchange(calls_, Json::array());
    json["done"] = done;
    return json;
  }

  Json error_json(const ApiError& error) const override { return ollama::error_json(error.what()); }

  const Kind kind_;
  const ChatFields fields_;
  const Clock::time_point begin_ = Clock::now();
  Clock::time_point first_{};
  std::string thinking_, content_;  // not sent yet
  Json calls_ = Json::array();
  int tokens_ = 0;
  FinishReason finish_ = FinishReason::none;
};

void start(OllamaJob::Kind kind, ChatFields fields, GenerationService& service, Responder responder) {
  auto job = std::make_shared<OllamaJob>(kind, std::move(fields), std::move(responder));
  job->fields().start(*job, service);
}

Json describe(const ServedModel& model, std::int64_t loaded) {
  const std::string name = model.names.front() + ":latest";
  return {{"name", name},
          {"model", name},
          {"modified_at", rfc3339(loaded)},
          {"size", 0},
          {"digest", ""},
          {"details",
           {{"parent_model", ""},
            {"format", "safetensors"},
            {"family", model.family},
            {"families", Json::array({model.family})},
            {"parameter_size", ""},
            {"quantization_level", ""}}}};
}

}  // namespace

Json error_json(const std::string& message) { return {{"error", message}}; }

void chat(const ServedModel& model, GenerationService& service, RequestFields fields, Responder responder) {
  Json body = translated(fields);
  body["messages"] = translated_messages(fields.required("messages"));
  if (const Json* tools = fields.find("tools")) body["tools"] = *tools;
  fields.finish();
  RequestFields openai(std::move(body));
  openai.client = fields.client;
  start(OllamaJob::Kind::chat, read_chat_fields(model, openai), service, std::move(responder));
}

void generate(const ServedModel& model, GenerationService& service, RequestFields fields, Responder responder) {
  Json body = translated(fields);
  const std::string prompt = fields.string("prompt").value_or("");
  const bool raw = fields.boolean("raw").value_or(false);
  Json messages = Json::array();
  if (const auto system = fields.string("system"); system && !system->empty()) {
    messages.push_back({{"role", "system"}, {"content", *system}});
  }
  for (const char* name : {"suffix", "template"}) fields.only(name, {""});
  fields.only("images", {Json::array()});
  fields.only("context", {Json::array()});
  fields.finish();
  if (prompt.empty()) {  // how Ollama's clients ask for a model to be loaded
    responder.send(200, "application/json",
                   to_text({{"model", model.names.front()},
                            {"created_at", now()},
                            {"response", ""},
                            {"done", true},
                            {"done_reason", "load"}}));
    return;
  }
  messages.push_back({{"role", "user"}, {"content", prompt}});
  body["messages"] = std::move(messages);
  RequestFields openai(std::move(body));
  openai.client = fields.client;
  ChatFields chat = read_chat_fields(model, openai);
  if (raw) {
    chat.prompt = model.tokenizer->encode(prompt, true);
    chat.starts_in_reasoning = chat.sampling.rules.starts_thinking = ends_in_reasoning(prompt);
    check_prompt_length(model, "prompt", chat.prompt.size(), true);
  }
  start(OllamaJob::Kind::generate, std::move(chat), service, std::move(responder));
}

Json list(const ServedModel& model, std::int64_t loaded) {
  return {{"models", Json::array({describe(model, loaded)})}};
}

Json show(const ServedModel& model, RequestFields fields, std::int64_t loaded) {
  auto name = fields.string("model");
  if (!name) name = fields.string("name");
  if (!name) fields.required("model");
  fields.ignore({"verbose", "name"});
  fields.finish();
  check_model(model, without_tag(*name));
  const Json card = describe(model, loaded);
  Json capabilities = {"completion", "tools"};
  if (model.tokenizer && model.tokenizer->token_to_id("</think>")) capabilities.push_back("thinking");
  return {
      {"modelfile", ""},
      {"parameters", ""},
      {"template", ""},
      {"details", card["details"]},
      {"model_info", {{"general.architecture", model.family}, {model.family + ".context_length", model.max_model_len}}},
      {"capabilities", std::move(capabilities)},
      {"modified_at", card["modified_at"]}};
}

}  // namespace shoal::ollama
