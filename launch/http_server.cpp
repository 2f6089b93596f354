#include "launch/http_server.h"

#include <utility>  // before Boost 1.74's coroutine headers, which use std::exchange without it
//
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http.hpp>
#include <condition_variable>
#include <ctime>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <unordered_map>

#include "base/error.h"
#include "launch/client_stream.h"
#include "launch/with_error.h"

namespace shoal {
namespace {

namespace net = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using net::ip::tcp;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr auto linger_timeout = milliseconds(5000);
constexpr auto longest_upload = std::chrono::minutes(10), longest_discard = std::chrono::minutes(1);
constexpr std::size_t slowest_download_bytes_per_s = 64 << 10;
constexpr std::size_t max_read_ahead_bytes = 64 << 10;  // of pipelined requests
/// Of what is not understood yet: all headers, or one piece of a body. Above the server's limits for either.
constexpr std::size_t max_buffer_bytes = 256 << 10;

std::string http_date() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[64];
  return {text, std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &utc)};
}

/// The client's own id for the request if it is one that does no harm in a log, otherwise a new one.
std::string request_id(std::string_view given) {
  const auto harmless = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_' ||
           c == '.';
  };
  if (!given.empty() && given.size() <= 128 && std::all_of(given.begin(), given.end(), harmless)) {
    return std::string(given);
  }
  static std::mt19937_64 generator{std::random_device{}()};  // used by the I/O thread only
  return fmt::format("req-{:016x}", generator());
}

/// A client whose host died, or that was cut off, is noticed within about a minute even if nothing is sent to it.
void notice_dead_peer(tcp::socket& socket) {
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

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  return boost::beast::iequals({a.data(), a.size()}, {b.data(), b.size()});
}

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (equal_ignoring_case(key, name)) return value;
  }
  return {};
}

std::string percent_decode(std::string_view text) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  std::string decoded;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool escape = text[i] == '%' && i + 2 < text.size() && digit(text[i + 1]) >= 0 && digit(text[i + 2]) >= 0;
    if (!escape) {
      decoded += text[i];
      continue;
    }
    decoded += static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2]));
    i += 2;
  }
  return decoded;
}

/// One request's way back, shared by the handler's side and the connection's. The mutex guards everything.
struct Responder::Exchange {
  /// What there is for the connection to write.
  struct Output {
    bool begins = false;  // status, content_type and headers are new
    std::string bytes;
    bool ends = false;
    bool breaks = false;  // the handler gave up
    bool unread = false;  // the client has gone: nothing of this is to be written
  };

  std::mutex mutex;
  int status = 0;  // 0: not answered yet
  std::string content_type;
  HttpHeaders headers;
  bool streaming = false;
  std::string keep_alive;  // of a stream
  std::size_t max_queued_bytes = 0;

  bool header_taken = false, ended = false, broken = false;
  std::string queue;

  bool gone = false;  // the client is, or the connection has done its part
  std::function<void()> disconnected;
  std::function<void()> wake;  // tells the connection; called under the mutex, so never after detach()
  bool woken = false;

  void notify() {
    if (gone || woken || !wake) return;
    woken = true;
    wake();
  }

  bool begin(int new_status, std::string type, HttpHeaders&& new_headers, bool stream) {
    if (status != 0) return false;
    status = new_status;
    content_type = std::move(type);
    headers = std::move(new_headers);
    streaming = stream;
    return true;
  }

  Output take() {
    const std::lock_guard lock(mutex);
    woken = false;
    Output output;
    output.begins = status != 0 && !header_taken;
    header_taken |= output.begins;
    output.bytes.swap(queue);
    output.ends = ended;
    output.breaks = broken;
    output.unread = gone;
    return output;
  }

  /// No one reads what comes from now on. Before the answer was complete, the handler is told.
  void detach() {
    std::function<void()> callback;
    {
      const std::lock_guard lock(mutex);
      if (std::exchange(gone, true)) return;
      wake = nullptr;
      queue = {};
      if (!ended) callback = std::move(disconnected);
      disconnected = nullptr;
    }
    if (callback) callback();
  }
};

