#include "runtime/control_wire.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <random>

#include "base/boot_id.h"
#include "base/error.h"
#include "runtime/host.h"

namespace shoal::control {
namespace {

static_assert(std::endian::native == std::endian::little, "frames are written as they lie in memory");

constexpr std::array<char, 5> kMagic = {'S', 'H', 'O', 'A', 'L'};
constexpr std::size_t kGreetingKey = 8;  // where the key starts in a greeting

template <class T>
void put(std::vector<std::byte>& out, const T& value) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&value);
  out.insert(out.end(), bytes, bytes + sizeof value);
}

template <class T>
bool take(std::span<const std::byte>& in, T& value) {
  if (in.size() < sizeof value) return false;
  std::memcpy(&value, in.data(), sizeof value);
  in = in.subspan(sizeof value);
  return true;
}

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A stranger may write anything; what it wrote may end up in a terminal.
std::string printable(std::string_view text) {
  std::string out(text.substr(0, 255));
  std::replace_if(
      out.begin(), out.end(), [](unsigned char c) { return c < 32 || c > 126; }, '?');
  return out;
}

}  // namespace

HeaderBytes encode(const FrameHeader& header) {
  HeaderBytes bytes;
  std::memcpy(bytes.data(), &header.bytes, 4);
  std::memcpy(bytes.data() + 4, &header.type, 2);
  std::memcpy(bytes.data() + 6, &header.version, 2);
  return bytes;
}

FrameHeader decode_header(std::span<const std::byte, kHeaderBytes> bytes) {
  FrameHeader header;
  std::memcpy(&header.bytes, bytes.data(), 4);
  std::memcpy(&header.type, bytes.data() + 4, 2);
  std::memcpy(&header.version, bytes.data() + 6, 2);
  return header;
}

Key Key::random() {
  std::random_device device;
  const auto draw = [&](std::array<std::byte, 16>& half) {
    for (std::size_t i = 0; i < half.size(); i += 4) {
      const std::uint32_t word = device();
      std::memcpy(half.data() + i, &word, 4);
    }
  };
  Key key;
  draw(key.server);
  draw(key.client);
  return key;
}

std::string Key::hex() const {
  std::string text;
  for (const auto& half : {server, client})
    for (const std::byte b : half) text += fmt::format("{:02x}", static_cast<unsigned>(b));
  return text;
}

std::optional<Key> Key::from_hex(const std::string& text) {
  Key key;
  const std::size_t half = key.server.size();
  if (text.size() != 4 * half) return {};
  for (std::size_t i = 0; i < 2 * half; ++i) {
    unsigned value = 0;
    const char* digits = text.data() + 2 * i;
    const auto [end, error] = std::from_chars(digits, digits + 2, value, 16);
    if (error != std::errc() || end != digits + 2) return {};
    (i < half ? key.server[i] : key.client[i - half]) = static_cast<std::byte>(value);
  }
  return key;
}

bool equal_secret(std::span<const std::byte> a, std::span<const std::byte> b) {
  if (a.size() != b.size()) return false;
  volatile unsigned different = 0;
  for (std::size_t i = 0; i < a.size(); ++i) different = different | static_cast<unsigned>(a[i] ^ b[i]);
  return different == 0;
}

Greeting encode_greeting(const Key& key) {
  Greeting bytes{};
  std::memcpy(bytes.data(), kMagic.data(), kMagic.size());
  std::memcpy(bytes.data() + kMagic.size(), &kVersion, 2);
  std::memcpy(bytes.data() + kGreetingKey, key.server.data(), key.server.size());
  return bytes;
}

GreetingCheck check_greeting(std::span<const std::byte, kGreetingBytes> bytes, const Key& key) {
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0 ||
      !equal_secret(bytes.subspan(kGreetingKey), key.server))
    return GreetingCheck::stranger;
  std::uint16_t version = 0;
  std::memcpy(&version, bytes.data() + kMagic.size(), 2);
  return version == kVersion ? GreetingCheck::ours : GreetingCheck::other_version;
}

