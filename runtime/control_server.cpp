#include <algorithm>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>

#include "base/error.h"
#include "runtime/control_connection.h"
#include "runtime/control_plane.h"
#include "runtime/control_thread.h"
#include "runtime/control_wire.h"

namespace shoal {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using control::Connection;
using control::Internal;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kHelloDeadline{5000};
/// Strangers that may be connected at a time, beside the ranks.
constexpr std::size_t kStrangers = 64;

}  // namespace

struct ControlServer::Impl {
  struct Peer {
    std::shared_ptr<Connection> connection;  // null before its hello and after its end
    control::Process process;
    bool joined = false;
  };

  const ControlOptions options;
  const control::Key key = control::Key::random();
  control::Inbox<Received> inbox;
  // Guarded by inbox.mutex, for wait_for_all() and close().
  std::vector<bool> joined;
  std::size_t connected = 0;
  std::string lost_why;
  control::IoThread io;  // before whatever has a socket of it
  // Of the control thread alone.
  std::vector<Peer> peers;
  std::deque<std::shared_ptr<Connection>> strangers;  // oldest first
  control::LostReport lost;
  bool closing = false, survives = false;

  tcp::acceptor acceptor{io.context()};
  asio::steady_timer accept_again{io.context()};
  std::uint16_t port = 0;

