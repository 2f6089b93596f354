#pragma once
#include <utility>  // before Boost 1.74's coroutine headers, which use std::exchange without it
//
#include <array>
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "launch/client_stream.h"
#include "launch/http_exchange.h"
#include "launch/http_message.h"
#include "launch/http_options.h"

namespace shoal {

/// One body's part of the room that all have together.
class BodyRoom {
 public:
  explicit BodyRoom(std::atomic<std::size_t>& taken) : all_(taken) {}
  BodyRoom(const BodyRoom&) = delete;
  BodyRoom& operator=(const BodyRoom&) = delete;
  ~BodyRoom() { all_ -= own_; }

  /// Takes so much in all; false if there is no more than `most`.
  bool grow_to(std::size_t bytes, std::size_t most) {
    const std::size_t all = all_ += bytes - own_;
    own_ = bytes;
    return all <= most;
  }

 private:
  std::atomic<std::size_t>& all_;
  std::size_t own_ = 0;
};

/// What connections have from their server: how they are to be, and where they hand their requests to.
struct Dispatch {
  const HttpServerOptions& options;
  /// The room is held until the handler is done with the body.
  std::function<void(HttpRequest, Responder, std::shared_ptr<BodyRoom>)> run;
  boost::asio::ssl::context* tls = nullptr;
  mutable std::atomic<std::size_t> body_bytes = 0;
};

/// One connection: requests one after the other, on a strand of its own. All is used on the strand only.
class HttpSession : public std::enable_shared_from_this<HttpSession> {
 public:
  using Clock = std::chrono::steady_clock;

  HttpSession(ClientStream::Socket socket, const Dispatch& dispatch);

  ClientStream::executor_type executor() { return stream_.get_executor(); }

  boost::asio::awaitable<void> run();
  /// No further request: an idle connection closes, a busy one after its answer.
  void drain();
  /// Everything that waits for this connection ends.
  void close();
  /// Since when it waits for a request; for ever later than now where it does not.
  Clock::time_point idle_since() const { return idle_ ? idle_since_ : Clock::time_point::max(); }

 private:
  template <class T>
  using Awaitable = boost::asio::awaitable<T>;
  using error_code = boost::system::error_code;
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  using Response = boost::beast::http::response<boost::beast::http::string_body>;

  /// A request that has begun to come, and what its answer depends on beside the handler.
  struct Conversation {
    HttpRequest request;
    HttpRecord record;
    Clock::time_point begin = Clock::now();
    unsigned version = 11;
    bool head = false;  // no body is wanted
    bool keep = true;   // the connection may carry another request

    bool chunked() const { return version >= 11; }  // if a stream comes of it
  };

  // Waiting.
  Awaitable<void> wait();
  Awaitable<bool> wait(std::chrono::milliseconds at_most);
  void arm(std::chrono::milliseconds timeout);
  void arm_for_writing(std::size_t bytes);
  void disarm() { deadline_.expires_at(Clock::time_point::max()); }
  void watch();
  Awaitable<void> stop_watching();

  // The connection's beginning and end.
  Awaitable<void> converse();
  Awaitable<bool> shake_hands();
  Awaitable<void> linger();
  Awaitable<void> shut_down_tls();

  // Reading.
  Awaitable<bool> wait_for_request();
  Awaitable<bool> serve_request();
  Awaitable<void> read_head(Parser& parser, error_code& error);
  Awaitable<bool> read_body(Parser& parser, BodyRoom& room, error_code& error);
  Conversation begin(const HttpMessage& message);
  bool answer_head(const HttpRequest& request, const Responder& responder) const;

  // Answering.
  Awaitable<bool> answer(Conversation& now);
  Awaitable<void> refuse(std::optional<HttpFault> fault, unsigned version);
  void end_exchange();
  Response make_response(int status, unsigned version, const std::string& content_type, const HttpHeaders& headers,
                         bool keep) const;
  Awaitable<void> write(Response& response, bool head, error_code& error);
  Awaitable<void> write_beginning(const Conversation& now, std::string& body, error_code& error);
  Awaitable<void> write_stream_part(const std::string& bytes, bool chunked, bool last, error_code& error);

  const HttpServerOptions& options_;
  const Dispatch& dispatch_;
  ClientStream stream_;
  std::string client_;  // its address
  boost::asio::steady_timer deadline_, wake_;
  boost::beast::flat_buffer buffer_;
  std::array<char, 16384> read_ahead_;
  std::shared_ptr<HttpExchange> exchange_;  // the one under way
  HttpHeaders own_headers_;                 // of its response, beside the handler's
  bool watching_ = false;                   // a read is outstanding
  bool discarding_ = false;                 // what is read is of no interest
  bool peer_gone_ = false;                  // it sends no more
  bool unread_body_ = false;                // an answer came before it
  Clock::time_point discard_until_;
  bool idle_ = false;
  Clock::time_point idle_since_;
  bool draining_ = false;
  bool closed_ = false;
};

}  // namespace shoal
