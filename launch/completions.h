#pragma once
#include "launch/generation.h"
#include "launch/http_exchange.h"
#include "launch/request_fields.h"
#include "launch/served_model.h"

namespace shoal {

/// POST /v1/completions: continues prompts, given as text or token ids. Throws ApiError before anything was sent; later
/// errors go through the responder.
void complete(const ServedModel& model, GenerationService& service, RequestFields fields, Responder responder);

}  // namespace shoal
