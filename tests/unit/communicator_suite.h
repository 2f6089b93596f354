#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "collectives/communicator.h"

/// What every form of Communicator must do. Each check is called by all ranks; nothing returns early, so that a failure
/// on one rank does not leave the others waiting.
namespace shoal::test {

/// The same pseudo-random number on every rank (the finalizer of SplitMix64).
inline std::uint64_t mix(std::uint64_t a, std::uint64_t b = 0, std::uint64_t c = 0) {
  std::uint64_t z = a * 0x9e3779b97f4a7c15u + b * 0xbf58476d1ce4e5b9u + c * 0x94d049bb133111ebu + 1;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

inline float some_float(std::uint64_t a, std::uint64_t b, std::uint64_t c = 0) {
  // Magnitudes differ much, so that another order of additions gives other bits.
  const std::uint64_t z = mix(a, b, c);
  return (static_cast<float>(z % 20001) - 10000.0f) * (z & (1u << 20) ? 1e-3f : 7.7f);
}

/// Bytes that rank s sends to rank d in an exchange: often none, mostly few, sometimes many.
inline std::size_t record_bytes(std::uint64_t exchange, int s, int d, std::size_t most) {
  const std::uint64_t z = mix(exchange, static_cast<std::uint64_t>(s), static_cast<std::uint64_t>(d));
  switch (z % 4) {
    case 0:
      return 0;
    case 1:
      return (z >> 8) % 64;
    case 2:
      return (z >> 8) % (most / 8 + 1);
    default:
      return (z >> 8) % (most + 1);
  }
}
inline std::byte record_byte(std::uint64_t exchange, int s, int d, std::size_t i) {
  return static_cast<std::byte>(exchange * 31 + static_cast<std::uint64_t>(s) * 7 + static_cast<std::uint64_t>(d) * 3 +
                                i * 13 + (i >> 8));
}

/// Exchanges whose records are known on both sides.
class KnownExchanges {
 public:
  KnownExchanges(Communicator& comm, AllToAll& exchange, std::uint64_t seed, std::size_t most_bytes)
      : comm_(comm), exchange_(exchange), seed_(seed), most_(most_bytes) {}

  void post() {
    const std::uint64_t id = seed_ + posted_++;
    std::vector<std::size_t> bytes(static_cast<std::size_t>(comm_.size()));
    for (int d = 0; d < comm_.size(); ++d) {
      const std::size_t n = bytes[static_cast<std::size_t>(d)] = record_bytes(id, comm_.rank(), d, most_);
      if (n == 0 && id % 2 == 0) continue;                  // nothing to say: outgoing() need not be called
      const auto room = exchange_.outgoing(d, n + id % 3);  // and one may ask for more than one sends
      EXPECT_GE(room.size(), n);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(room.data()) % 64, 0u);
      for (std::size_t i = 0; i < n; ++i) room[i] = record_byte(id, comm_.rank(), d, i);
    }
    exchange_.post(bytes);
  }
  void wait() {
    exchange_.wait();
    ++waited_;
    check();
  }
  /// The records of the last exchange waited for.
  void check() {
    const std::uint64_t id = seed_ + waited_ - 1;
    for (int s = 0; s < comm_.size(); ++s) {
      const auto record = exchange_.incoming(s);
      EXPECT_EQ(record.size(), record_bytes(id, s, comm_.rank(), most_)) << "from rank " << s;
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(record.data()) % 64, 0u);
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < record.size(); ++i) wrong += record[i] != record_byte(id, s, comm_.rank(), i);
      EXPECT_EQ(wrong, 0u) << "of " << record.size() << " bytes from rank " << s << " in exchange " << id;
    }
  }

 private:
  Communicator& comm_;
  AllToAll& exchange_;
  const std::uint64_t seed_;
  const std::size_t most_;
  std::uint64_t posted_ = 0, waited_ = 0;
};

inline void check_exchanges(Communicator& comm, AllToAll& exchange, std::size_t most_bytes, int rounds = 40) {
  KnownExchanges known(comm, exchange, 1000, most_bytes);
  for (int i = 0; i < rounds; ++i) {
    known.post();
    known.wait();
  }
}

/// Two exchanges under way at any time; records are looked at until just before the second post after them.
inline void check_overlapping_exchanges(Communicator& comm, AllToAll& exchange, std::size_t most_bytes,
                                        int rounds = 40) {
  KnownExchanges known(comm, exchange, 2000, most_bytes);
  known.post();
  for (int i = 0; i < rounds; ++i) {
    known.post();
    known.wait();
    if (mix(static_cast<std::uint64_t>(i), static_cast<std::uint64_t>(comm.rank())) % 3 == 0) known.check();
  }
  known.wait();
  // Without overlap, the next post leaves them readable, too.
  for (int i = 0; i < rounds; ++i) {
    known.post();
    known.check();
    known.wait();
  }
}

