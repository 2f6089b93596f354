#include "launch/http_session.h"

#include <fmt/format.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http.hpp>

#include "launch/cors.h"
#include "launch/with_error.h"

namespace shoal {
namespace {

namespace net = boost::asio;
namespace http = boost::beast::http;
using std::chrono::milliseconds;

constexpr auto linger_timeout = milliseconds(5000);
constexpr auto longest_upload = std::chrono::minutes(10), longest_discard = std::chrono::minutes(1);
constexpr std::size_t slowest_download_bytes_per_s = 64 << 10;
constexpr std::size_t max_read_ahead_bytes = 64 << 10;  // of pipelined requests
/// Of what is not understood yet: all headers, or one piece of a body. Above the server's limits for either.
constexpr std::size_t max_buffer_bytes = 256 << 10;

/// A client whose host died, or that was cut off, is noticed within about a minute even if nothing is sent to it.
void notice_dead_peer(ClientStream::Socket& socket) {
  const auto set = [&](int level, int option, int value) {
    // A system without the option is no reason to refuse the client.
    (void)::setsockopt(socket.native_handle(), level, option, &value, sizeof value);
  };
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 30);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 10);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 60000);
  set(IPPROTO_TCP, TCP_NODELAY, 1);
}

}  // namespace

HttpSession::HttpSession(ClientStream::Socket socket, const Dispatch& dispatch)
    : options_(dispatch.options),
      dispatch_(dispatch),
      stream_(std::move(socket), dispatch.tls),
      deadline_(stream_.get_executor()),
      wake_(stream_.get_executor(), Clock::time_point::max()),
      buffer_(max_buffer_bytes) {}

HttpSession::Awaitable<void> HttpSession::run() {
  try {
    co_await converse();
  } catch (const std::exception&) {  // no memory: this connection ends, others go on
    if (exchange_) end_exchange();
  }
  close();
}

HttpSession::Awaitable<void> HttpSession::converse() {
  notice_dead_peer(stream_.socket());
  error_code no_peer;
  const auto peer = stream_.socket().remote_endpoint(no_peer);
  if (!no_peer) client_ = peer.address().to_string();
  if (stream_.encrypted() && !co_await shake_hands()) co_return;
  bool keep_alive = true;
  while (keep_alive && !closed_) {
    const bool arrived = co_await wait_for_request();
    if (!arrived) break;
    keep_alive = co_await serve_request();
  }
  co_await linger();
}

void HttpSession::drain() {
  draining_ = true;
  if (idle_) close();
}

void HttpSession::close() {
  closed_ = true;
  idle_ = false;
  disarm();
  error_code ignored;
  stream_.socket().shutdown(ClientStream::Socket::shutdown_both, ignored);
  stream_.socket().close(ignored);
  wake_.cancel();
}

/// Sleeps until something happened on the strand that calls wake_.cancel().
HttpSession::Awaitable<void> HttpSession::wait() {
  error_code error;
  co_await wake_.async_wait(with(error));
}

/// The same for a while; false if nothing has happened.
HttpSession::Awaitable<bool> HttpSession::wait(milliseconds at_most) {
  error_code error;
  wake_.expires_after(at_most);
  co_await wake_.async_wait(with(error));
  wake_.expires_at(Clock::time_point::max());
  co_return error == net::error::operation_aborted;
}

/// Closes the connection unless disarmed in time.
void HttpSession::arm(milliseconds timeout) {
  deadline_.expires_after(timeout);
  deadline_.async_wait([self = shared_from_this()](error_code error) {
    // The deadline may have been moved after this was queued.
    if (!error && self->deadline_.expiry() <= Clock::now()) self->close();
  });
}

void HttpSession::arm_for_writing(std::size_t bytes) {
  arm(options_.write_timeout + std::chrono::seconds(bytes / slowest_download_bytes_per_s));
}

/// Reads on while nobody else does: this is how a client that goes is noticed, and where pipelined requests wait.
void HttpSession::watch() {
  if (watching_ || peer_gone_) return;
  watching_ = true;
  stream_.async_read_some(net::buffer(read_ahead_), [self = shared_from_this()](error_code error, std::size_t n) {
    self->watching_ = false;
    if (!error) {
      if (self->discarding_) {
        if (Clock::now() < self->discard_until_) self->arm(linger_timeout);
      } else {
        const auto room = self->buffer_.prepare(n);
        self->buffer_.commit(net::buffer_copy(room, net::buffer(self->read_ahead_, n)));
      }
      if (self->buffer_.size() < max_read_ahead_bytes) self->watch();
    } else if (error != net::error::operation_aborted) {
      self->peer_gone_ = true;
      if (self->exchange_) self->exchange_->detach();
    }
    self->wake_.cancel();
  });
}

HttpSession::Awaitable<void> HttpSession::stop_watching() {
  error_code ignored;
  while (watching_) {  // more than once: a read that had been done already was followed by another one
    stream_.socket().cancel(ignored);
    co_await wait();
  }
}

