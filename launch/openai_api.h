#pragma once
#include <memory>
#include <string>
#include <vector>

#include "launch/generation.h"
#include "launch/http_server.h"
#include "launch/served_model.h"

namespace shoal {

/// The HTTP API: OpenAI's /v1/models, /v1/completions and /v1/chat/completions, with /tokenize, /detokenize, /health
/// and /version beside them. What it does not support it refuses by name; errors are OpenAI's error objects.
class OpenAiApi {
 public:
  /// With api_keys, all paths but /health and /version ask for one of them (`Authorization: Bearer …`). Throws Error
  /// for an empty key. The service must live longer.
  OpenAiApi(ServedModel model, GenerationService& service, std::vector<std::string> api_keys);

  /// Thread-safe. Answers through the responder, now or while tokens come.
  void handle(HttpRequest request, Responder responder) const;

 private:
  ServedModel model_;
  GenerationService& service_;
  std::vector<std::string> api_keys_;
  std::int64_t started_;
};

/// The body of an error that the HTTP server found itself.
std::string http_error_body(int status, const std::string& message);

}  // namespace shoal