/// Objects do not disturb each other, and ranks may be far apart in time.
inline void check_several_all_to_alls(Communicator& comm, std::size_t most_bytes) {
  const auto a = comm.make_all_to_all(), b = comm.make_all_to_all();
  KnownExchanges first(comm, *a, 3000, most_bytes), second(comm, *b, 4000, most_bytes);
  for (int i = 0; i < 20; ++i) {
    first.post();
    second.post();
    std::vector<float> sum = {1.0f};
    comm.all_reduce_sum(sum);
    EXPECT_EQ(sum[0], static_cast<float>(comm.size()));
    second.wait();
    first.wait();
  }
}

/// Sums are those of ascending ranks, bit by bit.
inline void check_all_reduce_sum(Communicator& comm, std::size_t floats) {
  const auto n = static_cast<std::uint64_t>(comm.size()), me = static_cast<std::uint64_t>(comm.rank());
  std::vector<float> data(floats), expected(floats);
  for (std::size_t i = 0; i < floats; ++i) {
    data[i] = some_float(i, me, floats);
    expected[i] = some_float(i, 0, floats);
    for (std::uint64_t r = 1; r < n; ++r) expected[i] += some_float(i, r, floats);
  }
  comm.all_reduce_sum(data);
  EXPECT_TRUE(floats == 0 || std::memcmp(data.data(), expected.data(), floats * sizeof(float)) == 0)
      << floats << " floats on " << n << " ranks";
}

/// counts(r): how many floats rank r brings.
template <class Counts>
void check_all_gather_v(Communicator& comm, Counts counts, bool in_place) {
  std::vector<std::size_t> count(static_cast<std::size_t>(comm.size()));
  for (std::size_t r = 0; r < count.size(); ++r) count[r] = counts(r);
  const auto me = static_cast<std::size_t>(comm.rank());
  const std::size_t first = std::accumulate(count.begin(), count.begin() + comm.rank(), std::size_t{0});
  std::vector<float> all(std::accumulate(count.begin(), count.end(), std::size_t{0})), mine(count[me]);
  for (std::size_t i = 0; i < mine.size(); ++i) mine[i] = some_float(i, me);
  if (in_place) std::copy(mine.begin(), mine.end(), all.begin() + static_cast<std::ptrdiff_t>(first));
  comm.all_gather_v(in_place ? std::span(all).subspan(first, mine.size()) : std::span(mine), count, all);
  std::size_t wrong = 0, at = 0;
  for (std::size_t r = 0; r < count.size(); ++r)
    for (std::size_t i = 0; i < count[r]; ++i) wrong += all[at++] != some_float(i, r);
  EXPECT_EQ(wrong, 0u) << "of " << all.size() << " floats";
}

inline void check_broadcast(Communicator& comm, std::size_t bytes) {
  for (int root = 0; root < comm.size(); ++root) {
    std::vector<std::byte> data(bytes);
    if (comm.rank() == root)
      for (std::size_t i = 0; i < bytes; ++i) data[i] = record_byte(bytes, root, 0, i);
    comm.broadcast(data, root);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < bytes; ++i) wrong += data[i] != record_byte(bytes, root, 0, i);
    EXPECT_EQ(wrong, 0u) << "of " << bytes << " bytes from rank " << root;
  }
}

inline void check_communicator(Communicator& comm) {
  comm.barrier();
  const auto exchange = comm.make_all_to_all();
  check_exchanges(comm, *exchange, 3000);
  check_exchanges(comm, *exchange, 300000, 10);
  check_overlapping_exchanges(comm, *exchange, 100000, 15);
  check_several_all_to_alls(comm, 20000);
  for (const std::size_t floats : {0, 1, 2, 3, 7, 100, 1023, 1025, 5000, 5461, 5462, 100003})
    check_all_reduce_sum(comm, floats);
  for (const bool in_place : {false, true}) {
    check_all_gather_v(
        comm, [](std::size_t) { return 0; }, in_place);
    check_all_gather_v(
        comm, [](std::size_t) { return 17; }, in_place);
    check_all_gather_v(
        comm, [](std::size_t r) { return r % 2 ? 1000 * r : 0; }, in_place);
  }
  for (const std::size_t bytes : {0, 1, 1000, 200000}) check_broadcast(comm, bytes);
  comm.barrier();
}

/// Longer than what one exchange carries at a time.
inline void check_long_data(Communicator& comm) {
  check_all_reduce_sum(comm, (4u << 20) + 3);
  check_all_gather_v(
      comm, [](std::size_t r) { return r == 0 ? (4u << 20) + 5 : 3; }, false);
  check_broadcast(comm, (4u << 20) + 1);
}

}  // namespace shoal::test