HttpSession::Awaitable<bool> HttpSession::shake_hands() {
  error_code error;
  arm(options_.read_timeout);
  co_await stream_.async_handshake(with(error));
  disarm();
  co_return !error && !closed_;
}

/// Lets the client read the last answer before the connection goes: closing with unread input would reset it.
HttpSession::Awaitable<void> HttpSession::linger() {
  if (closed_) co_return;
  // A client in the middle of its body reads the answer when that is sent, and goes.
  if (stream_.encrypted() && !unread_body_) co_return co_await shut_down_tls();
  error_code ignored;
  if (!stream_.encrypted()) stream_.socket().shutdown(ClientStream::Socket::shutdown_send, ignored);
  discarding_ = true;
  discard_until_ = Clock::now() + longest_discard;
  buffer_.clear();
  arm(linger_timeout);
  watch();
  while (!peer_gone_ && !closed_) co_await wait();
  disarm();
}

HttpSession::Awaitable<void> HttpSession::shut_down_tls() {
  co_await stop_watching();
  if (closed_) co_return;
  error_code ignored;
  arm(linger_timeout);
  co_await stream_.async_shutdown(with(ignored));
  disarm();
}

HttpSession::Awaitable<bool> HttpSession::wait_for_request() {
  if (buffer_.size() == 0 && !peer_gone_) {
    if (draining_) co_return false;
    idle_ = true;
    idle_since_ = Clock::now();
    arm(options_.idle_timeout);
    watch();
    while (buffer_.size() == 0 && !peer_gone_ && !closed_) co_await wait();
    disarm();
    idle_ = false;
  }
  co_await stop_watching();
  co_return buffer_.size() > 0 && !closed_;
}

/// True when the connection may carry another request.
HttpSession::Awaitable<bool> HttpSession::serve_request() {
  Parser parser;
  parser.header_limit(options_.max_header_bytes);
  parser.body_limit(options_.max_body_bytes);
  error_code error;
  co_await read_head(parser, error);
  auto fault = error ? fault_of(error, options_) : fault_of(parser.get());
  if (error || fault) {
    co_await refuse(std::move(fault), parser.get().version());
    co_return false;
  }
  Conversation now = begin(parser.get());
  std::optional<Responder> responder(exchange_);
  if (answer_head(now.request, *responder)) {
    responder.reset();
    unread_body_ = !parser.is_done();
    now.keep = now.keep && parser.is_done();
    co_return co_await answer(now);
  }
  auto room = std::make_shared<BodyRoom>(dispatch_.body_bytes);
  const bool has_room = co_await read_body(parser, *room, error);
  if (error || !has_room) {
    room.reset();
    end_exchange();
    fault = error ? fault_of(error, options_)
                  : HttpFault{503, "the bodies of all requests together are too large; try again later"};
    co_await refuse(std::move(fault), now.version);
    co_return false;
  }
  now.request.body = std::move(parser.get().body());
  dispatch_.run(std::move(now.request), *std::move(responder), std::move(room));
  co_return co_await answer(now);
}

HttpSession::Awaitable<void> HttpSession::read_head(Parser& parser, error_code& error) {
  if (!peer_gone_) {
    arm(options_.read_timeout);
    co_await http::async_read_header(stream_, buffer_, parser, with(error));
    disarm();
    co_return;
  }
  // The end of the client's stream has been read: a second read of it would wait for an event that epoll tells only
  // once. So the request is what came before.
  parser.eager(true);
  while (!error && !parser.is_done() && buffer_.size() > 0) buffer_.consume(parser.put(buffer_.data(), error));
  if (error == http::error::need_more) error = {};
  if (!error && !parser.is_done()) parser.put_eof(error);
}

/// False where all bodies together are too large.
HttpSession::Awaitable<bool> HttpSession::read_body(Parser& parser, BodyRoom& room, error_code& error) {
  bool has_room = true;
  const auto deadline = Clock::now() + longest_upload;
  if (!parser.is_done() && parser.get()[http::field::expect] == "100-continue") {
    static constexpr std::string_view go_on = "HTTP/1.1 100 Continue\r\n\r\n";
    arm(options_.write_timeout);
    co_await net::async_write(stream_, net::buffer(go_on), with(error));
  }
  while (!error && has_room && !parser.is_done()) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
    arm(std::clamp(left, milliseconds(0), options_.read_timeout));
    co_await http::async_read_some(stream_, buffer_, parser, with(error));
    has_room = room.grow_to(parser.get().body().size(), options_.max_all_bodies_bytes);
  }
  disarm();
  co_return has_room;
}

HttpSession::Conversation HttpSession::begin(const HttpMessage& message) {
  Conversation now;
  now.version = message.version();
  now.head = message.method() == http::verb::head;
  now.keep = message.keep_alive();
  now.request = request_of(message);
  now.request.client = client_;
  now.record = {now.request.id, client_, now.request.method, now.request.path};
  own_headers_ = cors_headers(now.request, options_.cors_origins);
  own_headers_.emplace_back("X-Request-Id", now.request.id);

  exchange_ = std::make_shared<HttpExchange>(options_.max_queued_bytes,
                                             [weak = weak_from_this(), executor = stream_.get_executor()] {
                                               net::post(executor, [weak] {
                                                 if (const auto self = weak.lock()) self->wake_.cancel();
                                               });
                                             });
  return now;
}

