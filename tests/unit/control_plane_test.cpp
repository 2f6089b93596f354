#include "runtime/control_plane.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <thread>

#include "base/error.h"
#include "runtime/control_connect.h"
#include "runtime/control_wire.h"

namespace shoal {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

/// Short enough to be waited for, long enough for a busy machine.
constexpr ControlOptions kShort{.heartbeat = 50ms, .peer_timeout = 1000ms, .connect_timeout = 2000ms};
const ControlOptions kUsual{};

std::vector<std::byte> bytes_of(std::size_t n, int seed) {
  std::vector<std::byte> bytes(n);
  for (std::size_t i = 0; i < n; ++i)
    bytes[i] = static_cast<std::byte>(i * 7 + (i >> 10) + static_cast<std::size_t>(seed));
  return bytes;
}

std::vector<std::unique_ptr<ControlClient>> connect_all(ControlServer& server, int ranks, ControlOptions options) {
  std::vector<std::unique_ptr<ControlClient>> clients;
  for (int rank = 0; rank < ranks; ++rank)
    clients.push_back(std::make_unique<ControlClient>(rank, server.contact(), options));
  server.wait_for_all();
  return clients;
}

/// What an on_lost handler was told. A handler may outlive it: connections end when servers and clients do.
class Lost {
 public:
  LostHandler handler() {
    return [heard = heard_](int rank, const std::string& why) {
      if (heard->calls++ == 0) heard->told.set_value({rank, why});
    };
  }
  std::pair<int, std::string> wait() {
    auto future = heard_->told.get_future();
    if (future.wait_for(20s) != std::future_status::ready) return {-1, "nothing was lost in 20 s"};
    return future.get();
  }
  int calls() const { return heard_->calls; }

 private:
  struct Heard {
    std::promise<std::pair<int, std::string>> told;
    std::atomic<int> calls{0};
  };
  std::shared_ptr<Heard> heard_ = std::make_shared<Heard>();
};

/// A process that is no rank of the job, or pretends to be one.
class Stranger {
 public:
  explicit Stranger(const ControlServer& server) : Stranger(control::Contact::parse(server.contact()).port) {}
  explicit Stranger(std::uint16_t port) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof to), 0);
  }
  explicit Stranger(const control::Joined& joined) : fd_(joined.fd) {}
  ~Stranger() { close(); }
  Stranger(const Stranger&) = delete;
  Stranger& operator=(const Stranger&) = delete;

  void write(std::span<const std::byte> bytes) {
    static_cast<void>(!::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL));
  }
  void write_frame(control::Internal type, const std::vector<std::byte>& payload) {
    write(control::encode(control::FrameHeader{.bytes = static_cast<std::uint32_t>(payload.size()),
                                               .type = static_cast<std::uint16_t>(type)}));
    write(payload);
  }
  /// True if the other side closes before the time is over; what it still sends is thrown away.
  bool is_closed_within(std::chrono::milliseconds time) {
    const auto deadline = Clock::now() + time;
    std::byte buffer[4096];
    while (Clock::now() < deadline) {
      pollfd p{fd_, POLLIN, 0};
      if (::poll(&p, 1, 20) > 0 && ::recv(fd_, buffer, sizeof buffer, MSG_DONTWAIT) <= 0) return true;
    }
    return false;
  }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

 private:
  int fd_ = -1;
};

control::Hello hello_of(const ControlServer& server, std::uint32_t rank) {
  return {control::Contact::parse(server.contact()).key.client, rank, control::Process::self()};
}
control::Joined join_as(const ControlServer& server, std::uint32_t rank) {
  return control::join(control::Contact::parse(server.contact()), hello_of(server, rank), 2000ms);
}

