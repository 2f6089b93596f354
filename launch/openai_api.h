#pragma once
#include <memory>
#include <string>
#include <vector>

#include "launch/generation.h"
#include "launch/http_exchange.h"
#include "launch/request_fields.h"
#include "launch/served_model.h"

namespace shoal {

class ServerStatus;

/// What is at which path: OpenAI's API, Ollama's, the pages for people, and what operators ask for. Errors are OpenAI's
/// error objects, under /api Ollama's.
class OpenAiApi {
 public:
  /// With api_keys, all paths but /health, /version and the pages ask for one of them (`Authorization: Bearer …`).
  /// None may be empty. Service and status must live longer; status may be null.
  OpenAiApi(ServedModel model, GenerationService& service, std::vector<std::string> api_keys,
            const ServerStatus* status = nullptr);

  /// Thread-safe. Answers through the responder, now or while tokens come.
  void handle(HttpRequest request, Responder responder) const;
  /// What needs no body: what is open to all, and who brings no key that is known. Whether it was such; quick.
  bool handle_head(const HttpRequest& head, const Responder& responder) const;

 private:
  RequestFields fields_of(const HttpRequest& request) const;
  bool open_to_all(const HttpRequest& request, const Responder& responder) const;
  bool openai(const HttpRequest& request, const Responder& responder) const;
  bool ollama(const HttpRequest& request, const Responder& responder) const;
  bool operators(const HttpRequest& request, const Responder& responder) const;

  ServedModel model_;
  GenerationService& service_;
  std::vector<std::string> api_keys_;
  const ServerStatus* status_;
  std::int64_t started_;
};

/// Answers while the model is being loaded: 503, and what is the same always.
void handle_while_loading(const HttpRequest& request, const Responder& responder);

/// The body of an error that the HTTP server found itself.
std::string http_error_body(int status, const std::string& message);

}  // namespace shoal
