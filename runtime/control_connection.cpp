#include "runtime/control_connection.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <new>

#include "base/error.h"

namespace shoal::control {

namespace asio = boost::asio;
using boost::system::error_code;

void set_socket_options(int fd, std::chrono::milliseconds peer_timeout) {
  const auto set = [fd](int level, int name, int value) { setsockopt(fd, level, name, &value, sizeof value); };
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 1);  // seconds
  set(IPPROTO_TCP, TCP_KEEPINTVL, 1);
  set(IPPROTO_TCP, TCP_KEEPCNT, std::max(3, static_cast<int>(peer_timeout.count() / 1000)));
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(peer_timeout.count()));
}

void block_signals() {
  sigset_t all;
  sigfillset(&all);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigdelset(&all, fault);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
}

Connection::Connection(Socket socket, ControlOptions options)
    : socket_(std::move(socket)), timer_(socket_.get_executor()), options_(options) {}

void Connection::start(Events events, std::chrono::milliseconds hello_deadline) {
  events_ = std::move(events);
  silence_limit_ = hello_deadline;
  tick();
  read_header();
}

void Connection::trust() {
  trusted_ = true;
  silence_limit_ = options_.peer_timeout;
  silent_ticks_ = 0;
}

void Connection::tick() {
  timer_.expires_after(options_.heartbeat);
  timer_.async_wait([self = shared_from_this()](error_code error) {
    if (error || !self->open_) return;
    if (++self->silent_ticks_ * self->options_.heartbeat >= self->silence_limit_) {
      const std::chrono::duration<double> limit = self->silence_limit_;
      return self->end(fmt::format("no sign of life for {:.3g} s", limit.count()));
    }
    // A frame under way is a sign of life already.
    if (self->trusted_ && self->queue_.empty()) self->send(Internal::heartbeat);
    self->tick();
  });
}

/// Fills `buffer`, then calls `then`. Each piece that arrives of a long frame is a sign of life.
template <class Buffer, class Then>
void Connection::read(const Buffer& buffer, Then then) {
  asio::async_read(
      socket_, buffer,
      [self = shared_from_this()](error_code error, std::size_t bytes) {
        if (self->trusted_ && bytes > 0) self->silent_ticks_ = 0;
        return asio::transfer_all()(error, bytes);
      },
      [self = shared_from_this(), then](error_code error, std::size_t) {
        if (!self->open_) return;
        if (self->trusted_) self->silent_ticks_ = 0;
        // A process that ends with something unread resets its connection instead of closing it.
        const bool closed = error == asio::error::eof || error == asio::error::connection_reset;
        if (error) return self->end(closed ? "connection closed" : error.message());
        then(*self);
      });
}

void Connection::read_header() {
  read(asio::buffer(header_bytes_), [](Connection& c) {
    c.header_ = decode_header(c.header_bytes_);
    const std::uint32_t most = c.trusted_ ? kMaxPayloadBytes : kMaxHelloBytes;
    if (c.header_.version != kVersion || c.header_.bytes > most)
      return c.end(fmt::format("sent what is no frame ({} bytes, version {})", c.header_.bytes, c.header_.version));
    c.read_payload();
  });
}

void Connection::read_payload() {
  try {
    payload_ = std::vector<std::byte>(header_.bytes);
  } catch (const std::bad_alloc&) {
    return end(fmt::format("sent {} bytes, for which there is no memory", header_.bytes));
  }
  if (payload_.empty()) return deliver();
  read(asio::buffer(payload_), [](Connection& c) { c.deliver(); });
}

void Connection::deliver() {
  if (header_.type != static_cast<std::uint16_t>(Internal::heartbeat)) {
    const auto frame = events_.frame;  // a copy, because it may set others or close the connection
    frame(Frame{header_.type, std::move(payload_)});
  }
  if (open_) read_header();
}

void Connection::send_raw(std::span<const std::byte> bytes) { enqueue({{bytes.begin(), bytes.end()}, nullptr}); }

void Connection::send(std::uint16_t type, SharedBytes payload) {
  const FrameHeader header{.bytes = payload ? static_cast<std::uint32_t>(payload->size()) : 0, .type = type};
  const HeaderBytes bytes = encode(header);
  enqueue({{bytes.begin(), bytes.end()}, std::move(payload)});
}

void Connection::send(Internal type, std::vector<std::byte> payload) {
  send(static_cast<std::uint16_t>(type),
       payload.empty() ? nullptr : std::make_shared<const std::vector<std::byte>>(std::move(payload)));
}

void Connection::enqueue(Outgoing out) {
  if (!open_ || broken_ || finishing_) return;
  queue_.push_back(std::move(out));
  if (queue_.size() == 1) write_next();
}

void Connection::write_next() {
  const Outgoing& out = queue_.front();
  const std::array<asio::const_buffer, 2> buffers = {asio::buffer(out.head),
                                                     out.payload ? asio::buffer(*out.payload) : asio::const_buffer()};
  asio::async_write(socket_, buffers, [self = shared_from_this()](error_code error, std::size_t) {
    if (!self->open_) return;
    if (error) {
      // The peer may have said why before it went: what it sent is read to its end, which ends the connection.
      self->broken_ = true;
      self->queue_.clear();
      return;
    }
    self->queue_.pop_front();
    if (!self->queue_.empty()) return self->write_next();
    if (self->finishing_) self->shut_down_sending();
  });
}

void Connection::finish() {
  if (!open_ || finishing_) return;
  finishing_ = true;
  if (queue_.empty()) shut_down_sending();
}

void Connection::shut_down_sending() {
  error_code ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
}

void Connection::close() {
  if (!open_) return;
  open_ = false;
  error_code ignored;
  timer_.cancel(ignored);
  socket_.close(ignored);
  // Handlers still to come see that it is closed; what they would have called may be gone by then.
  events_ = {};
}

void Connection::end(const std::string& why) {
  const auto ended = std::move(events_.ended);
  close();
  if (ended) ended(why);
}

}  // namespace shoal::control