/// Whether the request needs no body to be answered; it then is.
bool HttpSession::answer_head(const HttpRequest& request, const Responder& responder) const {
  return answer_preflight(request, responder, options_.cors_origins) ||
         (options_.answer_head && options_.answer_head(request, responder));
}

/// Writes what comes of a request. True when the connection may carry another one.
HttpSession::Awaitable<bool> HttpSession::answer(Conversation& now) {
  watch();
  const HttpExchange::Head& head = exchange_->head();
  bool begun = false;
  for (bool ended = false; !ended;) {
    HttpExchange::Output output = exchange_->take();
    if (closed_ || output.unread) {  // nobody would wake this connection again
      now.keep = false;
      break;
    }
    ended = output.ends;
    begun |= output.begins;
    error_code error;
    now.record.bytes += output.bytes.size();
    const bool whole = ended && !output.breaks;
    if (output.begins) {
      now.record.status = head.status;
      now.keep = now.keep && !draining_ && !peer_gone_ && (now.chunked() || !head.streaming);
      co_await write_beginning(now, output.bytes, error);
    }
    const bool body_streams = begun && head.streaming && !now.head;
    if (!error && body_streams) co_await write_stream_part(output.bytes, now.chunked(), whole, error);
    if (error || output.breaks) {
      now.keep = false;
      break;
    }
    now.record.whole = whole;
    if (ended || !output.bytes.empty() || output.begins) continue;
    if (!body_streams || head.keep_alive.empty()) {
      co_await wait();
    } else if (!co_await wait(options_.keep_alive_interval)) {
      co_await write_stream_part(head.keep_alive, now.chunked(), false, error);
      if (error) exchange_->detach();
    }
  }
  now.record.seconds = std::chrono::duration<double>(Clock::now() - now.begin).count();
  if (options_.on_answered) options_.on_answered(now.record);
  end_exchange();
  co_return now.keep;
}

void HttpSession::end_exchange() {
  exchange_->detach();
  exchange_ = nullptr;
}

/// Says what is wrong with a request, where that can be said.
HttpSession::Awaitable<void> HttpSession::refuse(std::optional<HttpFault> fault, unsigned version) {
  if (!fault || closed_) co_return;
  const auto& [status, message] = *fault;
  const std::string id = new_request_id();
  Response refusal =
      make_response(status, version == 10 ? 10 : 11, options_.error_body ? "application/json" : "text/plain",
                    {{"X-Request-Id", id}}, false);
  refusal.body() = options_.error_body ? options_.error_body(status, message) : message + "\n";
  refusal.prepare_payload();
  error_code error;
  const std::size_t bytes = refusal.body().size();
  co_await write(refusal, false, error);
  if (options_.on_answered) options_.on_answered({id, client_, "-", "-", status, bytes, 0, !error});
}

HttpSession::Response HttpSession::make_response(int status, unsigned version, const std::string& content_type,
                                                 const HttpHeaders& headers, bool keep) const {
  Response response(static_cast<http::status>(status), version);
  response.set(http::field::server, "shoal");
  response.set(http::field::date, http_date());
  if (!content_type.empty()) response.set(http::field::content_type, content_type);
  for (const auto& [name, value] : own_headers_) response.set(name, value);
  for (const auto& [name, value] : headers) response.set(name, value);
  response.keep_alive(keep);
  return response;
}

/// All of it, or what comes before the body.
HttpSession::Awaitable<void> HttpSession::write(Response& response, bool head, error_code& error) {
  http::response_serializer<http::string_body> serializer(response);
  arm_for_writing(response.body().size());
  if (head)
    co_await http::async_write_header(stream_, serializer, with(error));
  else
    co_await http::async_write(stream_, serializer, with(error));
  disarm();
}

/// The whole answer, or what comes before a stream.
HttpSession::Awaitable<void> HttpSession::write_beginning(const Conversation& now, std::string& body,
                                                          error_code& error) {
  const HttpExchange::Head& head = exchange_->head();
  Response begun = make_response(head.status, now.version, head.content_type, head.headers, now.keep);
  if (head.streaming) {
    begun.chunked(now.chunked());
  } else {
    begun.body() = std::move(body);
    begun.prepare_payload();
  }
  co_await write(begun, now.head || head.streaming, error);
}

HttpSession::Awaitable<void> HttpSession::write_stream_part(const std::string& bytes, bool chunked, bool last,
                                                            error_code& error) {
  std::string framed;
  if (!chunked) {
    framed = bytes;
  } else {
    if (!bytes.empty()) framed = fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes);
    if (last) framed += "0\r\n\r\n";
  }
  if (framed.empty()) co_return;
  arm_for_writing(framed.size());
  co_await net::async_write(stream_, net::buffer(framed), with(error));
  disarm();
}

}  // namespace shoal
