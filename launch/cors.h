#pragma once
#include <string>
#include <vector>

#include "launch/http_exchange.h"

/// What lets web pages of other origins use the server. `origins`: those whose may; "*": all.
namespace shoal {

/// What lets a page read the answer.
HttpHeaders cors_headers(const HttpRequest& request, const std::vector<std::string>& origins);

/// Answers what a browser asks before it lets a page ask; false where this is no such question.
bool answer_preflight(const HttpRequest& request, const Responder& responder, const std::vector<std::string>& origins);

}  // namespace shoal