struct Responder::Handle {
  std::shared_ptr<Exchange> exchange;

  explicit Handle(std::shared_ptr<Exchange> e) : exchange(std::move(e)) {}
  Handle(const Handle&) = delete;  // the end of the last one is what ends an exchange
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    std::function<void()> forgotten;  // destroyed outside the lock: it may own much
    const std::lock_guard lock(exchange->mutex);
    forgotten.swap(exchange->disconnected);
    if (exchange->ended) return;
    if (exchange->begin(500, "text/plain", {}, false)) {
      exchange->queue = "the request was not answered\n";
    } else {
      exchange->broken = true;
    }
    exchange->ended = true;
    exchange->notify();
  }
};

Responder::Responder(std::shared_ptr<Exchange> exchange) : handle_(std::make_shared<Handle>(std::move(exchange))) {}

void Responder::send(int status, std::string content_type, std::string body, HttpHeaders headers) const {
  Exchange& exchange = *handle_->exchange;
  const std::lock_guard lock(exchange.mutex);
  if (!exchange.begin(status, std::move(content_type), std::move(headers), false)) return;
  if (!exchange.gone) exchange.queue = std::move(body);
  exchange.ended = true;
  exchange.notify();
}

void Responder::begin_stream(int status, std::string content_type, HttpHeaders headers, std::string keep_alive) const {
  Exchange& exchange = *handle_->exchange;
  const std::lock_guard lock(exchange.mutex);
  if (!exchange.begin(status, std::move(content_type), std::move(headers), true)) return;
  exchange.keep_alive = std::move(keep_alive);
  exchange.notify();
}

bool Responder::write(std::string_view chunk) const {
  Exchange& exchange = *handle_->exchange;
  std::function<void()> callback;
  {
    const std::lock_guard lock(exchange.mutex);
    if (exchange.gone || exchange.ended || exchange.broken || !exchange.streaming) return false;
    // A chunk that finds nothing before it is the client's to read, however large.
    const bool room = exchange.queue.empty() || exchange.queue.size() + chunk.size() <= exchange.max_queued_bytes;
    if (room) {
      exchange.queue += chunk;
    } else {
      exchange.broken = true;
      callback = std::exchange(exchange.disconnected, nullptr);
    }
    exchange.notify();
    if (room) return true;
  }
  if (callback) callback();
  return false;
}

void Responder::end() const {
  Exchange& exchange = *handle_->exchange;
  const std::lock_guard lock(exchange.mutex);
  if (!exchange.streaming || exchange.ended) return;
  exchange.ended = true;
  exchange.notify();
}

void Responder::on_disconnect(std::function<void()> callback) const {
  Exchange& exchange = *handle_->exchange;
  {
    const std::lock_guard lock(exchange.mutex);
    if (exchange.ended) return;
    if (!exchange.gone) {
      exchange.disconnected = std::move(callback);
      return;
    }
  }
  callback();
}

namespace {

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

/// Where connections hand their requests to.
struct Dispatch {
  const HttpServerOptions& options;
  /// The room is held until the handler is done with the body.
  std::function<void(HttpRequest, Responder, std::shared_ptr<BodyRoom>)> run;
  net::ssl::context* tls = nullptr;
  mutable std::atomic<std::size_t> body_bytes = 0;
};

/// One connection: requests one after the other, on a strand of its own. All members are used on the strand only.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(tcp::socket socket, const Dispatch& dispatch)
      : stream_(std::move(socket), dispatch.tls),
        deadline_(stream_.get_executor()),
        wake_(stream_.get_executor(), Clock::time_point::max()),
        options_(dispatch.options),
        dispatch_(dispatch) {}

  tcp::socket::executor_type executor() { return stream_.get_executor(); }

