#pragma once
#include <utility>  // before Boost 1.74's coroutine headers, which use std::exchange without it
//
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace shoal {

/// Where a server is: "https://host:port/base".
struct HttpUrl {
  bool tls = false;
  std::string host, port, base;  // base: "" or "/v1", without a slash at the end

  /// Throws Error (usage) for what is no http or https URL.
  static HttpUrl parse(const std::string& text);
};

/// One connection to a server, for requests one after the other; it is opened when needed and kept while the server
/// keeps it. Certificates are not checked: it carries test data only.
class HttpClient {
 public:
  HttpClient(boost::asio::io_context& io, HttpUrl url, std::string api_key);
  ~HttpClient();

  struct Response {
    int status = 0;
    std::string body;  // what on_bytes did not take
  };
  /// GET without a body, else POST of JSON. With status 200 `on_bytes` gets the body as it comes; it may be empty.
  /// Throws Error when the server cannot be reached, breaks off or is silent for too long.
  boost::asio::awaitable<Response> ask(std::string path, std::string body,
                                       std::function<void(std::string_view)> on_bytes);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
