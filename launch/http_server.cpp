#include "launch/http_server.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_set>

#include "base/error.h"
#include "launch/http_session.h"
#include "launch/with_error.h"

namespace shoal {
namespace {

namespace net = boost::asio;
using boost::system::error_code;
using net::ip::tcp;
using std::chrono::milliseconds;

/// What connections with TLS need; nothing where no certificate is given.
std::optional<net::ssl::context> server_tls(const HttpServerOptions& options) {
  if (options.tls_cert.empty()) return std::nullopt;
  net::ssl::context tls(net::ssl::context::tls_server);
  tls.set_options(net::ssl::context::default_workarounds | net::ssl::context::no_sslv2 | net::ssl::context::no_sslv3 |
                  net::ssl::context::no_tlsv1 | net::ssl::context::no_tlsv1_1);
  error_code ec;
  tls.use_certificate_chain_file(options.tls_cert, ec);
  if (ec) fail("{}: cannot be used as a certificate: {}", options.tls_cert, ec.message());
  tls.use_private_key_file(options.tls_key, net::ssl::context::pem, ec);
  if (ec) fail("{}: cannot be used as the key of {}: {}", options.tls_key, options.tls_cert, ec.message());
  return tls;
}

}  // namespace

struct HttpServer::Impl {
  const HttpServerOptions options;
  const Handler handler;
  net::io_context io{1};
  std::optional<net::ssl::context> tls = server_tls(options);
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
                    tls ? &*tls : nullptr};
  std::uint16_t port = 0;
  net::thread_pool handlers;
  std::thread io_thread;

  std::mutex mutex;
  std::condition_variable fewer;
  std::unordered_set<std::shared_ptr<HttpSession>> sessions;
  bool stopped = false;

  Impl(HttpServerOptions wanted, Handler wanted_handler)
      : options(std::move(wanted)),
        handler(std::move(wanted_handler)),
        handlers(static_cast<std::size_t>(std::max(1, options.handler_threads))) {
    listen();
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
    const auto longest = std::ranges::min_element(sessions, {}, [](const auto& s) { return s->idle_since(); });
    if (longest == sessions.end() || (*longest)->idle_since() == HttpSession::Clock::time_point::max()) return false;
    (*longest)->close();
    return true;
  }

  void open(tcp::socket socket) {
    auto session = std::make_shared<HttpSession>(std::move(socket), dispatch);
    {
      if (sessions.size() >= options.max_connections && !close_longest_idle()) return;
      const std::lock_guard lock(mutex);
      if (stopped) return;
      sessions.insert(session);
    }
    net::co_spawn(session->executor(), serve(session), net::detached);
  }

  net::awaitable<void> serve(std::shared_ptr<HttpSession> session) {
    co_await session->run();
    const std::lock_guard lock(mutex);
    sessions.erase(session);
    fewer.notify_all();
  }

  void tell_sessions(void (HttpSession::*what)()) {
    const std::lock_guard lock(mutex);
    for (const auto& session : sessions) net::post(session->executor(), [session, what] { (*session.*what)(); });
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
    tell_sessions(&HttpSession::drain);
    std::unique_lock lock(mutex);
    return fewer.wait_for(lock, at_most, [this] { return sessions.empty(); });
  }

  void stop() {
    {
      const std::lock_guard lock(mutex);
      if (std::exchange(stopped, true)) return;
    }
    stop_accepting();
    tell_sessions(&HttpSession::close);
    if (io_thread.joinable()) io_thread.join();  // it ends when the last connection has
    handlers.join();
  }
};

HttpServer::HttpServer(HttpServerOptions options, Handler handler)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(handler))) {
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
