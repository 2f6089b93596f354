#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <ctime>
#include <fstream>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "collectives/host_slots.h"
#include "collectives/message_all_to_all.h"
#include "collectives/mpi.h"
#include "collectives/ucx/ucx.h"
#include "tests/unit/communicator_suite.h"
#include "tests/unit/expert_exchange_suite.h"

namespace shoal {
namespace {

Communicator* world = nullptr;
std::shared_ptr<MpiGroup> group;  // another one of all ranks
bool over_ucx = false;

/// All ranks make it.
std::shared_ptr<MpiWorld> new_world() {
  auto made = make_mpi_world();
  MpiGroup everyone(made);
  if (over_ucx) made->wire = make_ucx_wire(everyone);
  return made;
}

TEST(Mpi, DoesWhatEveryCommunicatorDoes) { test::check_communicator(*world); }
TEST(Mpi, CarriesLongData) { test::check_long_data(*world); }
/// As their names say.
TEST(Mpi, KnowsHowManyRanksShareAHost) {
  std::array<char, 64> mine{};
  ASSERT_EQ(gethostname(mine.data(), mine.size() - 1), 0);
  std::vector<std::array<char, 64>> names(static_cast<std::size_t>(world->size()));
  for (int r = 0; r < world->size(); ++r) {
    auto& name = names[static_cast<std::size_t>(r)];
    if (r == world->rank()) name = mine;
    world->broadcast(std::as_writable_bytes(std::span(name)), r);
  }
  std::vector<int> in_a_row{1};
  for (std::size_t r = 1; r < names.size(); ++r) {
    if (names[r] == names[r - 1])
      ++in_a_row.back();
    else
      in_a_row.push_back(1);
  }
  const bool even = std::ranges::count(in_a_row, in_a_row[0]) == std::ssize(in_a_row);
  EXPECT_EQ(world->ranks_per_host(), even ? in_a_row[0] : 1);
}

TEST(Mpi, CarriesExpertExchanges) { test::check_expert_exchanges(*world); }

/// Records of many messages, as those beyond 1 GiB are; between ranks of a host with shared memory, and without.
TEST(Mpi, CutsRecordsIntoMessages) {
  using Sizes = MessageSizes;
  for (const Sizes sizes : {Sizes{16, 1000, 0}, Sizes{1, 77, 0}, Sizes{4096, 64, 0}, Sizes{16, 1000, 300},
                            Sizes{16, 77, 1}, Sizes{16, 64, 4096}, Sizes{16, 64, 5000}}) {
    MessageAllToAll exchange(group, sizes);
    test::check_exchanges(*world, exchange, 5000, 20);
    test::check_overlapping_exchanges(*world, exchange, 5000, 10);
  }
}

/// This process's memory in MB; what several processes share counts in parts.
float memory_mb() {
  std::ifstream rollup("/proc/self/smaps_rollup");
  for (std::string line; std::getline(rollup, line);)
    if (line.starts_with("Pss:")) return std::stof(line.substr(4)) / 1024;
  return 0;
}

/// Long records that go to another rank every few exchanges take the memory of one, not of one for each rank.
TEST(Mpi, KeepsTheMemoryOfOneExchange) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer keeps what is freed";
#endif
  constexpr std::size_t kRecord = 8 << 20;
  const int ranks = world->size(), me = world->rank();
  if (ranks == 1 || memory_mb() == 0) GTEST_SKIP();
  MPI_Comm host = MPI_COMM_NULL;
  int here = 1;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, me, MPI_INFO_NULL, &host);
  MPI_Comm_size(host, &here);
  MPI_Comm_free(&host);
  std::vector<std::size_t> forms{0};
  if (here == ranks) forms.push_back(2 * kRecord);  // else slots keep one exchange, and messages another
  for (const std::size_t slot : forms) {
    MessageAllToAll exchange(group, {.slot = slot});
    const std::vector<std::byte> record(kRecord, std::byte{1});
    const auto once = [&](int dest, std::size_t length) {
      std::vector<std::size_t> bytes(static_cast<std::size_t>(ranks));
      bytes[static_cast<std::size_t>(dest)] = length;
      std::memcpy(exchange.outgoing(dest, length).data(), record.data(), length);
      exchange.post(bytes);
      exchange.wait();
    };
    once((me + 1) % ranks, 1000);
    malloc_trim(0);
    float taken = -memory_mb();
    for (int i = 0; i < 8 * (ranks - 1); ++i) once((me + 1 + i / 4 % (ranks - 1)) % ranks, kRecord);
    world->barrier();
    taken += memory_mb();
    world->barrier();
    world->all_reduce_sum(std::span(&taken, 1));
    // Two exchanges that may be under way, each going out and coming in; or four slots.
    EXPECT_LT(taken / static_cast<float>(ranks), 4.5 * 8) << "slots of " << slot << " bytes";
    EXPECT_GT(taken / static_cast<float>(ranks), 2 * 8)
        << "slots of " << slot << " bytes: what was freed was used again?";
  }
}

TEST(Mpi, RanksOfAHostShareMemory) {
  const HostSlots slots(*group, 100);
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  std::vector<char> names(name.size() * static_cast<std::size_t>(world->size()));
  MPI_Allgather(name.data(), name.size(), MPI_BYTE, names.data(), name.size(), MPI_BYTE, MPI_COMM_WORLD);
  for (int r = 0; r < world->size(); ++r) {
    const std::string its = names.data() + name.size() * static_cast<std::size_t>(r);
    EXPECT_EQ(slots.reaches(r), r != world->rank() && its == name.data()) << "rank " << r << " on " << its;
  }
}