TEST(ControlPlane, CarriesFramesBothWaysInOrder) {
  constexpr int kRanks = 3, kFrames = 200;
  ControlServer server(kRanks, kUsual);
  auto clients = connect_all(server, kRanks, kUsual);
  for (int i = 0; i < kFrames; ++i) {
    const auto type = static_cast<std::uint16_t>(i);
    server.send_all({type, bytes_of(static_cast<std::size_t>(i), 1)});
    for (int rank = 0; rank < kRanks; ++rank) {
      server.send(rank, {type, bytes_of(static_cast<std::size_t>(i) * 3, rank)});
      clients[static_cast<std::size_t>(rank)]->send({type, bytes_of(static_cast<std::size_t>(i) * 2, rank)});
    }
  }
  for (int rank = 0; rank < kRanks; ++rank)
    for (int i = 0; i < kFrames; ++i) {
      const auto to_all = clients[static_cast<std::size_t>(rank)]->receive();
      const auto to_one = clients[static_cast<std::size_t>(rank)]->receive();
      ASSERT_TRUE(to_all && to_one);
      EXPECT_EQ(to_all->type, i);
      EXPECT_EQ(to_all->payload, bytes_of(static_cast<std::size_t>(i), 1));
      EXPECT_EQ(to_one->payload, bytes_of(static_cast<std::size_t>(i) * 3, rank));
    }
  std::vector<int> next(kRanks);
  for (int i = 0; i < kRanks * kFrames; ++i) {
    const auto received = server.receive();
    ASSERT_TRUE(received);
    const int expected = next[static_cast<std::size_t>(received->rank)]++;
    EXPECT_EQ(received->frame.type, expected);
    EXPECT_EQ(received->frame.payload, bytes_of(static_cast<std::size_t>(expected) * 2, received->rank));
  }
  server.close();
}

TEST(ControlPlane, CarriesLongFrames) {
  ControlServer server(1, kShort);
  auto clients = connect_all(server, 1, kShort);
  const std::vector<std::byte> payload = bytes_of(50'000'000, 3);
  server.send(0, {1, payload});
  clients[0]->send({2, payload});
  const auto down = clients[0]->receive();
  const auto up = server.receive();
  ASSERT_TRUE(down && up);
  EXPECT_TRUE(down->payload == payload);
  EXPECT_TRUE(up->frame.payload == payload);
}

TEST(ControlPlane, WakesAReceiverThatSleeps) {
  ControlServer server(1, kUsual);
  auto clients = connect_all(server, 1, kUsual);
  auto asleep = std::async(std::launch::async, [&] { return clients[0]->receive(); });
  std::this_thread::sleep_for(50ms);
  server.send(0, {7, {}});
  const auto frame = asleep.get();
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->type, 7);
  EXPECT_TRUE(frame->payload.empty());
}

TEST(ControlPlane, FrameTypesOfItsOwnAreRefused) {
  ControlServer server(1, kUsual);
  auto clients = connect_all(server, 1, kUsual);
  EXPECT_THROW(server.send(0, {0xff00, {}}), Error);
  EXPECT_THROW(clients[0]->send({0xffff, {}}), Error);
  EXPECT_THROW(server.send(1, {1, {}}), Error);
}

TEST(ControlPlane, OrderlyEndIsNoLoss) {
  Lost lost_rank, lost_server;
  {
    ControlServer server(2, kUsual);
    server.on_lost(lost_rank.handler());
    auto clients = connect_all(server, 2, kUsual);
    for (auto& client : clients) client->on_lost(lost_server.handler());
    server.send_all({1, {}});
    clients[1]->send({2, {}});
    ASSERT_TRUE(server.receive());
    server.close();
    EXPECT_FALSE(server.receive());
    for (auto& client : clients) {
      EXPECT_TRUE(client->receive()) << "what was sent before the end still arrives";
      EXPECT_FALSE(client->receive());
      client->send({3, {}});  // into the void
    }
    server.send(0, {4, {}});
    clients.clear();
    server.close();
  }
  EXPECT_EQ(lost_rank.calls(), 0);
  EXPECT_EQ(lost_server.calls(), 0);
}

TEST(ControlPlane, DestroyingTheServerIsAnOrderlyEnd) {
  auto server = std::make_unique<ControlServer>(1, kUsual);
  auto clients = connect_all(*server, 1, kUsual);
  server->send(0, {1, bytes_of(3'000'000, 1)});
  server.reset();
  EXPECT_TRUE(clients[0]->receive());
  EXPECT_FALSE(clients[0]->receive());
}