  net::awaitable<void> run() {
    notice_dead_peer(stream_.socket());
    error_code no_peer;
    const auto peer = stream_.socket().remote_endpoint(no_peer);
    if (!no_peer) client_ = peer.address().to_string();
    if (stream_.encrypted() && !co_await shake_hands()) co_return close();
    bool keep_alive = true;
    while (keep_alive && !closed_) {
      const bool arrived = co_await wait_for_request();
      if (!arrived) break;
      keep_alive = co_await serve_request();
    }
    co_await linger();
    close();
  }

  /// No further request: an idle connection closes, a busy one after its answer.
  void drain() {
    draining_ = true;
    if (idle_) close();
  }

  /// Since when it waits for a request; for ever later than now where it does not.
  Clock::time_point idle_since() const { return idle_ ? idle_since_ : Clock::time_point::max(); }

  /// Everything that waits for this connection ends.
  void close() {
    closed_ = true;
    idle_ = false;
    disarm();
    error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
    stream_.socket().close(ignored);
    wake_.cancel();
  }

 private:
  /// Sleeps until something happened on the strand that calls wake_.cancel().
  net::awaitable<void> wait() {
    error_code ec;
    co_await wake_.async_wait(with(ec));
  }
  /// The same for a while; false if nothing has happened.
  net::awaitable<bool> wait(milliseconds at_most) {
    error_code ec;
    wake_.expires_after(at_most);
    co_await wake_.async_wait(with(ec));
    wake_.expires_at(Clock::time_point::max());
    co_return ec == net::error::operation_aborted;
  }

  /// Closes the connection unless disarmed in time.
  void arm(milliseconds timeout) {
    deadline_.expires_after(timeout);
    deadline_.async_wait([self = shared_from_this()](error_code ec) {
      // The deadline may have been moved after this was queued.
      if (!ec && self->deadline_.expiry() <= Clock::now()) self->close();
    });
  }
  void disarm() { deadline_.expires_at(Clock::time_point::max()); }

  /// Reads on while nobody else does: this is how a client that goes is noticed, and where pipelined requests wait.
  void watch() {
    watching_ = true;
    stream_.async_read_some(net::buffer(read_ahead_), [self = shared_from_this()](error_code ec, std::size_t n) {
      self->watching_ = false;
      if (!ec) {
        if (self->discarding_) {
          if (Clock::now() < self->discard_until_) self->arm(linger_timeout);
        } else {
          const auto room = self->buffer_.prepare(n);
          self->buffer_.commit(net::buffer_copy(room, net::buffer(self->read_ahead_, n)));
        }
        if (self->buffer_.size() < max_read_ahead_bytes) self->watch();
      } else if (ec != net::error::operation_aborted) {
        self->peer_gone_ = true;
        if (self->exchange_) self->exchange_->detach();
      }
      self->wake_.cancel();
    });
  }
  net::awaitable<void> stop_watching() {
    error_code ignored;
    while (watching_) {  // more than once: a read that had been done already was followed by another one
      stream_.socket().cancel(ignored);
      co_await wait();
    }
  }

  net::awaitable<bool> shake_hands() {
    error_code ec;
    arm(options_.read_timeout);
    co_await stream_.async_handshake(with(ec));
    disarm();
    co_return !ec && !closed_;
  }

  net::awaitable<void> shut_down_tls() {
    co_await stop_watching();
    if (closed_) co_return;
    error_code ignored;
    arm(linger_timeout);
    co_await stream_.async_shutdown(with(ignored));
    disarm();
  }

  net::awaitable<bool> wait_for_request() {
    if (buffer_.size() == 0 && !peer_gone_) {
      if (draining_) co_return false;
      idle_ = true;
      idle_since_ = Clock::now();
      arm(options_.idle_timeout);
      if (!watching_) watch();
      while (buffer_.size() == 0 && !peer_gone_ && !closed_) co_await wait();
      disarm();
      idle_ = false;
    }
    co_await stop_watching();
    co_return buffer_.size() > 0 && !closed_;
  }

