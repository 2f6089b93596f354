#pragma once
#include <utility>  // before any Boost.Asio header, see base/error.h

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/control_plane.h"
#include "runtime/control_wire.h"

namespace shoal::control {

/// Bytes that several connections may be sending at the same time.
using SharedBytes = std::shared_ptr<const std::vector<std::byte>>;

/// One end of a control connection, on the thread of its io_context. Until it is trusted, the peer must say hello
/// within a deadline, in a small frame; afterwards both ends send heartbeats and a silent peer counts as dead.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  struct Events {
    std::function<void(Frame)> frame;               // heartbeats are not reported
    std::function<void(const std::string&)> ended;  // once, with the reason; never after close()
  };

  Connection(Socket socket, ControlOptions options);
  void start(Events events, std::chrono::milliseconds hello_deadline);
  /// From now on; may be called by an event.
  void set_events(Events events) { events_ = std::move(events); }
  /// Begins heartbeats, and allows frames of any size.
  void trust();
  void send_raw(std::span<const std::byte> bytes);
  void send(std::uint16_t type, SharedBytes payload);
  void send(Internal type, std::vector<std::byte> payload = {});
  /// Tells the peer that no more comes, once everything was sent. The connection ends when the peer closes, too.
  void finish();
  /// Ends it at once and without an event.
  void close();
  bool idle() const { return queue_.empty(); }

 private:
  struct Outgoing {
    std::vector<std::byte> head;  // a frame's header, or raw bytes
    SharedBytes payload;
  };

  void read_header();
  void read_payload();
  void deliver();
  template <class Buffer, class Then>
  void read(const Buffer& buffer, Then then);
  void enqueue(Outgoing out);
  void write_next();
  void tick();
  void end(const std::string& why);
  void shut_down_sending();

  Socket socket_;
  boost::asio::steady_timer timer_;
  const ControlOptions options_;
  Events events_;
  std::chrono::milliseconds silence_limit_{};
  int silent_ticks_ =
      0;  // counted, not measured: time in which this process itself stood still is not the peer's silence
  bool trusted_ = false, open_ = true, finishing_ = false, broken_ = false;
  HeaderBytes header_bytes_{};
  FrameHeader header_;
  std::vector<std::byte> payload_;
  std::deque<Outgoing> queue_;
};

/// No delay, keep-alive, and an end to sending into the void, for any connected socket of the control plane.
void set_socket_options(int fd, std::chrono::milliseconds peer_timeout);

/// The calling thread takes no signals: they are the main thread's business.
void block_signals();

}  // namespace shoal::control