TEST(ControlPlane, WhatAClientSentLastArrives) {
  ControlServer server(2, kUsual);
  auto clients = connect_all(server, 2, kUsual);
  clients[1]->send({9, bytes_of(3'000'000, 1)});
  clients.pop_back();
  const auto received = server.receive();
  ASSERT_TRUE(received);
  EXPECT_EQ(received->frame.payload.size(), 3'000'000u);
  EXPECT_FALSE(server.receive()) << "the rank is gone";
}

TEST(ControlPlane, WorkerThatGoesIsLost) {
  ControlServer server(3, kUsual);
  Lost lost;
  server.on_lost(lost.handler());
  auto clients = connect_all(server, 2 + 1, kUsual);
  clients[2].reset();
  const auto [rank, why] = lost.wait();
  EXPECT_EQ(rank, 2);
  EXPECT_EQ(why, fmt::format("rank 2 (host {}, pid {}): connection closed", control::Process::self().host, getpid()));
  EXPECT_FALSE(server.receive());
  // The others can still be told.
  server.send_all({5, {}});
  EXPECT_EQ(clients[0]->receive()->type, 5);
  EXPECT_EQ(clients[1]->receive()->type, 5);
  // Only the first loss is reported.
  clients.pop_back();
  clients.pop_back();
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(lost.calls(), 1);
}

TEST(ControlPlane, GoesOnAfterLosses) {
  ControlServer server(4, kUsual);
  auto clients = connect_all(server, 4, kUsual);
  server.survive_losses();
  std::vector<int> told;
  std::atomic<int> tellings = 0;
  server.on_lost([&](int rank, const std::string&) {
    told.push_back(rank);
    ++tellings;
  });
  for (const int rank : {2, 1}) {
    clients[static_cast<std::size_t>(rank)]->send({9, bytes_of(100, rank)});
    clients[static_cast<std::size_t>(rank)].reset();
    const auto last = server.receive();
    ASSERT_TRUE(last);
    EXPECT_FALSE(last->lost);
    EXPECT_EQ(last->frame.payload, bytes_of(100, rank));
    const auto lost = server.receive();
    ASSERT_TRUE(lost);
    EXPECT_TRUE(lost->lost);
    EXPECT_EQ(lost->rank, rank);
    EXPECT_EQ(told.back(), rank) << "the handler comes first";
    server.send_all({5, {}});
    for (const int other : {0, 3}) EXPECT_EQ(clients[static_cast<std::size_t>(other)]->receive()->type, 5);
    clients[3]->send({7, {}});
    EXPECT_EQ(server.receive()->rank, 3);
  }
  server.close();  // what goes now is no loss
  EXPECT_EQ(tellings, 2);
}

TEST(ControlPlane, UrgentFramesAreSeenBeforeTheirTurn) {
  ControlServer server(1, kUsual);
  auto clients = connect_all(server, 1, kUsual);
  std::promise<std::size_t> seen;
  clients[0]->on_frame(7, [&](const Frame& frame) { seen.set_value(frame.payload.size()); });
  server.send(0, {5, {}});
  server.send(0, {7, bytes_of(10, 0)});
  EXPECT_EQ(seen.get_future().get(), 10u);
  EXPECT_EQ(clients[0]->receive()->type, 5) << "in its turn it comes as well";
  EXPECT_EQ(clients[0]->receive()->type, 7);
}

TEST(ControlPlane, LossIsReportedToWhoAsksLater) {
  ControlServer server(1, kUsual);
  auto clients = connect_all(server, 1, kUsual);
  clients.clear();
  EXPECT_FALSE(server.receive());
  Lost lost;
  server.on_lost(lost.handler());
  EXPECT_EQ(lost.wait().first, 0);
}

TEST(ControlPlane, ClosedSocketIsALoss) {
  ControlServer server(1, kUsual);
  Lost lost;
  server.on_lost(lost.handler());
  Stranger rank(join_as(server, 0));
  server.wait_for_all();
  rank.close();
  EXPECT_EQ(lost.wait().first, 0);
}

