#pragma once
#include "launch/generation.h"
#include "launch/http_exchange.h"
#include "launch/request_fields.h"
#include "launch/served_model.h"

namespace shoal {

/// POST /v1/chat/completions: answers the last message of a conversation, with `reasoning_content` beside `content`.
/// Throws ApiError before anything was sent; later errors go through the responder.
void complete_chat(const ServedModel& model, GenerationService& service, RequestFields fields, Responder responder);

}  // namespace shoal
