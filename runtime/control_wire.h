#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

/// What travels over a control connection.
///
/// The server speaks first: a greeting that only a process of this job can recognise. The client answers with a hello
/// that only a process of this job can write. So neither side tells a stranger what it would need to pass for the
/// other. After that both sides send frames: {u32 payload bytes, u16 type, u16 version}, then the payload.
/// Little-endian.
namespace shoal::control {

constexpr std::uint16_t kVersion = 2;
constexpr std::uint32_t kMaxPayloadBytes = 1u << 30;
constexpr std::uint32_t kMaxHelloBytes = 4096;  // from a peer that has not proved itself

/// Types from here up belong to the connection itself.
enum class Internal : std::uint16_t {
  hello = 0xff00,
  welcome = 0xff01,
  refused = 0xff02,
  heartbeat = 0xff03,
  bye = 0xff04
};
constexpr std::uint16_t kFirstInternalType = 0xff00;

struct FrameHeader {
  std::uint32_t bytes = 0;
  std::uint16_t type = 0;
  std::uint16_t version = kVersion;
};
constexpr std::size_t kHeaderBytes = 8;
using HeaderBytes = std::array<std::byte, kHeaderBytes>;
HeaderBytes encode(const FrameHeader& header);
FrameHeader decode_header(std::span<const std::byte, kHeaderBytes> bytes);

/// The random key of a job: half of it proves the server, half the client.
struct Key {
  std::array<std::byte, 16> server{}, client{};
  static Key random();
  std::string hex() const;
  static std::optional<Key> from_hex(const std::string& text);
};
/// Takes the same time wherever the difference is.
bool equal_secret(std::span<const std::byte> a, std::span<const std::byte> b);

/// {"SHOAL", u16 version, u8 0, server's half of the key}
constexpr std::size_t kGreetingBytes = 24;
using Greeting = std::array<std::byte, kGreetingBytes>;
Greeting encode_greeting(const Key& key);
enum class GreetingCheck { ours, other_version, stranger };
GreetingCheck check_greeting(std::span<const std::byte, kGreetingBytes> bytes, const Key& key);

/// Who is at the other end, for people.
struct Process {
  std::string host;
  std::uint32_t pid = 0;
  static Process self();
};

struct Hello {
  std::array<std::byte, 16> key{};
  std::uint32_t rank = 0;
  Process process;
};
std::vector<std::byte> encode(const Hello& hello);
std::optional<Hello> decode_hello(std::span<const std::byte> payload);
std::vector<std::byte> encode(const Process& process);
std::optional<Process> decode_process(std::span<const std::byte> payload);

/// Where the server is: "10.0.0.1,192.168.1.1:4711 <key> <network namespace>".
struct Contact {
  std::vector<std::string> addresses;  // without loopback
  std::uint16_t port = 0;
  Key key;
  /// Names one kernel's network namespace: a client in the same one reaches the server through loopback.
  std::string network;
  std::string text() const;
  /// Throws Error if `text` is no contact.
  static Contact parse(const std::string& text);
};
/// This host's addresses that are up, IPv4 before IPv6, without loopback and link-local ones.
std::vector<std::string> host_addresses();
std::string network_namespace();

}  // namespace shoal::control