/// A rank that waits leaves its core to those that compute: here to nobody.
TEST(Mpi, SleepsWhileItWaits) {
  using namespace std::chrono_literals;
  for (const bool crowded : {true, false}) {
    MessageAllToAll exchange(group, {}, crowded);
    const std::vector<std::size_t> nothing(static_cast<std::size_t>(world->size()));
    world->barrier();
    const auto cpu_ms = [] {
      timespec t{};
      clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
      return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) / 1e6;
    };
    const double before = cpu_ms();
    if (world->rank() == world->size() - 1) std::this_thread::sleep_for(500ms);
    exchange.post(nothing);
    exchange.wait();
    EXPECT_LT(cpu_ms() - before, 150);
  }
}

/// A wait for a rank that never comes ends when the others begin anew; then they exchange among themselves.
TEST(Mpi, GoesOnWithoutARank) {
  using namespace std::chrono_literals;
  const int ranks = world->size(), me = world->rank(), lost = ranks / 2;
  if (ranks < 3) GTEST_SKIP() << "of two ranks, one alone is left";
  std::uint32_t epoch = 0;
  const auto own = new_world();
  for (const MessageSizes sizes : {MessageSizes{}, MessageSizes{16, 1000, 0}}) {
    std::vector<int> members;
    for (int r = 0; r < ranks; ++r)
      if (r != lost) members.push_back(r);
    const auto ends_soon = [&](const std::function<void()>& wait) {
      std::thread control([&] {
        std::this_thread::sleep_for(100ms);
        own->epoch = epoch + 1;
      });
      EXPECT_THROW(wait(), LeftBehind);
      control.join();
      ++epoch;
    };
    {
      MessageAllToAll exchange(std::make_shared<MpiGroup>(own, epoch), sizes);
      const std::vector<std::byte> record(5000, std::byte{7});
      for (int r = 0; r < ranks; ++r) std::ranges::copy(record, exchange.outgoing(r, record.size()).data());
      if (me == lost) {
        own->epoch = ++epoch;
      } else {
        exchange.post(std::vector<std::size_t>(static_cast<std::size_t>(ranks), record.size()));
        ends_soon([&] { exchange.wait(); });
      }
    }
    if (me == lost) {
      own->epoch = ++epoch;
      continue;
    }
    const auto left = std::make_shared<MpiGroup>(own, members, epoch);
    EXPECT_EQ(left->size(), ranks - 1);
    EXPECT_EQ(left->rank(), me - (me > lost));
    {
      MessageAllToAll exchange(left, sizes);
      for (int turn = 0; turn < 20; ++turn) {
        const auto length = [turn](int from, int to) { return static_cast<std::size_t>(turn * 300 + from * 17 + to); };
        std::vector<std::size_t> bytes;
        for (int r = 0; r < left->size(); ++r) {
          bytes.push_back(length(left->rank(), r));
          std::ranges::fill(exchange.outgoing(r, bytes.back()), static_cast<std::byte>(left->rank() + turn));
        }
        exchange.post(bytes);
        exchange.wait();
        for (int r = 0; r < left->size(); ++r) {
          EXPECT_EQ(exchange.incoming(r).size(), length(r, left->rank()));
          EXPECT_TRUE(std::ranges::all_of(exchange.incoming(r),
                                          [&](std::byte b) { return b == static_cast<std::byte>(r + turn); }));
        }
      }
    }
    // The first of them goes missing while they set up an exchange.
    if (left->rank() == 0)
      own->epoch = ++epoch;
    else if (left->on_host().front() == 0)
      ends_soon([&] { MessageAllToAll(left, MessageSizes{}); });
    else
      own->epoch = ++epoch;
  }
  world->barrier();
}

TEST(Mpi, IsWhatTheLauncherSaid) {
  const LaunchEnvironment launch = read_launch_environment();
  EXPECT_EQ(world->rank(), launch.rank);
  EXPECT_EQ(world->size(), launch.size);
  EXPECT_LT(launch.local_rank, launch.local_size);
  EXPECT_EQ(world->description().find(over_ucx ? "ucx (" : "mpi ("), 0u);
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  shoal::MpiJob job(&argc, &argv);
  shoal::over_ucx = argc > 1 && std::string(argv[1]) == "--ucx";
  if (shoal::over_ucx) {
    try {
      job.use_ucx();
    } catch (const shoal::Error& error) {
      std::fprintf(stderr, "%s\n", error.what());
      return 77;  // skipped
    }
  }
  const auto world = job.world();
  shoal::world = world.get();
  shoal::group = std::make_shared<shoal::MpiGroup>(shoal::new_world());
  if (world->rank() > 0) {  // rank 0 prints for all; failures are printed by whoever has them
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    class Failures : public testing::EmptyTestEventListener {
      void OnTestPartResult(const testing::TestPartResult& result) override {
        if (result.failed())
          std::fprintf(stderr, "rank %d: %s:%d: %s\n", shoal::world->rank(), result.file_name(), result.line_number(),
                       result.message());
      }
    };
    listeners.Append(new Failures);
  }
  return RUN_ALL_TESTS();
}
