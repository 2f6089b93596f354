#include "launch/openai_api.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <string_view>

#include "launch/api_error.h"
#include "launch/chat_completions.h"
#include "launch/completions.h"
#include "launch/generation_fields.h"
#include "launch/request_fields.h"
#include "launch/version.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

/// Takes as long for a key that is nearly right as for any other of its length.
bool same_key(std::string_view given, std::string_view key) {
  unsigned difference = given.size() == key.size() ? 0 : 1;
  for (std::size_t i = 0; i < given.size(); ++i) {
    difference |= static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(key[i % key.size()]);
  }
  return difference == 0;
}

void check_api_key(const std::vector<std::string>& keys, const HttpRequest& request) {
  if (keys.empty()) return;
  static constexpr std::string_view scheme = "Bearer ";
  std::string_view given = request.header("Authorization");
  bool known = false;
  if (given.substr(0, scheme.size()) == scheme) {
    given.remove_prefix(scheme.size());
    for (const std::string& key : keys) known |= same_key(given, key);
  }
  if (known) return;
  throw ApiError(401,
                 given.empty() ? "an API key is needed: Authorization: Bearer <key>" : "the API key is not a valid one",
                 {}, "invalid_api_key", {{"WWW-Authenticate", "Bearer"}});
}

Json model_card(const ServedModel& model, const std::string& name, std::int64_t created) {
  return {{"id", name},
          {"object", "model"},
          {"created", created},
          {"owned_by", "shoal"},
          {"max_model_len", model.max_model_len}};
}

Json list_models(const ServedModel& model, std::int64_t created) {
  return {{"object", "list"}, {"data", Json::array({model_card(model, model.names.front(), created)})}};
}

/// The ids of a text, or of a conversation as the chat template writes it.
Json tokenize(const ServedModel& model, RequestFields fields) {
  if (const auto name = fields.string("model")) check_model(model, *name);
  const auto special = fields.boolean("add_special_tokens");
  std::vector<std::int32_t> ids;
  if (const auto prompt = fields.string("prompt")) {
    ids = tokenizer_of(model, "prompt").encode(*prompt, special.value_or(true));
  } else if (fields.find("messages")) {
    const std::string text = read_conversation(model, fields);
    ids = model.tokenizer->encode(text, special.value_or(false));
  } else {
    throw ApiError(400, "'prompt' or 'messages' is required", "prompt", "missing_required_parameter");
  }
  fields.finish();
  return {{"count", ids.size()}, {"max_model_len", model.max_model_len}, {"tokens", ids}};
}

Json detokenize(const ServedModel& model, RequestFields fields) {
  if (const auto name = fields.string("model")) check_model(model, *name);
  fields.required("tokens");
  const auto ids = checked_token_ids(model, "tokens", *fields.integers("tokens"));
  fields.finish();
  return {{"prompt", tokenizer_of(model, "tokens").decode(ids, false)}};
}

void send_json(const Responder& responder, const Json& json) { responder.send(200, "application/json", to_text(json)); }

void send_error(const Responder& responder, const ApiError& error) {
  responder.send(error.status, "application/json", to_text(error_object(error)), error.headers);
}

/// Throws ApiError 405 for another method.
void allow(const HttpRequest& request, std::string_view method) {
  if (request.method == method || (method == "GET" && request.method == "HEAD")) return;
  throw ApiError(405, fmt::format("{} takes {}, not {}", request.path, method, request.method), {},
                 "method_not_allowed", {{"Allow", std::string(method)}});
}

}  // namespace

OpenAiApi::OpenAiApi(ServedModel model, GenerationService& service, std::vector<std::string> api_keys)
    : model_(std::move(model)), service_(service), api_keys_(std::move(api_keys)), started_(std::time(nullptr)) {
  if (std::count(api_keys_.begin(), api_keys_.end(), "") > 0) throw Error("an API key is empty", ExitCode::usage);
}

void OpenAiApi::handle(HttpRequest request, Responder responder) const {
  static constexpr std::string_view one_model = "/v1/models/";
  const std::string_view path = request.path;
  try {
    if (path == "/health") {
      allow(request, "GET");
      return send_json(responder, {{"status", "ok"}});
    }
    if (path == "/version") {
      allow(request, "GET");
      return send_json(responder, {{"version", version}});
    }
    check_api_key(api_keys_, request);
    if (path == "/v1/models") {
      allow(request, "GET");
      return send_json(responder, list_models(model_, started_));
    }
    if (path.substr(0, one_model.size()) == one_model) {
      allow(request, "GET");
      const std::string name = percent_decode(path.substr(one_model.size()));
      check_model(model_, name);
      return send_json(responder, model_card(model_, name, started_));
    }
    if (path == "/v1/completions") {
      allow(request, "POST");
      return complete(model_, service_, RequestFields::parse(request.body), responder);
    }
    if (path == "/v1/chat/completions") {
      allow(request, "POST");
      return complete_chat(model_, service_, RequestFields::parse(request.body), responder);
    }
    if (path == "/tokenize" || path == "/detokenize") {
      allow(request, "POST");
      RequestFields fields = RequestFields::parse(request.body);
      return send_json(
          responder, path == "/tokenize" ? tokenize(model_, std::move(fields)) : detokenize(model_, std::move(fields)));
    }
    throw ApiError(404, fmt::format("there is nothing at {}", path), {}, "not_found");
  } catch (const ApiError& error) {
    send_error(responder, error);
  } catch (const std::exception& error) {
    send_error(responder, ApiError(500, error.what(), {}, "internal_error"));
  }
}

std::string http_error_body(int status, const std::string& message) {
  return to_text(error_object(ApiError(status, message)));
}

}  // namespace shoal