TEST(ControlPlane, SilentWorkerIsLost) {
  ControlServer server(2, kShort);
  Lost lost;
  server.on_lost(lost.handler());
  ControlClient lively(0, server.contact(), kShort);
  const Stranger silent(join_as(server, 1));
  const auto start = Clock::now();
  const auto [rank, why] = lost.wait();
  EXPECT_EQ(rank, 1);
  EXPECT_NE(why.find("no sign of life for 1 s"), std::string::npos) << why;
  EXPECT_GE(Clock::now() - start, 700ms);
}

TEST(ControlPlane, HeartbeatsKeepIdlePeersAlive) {
  ControlServer server(1, kShort);
  Lost lost;
  server.on_lost(lost.handler());
  auto clients = connect_all(server, 1, kShort);
  clients[0]->on_lost(lost.handler());
  std::this_thread::sleep_for(2500ms);
  EXPECT_EQ(lost.calls(), 0);
  clients[0]->send({1, {}});
  EXPECT_TRUE(server.receive());
}

TEST(ControlPlane, NonsenseFromARankIsALoss) {
  ControlServer server(1, kUsual);
  Lost lost;
  server.on_lost(lost.handler());
  Stranger rank(join_as(server, 0));
  rank.write(control::encode(control::FrameHeader{.bytes = 0xf0000000u, .type = 1}));
  EXPECT_NE(lost.wait().second.find("sent what is no frame"), std::string::npos);
}

/// A server by hand, which greets properly and then does what the test wants.
class HandmadeServer {
 public:
  HandmadeServer() {
    fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof at;
    EXPECT_EQ(::bind(fd_, reinterpret_cast<const sockaddr*>(&at), length), 0);
    EXPECT_EQ(::listen(fd_, 10), 0);
    ::getsockname(fd_, reinterpret_cast<sockaddr*>(&at), &length);
    contact_.port = ntohs(at.sin_port);
    contact_.addresses = {"127.0.0.1"};
    contact_.key = control::Key::random();
    contact_.network = "elsewhere";
  }
  ~HandmadeServer() { ::close(fd_); }
  HandmadeServer(const HandmadeServer&) = delete;
  HandmadeServer& operator=(const HandmadeServer&) = delete;
  const control::Contact& contact() const { return contact_; }
  std::unique_ptr<Stranger> accept() {
    return std::make_unique<Stranger>(control::Joined{::accept(fd_, nullptr, nullptr), {}});
  }
  std::unique_ptr<Stranger> welcome() {
    auto client = accept();
    client->write(control::encode_greeting(contact_.key));
    client->write_frame(control::Internal::welcome, control::encode(control::Process{"far-away", 42}));
    return client;
  }

 private:
  int fd_ = -1;
  control::Contact contact_;
};

TEST(ControlClient, ServerThatGoesIsLost) {
  HandmadeServer server;
  auto accepted = std::async(std::launch::async, [&] { return server.welcome(); });
  ControlClient client(3, server.contact().text(), kUsual);
  Lost lost;
  client.on_lost(lost.handler());
  accepted.get()->close();
  EXPECT_FALSE(client.receive());
  EXPECT_EQ(lost.wait(), (std::pair<int, std::string>(0, "rank 0 (host far-away, pid 42): connection closed")));
}

TEST(ControlClient, SilentServerIsLost) {
  HandmadeServer server;
  auto accepted = std::async(std::launch::async, [&] { return server.welcome(); });
  ControlClient client(3, server.contact().text(), kShort);
  Lost lost;
  client.on_lost(lost.handler());
  const auto stays = accepted.get();
  EXPECT_NE(lost.wait().second.find("no sign of life for 1 s"), std::string::npos);
}

TEST(ControlClient, TriesUntilTheServerSpeaks) {
  HandmadeServer server;
  auto accepted = std::async(std::launch::async, [&] {
    server.accept()->close();
    const auto wrong = server.accept();
    wrong->write(control::encode_greeting(control::Key::random()));
    return server.welcome();
  });
  ControlClient client(0, server.contact().text(), kUsual);
  accepted.get();
}