Process Process::self() { return {host_name(), static_cast<std::uint32_t>(getpid())}; }

std::vector<std::byte> encode(const Process& process) {
  std::vector<std::byte> out;
  put(out, process.pid);
  for (const char c : process.host) out.push_back(static_cast<std::byte>(c));
  return out;
}

std::optional<Process> decode_process(std::span<const std::byte> payload) {
  Process process;
  if (!take(payload, process.pid)) return {};
  process.host = printable(as_text(payload));
  return process;
}

std::vector<std::byte> encode(const Hello& hello) {
  std::vector<std::byte> out;
  put(out, hello.key);
  put(out, hello.rank);
  const auto process = encode(hello.process);
  out.insert(out.end(), process.begin(), process.end());
  return out;
}

std::optional<Hello> decode_hello(std::span<const std::byte> payload) {
  Hello hello;
  if (!take(payload, hello.key) || !take(payload, hello.rank)) return {};
  auto process = decode_process(payload);
  if (!process) return {};
  hello.process = std::move(*process);
  return hello;
}

std::string Contact::text() const {
  return fmt::format("{}:{} {} {}", fmt::join(addresses, ","), port, key.hex(), network);
}

Contact Contact::parse(const std::string& text) {
  Contact contact;
  const auto space = text.find(' '), space2 = text.find(' ', space == std::string::npos ? space : space + 1);
  if (space2 == std::string::npos) fail("'{}' does not say where rank 0's control plane is", text);
  const std::string where = text.substr(0, space);
  const auto colon = where.rfind(':');
  const auto key = Key::from_hex(text.substr(space + 1, space2 - space - 1));
  if (colon == std::string::npos || !key) fail("'{}' does not say where rank 0's control plane is", text);
  std::from_chars(where.data() + colon + 1, where.data() + where.size(), contact.port);
  for (std::size_t at = 0; at < colon;) {
    const std::size_t end = std::min(where.find(',', at), colon);
    contact.addresses.push_back(where.substr(at, end - at));
    at = end + 1;
  }
  contact.key = *key;
  contact.network = text.substr(space2 + 1);
  return contact;
}

std::vector<std::string> host_addresses() {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return {};
  std::vector<std::string> v4, v6;
  for (const ifaddrs* i = list; i; i = i->ifa_next) {
    if (!i->ifa_addr || !(i->ifa_flags & IFF_UP) || (i->ifa_flags & IFF_LOOPBACK)) continue;
    char text[INET6_ADDRSTRLEN] = {};
    if (i->ifa_addr->sa_family == AF_INET) {
      const auto* a = reinterpret_cast<const sockaddr_in*>(i->ifa_addr);
      v4.emplace_back(inet_ntop(AF_INET, &a->sin_addr, text, sizeof text));
    } else if (i->ifa_addr->sa_family == AF_INET6) {
      const auto* a = reinterpret_cast<const sockaddr_in6*>(i->ifa_addr);
      if (!IN6_IS_ADDR_LINKLOCAL(&a->sin6_addr)) v6.emplace_back(inet_ntop(AF_INET6, &a->sin6_addr, text, sizeof text));
    }
  }
  freeifaddrs(list);
  v4.insert(v4.end(), v6.begin(), v6.end());
  constexpr std::size_t kMost = 12;  // a host of many containers has many bridges; the contact must stay short
  if (v4.size() > kMost) v4.resize(kMost);
  return v4;
}

std::string network_namespace() {
  const std::string boot = boot_id();
  char link[64] = {};
  if (readlink("/proc/self/ns/net", link, sizeof link - 1) < 0) link[0] = 0;
  return boot.empty() ? "unknown-" + Process::self().host : boot + "-" + link;
}

}  // namespace shoal::control
