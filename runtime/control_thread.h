#pragma once
#include <utility>  // before any Boost.Asio header, see base/error.h

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/error.h"
#include "runtime/control_connection.h"
#include "runtime/control_plane.h"
#include "runtime/control_wire.h"

/// What both ends of the control plane stand on: their thread, and the ways out of it.
namespace shoal::control {

/// How long an orderly end waits for the other side to take what was sent, and to close.
constexpr std::chrono::milliseconds kLinger{1000};

/// An io_context with its thread.
class IoThread {
 public:
  IoThread() : work_(boost::asio::make_work_guard(io_)) {
    thread_ = std::thread([this] {
      block_signals();
      io_.run();
    });
  }
  ~IoThread() { stop(); }
  void stop() {
    work_.reset();
    io_.stop();
    if (thread_.joinable()) thread_.join();
  }
  boost::asio::io_context& context() { return io_; }
  bool is_current() const { return std::this_thread::get_id() == thread_.get_id(); }
  template <class Task>
  void post(Task task) {
    boost::asio::post(io_, std::move(task));
  }

 private:
  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::thread thread_;
};

/// Frames for the thread that sleeps in receive(), and what else it and others wait for.
template <class T>
struct Inbox {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<T> frames;
  bool over = false;       // no more come
  bool discarded = false;  // those that came do not count any more

  void push(T frame) {
    {
      const std::lock_guard lock(mutex);
      frames.push_back(std::move(frame));
    }
    changed.notify_all();
  }
  void end(bool discard) {
    {
      const std::lock_guard lock(mutex);
      over = true;
      discarded = discarded || discard;
    }
    changed.notify_all();
  }
  /// Whether next() would return at once: asked again until it is so or `limit` has passed.
  bool wait(std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, limit, [&] { return !frames.empty() || over; });
  }
  std::optional<T> next() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return !frames.empty() || over; });
    if (frames.empty() || discarded) return {};
    T frame = std::move(frames.front());
    frames.pop_front();
    return frame;
  }
};

/// Tells about the first lost rank, or about each, on the control thread; at once if it was lost before anyone asked.
class LostReport {
 public:
  void set_handler(LostHandler handler) {
    handler_ = std::move(handler);
    deliver();
  }
  void tell_of_all() { all_ = true; }
  void report(int rank, std::string why) {
    if (any_ && !all_) return;
    any_ = true;
    untold_.emplace_back(rank, std::move(why));
    deliver();
  }

 private:
  void deliver() {
    if (!handler_) return;
    for (; !untold_.empty(); untold_.pop_front()) handler_(untold_.front().first, untold_.front().second);
  }
  LostHandler handler_;
  std::deque<std::pair<int, std::string>> untold_;
  bool any_ = false, all_ = false;
};

inline std::string describe(int rank, const Process& process, const std::string& why) {
  return fmt::format("rank {} (host {}, pid {}): {}", rank, process.host, process.pid, why);
}

inline void check_frame(const Frame& frame) {
  if (frame.type >= kFirstInternalType) fail("frame type {} belongs to the control plane", frame.type);
  if (frame.payload.size() > kMaxPayloadBytes)
    fail("a control frame of {} bytes is longer than {}", frame.payload.size(), kMaxPayloadBytes);
}

inline SharedBytes share(std::vector<std::byte> payload) {
  return std::make_shared<const std::vector<std::byte>>(std::move(payload));
}

}  // namespace shoal::control