  /// True when the connection may carry another request.
  net::awaitable<bool> serve_request() {
    http::request_parser<http::string_body> parser;
    parser.header_limit(options_.max_header_bytes);
    parser.body_limit(options_.max_body_bytes);
    error_code ec;
    arm(options_.read_timeout);
    if (peer_gone_) {
      parse_what_came(parser, ec);
    } else {
      co_await http::async_read_header(stream_, buffer_, parser, with(ec));
    }
    if (ec) {
      disarm();
      co_await refuse(ec, parser.get().version());
      co_return false;
    }
    if (const auto fault = fault_of(parser.get())) {
      disarm();
      co_await refuse(fault->first, fault->second, parser.get().version());
      co_return false;
    }
    Conversation now = begin(parser.get());
    std::optional<Responder> responder(exchange_);
    if (answer_preflight(now.request, *responder) ||
        (options_.answer_head && options_.answer_head(now.request, *responder))) {
      disarm();
      responder.reset();
      unread_body_ = !parser.is_done();
      now.keep = now.keep && parser.is_done();
      co_return co_await answer(now);
    }
    if (!parser.is_done() && parser.get()[http::field::expect] == "100-continue") {
      static constexpr std::string_view go_on = "HTTP/1.1 100 Continue\r\n\r\n";
      co_await net::async_write(stream_, net::buffer(go_on), with(ec));
    }
    auto room = std::make_shared<BodyRoom>(dispatch_.body_bytes);
    bool has_room = true;
    const auto upload_deadline = Clock::now() + longest_upload;
    while (!ec && has_room && !parser.is_done()) {
      const auto left = std::chrono::duration_cast<milliseconds>(upload_deadline - Clock::now());
      arm(std::clamp(left, milliseconds(0), options_.read_timeout));
      co_await http::async_read_some(stream_, buffer_, parser, with(ec));
      has_room = room->grow_to(parser.get().body().size(), options_.max_all_bodies_bytes);
    }
    disarm();
    if (ec || !has_room) {
      room.reset();
      exchange_->detach();
      exchange_ = nullptr;
      if (ec)
        co_await refuse(ec, now.version);
      else
        co_await refuse(503, "the bodies of all requests together are too large; try again later", now.version);
      co_return false;
    }
    now.request.body = std::move(parser.get().body());
    dispatch_.run(std::move(now.request), *std::move(responder), std::move(room));
    co_return co_await answer(now);
  }

  /// What must not be served though it is well-formed: where servers in a row disagree about a request's end, one can
  /// be hidden in another's body (RFC 9112, sections 3.2 and 6.1).
  static std::optional<std::pair<int, std::string>> fault_of(const http::request<http::string_body>& message) {
    if (message.count(http::field::host) > 1) return std::pair(400, "a request has one Host header");
    const auto codings = message.count(http::field::transfer_encoding);
    if (codings == 0) return std::nullopt;
    if (message.count(http::field::content_length) > 0)
      return std::pair(400, "Transfer-Encoding and Content-Length rule each other out");
    if (codings > 1 || !boost::beast::iequals(message[http::field::transfer_encoding], "chunked"))
      return std::pair(501, "the only transfer encoding that is understood is 'chunked'");
    return std::nullopt;
  }

  /// The request of a client that sends no more. The end of its stream has been read: a second read of it would wait
  /// for an event that epoll tells only once.
  void parse_what_came(http::request_parser<http::string_body>& parser, error_code& ec) {
    parser.eager(true);
    while (!ec && !parser.is_done() && buffer_.size() > 0) buffer_.consume(parser.put(buffer_.data(), ec));
    if (ec == http::error::need_more) ec = {};
    if (!ec && !parser.is_done()) parser.put_eof(ec);
  }

