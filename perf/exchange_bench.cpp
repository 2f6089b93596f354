// What an exchange among all ranks takes, by the bytes that each sends to each: Shoal's, the same with MPI's or UCX's
// messages alone (as between hosts), and MPI_Alltoallv, whose counts every rank knows beforehand, in turn; beside what
// copying the bytes takes.
//   mpirun -n 4 build/perf/exchange_bench
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include <fmt/format.h>

#include "collectives/message_all_to_all.h"
#include "collectives/mpi.h"
#include "collectives/ucx/ucx.h"

namespace {

using namespace shoal;
using Clock = std::chrono::steady_clock;

constexpr int turns = 7;
constexpr double seconds_of_turn = 0.05;
volatile unsigned benchmark_sink = 0;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Reads what came as whoever uses it does, a cache line at a time.
void read(std::span<const std::byte> bytes) {
  unsigned sum = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 64) sum += static_cast<unsigned>(bytes[i]);
  benchmark_sink = sum;
}

/// One exchange in which every rank writes `record` for every other, and reads what it got.
void exchange(AllToAll& all_to_all, int rank, int ranks, const std::vector<std::byte>& record) {
  std::vector<std::size_t> sizes(static_cast<std::size_t>(ranks), record.size());
  sizes[static_cast<std::size_t>(rank)] = 0;
  for (int d = 0; d < ranks; ++d)
    if (d != rank) std::memcpy(all_to_all.outgoing(d, record.size()).data(), record.data(), record.size());
  all_to_all.post(sizes);
  all_to_all.wait();
  for (int s = 0; s < ranks; ++s)
    if (s != rank) read(all_to_all.incoming(s));
}

/// Null where this was built without UCX.
std::unique_ptr<AllToAll> make_ucx_all_to_all() {
  const auto world = make_mpi_world();
  const auto group = std::make_shared<MpiGroup>(world);
  try {
    world->wire = make_ucx_wire(*group);
  } catch (const Error&) {
    return nullptr;
  }
  return std::make_unique<MessageAllToAll>(group, MessageSizes{.slot = 0});
}

}  // namespace

int main(int argc, char** argv) {
  MpiJob job(&argc, &argv);
  const auto world = job.world();
  const int rank = world->rank(), ranks = world->size();
  const auto group = std::make_shared<MpiGroup>(make_mpi_world());
  MessageAllToAll ours(group), messages(group, {.slot = 0});
  const auto ucx_messages = make_ucx_all_to_all();
  if (rank == 0) {
    fmt::print("{} ranks, µs of an exchange, the middle of {} turns\n\n", ranks, turns);
    fmt::print(
        "| bytes to each rank | Shoal | its MPI messages | its UCX messages | MPI_Alltoallv | memcpy |\n"
        "| --- | --- | --- | --- | --- | --- |\n");
  }
  for (const std::size_t bytes : {std::size_t{64}, std::size_t{4} << 10, std::size_t{16} << 10, std::size_t{60} << 10,
                                  std::size_t{256} << 10, std::size_t{1} << 20}) {
    const std::vector<std::byte> record(bytes, std::byte{1});
    const auto n = static_cast<std::size_t>(ranks);
    std::vector<std::byte> sent(bytes * n), received(bytes * n);
    std::vector<int> counts(n, static_cast<int>(bytes)), at(n);
    for (std::size_t r = 0; r < n; ++r) at[r] = static_cast<int>(bytes * r);
    counts[static_cast<std::size_t>(rank)] = 0;
    const std::function<void()> ways[] = {
        [&] { exchange(ours, rank, ranks, record); }, [&] { exchange(messages, rank, ranks, record); },
        [&] {
          if (ucx_messages) exchange(*ucx_messages, rank, ranks, record);
        },
        [&] {
          for (std::size_t r = 0; r < n; ++r) std::memcpy(sent.data() + bytes * r, record.data(), bytes);
          MPI_Alltoallv(sent.data(), counts.data(), at.data(), MPI_BYTE, received.data(), counts.data(), at.data(),
                        MPI_BYTE, MPI_COMM_WORLD);
          for (std::size_t r = 0; r < n; ++r)
            read(std::span(received).subspan(bytes * r, static_cast<std::size_t>(counts[r])));
        },
        [&] {
          for (std::size_t r = 1; r < n; ++r) std::memcpy(sent.data() + bytes * r, record.data(), bytes);
        }};
    std::vector<std::vector<double>> micros(std::size(ways));
    for (int turn = 0; turn < turns; ++turn)
      for (std::size_t way = 0; way < std::size(ways); ++way) {
        ways[way]();
        world->barrier();
        // As many as rank 0 does in the time of a turn: all have to do the same number.
        std::int64_t rounds = 0;
        auto start = Clock::now();
        for (int tried = 0; tried < 20; ++tried) ways[way]();
        rounds = std::max<std::int64_t>(20, static_cast<std::int64_t>(seconds_of_turn * 20 / seconds_since(start)));
        world->broadcast(std::as_writable_bytes(std::span(&rounds, 1)), 0);
        start = Clock::now();
        for (std::int64_t i = 0; i < rounds; ++i) ways[way]();
        micros[way].push_back(seconds_since(start) / static_cast<double>(rounds) * 1e6);
      }
    if (rank != 0) continue;
    fmt::print("| {} |", bytes);
    for (auto& m : micros) {
      std::ranges::sort(m);
      fmt::print(" {:.1f} |", m[m.size() / 2]);
    }
    fmt::print("\n");
    std::fflush(stdout);
  }
}
