#include "runtime/control_wire.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace shoal::control {
namespace {

TEST(ControlWire, FrameHeaderComesBack) {
  const FrameHeader header{.bytes = 0x12345678, .type = 0xabcd, .version = 7};
  const HeaderBytes bytes = encode(header);
  EXPECT_EQ(bytes[0], std::byte{0x78});
  EXPECT_EQ(bytes[7], std::byte{0});
  const FrameHeader again = decode_header(bytes);
  EXPECT_EQ(again.bytes, header.bytes);
  EXPECT_EQ(again.type, header.type);
  EXPECT_EQ(again.version, header.version);
}

TEST(ControlWire, ContactComesBack) {
  const Contact contact{{"10.0.0.1", "2001:db8::1", "192.168.1.1"}, 4711, Key::random(), "namespace"};
  const Contact again = Contact::parse(contact.text());
  EXPECT_EQ(again.addresses, contact.addresses);
  EXPECT_EQ(again.port, contact.port);
  EXPECT_EQ(again.key.server, contact.key.server);
  EXPECT_EQ(again.key.client, contact.key.client);
  EXPECT_EQ(again.network, contact.network);
  EXPECT_NE(Key::random().client, contact.key.client);
}

TEST(ControlWire, NonsenseIsNoContact) {
  for (const char* text : {"", " ", "  ", "10.0.0.1:1", "10.0.0.1:1 key here", "10.0.0.1 0123 x"})
    EXPECT_THROW(Contact::parse(text), Error) << text;
  std::string text = Contact{{"10.0.0.1"}, 1, Key::random(), "n"}.text();
  text[text.find(' ') + 5] = 'x';
  EXPECT_THROW(Contact::parse(text), Error);
}

TEST(ControlWire, HelloComesBack) {
  const Hello hello{Key::random().client, 77, {"host-7", 4711}};
  auto bytes = encode(hello);
  auto again = decode_hello(bytes);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->key, hello.key);
  EXPECT_EQ(again->rank, 77u);
  EXPECT_EQ(again->process.host, "host-7");
  EXPECT_EQ(again->process.pid, 4711u);
  bytes[24] = std::byte{27};  // an escape in the host name does not reach the terminal
  EXPECT_EQ(decode_hello(bytes)->process.host, "?ost-7");
  bytes.resize(20);
  EXPECT_FALSE(decode_hello(bytes));
}

TEST(ControlWire, GreetingTellsServersApart) {
  const Key key = Key::random();
  Greeting greeting = encode_greeting(key);
  EXPECT_EQ(check_greeting(greeting, key), GreetingCheck::ours);
  EXPECT_EQ(check_greeting(greeting, Key::random()), GreetingCheck::stranger);
  greeting[5] = std::byte{99};
  EXPECT_EQ(check_greeting(greeting, key), GreetingCheck::other_version);
  greeting[0] = std::byte{'s'};
  EXPECT_EQ(check_greeting(greeting, key), GreetingCheck::stranger);
}

TEST(ControlWire, SecretsAreComparedWhole) {
  const Key key = Key::random();
  Key other = key;
  EXPECT_TRUE(equal_secret(key.client, other.client));
  other.client[15] ^= std::byte{128};
  EXPECT_FALSE(equal_secret(key.client, other.client));
  EXPECT_FALSE(equal_secret(key.client, std::span(key.client).first(15)));
}

TEST(ControlWire, HostHasNoLoopbackAddress) {
  for (const std::string& address : host_addresses()) {
    EXPECT_NE(address.substr(0, 4), "127.");
    EXPECT_NE(address, "::1");
  }
  EXPECT_EQ(network_namespace(), network_namespace());
  EXPECT_EQ(network_namespace().find(' '), std::string::npos);
}

}  // namespace
}  // namespace shoal::control
