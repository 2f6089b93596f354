#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "launch/http_exchange.h"

namespace shoal {

/// What the access log tells of a request that is over.
struct HttpRecord {
  std::string id, client, method, path;
  int status = 0;         // 0: nothing was answered
  std::size_t bytes = 0;  // of the response's body
  double seconds = 0;
  bool whole = false;  // the client got all of it
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";  // address or name
  std::uint16_t port = 0;          // 0: one that is free
  int handler_threads = 2;
  std::size_t max_body_bytes = std::size_t{32} << 20;       // more: 413
  std::size_t max_all_bodies_bytes = std::size_t{1} << 30;  // of requests being read or waiting for a thread; more: 503
  std::uint32_t max_header_bytes = 32 << 10;                // more: 431
  std::size_t max_connections = 4096;                       // for more the longest idle go, or they do
  std::size_t max_queued_bytes = std::size_t{4} << 20;      // of a stream whose client does not read; more: dropped
  std::chrono::milliseconds idle_timeout{75000};            // between requests
  std::chrono::milliseconds read_timeout{30000};            // for all headers; for each sign of life of a body
  std::chrono::milliseconds write_timeout{30000};           // for a client that does not read
  std::chrono::milliseconds keep_alive_interval{15000};     // of silent streams
  std::string tls_cert, tls_key;                            // PEM files; both or none
  std::vector<std::string> cors_origins;                    // whose web pages may use the server; "*": all
  std::function<void(const HttpRecord&)> on_answered;       // from the I/O thread; may be empty
  /// Answers a request by its headers alone, before its body is read (a connection whose body was not is closed), and
  /// says whether it did. From the I/O thread, so it must be quick; may be empty.
  std::function<bool(const HttpRequest& head, const Responder&)> answer_head;
  /// The body for errors that the server itself finds (broken HTTP, too large).
  std::function<std::string(int status, const std::string& message)> error_body;
};

}  // namespace shoal
