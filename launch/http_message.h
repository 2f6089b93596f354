#pragma once
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/system/error_code.hpp>
#include <optional>
#include <string>

#include "launch/http_exchange.h"
#include "launch/http_options.h"

/// What is made of messages as Beast reads them.
namespace shoal {

using HttpMessage = boost::beast::http::request<boost::beast::http::string_body>;

/// A request without its client and body. A client's own id is kept if it is one that does no harm in a log.
HttpRequest request_of(const HttpMessage& message);
/// Called by one thread at a time.
std::string new_request_id();

/// Why a request is refused.
struct HttpFault {
  int status;
  std::string message;
};
/// What must not be served though it is well-formed.
std::optional<HttpFault> fault_of(const HttpMessage& message);
/// What was wrong with a request that could not be read, if there is somebody to tell.
std::optional<HttpFault> fault_of(boost::system::error_code error, const HttpServerOptions& options);

/// As the header Date has it.
std::string http_date();

}  // namespace shoal
