#pragma once
#include "launch/generation.h"
#include "launch/http_exchange.h"
#include "launch/request_fields.h"
#include "launch/served_model.h"

/// Ollama's API (github.com/ollama/ollama, docs/api.md), as far as it makes sense for one model that is always loaded.
namespace shoal::ollama {

/// POST /api/chat.
void chat(const ServedModel& model, GenerationService& service, RequestFields fields, Responder responder);
/// POST /api/generate: one prompt, through the chat template unless `raw`.
void generate(const ServedModel& model, GenerationService& service, RequestFields fields, Responder responder);
/// GET /api/tags and /api/ps: the model.
nlohmann::ordered_json list(const ServedModel& model, std::int64_t loaded);
/// POST /api/show.
nlohmann::ordered_json show(const ServedModel& model, RequestFields fields, std::int64_t loaded);

/// An error as Ollama writes it: {"error": "…"}.
nlohmann::ordered_json error_json(const std::string& message);

}  // namespace shoal::ollama
