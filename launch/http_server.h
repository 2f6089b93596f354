#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "launch/http_exchange.h"
#include "launch/http_options.h"

namespace shoal {

/// An HTTP/1.1 server that knows nothing of models: requests in, responses and event streams out. Listens from
/// construction on. Connections are served by one I/O thread; the handler runs on threads of its own, so it may take
/// its time (tokenize a long prompt), and may answer later from any thread.
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
  std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
