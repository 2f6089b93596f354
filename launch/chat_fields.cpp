#include "launch/chat_fields.h"

#include <fmt/format.h>

#include "launch/chat_messages.h"
#include "runtime/grammar/automaton.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

/// Fields that OpenAI documents and this server cannot honour.
void refuse_fields_of_chat(RequestFields& fields) {
  fields.only("functions", {Json::array()});
  fields.only("function_call", {"none", "auto"});
  fields.only("modalities", {Json::array({"text"})});
  for (const char* name : {"audio", "web_search_options"}) fields.only(name, {});
  for (const char* name : {"reasoning_effort", "verbosity"}) fields.only(name, {"medium"});  // OpenAI's default
  fields.only("add_generation_prompt", {true});
  fields.only("continue_final_message", {false});
  fields.ignore({"prediction"});
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
  // None is what a model does that does not think.
  if (!end && (*most > 0 || result.starts_in_reasoning))
    throw bad_field("max_reasoning_tokens", "this model has no token </think>, so its thinking has no end");
  if (!result.starts_in_reasoning) return;
  rules.thinking.max_tokens = static_cast<int>(*most);
  rules.thinking.closing = model.tokenizer->encode("\n</think>\n\n", false);
}

void bind_to_tools(const ToolFields& tools, ToolSyntax syntax, ChatFields& result) {
  if (!result.sampling.rules.grammar.empty()) {
    throw bad_field("tool_choice", "an answer cannot have to be a call of a tool and be of another form");
  }
  try {
    std::string calls = tool_call_grammar(tools, syntax);
    grammar::check_grammar(calls);  // so that what is wrong with it is said here
    result.sampling.rules.grammar = std::move(calls);
  } catch (const Error& error) {
    throw bad_field("tools", fmt::format("a tool's 'parameters' cannot be held to: {}", error.what()));
  }
}

/// Puts the instructions into the first system message, or into one of their own.
Json with_instructions(Json messages, const std::string& instructions) {
  if (messages[0]["role"] == "system" && messages[0]["content"].is_string()) {
    messages[0]["content"] = messages[0]["content"].get<std::string>() + "\n\n" + instructions;
    return messages;
  }
  messages.insert(messages.begin(), Json{{"role", "system"}, {"content", instructions}});
  return messages;
}

}  // namespace

std::string read_conversation(const ServedModel& model, RequestFields& fields, const ToolFields& tools) {
  const Tokenizer& tokenizer = tokenizer_of(model, "messages");
  if (!model.render_chat) {
    throw ApiError(400, "this model has no chat template; use /v1/completions", "messages", "unsupported_model");
  }
  const Json messages = read_messages(fields.required("messages"));
  const Json* extra = fields.find("chat_template_kwargs");
  if (extra && !extra->is_object()) throw bad_field("chat_template_kwargs", "'chat_template_kwargs' must be an object");
  const Json variables = extra ? *extra : Json::object();
  if (variables.contains("add_generation_prompt"))
    throw bad_field("chat_template_kwargs", "'chat_template_kwargs' must leave add_generation_prompt alone");
  try {
    const std::string plain = model.render_chat(messages, nullptr, variables);
    if (tools.tools.empty()) return plain;
    const std::string prompt = model.render_chat(messages, &tools.tools, variables);
    if (prompt != plain) return prompt;
    // R1's own template passes over tools.
    return model.render_chat(with_instructions(messages, tool_instructions(tools, tool_syntax(tokenizer))), nullptr,
                             variables);
  } catch (const Error& error) {
    throw bad_field("messages", fmt::format("the model's chat template refuses these messages: {}", error.what()));
  }
}

ChatFields read_chat_fields(const ServedModel& model, RequestFields& fields) {
  ChatFields result{read_generation_fields(fields, model), {}};
  refuse_fields_of_chat(fields);
  result.logprobs = read_logprobs(fields);
  const ToolFields tools = read_tools(fields);
  const std::string prompt = read_conversation(model, fields, tools);
  result.starts_in_reasoning = ends_in_reasoning(prompt);
  if (!tools.tools.empty()) result.tools = tool_syntax(*model.tokenizer);
  if (tools.must_call) bind_to_tools(tools, *result.tools, result);
  // The template wrote the special tokens itself.
  result.prompt = model.tokenizer->encode(prompt, false);
  result.max_tokens = read_max_tokens(fields, model, result.prompt.size());
  read_thinking_budget(fields, model, result);
  fields.finish();
  check_prompt_length(model, "messages", result.prompt.size(), true);
  check_min_tokens(result, result.max_tokens);
  return result;
}

void ChatFields::start(AnswerJob& job, GenerationService& service) const {
  AnswerOptions options = answer_options();
  options.split_reasoning = true;
  options.starts_in_reasoning = starts_in_reasoning;
  options.tools = tools;
  job.start(service, static_cast<std::size_t>(n), [&](std::size_t i) {
    GenerationRequest generation = request(prompt, max_tokens, static_cast<int>(i));
    generation.logprobs = logprobs;
    return AnswerJob::Part{std::move(generation), options};
  });
}

}  // namespace shoal
