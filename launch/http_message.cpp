#include "launch/http_message.h"

#include <algorithm>
#include <boost/beast/http/error.hpp>
#include <ctime>
#include <random>

#include "base/error.h"

namespace shoal {
namespace {

namespace http = boost::beast::http;

bool harmless_id(std::string_view id) {
  const auto harmless = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_' ||
           c == '.';
  };
  return !id.empty() && id.size() <= 128 && std::ranges::all_of(id, harmless);
}

/// Of Beast's strings, whose type is another one in every few versions of Boost.
template <class BoostView>
std::string_view view_of(const BoostView& text) {
  return {text.data(), text.size()};
}

}  // namespace

HttpRequest request_of(const HttpMessage& message) {
  HttpRequest request;
  const std::string_view id = view_of(message["X-Request-Id"]);
  request.id = harmless_id(id) ? std::string(id) : new_request_id();
  request.method = std::string(message.method_string());
  std::string_view target = view_of(message.target());
  if (const auto scheme = target.find("://"); scheme != target.npos && target.front() != '/') {
    const auto path = target.find('/', scheme + 3);  // as proxies write it: http://host/path
    target = path == target.npos ? "/" : target.substr(path);
  }
  const auto query = target.find('?');
  request.path = target.substr(0, query);
  if (query != target.npos) request.query = target.substr(query + 1);
  for (const auto& field : message) request.headers.emplace_back(field.name_string(), field.value());
  return request;
}

std::string new_request_id() {
  static std::mt19937_64 generator{std::random_device{}()};
  return fmt::format("req-{:016x}", generator());
}

std::optional<HttpFault> fault_of(const HttpMessage& message) {
  // Where servers in a row disagree about a request's end, one can be hidden in another's body (RFC 9112, sections 3.2
  // and 6.1).
  if (message.count(http::field::host) > 1) return HttpFault{400, "a request has one Host header"};
  const auto codings = message.count(http::field::transfer_encoding);
  if (codings == 0) return std::nullopt;
  if (message.count(http::field::content_length) > 0)
    return HttpFault{400, "Transfer-Encoding and Content-Length rule each other out"};
  if (codings > 1 || !equal_ignoring_case(view_of(message[http::field::transfer_encoding]), "chunked"))
    return HttpFault{501, "the only transfer encoding that is understood is 'chunked'"};
  return std::nullopt;
}

std::optional<HttpFault> fault_of(boost::system::error_code error, const HttpServerOptions& options) {
  if (error.category() != make_error_code(http::error::bad_method).category() || error == http::error::end_of_stream ||
      error == http::error::partial_message)
    return std::nullopt;
  if (error == http::error::buffer_overflow) return HttpFault{400, "a line within the request's body is too long"};
  if (error == http::error::body_limit)
    return HttpFault{413, fmt::format("the request's body is larger than {} bytes", options.max_body_bytes)};
  if (error == http::error::header_limit)
    return HttpFault{431, fmt::format("the request's headers are larger than {} bytes", options.max_header_bytes)};
  return HttpFault{400, "the request is not valid HTTP: " + error.message()};
}

std::string http_date() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[64];
  return {text, std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &utc)};
}

}  // namespace shoal