  Impl(int ranks, ControlOptions o)
      : options(o), joined(static_cast<std::size_t>(ranks)), peers(static_cast<std::size_t>(ranks)) {
    error_code error;
    listen(tcp::v6(), error);
    if (error) listen(tcp::v4(), error);
    if (error) fail("rank 0 cannot listen for the other ranks: {}", error.message());
    port = acceptor.local_endpoint().port();
    io.post([this] { accept(); });
  }
  ~Impl() {
    close();
    io.stop();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void listen(const tcp& protocol, error_code& error) {
    error_code ignored;
    acceptor.close(ignored);
    acceptor.open(protocol, error);
    if (!error && protocol == tcp::v6()) acceptor.set_option(asio::ip::v6_only(false), error);
    if (!error) acceptor.bind({protocol, 0}, error);
    if (!error) acceptor.listen(tcp::acceptor::max_listen_connections, error);
  }

  void accept() {
    acceptor.async_accept([this](error_code error, tcp::socket socket) {
      if (!acceptor.is_open()) return;
      if (!error) {
        greet(std::move(socket));
        return accept();
      }
      // Out of descriptors, perhaps: not a reason to spin.
      accept_again.expires_after(milliseconds(100));
      accept_again.async_wait([this](error_code cancelled) {
        if (!cancelled) accept();
      });
    });
  }

  void greet(tcp::socket socket) {
    control::set_socket_options(socket.native_handle(), options.peer_timeout);
    auto stranger = std::make_shared<Connection>(std::move(socket), options);
    if (strangers.size() >= kStrangers + peers.size()) {
      strangers.front()->close();
      strangers.pop_front();
    }
    strangers.push_back(stranger);
    const auto* id = stranger.get();
    stranger->start({.frame = [this, id](Frame frame) { hear_stranger(id, std::move(frame)); },
                     .ended = [this, id](const std::string&) { forget_stranger(id); }},
                    std::min(kHelloDeadline, options.peer_timeout));
    stranger->send_raw(control::encode_greeting(key));
  }

  std::shared_ptr<Connection> forget_stranger(const Connection* id) {
    const auto found = std::find_if(strangers.begin(), strangers.end(), [id](const auto& s) { return s.get() == id; });
    if (found == strangers.end()) return nullptr;
    auto connection = std::move(*found);
    strangers.erase(found);
    return connection;
  }

  /// The first frame on a connection: a hello with the job's key, or it ends here.
  void hear_stranger(const Connection* id, Frame frame) {
    const auto connection = forget_stranger(id);
    const auto hello = control::decode_hello(frame.payload);
    if (frame.type != static_cast<std::uint16_t>(Internal::hello) || !hello ||
        !control::equal_secret(hello->key, key.client))
      return connection->close();
    const auto rank = static_cast<std::size_t>(hello->rank);
    if (rank >= peers.size()) return refuse(*connection, fmt::format("there are only {} ranks", peers.size()));
    if (peers[rank].joined)
      return refuse(*connection, control::describe(static_cast<int>(rank), peers[rank].process, "has joined already"));
    if (closing) return refuse(*connection, "the job is ending");
    welcome(static_cast<int>(rank), connection, hello->process);
  }

  static void refuse(Connection& connection, const std::string& why) {
    const auto* text = reinterpret_cast<const std::byte*>(why.data());
    connection.set_events({.frame = [](const Frame&) {}, .ended = [](const std::string&) {}});
    connection.send(Internal::refused, {text, text + why.size()});
    connection.finish();
  }

  void welcome(int rank, const std::shared_ptr<Connection>& connection, const control::Process& process) {
    Peer& peer = peers[static_cast<std::size_t>(rank)];
    peer = {connection, process, true};
    connection->set_events({.frame = [this, rank](Frame frame) { hear(rank, std::move(frame)); },
                            .ended = [this, rank](const std::string& why) { lose(rank, why); }});
    connection->trust();
    connection->send(Internal::welcome, control::encode(control::Process::self()));
    {
      const std::lock_guard lock(inbox.mutex);
      joined[static_cast<std::size_t>(rank)] = true;
      ++connected;
    }
    inbox.changed.notify_all();
  }

  void hear(int rank, Frame frame) {
    if (frame.type < control::kFirstInternalType) inbox.push({.rank = rank, .frame = std::move(frame)});
  }

  void lose(int rank, const std::string& why) {
    Peer& peer = peers[static_cast<std::size_t>(rank)];
    peer.connection.reset();
    const std::string reason = control::describe(rank, peer.process, why);
    {
      const std::lock_guard lock(inbox.mutex);
      --connected;
      if (!closing && lost_why.empty()) lost_why = reason;
    }
    inbox.changed.notify_all();
    if (closing) return;
    if (!survives) inbox.end(false);
    lost.report(rank, reason);
    if (survives) inbox.push({.rank = rank, .frame = {}, .lost = true});
  }

  void send(int rank, std::uint16_t type, control::SharedBytes payload) {
    io.post([this, rank, type, payload = std::move(payload)] {
      if (const auto& connection = peers[static_cast<std::size_t>(rank)].connection) connection->send(type, payload);
    });
  }

  void wait_for_all() {
    std::unique_lock lock(inbox.mutex);
    const auto all_joined = [&] { return std::find(joined.begin(), joined.end(), false) == joined.end(); };
    inbox.changed.wait_for(lock, options.connect_timeout,
                           [&] { return all_joined() || !lost_why.empty() || inbox.over; });
    if (!lost_why.empty()) throw Error(lost_why);
    if (all_joined()) return;
    if (inbox.over) fail("the control plane was closed before all ranks had joined");
    std::vector<std::size_t> missing;
    for (std::size_t r = 0; r < joined.size(); ++r)
      if (!joined[r]) missing.push_back(r);
    fail("{} of {} ranks did not join within {} s: rank{} {}", missing.size(), joined.size(),
         static_cast<double>(options.connect_timeout.count()) / 1000, missing.size() > 1 ? "s" : "",
         fmt::join(missing, ", "));
  }

  void close() {
    inbox.end(true);
    io.post([this] {
      if (std::exchange(closing, true)) return;
      error_code ignored;
      acceptor.close(ignored);
      accept_again.cancel(ignored);
      for (const auto& stranger : strangers) stranger->close();
      strangers.clear();
      for (const Peer& peer : peers) {
        if (!peer.connection) continue;
        peer.connection->send(Internal::bye);
        peer.connection->finish();
      }
    });
    if (io.is_current()) return;
    // A socket that is closed with bytes unread resets the connection, and the bye may be lost: so the ranks close
    // first.
    std::unique_lock lock(inbox.mutex);
    inbox.changed.wait_for(lock, control::kLinger, [&] { return connected == 0; });
  }
};

ControlServer::ControlServer(int ranks, ControlOptions options) : impl_(std::make_unique<Impl>(ranks, options)) {}
ControlServer::~ControlServer() = default;

std::string ControlServer::contact() const {
  std::vector<std::string> addresses = control::host_addresses();
  if (addresses.empty()) addresses = {"127.0.0.1"};
  return control::Contact{addresses, impl_->port, impl_->key, control::network_namespace()}.text();
}

void ControlServer::wait_for_all() { impl_->wait_for_all(); }

void ControlServer::on_lost(LostHandler handler) {
  impl_->io.post([impl = impl_.get(), handler = std::move(handler)] { impl->lost.set_handler(handler); });
}

void ControlServer::survive_losses() {
  impl_->io.post([impl = impl_.get()] {
    impl->survives = true;
    impl->lost.tell_of_all();
  });
}

void ControlServer::send(int rank, Frame frame) {
  control::check_frame(frame);
  if (rank < 0 || static_cast<std::size_t>(rank) >= impl_->joined.size()) fail("there is no rank {}", rank);
  impl_->send(rank, frame.type, control::share(std::move(frame.payload)));
}

void ControlServer::send_all(const Frame& frame) {
  control::check_frame(frame);
  const control::SharedBytes payload = control::share(frame.payload);
  for (std::size_t rank = 0; rank < impl_->joined.size(); ++rank)
    impl_->send(static_cast<int>(rank), frame.type, payload);
}

void ControlServer::expel(int rank, Frame last, std::string why) {
  control::check_frame(last);
  impl_->io.post([impl = impl_.get(), rank, type = last.type, payload = control::share(std::move(last.payload)),
                  why = std::move(why)] {
    const auto connection = impl->peers[static_cast<std::size_t>(rank)].connection;
    if (!connection) return;  // it has gone by itself
    connection->set_events({.frame = [](const Frame&) {}, .ended = [](const std::string&) {}});
    connection->send(type, payload);
    connection->finish();
    impl->lose(rank, why);
  });
}

std::optional<ControlServer::Received> ControlServer::receive() { return impl_->inbox.next(); }
bool ControlServer::wait(milliseconds limit) { return impl_->inbox.wait(limit); }
void ControlServer::close() { impl_->close(); }

}  // namespace shoal
