#include "launch/cors.h"

#include <algorithm>

namespace shoal {

HttpHeaders cors_headers(const HttpRequest& request, const std::vector<std::string>& origins) {
  const std::string_view origin = request.header("Origin");
  const auto allowed = [&](std::string_view name) { return std::ranges::find(origins, name) != origins.end(); };
  HttpHeaders headers = {{"Access-Control-Expose-Headers", "X-Request-Id, Retry-After"}};
  if (allowed("*")) {
    headers.emplace_back("Access-Control-Allow-Origin", "*");
  } else {
    if (origin.empty() || !allowed(origin)) return {};
    headers.emplace_back("Access-Control-Allow-Origin", origin);
    headers.emplace_back("Vary", "Origin");
  }
  return headers;
}

bool answer_preflight(const HttpRequest& request, const Responder& responder, const std::vector<std::string>& origins) {
  if (request.method != "OPTIONS" || origins.empty() || request.header("Access-Control-Request-Method").empty())
    return false;
  // OpenAI's client for JavaScript sends headers of its own; none of them lets a page do more.
  const std::string asked(request.header("Access-Control-Request-Headers"));
  responder.send(204, "", "",
                 {{"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
                  {"Access-Control-Allow-Headers", asked.empty() ? "Authorization, Content-Type" : asked},
                  {"Access-Control-Max-Age", "600"}});
  return true;
}

}  // namespace shoal
