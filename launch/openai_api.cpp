#include "launch/openai_api.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <string_view>

#include "launch/api_error.h"
#include "launch/chat_completions.h"
#include "launch/chat_fields.h"
#include "launch/completions.h"
#include "launch/generation_fields.h"
#include "launch/ollama_api.h"
#include "launch/pages.h"
#include "launch/request_fields.h"
#include "launch/server_status.h"
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
  if (equal_ignoring_case(given.substr(0, scheme.size()), scheme)) {
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

void send_error(const HttpRequest& request, const Responder& responder, const ApiError& error) {
  const Json body = request.path.starts_with("/api/") ? ollama::error_json(error.what()) : error_object(error);
  responder.send(error.status, "application/json", to_text(body), error.headers);
}

/// Throws ApiError 405 for another method.
void allow(const HttpRequest& request, std::string_view method) {
  if (request.method == method || (method == "GET" && request.method == "HEAD")) return;
  throw ApiError(405, fmt::format("{} takes {}, not {}", request.path, method, request.method), {},
                 "method_not_allowed", {{"Allow", std::string(method)}});
}

}  // namespace

OpenAiApi::OpenAiApi(ServedModel model, GenerationService& service, std::vector<std::string> api_keys,
                     const ServerStatus* status)
    : model_(std::move(model)),
      service_(service),
      api_keys_(std::move(api_keys)),
      status_(status),
      started_(std::time(nullptr)) {}

bool OpenAiApi::handle_head(const HttpRequest& head, const Responder& responder) const {
  try {
    if (open_to_all(head, responder)) return true;
    check_api_key(api_keys_, head);
    return false;
  } catch (const ApiError& error) {
    send_error(head, responder, error);
  } catch (const std::exception& error) {
    send_error(head, responder, ApiError(500, error.what(), {}, "internal_error"));
  }
  return true;
}

void OpenAiApi::handle(HttpRequest request, Responder responder) const {
  if (handle_head(request, responder)) return;
  try {
    if (openai(request, responder) || ollama(request, responder) || operators(request, responder)) return;
    throw ApiError(404, fmt::format("there is nothing at {}", request.path), {}, "not_found");
  } catch (const ApiError& error) {
    send_error(request, responder, error);
  } catch (const std::exception& error) {
    send_error(request, responder, ApiError(500, error.what(), {}, "internal_error"));
  }
}

bool OpenAiApi::open_to_all(const HttpRequest& request, const Responder& responder) const {
  const std::string& path = request.path;
  if (path != "/health" && path != "/version" && !is_page(path)) return false;
  allow(request, "GET");
  if (is_page(path)) {
    send_page(path, responder);
  } else {
    const bool recovering = status_ && status_->recovering();
    send_json(responder,
              path == "/health" ? Json{{"status", recovering ? "recovering" : "ok"}} : Json{{"version", version}});
  }
  return true;
}

RequestFields OpenAiApi::fields_of(const HttpRequest& request) const {
  RequestFields fields = RequestFields::parse(request.body);
  // A key that nobody checks is a name that anybody can make up.
  const std::string_view authorization = request.header("Authorization");
  fields.client = api_keys_.empty() ? request.client : std::string(authorization.substr(authorization.find(' ') + 1));
  return fields;
}

bool OpenAiApi::openai(const HttpRequest& request, const Responder& responder) const {
  static constexpr std::string_view one_model = "/v1/models/";
  const std::string_view path = request.path;
  if (path == "/v1/models") {
    allow(request, "GET");
    send_json(responder, list_models(model_, started_));
  } else if (path.substr(0, one_model.size()) == one_model) {
    allow(request, "GET");
    const std::string name = percent_decode(path.substr(one_model.size()));
    check_model(model_, name);
    send_json(responder, model_card(model_, name, started_));
  } else if (path == "/v1/completions") {
    allow(request, "POST");
    complete(model_, service_, fields_of(request), responder);
  } else if (path == "/v1/chat/completions") {
    allow(request, "POST");
    complete_chat(model_, service_, fields_of(request), responder);
  } else if (path == "/tokenize") {
    allow(request, "POST");
    send_json(responder, tokenize(model_, fields_of(request)));
  } else if (path == "/detokenize") {
    allow(request, "POST");
    send_json(responder, detokenize(model_, fields_of(request)));
  } else {
    return false;
  }
  return true;
}

bool OpenAiApi::ollama(const HttpRequest& request, const Responder& responder) const {
  const std::string_view path = request.path;
  if (path == "/api/version") {
    allow(request, "GET");
    send_json(responder, {{"version", version}});
  } else if (path == "/api/tags" || path == "/api/ps") {
    allow(request, "GET");
    send_json(responder, ollama::list(model_, started_));
  } else if (path == "/api/show") {
    allow(request, "POST");
    send_json(responder, ollama::show(model_, fields_of(request), started_));
  } else if (path == "/api/chat") {
    allow(request, "POST");
    ollama::chat(model_, service_, fields_of(request), responder);
  } else if (path == "/api/generate") {
    allow(request, "POST");
    ollama::generate(model_, service_, fields_of(request), responder);
  } else {
    return false;
  }
  return true;
}

bool OpenAiApi::operators(const HttpRequest& request, const Responder& responder) const {
  if (!status_ || (request.path != "/metrics" && request.path != "/status.json")) return false;
  allow(request, "GET");
  if (request.path == "/metrics") {
    responder.send(200, PrometheusText::content_type, status_->metrics());
  } else {
    send_json(responder, status_->json());
  }
  return true;
}

void handle_while_loading(const HttpRequest& request, const Responder& responder) {
  if (request.path == "/version") return send_json(responder, {{"version", version}});
  const HttpHeaders later = {{"Retry-After", "5"}};
  if (request.path == "/health") {
    return responder.send(503, "application/json", to_text(Json{{"status", "loading"}}), later);
  }
  send_error(request, responder, ApiError(503, "the model is being loaded; try again later", {}, "loading", later));
}

std::string http_error_body(int status, const std::string& message) {
  return to_text(error_object(ApiError(status, message)));
}

}  // namespace shoal