  /// Says what was wrong with a request that could not be read, if there is somebody to tell.
  net::awaitable<void> refuse(error_code ec, unsigned version) {
    if (ec.category() != make_error_code(http::error::bad_method).category() || closed_) co_return;
    if (ec == http::error::end_of_stream || ec == http::error::partial_message) co_return;
    int status = 400;
    std::string message = "the request is not valid HTTP: " + ec.message();
    if (ec == http::error::buffer_overflow) {
      message = "a line within the request's body is too long";
    } else if (ec == http::error::body_limit) {
      status = 413;
      message = fmt::format("the request's body is larger than {} bytes", options_.max_body_bytes);
    } else if (ec == http::error::header_limit) {
      status = 431;
      message = fmt::format("the request's headers are larger than {} bytes", options_.max_header_bytes);
    }
    co_await refuse(status, message, version);
  }
  net::awaitable<void> refuse(int status, std::string message, unsigned version) {
    error_code ec;
    http::response<http::string_body> response(static_cast<http::status>(status), version == 10 ? 10 : 11);
    const std::string id = request_id("");
    add_headers(response, options_.error_body ? "application/json" : "text/plain", {{"X-Request-Id", id}}, false);
    response.body() = options_.error_body ? options_.error_body(status, message) : message + "\n";
    response.prepare_payload();
    arm(options_.write_timeout);
    const std::size_t bytes = response.body().size();
    co_await http::async_write(stream_, response, with(ec));
    disarm();
    if (options_.on_answered) options_.on_answered({id, client_, "-", "-", status, bytes, 0, !ec});
  }

  template <class Response>
  void add_headers(Response& response, const std::string& content_type, const HttpHeaders& headers, bool keep) const {
    response.set(http::field::server, "shoal");
    response.set(http::field::date, http_date());
    if (!content_type.empty()) response.set(http::field::content_type, content_type);
    for (const auto& [name, value] : own_headers_) response.set(name, value);
    for (const auto& [name, value] : headers) response.set(name, value);
    response.keep_alive(keep);
  }

