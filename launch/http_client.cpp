#include "launch/http_client.h"

#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl/ssl_stream.hpp>
#include <charconv>
#include <cstdint>
#include <limits>
#include <optional>

#include "base/error.h"
#include "launch/with_error.h"

namespace shoal {
namespace {

namespace net = boost::asio;
namespace http = boost::beast::http;
using boost::beast::tcp_stream;
using boost::system::error_code;
using TlsStream = boost::beast::ssl_stream<tcp_stream>;

constexpr auto longest_silence = std::chrono::minutes(10);  // a busy server may read long prompts first
constexpr auto longest_connecting = std::chrono::seconds(30);

}  // namespace

HttpUrl HttpUrl::parse(const std::string& text) {
  HttpUrl url;
  std::string_view rest = text;
  for (const auto& [scheme, tls] : {std::pair("http://", false), std::pair("https://", true)}) {
    if (text.starts_with(scheme)) {
      url.tls = tls;
      rest.remove_prefix(std::string_view(scheme).size());
    }
  }
  if (rest.size() == text.size()) throw Error(text + ": must begin with http:// or https://", ExitCode::usage);
  const std::size_t slash = rest.find('/');
  std::string_view place = rest.substr(0, slash);
  if (slash != rest.npos) url.base = rest.substr(slash);
  while (url.base.ends_with('/')) url.base.pop_back();
  const std::size_t bracket = place.find(']');  // [::1]:8000
  const std::size_t colon = place.find(':', bracket == place.npos ? 0 : bracket);
  url.port = colon == place.npos ? (url.tls ? "443" : "80") : place.substr(colon + 1);
  place = place.substr(0, colon);
  if (bracket != place.npos && place.starts_with('[')) place = place.substr(1, bracket - 1);
  url.host = place;
  if (url.host.empty() || url.port.empty()) throw Error(text + ": has no host or no port", ExitCode::usage);
  std::uint16_t port = 0;
  const auto [end, problem] = std::from_chars(url.port.data(), url.port.data() + url.port.size(), port);
  if (problem != std::errc() || end != url.port.data() + url.port.size() || port == 0)
    throw Error(fmt::format("{}: {} is no port from 1 to 65535", text, url.port), ExitCode::usage);
  return url;
}

struct HttpClient::Impl {
  net::io_context& io;
  const HttpUrl url;
  const std::string api_key;
  const std::string name;  // for messages and the Host header
  net::ssl::context tls{net::ssl::context::tls_client};
  std::optional<tcp_stream> plain;
  std::optional<TlsStream> encrypted;
  boost::beast::flat_buffer buffer;

  Impl(net::io_context& context, HttpUrl where, std::string key)
      : io(context),
        url(std::move(where)),
        api_key(std::move(key)),
        name((url.host.find(':') == url.host.npos ? url.host : "[" + url.host + "]") + ":" + url.port) {}

  tcp_stream& lowest() { return url.tls ? encrypted->next_layer() : *plain; }
  bool open() const { return plain || encrypted; }
  void close() {
    plain.reset();
    encrypted.reset();
    buffer.clear();
  }

  [[noreturn]] void give_up(const char* what, const error_code& ec) {
    close();
    fail("{}: {}: {}", name, what, ec == boost::beast::error::timeout ? "no answer for too long" : ec.message());
  }

  net::awaitable<void> connect() {
    error_code ec;
    net::ip::tcp::resolver resolver(io);
    const auto found = co_await resolver.async_resolve(url.host, url.port, with(ec));
    if (ec) give_up("is not known", ec);
    url.tls ? static_cast<void>(encrypted.emplace(io, tls)) : static_cast<void>(plain.emplace(io));
    lowest().expires_after(longest_connecting);
    co_await lowest().async_connect(found, with(ec));
    if (ec) give_up("cannot be reached", ec);
    error_code ignored;
    lowest().socket().set_option(net::ip::tcp::no_delay(true), ignored);
    if (!url.tls) co_return;
    if (!SSL_set_tlsext_host_name(encrypted->native_handle(), url.host.c_str())) fail("{}: no TLS for it", name);
    co_await encrypted->async_handshake(net::ssl::stream_base::client, with(ec));
    if (ec) give_up("does not agree on TLS", ec);
  }

  template <class Stream>
  net::awaitable<Response> exchange(Stream& stream, const http::request<http::string_body>& request,
                                    const std::function<void(std::string_view)>& on_bytes) {
    error_code ec;
    lowest().expires_after(longest_silence);
    co_await http::async_write(stream, request, with(ec));
    if (ec) give_up("takes no request", ec);
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(std::numeric_limits<std::uint64_t>::max());
    co_await http::async_read_header(stream, buffer, parser, with(ec));
    if (ec) give_up("gives no answer", ec);
    Response response;
    response.status = static_cast<int>(parser.get().result_int());
    std::array<char, 16384> bytes;
    while (!parser.is_done()) {
      auto& body = parser.get().body();
      body.data = bytes.data();
      body.size = bytes.size();
      lowest().expires_after(longest_silence);
      co_await http::async_read_some(stream, buffer, parser, with(ec));
      if (ec && ec != http::error::need_buffer) give_up("breaks off an answer", ec);
      const std::string_view got(bytes.data(), bytes.size() - body.size);
      if (response.status == 200 && on_bytes) {
        on_bytes(got);
      } else {
        response.body += got;
      }
    }
    if (!parser.keep_alive()) close();
    co_return response;
  }
};

HttpClient::HttpClient(net::io_context& io, HttpUrl url, std::string api_key)
    : impl_(std::make_unique<Impl>(io, std::move(url), std::move(api_key))) {}

HttpClient::~HttpClient() = default;

net::awaitable<HttpClient::Response> HttpClient::ask(std::string path, std::string body,
                                                     std::function<void(std::string_view)> on_bytes) {
  Impl& impl = *impl_;
  http::request<http::string_body> request(body.empty() ? http::verb::get : http::verb::post, impl.url.base + path, 11);
  request.set(http::field::host, impl.name);
  request.set(http::field::user_agent, "shoal");
  if (!impl.api_key.empty()) request.set(http::field::authorization, "Bearer " + impl.api_key);
  if (!body.empty()) request.set(http::field::content_type, "application/json");
  request.body() = std::move(body);
  request.prepare_payload();
  if (!impl.open()) co_await impl.connect();
  if (impl.url.tls) co_return co_await impl.exchange(*impl.encrypted, request, on_bytes);
  co_return co_await impl.exchange(*impl.plain, request, on_bytes);
}

}  // namespace shoal
