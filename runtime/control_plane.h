#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

/// The control plane: our own TCP connections from every rank to rank 0 (Boost.Asio). It carries step commands and
/// their results, and it is what notices that a rank died, hangs or lost its network: MPI never says so. An idle rank
/// sleeps here (in epoll), never in MPI.
namespace shoal {

/// One message: a type and its payload. The wire adds {u32 length, u16 type, u16 version}.
struct Frame {
  std::uint16_t type = 0;
  std::vector<std::byte> payload;
};

struct ControlOptions {
  std::chrono::milliseconds heartbeat{500};
  std::chrono::milliseconds peer_timeout{15000};  // silence after which a peer counts as dead
  std::chrono::milliseconds connect_timeout{30000};
};

/// Why a peer is gone, for people: "rank 2 (host n7, pid 4711): connection closed".
using LostHandler = std::function<void(int rank, const std::string& why)>;

/// Rank 0's end. Runs its own thread. Includes a connection from rank 0's own worker: one path for all ranks.
class ControlServer {
 public:
  /// Listens at once on an ephemeral port; `addresses()` is what the workers are told (through the bootstrap
  /// broadcast).
  ControlServer(int ranks, ControlOptions options);
  ~ControlServer();
  /// "10.0.0.1,192.168.1.1:4711 key": every address of this host, the port and a random key that keeps strangers out.
  std::string contact() const;
  /// Waits until every rank has said hello; Error naming the ranks that did not within connect_timeout.
  void wait_for_all();
  /// Called from the control thread for the first rank that is lost before close(), or for each where losses are
  /// survived.
  void on_lost(LostHandler handler);
  /// From now on a lost rank is the end of nothing: receive() tells of it, behind what came of it and after the handler
  /// was called, and goes on.
  void survive_losses();

  /// Thread-safe. Sending to a lost rank does nothing.
  void send(int rank, Frame frame);
  void send_all(const Frame& frame);
  struct Received {
    int rank;
    Frame frame;
    bool lost = false;  // no frame: the rank is gone
  };
  /// Next frame of any rank, in order of arrival; nothing after close() or once a rank was lost (see survive_losses()).
  std::optional<Received> receive();
  /// Loses a rank that is alive: it is sent `last`, and its connection ends. `why` as LostHandler is told.
  void expel(int rank, Frame last, std::string why);
  /// Sleeps until receive() would return at once; false when it would not after `limit`.
  bool wait(std::chrono::milliseconds limit);
  /// Orderly end: the workers are told, later disconnects are no loss, receive() returns nothing.
  void close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A worker's end.
class ControlClient {
 public:
  ControlClient(int rank, const std::string& contact, ControlOptions options);
  ~ControlClient();
  void on_lost(LostHandler handler);
  /// Called from the control thread for frames of this type as soon as they are here, whatever receive() has not taken
  /// yet. Set before such a frame can come.
  void on_frame(std::uint16_t type, std::function<void(const Frame&)> handler);
  void send(Frame frame);
  /// Sleeps until the next frame; nothing after the server's orderly end.
  std::optional<Frame> receive();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