  static HttpRequest head_of(const http::request<http::string_body>& message) {
    HttpRequest request;
    request.id = request_id({message["X-Request-Id"].data(), message["X-Request-Id"].size()});
    request.method = std::string(message.method_string());
    std::string_view target(message.target().data(), message.target().size());
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

  /// A request that has begun to come, and what its answer depends on beside the handler.
  struct Conversation {
    HttpRequest request;
    HttpRecord record;
    Clock::time_point begin = Clock::now();
    unsigned version = 11;
    bool head = false;  // no body is wanted
    bool keep = true;   // the connection may carry another request
  };

  Conversation begin(const http::request<http::string_body>& message) {
    Conversation now;
    now.version = message.version();
    now.head = message.method() == http::verb::head;
    now.keep = message.keep_alive();
    now.request = head_of(message);
    now.request.client = client_;
    now.record = {now.request.id, client_, now.request.method, now.request.path};
    own_headers_ = cors_headers(now.request);
    own_headers_.emplace_back("X-Request-Id", now.request.id);

    exchange_ = std::make_shared<Responder::Exchange>();
    exchange_->max_queued_bytes = options_.max_queued_bytes;
    exchange_->wake = [weak = weak_from_this(), executor = stream_.get_executor()] {
      net::post(executor, [weak] {
        if (const auto self = weak.lock()) self->wake_.cancel();
      });
    };
    return now;
  }

  /// Answers what the browser asks before it lets a page ask.
  bool answer_preflight(const HttpRequest& request, const Responder& responder) const {
    if (request.method != "OPTIONS" || options_.cors_origins.empty() ||
        request.header("Access-Control-Request-Method").empty())
      return false;
    // OpenAI's client for JavaScript sends headers of its own; none of them lets a page do more.
    const std::string asked(request.header("Access-Control-Request-Headers"));
    responder.send(204, "", "",
                   {{"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
                    {"Access-Control-Allow-Headers", asked.empty() ? "Authorization, Content-Type" : asked},
                    {"Access-Control-Max-Age", "600"}});
    return true;
  }

  /// Writes what comes of it. True when the connection may carry another request.
  net::awaitable<bool> answer(Conversation& now) {
    if (!watching_ && !peer_gone_) watch();
    const unsigned version = now.version;
    const bool head = now.head;
    HttpRecord& record = now.record;
    bool keep = now.keep, chunked = false, begun = false;
    for (bool ended = false; !ended;) {
      Responder::Exchange::Output output = exchange_->take();
      if (closed_ || output.unread) {  // nobody would wake this connection again
        keep = false;
        break;
      }
      ended = output.ends;
      error_code ec;
      record.bytes += output.bytes.size();
      begun |= output.begins;
      if (output.begins) {
        record.status = exchange_->status;
        keep = keep && !draining_ && !peer_gone_;
        if (exchange_->streaming) {
          chunked = version >= 11;
          keep = keep && chunked;
          co_await write_stream_header(version, keep, chunked, ec);
        } else {
          co_await write_whole(version, keep, head, std::move(output.bytes), ec);
          output.bytes.clear();
        }
      }
      const bool whole = ended && !output.breaks;
      if (!ec && exchange_->streaming && !head) co_await write_stream_part(output.bytes, chunked, whole, ec);
      if (ec || output.breaks) {
        keep = false;
        break;
      }
      record.whole = whole;
      if (ended || !output.bytes.empty() || output.begins) continue;
      if (!begun || !exchange_->streaming || head || exchange_->keep_alive.empty()) {
        co_await wait();
      } else if (!co_await wait(options_.keep_alive_interval)) {
        co_await write_stream_part(exchange_->keep_alive, chunked, false, ec);
        if (ec) exchange_->detach();
      }
    }
    record.seconds = std::chrono::duration<double>(Clock::now() - now.begin).count();
    if (options_.on_answered) options_.on_answered(record);
    exchange_->detach();
    exchange_ = nullptr;
    co_return keep;
  }

  /// What lets a web page of an allowed origin read the answer.
  HttpHeaders cors_headers(const HttpRequest& request) const {
    const std::string_view origin = request.header("Origin");
    const auto& allowed = options_.cors_origins;
    const auto is = [&](std::string_view name) {
      return std::find(allowed.begin(), allowed.end(), name) != allowed.end();
    };
    HttpHeaders headers = {{"Access-Control-Expose-Headers", "X-Request-Id, Retry-After"}};
    if (is("*")) {
      headers.emplace_back("Access-Control-Allow-Origin", "*");
    } else {
      if (origin.empty() || !is(origin)) return {};
      headers.emplace_back("Access-Control-Allow-Origin", origin);
      headers.emplace_back("Vary", "Origin");
    }
    return headers;
  }

  // The exchange's status, content_type, headers, streaming and keep_alive never change once `begins` was seen.
  net::awaitable<void> write_whole(unsigned version, bool keep, bool head, std::string body, error_code& ec) {
    http::response<http::string_body> response(static_cast<http::status>(exchange_->status), version);
    add_headers(response, exchange_->content_type, exchange_->headers, keep);
    response.body() = std::move(body);
    response.prepare_payload();
    arm_for_writing(response.body().size());
    if (head) {
      http::response_serializer<http::string_body> serializer(response);
      co_await http::async_write_header(stream_, serializer, with(ec));
    } else {
      co_await http::async_write(stream_, response, with(ec));
    }
    disarm();
  }

  net::awaitable<void> write_stream_header(unsigned version, bool keep, bool chunked, error_code& ec) {
    http::response<http::empty_body> response(static_cast<http::status>(exchange_->status), version);
    add_headers(response, exchange_->content_type, exchange_->headers, keep);
    response.chunked(chunked);
    http::response_serializer<http::empty_body> serializer(response);
    arm_for_writing(0);
    co_await http::async_write_header(stream_, serializer, with(ec));
    disarm();
  }

  net::awaitable<void> write_stream_part(const std::string& bytes, bool chunked, bool last, error_code& ec) {
    std::string framed;
    if (!chunked) {
      framed = bytes;
    } else {
      if (!bytes.empty()) framed = fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes);
      if (last) framed += "0\r\n\r\n";
    }
    if (framed.empty()) co_return;
    arm_for_writing(framed.size());
    co_await net::async_write(stream_, net::buffer(framed), with(ec));
    disarm();
  }

  void arm_for_writing(std::size_t bytes) {
    arm(options_.write_timeout + std::chrono::seconds(bytes / slowest_download_bytes_per_s));
  }

  /// Lets the client read the last answer before the connection goes: closing with unread input would reset it.
  net::awaitable<void> linger() {
    if (closed_) co_return;
    // A client in the middle of its body reads the answer when that is sent, and goes.
    if (stream_.encrypted() && !unread_body_) co_return co_await shut_down_tls();
    error_code ignored;
    if (!stream_.encrypted()) stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    discarding_ = true;
    discard_until_ = Clock::now() + longest_discard;
    buffer_.clear();
    arm(linger_timeout);
    if (!watching_ && !peer_gone_) watch();
    while (!peer_gone_ && !closed_) co_await wait();
    disarm();
  }

  ClientStream stream_;
  std::string client_;  // its address
  net::steady_timer deadline_, wake_;
  const HttpServerOptions& options_;
  const Dispatch& dispatch_;
  boost::beast::flat_buffer buffer_{max_buffer_bytes};
  std::array<char, 16384> read_ahead_;
  std::shared_ptr<Responder::Exchange> exchange_;  // the one under way
  HttpHeaders own_headers_;                        // of its response, beside the handler's
  bool watching_ = false;                          // a read is outstanding
  bool discarding_ = false;                        // what is read is of no interest
  bool peer_gone_ = false;                         // it sends no more
  bool unread_body_ = false;                       // an answer came before it
  Clock::time_point discard_until_;
  bool idle_ = false;
  Clock::time_point idle_since_;
  bool draining_ = false;
  bool closed_ = false;
};

}  // namespace

