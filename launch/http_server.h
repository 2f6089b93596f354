#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// An HTTP/1.1 server that knows nothing of models: requests in, responses and event streams out. Boost.Beast stays
/// inside http_server.cpp.
namespace shoal {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string id;      // from X-Request-Id, or made up; the response has it too
  std::string client;  // its address
  std::string method;  // "GET"
  std::string path;    // without the query; percent-encoded, as it came
  std::string query;   // what is behind '?'
  HttpHeaders headers;
  std::string body;

  /// The first header of this name, in any case; empty without one.
  std::string_view header(std::string_view name) const;
};

/// The way back to a client: either one response (send), or a stream (begin_stream, write ..., end). A handle: copies
/// answer the same request. Thread-safe; nothing here waits for the network. If the last copy goes without an answer,
/// the client gets status 500, or a stream that breaks off.
class Responder {
 public:
  struct Exchange;
  explicit Responder(std::shared_ptr<Exchange> exchange);

  void send(int status, std::string content_type, std::string body, HttpHeaders headers = {}) const;
  /// `keep_alive`: what is sent whenever nothing was for a while, so that nobody in between takes the stream for dead.
  void begin_stream(int status, std::string content_type, HttpHeaders headers = {}, std::string keep_alive = {}) const;
  /// False when nobody reads any more: the client is gone, or so slow that it was dropped.
  bool write(std::string_view chunk) const;
  void end() const;
  /// Called once, from a thread of the server, when the client goes before its answer is complete; at once if it has
  /// gone already.
  void on_disconnect(std::function<void()> callback) const;

 private:
  struct Handle;
  std::shared_ptr<Handle> handle_;
};

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

/// Listens from construction on. Connections are served by one I/O thread; the handler runs on threads of its own, so
/// it may take its time (tokenize a long prompt), and may answer later from any thread.
class HttpServer {
 public:
  using Handler = std::function<void(HttpRequest, Responder)>;

  /// Throws Error when it cannot listen there.
  HttpServer(HttpServerOptions options, Handler handler);
  /// Ends as stop() does.
  ~HttpServer();

  std::uint16_t port() const;
  /// "http://127.0.0.1:8000", or https.
  std::string url() const;

  /// Takes no connection or request any more, and waits until the running ones are answered; false if that took longer.
  bool drain(std::chrono::milliseconds at_most);
  /// Closes all connections and ends the threads. Not to be called from a handler.
  void stop();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

/// As names of headers and schemes of authorization are compared.
bool equal_ignoring_case(std::string_view a, std::string_view b);

/// "%2F" → "/"; what is no valid escape stays as it is.
std::string percent_decode(std::string_view text);

}  // namespace shoal
