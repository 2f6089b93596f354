#pragma once
#include <string>

#include "launch/http_exchange.h"

namespace shoal {

/// The pages for people: the chat at /, the operators' at /status. Each is one file of launch/web without outside
/// requests, and is sent with a policy that forbids the browser any.
bool is_page(const std::string& path);
void send_page(const std::string& path, const Responder& responder);

}  // namespace shoal