struct HttpServer::Impl : std::enable_shared_from_this<HttpServer::Impl> {
  const HttpServerOptions options;
  const Handler handler;
  net::io_context io{1};
  std::optional<net::ssl::context> tls;
  tcp::acceptor acceptor{io};
  net::steady_timer retry{io};
  Dispatch dispatch{options,
                    [this](HttpRequest request, Responder responder, std::shared_ptr<BodyRoom> room) {
                      net::post(handlers,
                                [this, room = std::move(room), request = std::move(request), responder]() mutable {
                                  handler(std::move(request), std::move(responder));
                                  room.reset();
                                });
                    },
                    nullptr};
  std::uint16_t port = 0;
  net::thread_pool handlers;
  std::thread io_thread;

  std::mutex mutex;
  std::condition_variable fewer;
  std::unordered_map<Session*, std::weak_ptr<Session>> sessions;
  bool stopped = false;

  Impl(HttpServerOptions wanted, Handler wanted_handler)
      : options(std::move(wanted)),
        handler(std::move(wanted_handler)),
        handlers(static_cast<std::size_t>(std::max(1, options.handler_threads))) {
    if (!options.tls_cert.empty()) read_certificate();
    listen();
  }

  void read_certificate() {
    tls.emplace(net::ssl::context::tls_server);
    tls->set_options(net::ssl::context::default_workarounds | net::ssl::context::no_sslv2 |
                     net::ssl::context::no_sslv3 | net::ssl::context::no_tlsv1 | net::ssl::context::no_tlsv1_1);
    error_code ec;
    tls->use_certificate_chain_file(options.tls_cert, ec);
    if (ec) fail("{}: cannot be used as a certificate: {}", options.tls_cert, ec.message());
    tls->use_private_key_file(options.tls_key, net::ssl::context::pem, ec);
    if (ec) fail("{}: cannot be used as the key of {}: {}", options.tls_key, options.tls_cert, ec.message());
    dispatch.tls = &*tls;
  }

