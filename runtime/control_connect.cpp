#include "runtime/control_connect.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <thread>

#include "base/error.h"

namespace shoal::control {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kRound{5000};  // how long a round of attempts waits for the slowest address
constexpr milliseconds kPause{100};   // before the next round

int poll_timeout(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 60000));
}

/// A file descriptor that is closed unless it is given away.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    reset(other.release());
    return *this;
  }
  ~Descriptor() { reset(-1); }
  int get() const { return fd_; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  void reset(int fd) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
  }
  int fd_;
};

/// One address: connects, then waits for a greeting that proves that this is the server of this job.
class Attempt {
 public:
  Attempt(std::string address, std::uint16_t port) : address_(std::move(address)) {
    sockaddr_in v4{};
    sockaddr_in6 v6{};
    v4.sin_family = AF_INET;
    v6.sin6_family = AF_INET6;
    v4.sin_port = v6.sin6_port = htons(port);
    if (inet_pton(AF_INET, address_.c_str(), &v4.sin_addr) == 1)
      connect(AF_INET, reinterpret_cast<const sockaddr*>(&v4), sizeof v4);
    else if (inet_pton(AF_INET6, address_.c_str(), &v6.sin6_addr) == 1)
      connect(AF_INET6, reinterpret_cast<const sockaddr*>(&v6), sizeof v6);
    else
      give_up("is no address");
  }

  int fd() const { return fd_.get(); }
  bool pending() const { return fd_.get() >= 0; }
  short wanted_events() const { return connected_ ? POLLIN : POLLOUT; }
  const std::string& address() const { return address_; }
  const std::string& outcome() const { return outcome_; }
  Descriptor take() { return std::move(fd_); }

  /// Goes on after poll() said it can; true once the greeting is here and right.
  bool advance(const Key& key) {
    if (!connected_) {
      int error = 0;
      socklen_t length = sizeof error;
      getsockopt(fd(), SOL_SOCKET, SO_ERROR, &error, &length);
      if (error != 0) return give_up(std::strerror(error));
      connected_ = true;
      outcome_ = "connected, but nobody there spoke";
      return false;
    }
    const ssize_t n = ::recv(fd(), greeting_.data() + received_, greeting_.size() - received_, 0);
    if (n < 0) return errno == EAGAIN || errno == EINTR ? false : give_up(std::strerror(errno));
    if (n == 0) return give_up("connected, but was closed at once");
    received_ += static_cast<std::size_t>(n);
    if (received_ < greeting_.size()) return false;
    switch (check_greeting(greeting_, key)) {
      case GreetingCheck::ours:
        return true;
      case GreetingCheck::other_version:
        return give_up("rank 0 runs another version of this program");
      case GreetingCheck::stranger:
        break;
    }
    return give_up("somebody else's service answered");
  }

 private:
  void connect(int family, const sockaddr* to, socklen_t length) {
    outcome_ = "no answer";
    fd_ = Descriptor(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (fd() < 0 || (::connect(fd(), to, length) != 0 && errno != EINPROGRESS)) give_up(std::strerror(errno));
  }
  bool give_up(const char* why) {
    outcome_ = why;
    fd_ = Descriptor();
    return false;
  }

  std::string address_, outcome_;
  Descriptor fd_;
  bool connected_ = false;
  Greeting greeting_{};
  std::size_t received_ = 0;
};

void wait_for(int fd, short events, Clock::time_point deadline) {
  pollfd p{fd, events, 0};
  const int n = ::poll(&p, 1, poll_timeout(deadline));
  if (n == 0) fail("rank 0's control plane did not answer in time");
  if (n < 0 && errno != EINTR) fail("poll: {}", std::strerror(errno));
}

void write_all(int fd, std::span<const std::byte> bytes, Clock::time_point deadline) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) fail("rank 0's control plane: {}", std::strerror(errno));
    if (n < 0)
      wait_for(fd, POLLOUT, deadline);
    else
      bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

void read_all(int fd, std::span<std::byte> bytes, Clock::time_point deadline) {
  while (!bytes.empty()) {
    const ssize_t n = ::recv(fd, bytes.data(), bytes.size(), 0);
    if (n == 0) fail("rank 0's control plane closed the connection");
    if (n < 0 && errno != EAGAIN && errno != EINTR) fail("rank 0's control plane: {}", std::strerror(errno));
    if (n < 0)
      wait_for(fd, POLLIN, deadline);
    else
      bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

/// The first address of `attempts` that proves to be the server.
Descriptor first_server(std::vector<Attempt>& attempts, const Key& key, Clock::time_point deadline) {
  for (;;) {
    std::vector<pollfd> polled;
    std::vector<Attempt*> owners;
    for (Attempt& a : attempts) {
      if (!a.pending()) continue;
      polled.push_back({a.fd(), a.wanted_events(), 0});
      owners.push_back(&a);
    }
    if (polled.empty()) return Descriptor();
    const int n = ::poll(polled.data(), polled.size(), poll_timeout(deadline));
    if (n == 0) return Descriptor();
    for (std::size_t i = 0; i < polled.size(); ++i)
      if (n > 0 && polled[i].revents != 0 && owners[i]->advance(key)) return owners[i]->take();
  }
}

Descriptor find_server(const Contact& contact, int rank, milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  std::vector<std::string> addresses = contact.addresses;
  if (contact.network == network_namespace()) addresses.insert(addresses.begin(), {"127.0.0.1", "::1"});
  for (;;) {
    std::vector<Attempt> attempts;
    for (const std::string& address : addresses) attempts.emplace_back(address, contact.port);
    Descriptor fd = first_server(attempts, contact.key, std::min(deadline, Clock::now() + kRound));
    if (fd.get() >= 0) return fd;
    if (Clock::now() + kPause < deadline) {
      std::this_thread::sleep_for(kPause);
      continue;
    }
    std::string outcomes;
    for (const Attempt& a : attempts)
      outcomes += fmt::format("{}{}: {}", outcomes.empty() ? "" : "; ", a.address(), a.outcome());
    fail("rank {} on {} does not reach rank 0's control plane, port {} ({}); is a firewall between the hosts?", rank,
         Process::self().host, contact.port, outcomes);
  }
}

}  // namespace

Joined join(const Contact& contact, const Hello& hello, milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  Descriptor fd = find_server(contact, static_cast<int>(hello.rank), timeout);
  const std::vector<std::byte> payload = encode(hello);
  const HeaderBytes header = encode(FrameHeader{.bytes = static_cast<std::uint32_t>(payload.size()),
                                                .type = static_cast<std::uint16_t>(Internal::hello)});
  write_all(fd.get(), header, deadline);
  write_all(fd.get(), payload, deadline);

  HeaderBytes bytes;
  read_all(fd.get(), bytes, deadline);
  const FrameHeader answer = decode_header(bytes);
  if (answer.bytes > kMaxHelloBytes) fail("rank 0's control plane answered with {} bytes to a hello", answer.bytes);
  std::vector<std::byte> body(answer.bytes);
  read_all(fd.get(), body, deadline);
  if (answer.type == static_cast<std::uint16_t>(Internal::refused))
    fail("rank 0 refused rank {}: {}", hello.rank,
         std::string(reinterpret_cast<const char*>(body.data()), body.size()));
  const auto server = decode_process(body);
  if (answer.type != static_cast<std::uint16_t>(Internal::welcome) || !server)
    fail("rank 0's control plane gave no proper answer to a hello");
  return {fd.release(), *server};
}

}  // namespace shoal::control