TEST(ControlClient, SaysWhatEachAddressAnswered) {
  control::Contact contact{{"127.0.0.1", "nowhere"}, 1, control::Key::random(), "elsewhere"};
  try {
    ControlClient client(3, contact.text(), {.connect_timeout = 200ms});
    ADD_FAILURE() << "connected to nobody";
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find("rank 3 on "), std::string::npos) << what;
    EXPECT_NE(what.find("127.0.0.1: Connection refused; nowhere: is no address"), std::string::npos) << what;
  }
  EXPECT_THROW(ControlClient(0, "", kUsual), Error);
}

TEST(ControlServer, NamesTheRanksThatDoNotCome) {
  ControlServer server(4, {.connect_timeout = 200ms});
  const ControlClient one(1, server.contact(), kUsual);
  try {
    server.wait_for_all();
    ADD_FAILURE() << "all came";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "3 of 4 ranks did not join within 0.2 s: ranks 0, 2, 3");
  }
}

TEST(ControlServer, RankThatIsLostBeforeAllCameIsNamed) {
  ControlServer server(2, kUsual);
  { const ControlClient one(1, server.contact(), kUsual); }
  try {
    server.wait_for_all();
    ADD_FAILURE() << "all came";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("rank 1 (host "), std::string::npos) << error.what();
  }
}

TEST(ControlServer, RefusesARankTwiceAndOneTooMany) {
  ControlServer server(2, kUsual);
  const ControlClient first(1, server.contact(), kUsual);
  for (const int rank : {1, 2}) try {
      const ControlClient again(rank, server.contact(), kUsual);
      ADD_FAILURE() << "was let in as rank " << rank;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(rank == 1 ? "has joined already" : "there are only 2 ranks"),
                std::string::npos)
          << error.what();
    }
  const ControlClient zero(0, server.contact(), kUsual);
  server.wait_for_all();
}

TEST(ControlServer, StrangersAreDroppedAndHarmNothing) {
  ControlServer server(2, kShort);
  Lost lost;
  server.on_lost(lost.handler());

  Stranger garbage(server), wrong_key(server), not_hello(server), huge(server), silent(server), trickle(server);
  garbage.write(bytes_of(1000, 9));
  control::Hello hello = hello_of(server, 0);
  hello.key[15] ^= std::byte{1};
  wrong_key.write_frame(control::Internal::hello, control::encode(hello));
  not_hello.write_frame(control::Internal::heartbeat, {});
  huge.write(control::encode(control::FrameHeader{.bytes = 100000, .type = 0xff00}));
  EXPECT_TRUE(garbage.is_closed_within(5s));
  EXPECT_TRUE(wrong_key.is_closed_within(5s));
  EXPECT_TRUE(huge.is_closed_within(5s));
  for (int i = 0; i < 8; ++i) {  // a byte now and then does not keep a stranger in
    trickle.write(bytes_of(1, 0));
    std::this_thread::sleep_for(100ms);
  }
  EXPECT_TRUE(silent.is_closed_within(5s));
  EXPECT_TRUE(trickle.is_closed_within(5s));
  EXPECT_TRUE(not_hello.is_closed_within(5s));

  auto clients = connect_all(server, 2, kShort);
  garbage.close();
  const Stranger later(server);
  server.send(1, {3, {}});
  EXPECT_EQ(clients[1]->receive()->type, 3);
  EXPECT_EQ(lost.calls(), 0);
}

TEST(ControlServer, ManyStrangersDoNotKeepRanksOut) {
  ControlServer server(2, kUsual);
  std::vector<std::unique_ptr<Stranger>> crowd;
  for (int i = 0; i < 200; ++i) crowd.push_back(std::make_unique<Stranger>(server));
  auto clients = connect_all(server, 2, kUsual);
  EXPECT_TRUE(crowd.front()->is_closed_within(5s)) << "the oldest make room";
}

}  // namespace
}  // namespace shoal