  void listen() {
    const auto refuse = [&](const error_code& ec) {
      fail("cannot listen on {}:{}: {}{}", options.host, options.port, ec.message(),
           ec == net::error::address_in_use ? "; another program has this port, choose one with --port" : "");
    };
    error_code ec;
    tcp::resolver resolver(io);
    const auto found = resolver.resolve(options.host, std::to_string(options.port), tcp::resolver::passive, ec);
    if (ec || found.empty()) refuse(ec ? ec : make_error_code(net::error::host_not_found));
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor.open(endpoint.protocol(), ec);
    if (!ec) acceptor.set_option(net::socket_base::reuse_address(true), ec);
    if (!ec) acceptor.bind(endpoint, ec);
    if (!ec) acceptor.listen(net::socket_base::max_listen_connections, ec);
    if (ec) refuse(ec);
    port = acceptor.local_endpoint().port();
  }

  void start() {
    net::co_spawn(io, accept(), net::detached);
    io_thread = std::thread([this] { io.run(); });
  }

  net::awaitable<void> accept() {
    while (acceptor.is_open()) {
      error_code ec;
      const auto strand = net::make_strand(io);
      tcp::socket socket = co_await acceptor.async_accept(strand, with(ec));
      if (!acceptor.is_open()) break;
      if (ec) {  // out of descriptors, mostly: wait for some connection to end
        close_longest_idle();
        retry.expires_after(milliseconds(100));
        co_await retry.async_wait(with(ec));
        continue;
      }
      open(std::move(socket));
    }
  }

  /// False where none is idle. The I/O thread alone changes `sessions`, and runs all that sessions do.
  bool close_longest_idle() {
    std::shared_ptr<Session> longest;
    for (const auto& [key, weak] : sessions) {
      const auto session = weak.lock();
      if (session && session->idle_since() < (longest ? longest->idle_since() : Clock::time_point::max()))
        longest = session;
    }
    if (longest) longest->close();
    return longest != nullptr;
  }

  void open(tcp::socket socket) {
    auto session = std::make_shared<Session>(std::move(socket), dispatch);
    {
      if (sessions.size() >= options.max_connections && !close_longest_idle()) return;
      const std::lock_guard lock(mutex);
      if (stopped) return;
      sessions.emplace(session.get(), session);
    }
    net::co_spawn(session->executor(), serve(session), net::detached);
  }

  net::awaitable<void> serve(std::shared_ptr<Session> session) {
    co_await session->run();
    const std::lock_guard lock(mutex);
    sessions.erase(session.get());
    fewer.notify_all();
  }

  void tell_sessions(void (Session::*what)()) {
    const std::lock_guard lock(mutex);
    for (const auto& [key, weak] : sessions) {
      if (const auto session = weak.lock()) net::post(session->executor(), [session, what] { (*session.*what)(); });
    }
  }

  void stop_accepting() {
    net::post(io, [this] {
      error_code ignored;
      acceptor.close(ignored);
      retry.cancel();
    });
  }

  bool drain(milliseconds at_most) {
    stop_accepting();
    tell_sessions(&Session::drain);
    std::unique_lock lock(mutex);
    return fewer.wait_for(lock, at_most, [this] { return sessions.empty(); });
  }

  void stop() {
    {
      const std::lock_guard lock(mutex);
      if (std::exchange(stopped, true)) return;
    }
    stop_accepting();
    tell_sessions(&Session::close);
    if (io_thread.joinable()) io_thread.join();  // it ends when the last connection has
    handlers.join();
  }
};

HttpServer::HttpServer(HttpServerOptions options, Handler handler)
    : impl_(std::make_shared<Impl>(std::move(options), std::move(handler))) {
  impl_->start();
}

HttpServer::~HttpServer() { impl_->stop(); }

std::uint16_t HttpServer::port() const { return impl_->port; }

std::string HttpServer::url() const {
  const std::string& host = impl_->options.host;
  const bool ipv6 = host.find(':') != host.npos;
  return fmt::format("{}://{}{}{}:{}", impl_->tls ? "https" : "http", ipv6 ? "[" : "", host, ipv6 ? "]" : "",
                     impl_->port);
}

bool HttpServer::drain(milliseconds at_most) { return impl_->drain(at_most); }

void HttpServer::stop() { impl_->stop(); }

}  // namespace shoal
