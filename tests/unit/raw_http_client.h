#pragma once
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <string_view>

namespace shoal::test {

struct HttpAnswer {
  int status = 0;  // 0: none came
  std::string head, body;
};

/// A connection to 127.0.0.1 that sends exactly the bytes it is told to.
class RawHttpClient {
 public:
  explicit RawHttpClient(std::uint16_t port, int receive_buffer = 0) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0) ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  ~RawHttpClient() { close(); }
  RawHttpClient(const RawHttpClient&) = delete;
  RawHttpClient& operator=(const RawHttpClient&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  /// Sends no more, but reads on.
  void finish() { ::shutdown(fd_, SHUT_WR); }
  /// False when the other side has closed.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const auto n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
  }
  bool request(const std::string& method, const std::string& path, const std::string& body = {},
               const std::string& headers = {}) {
    return send(method + " " + path + " HTTP/1.1\r\nHost: test\r\n" + headers +
                (body.empty() ? "" : "Content-Length: " + std::to_string(body.size()) + "\r\n") + "\r\n" + body);
  }

  /// Waits until `end` was received; all up to and with it, or what came before the connection closed or 10 s passed.
  std::string read_until(std::string_view end) {
    while (received_.find(end) == received_.npos && read_some()) {
    }
    const auto at = received_.find(end);
    const auto n = at == received_.npos ? received_.size() : at + end.size();
    std::string bytes = received_.substr(0, n);
    received_.erase(0, n);
    return bytes;
  }
  /// All that comes until the other side closes.
  std::string read_all() {
    while (read_some()) {
    }
    return std::exchange(received_, {});
  }
  /// Whether the other side closes within `at_most`, whatever it sends before.
  bool closes(std::chrono::milliseconds at_most = std::chrono::seconds(10)) {
    timeout_ = at_most;
    read_all();
    return closed_;
  }

  /// Reads one answer to a request; joins the chunks of a stream.
  HttpAnswer read_answer(bool to_head = false) {
    HttpAnswer answer;
    answer.head = read_until("\r\n\r\n");
    if (answer.head.size() < 12) return answer;
    answer.status = std::atoi(answer.head.c_str() + 9);
    if (to_head) return answer;
    if (answer.head.find("Transfer-Encoding: chunked") != answer.head.npos) {
      for (std::string chunk = read_chunk(); !chunk.empty(); chunk = read_chunk()) answer.body += chunk;
    } else if (const auto at = answer.head.find("Content-Length: "); at != answer.head.npos) {
      answer.body = read_exactly(std::strtoul(answer.head.c_str() + at + 16, nullptr, 10));
    } else {
      answer.body = read_all();
    }
    return answer;
  }
  /// The next chunk of a stream; empty at its end.
  std::string read_chunk() {
    const std::string size = read_until("\r\n");
    std::string chunk = read_exactly(std::strtoul(size.c_str(), nullptr, 16));
    read_until("\r\n");
    return chunk;
  }

 private:
  bool read_some() {
    pollfd waiting{fd_, POLLIN, 0};
    if (::poll(&waiting, 1, static_cast<int>(timeout_.count())) <= 0) return false;
    char buffer[65536];
    const auto n = ::recv(fd_, buffer, sizeof buffer, 0);
    closed_ = n <= 0;
    if (n > 0) received_.append(buffer, static_cast<std::size_t>(n));
    return n > 0;
  }
  std::string read_exactly(std::size_t n) {
    while (received_.size() < n && read_some()) {
    }
    std::string bytes = received_.substr(0, n);
    received_.erase(0, std::min(n, received_.size()));
    return bytes;
  }

  int fd_;
  bool connected_ = false, closed_ = false;
  std::chrono::milliseconds timeout_ = std::chrono::seconds(10);
  std::string received_;
};

}  // namespace shoal::test
