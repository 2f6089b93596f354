#include <sys/socket.h>

#include <map>

#include "runtime/control_connect.h"
#include "runtime/control_connection.h"
#include "runtime/control_plane.h"
#include "runtime/control_thread.h"
#include "runtime/control_wire.h"

namespace shoal {

using boost::asio::ip::tcp;
using control::Connection;
using control::Internal;

struct ControlClient::Impl {
  control::Inbox<Frame> inbox;
  // Of the control thread alone.
  control::LostReport lost;
  control::Process server;
  std::map<std::uint16_t, std::function<void(const Frame&)>> handlers;
  bool leaving = false;
  bool closed = false;  // guarded by inbox.mutex, for the destructor
  control::IoThread io;
  std::shared_ptr<Connection> connection;

  Impl(int rank, const std::string& where, ControlOptions options) {
    const control::Contact contact = control::Contact::parse(where);
    const control::Joined joined =
        control::join(contact, {contact.key.client, static_cast<std::uint32_t>(rank), control::Process::self()},
                      options.connect_timeout);
    server = joined.server;
    control::set_socket_options(joined.fd, options.peer_timeout);
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    getsockname(joined.fd, reinterpret_cast<sockaddr*>(&address), &length);
    tcp::socket socket(io.context());
    socket.assign(address.ss_family == AF_INET6 ? tcp::v6() : tcp::v4(), joined.fd);
    connection = std::make_shared<Connection>(std::move(socket), options);
    io.post([this, options] {
      connection->start({.frame = [this](Frame frame) { hear(std::move(frame)); },
                         .ended = [this](const std::string& why) { lose(why); }},
                        options.peer_timeout);
      connection->trust();
    });
  }

  ~Impl() {
    // What was sent just before still goes out.
    io.post([this] {
      leaving = true;
      connection->finish();
    });
    std::unique_lock lock(inbox.mutex);
    inbox.changed.wait_for(lock, control::kLinger, [&] { return closed; });
    lock.unlock();
    io.post([this] { connection->close(); });
    io.stop();
  }

  void hear(Frame frame) {
    if (frame.type < control::kFirstInternalType) {
      if (const auto found = handlers.find(frame.type); found != handlers.end()) found->second(frame);
      return inbox.push(std::move(frame));
    }
    if (frame.type == static_cast<std::uint16_t>(Internal::bye)) {
      connection->close();
      end();
    }
  }
  void lose(const std::string& why) {
    end();
    if (!leaving) lost.report(0, control::describe(0, server, why));
  }
  void end() {
    {
      const std::lock_guard lock(inbox.mutex);
      closed = true;
    }
    inbox.end(false);
  }
};

ControlClient::ControlClient(int rank, const std::string& contact, ControlOptions options)
    : impl_(std::make_unique<Impl>(rank, contact, options)) {}
ControlClient::~ControlClient() = default;

void ControlClient::on_lost(LostHandler handler) {
  impl_->io.post([impl = impl_.get(), handler = std::move(handler)] { impl->lost.set_handler(handler); });
}

void ControlClient::on_frame(std::uint16_t type, std::function<void(const Frame&)> handler) {
  impl_->io.post([impl = impl_.get(), type, handler = std::move(handler)] { impl->handlers[type] = handler; });
}

void ControlClient::send(Frame frame) {
  control::check_frame(frame);
  impl_->io.post([impl = impl_.get(), type = frame.type, payload = control::share(std::move(frame.payload))] {
    impl->connection->send(type, payload);
  });
}

std::optional<Frame> ControlClient::receive() { return impl_->inbox.next(); }

}  // namespace shoal
