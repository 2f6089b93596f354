#include "launch/this_machine.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <random>

#include "base/error.h"
#include "runtime/host_memory.h"

namespace shoal {
namespace {

constexpr int kRepeats = 5;

/// Seconds of the fastest of some runs, each of them begun by all ranks together.
double fastest(Communicator& comm, const std::function<void()>& work) {
  double best = 1e300;
  for (int i = 0; i < kRepeats; ++i) {
    comm.barrier();
    const auto start = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

/// The lowest of any rank.
double lowest(Communicator& comm, double mine) {
  const std::vector<std::size_t> one(static_cast<std::size_t>(comm.size()), 1);
  std::vector<float> all(one.size());
  const auto value = static_cast<float>(mine);
  comm.all_gather_v({&value, 1}, one, all);
  return static_cast<double>(*std::min_element(all.begin(), all.end()));
}

Matrix random_matrix(DType type, std::int64_t rows, std::int64_t cols) {
  Matrix m(type, rows, cols);
  std::vector<std::byte> row(static_cast<std::size_t>(cols) * size_of(type));
  std::mt19937 random(1);
  for (std::int64_t r = 0; r < rows; ++r) {
    // Small numbers: their bytes do not change how long a product takes, infinities might.
    for (std::size_t i = 0; i < row.size(); ++i)
      row[i] = static_cast<std::byte>(i % size_of(type) == size_of(type) - 1 ? 0x3c : random() & 0x3f);
    m.pack_rows(r, 1, row.data(), std::ssize(row));
  }
  if (type == DType::f8_e4m3)
    m.set_scales(
        {std::vector<float>(static_cast<std::size_t>((rows + 127) / 128 * ((cols + 127) / 128)), 1), 128, 128});
  return m;
}

Matrix random_q8(std::int64_t rows, std::int64_t cols) {
  const QuantFormat& format = *find_format("Q8_0");
  Matrix m(*packed_format(format), rows, cols);
  const std::int64_t row_bytes = format.bytes(cols);
  std::vector<std::byte> panel(static_cast<std::size_t>(row_bytes * Matrix::kPanel));
  std::mt19937 random(1);
  for (std::byte& b : panel) b = static_cast<std::byte>(random() & 0x3f);
  for (std::int64_t r = 0; r < rows; r += Matrix::kPanel) m.pack_rows(r, Matrix::kPanel, panel.data(), row_bytes);
  return m;
}

/// Rates of products on this rank while all others are at it too.
struct Products {
  double bytes_per_s, flops;
};
Products measure(Communicator& comm, Backend& backend, const std::vector<Matrix>& weights) {
  const std::int64_t rows = weights[0].rows(), cols = weights[0].cols(), many = 256;
  const std::vector<float> in(static_cast<std::size_t>(many * cols), 0.01f);
  std::vector<float> out(static_cast<std::size_t>(many * rows));
  const auto multiply = [&](std::int64_t tokens, std::size_t matrices) {
    for (std::size_t i = 0; i < matrices; ++i)
      backend.linear({in.data(), tokens, cols}, weights[i], {}, {out.data(), tokens, rows});
  };
  double bytes = 0;
  for (const Matrix& m : weights) bytes += static_cast<double>(m.bytes());
  const double one = fastest(comm, [&] { multiply(1, weights.size()); });
  const double busy = fastest(comm, [&] { multiply(many, 1); });
  return {lowest(comm, bytes / one), lowest(comm, 2.0 * static_cast<double>(many * rows * cols) / busy)};
}

/// What each rank sends to all others that are on its host, or to all that are not.
Link measure_link(Communicator& comm, const LaunchEnvironment& launch, bool within) {
  const auto exchange = comm.make_all_to_all();
  const auto host = [&](int rank) { return rank / launch.local_size; };
  std::vector<std::size_t> bytes(static_cast<std::size_t>(comm.size()));
  double peers = 0;
  const auto seconds = [&](std::size_t each) {
    peers = 0;
    for (int r = 0; r < comm.size(); ++r) {
      const bool meant = r != comm.rank() && (host(r) == host(comm.rank())) == within;
      bytes[static_cast<std::size_t>(r)] = meant ? each : 0;
      peers += meant;
    }
    return fastest(comm,
                   [&] {
                     for (int i = 0; i < 10; ++i) {
                       for (int r = 0; r < comm.size(); ++r)
                         if (const std::size_t n = bytes[static_cast<std::size_t>(r)]) {
                           const auto to = exchange->outgoing(r, n);
                           std::fill(to.begin(), to.end(), std::byte{1});
                         }
                       exchange->post(bytes);
                       exchange->wait();
                     }
                   }) /
           10;
  };
  const double small = seconds(64);
  constexpr std::size_t large_bytes = 1 << 20;
  const double large = seconds(large_bytes);
  return {lowest(comm, peers * large_bytes / std::max(1e-9, large - small)), -lowest(comm, -small) * 1e6};
}

}  // namespace

Cluster measure_cluster(Communicator& comm, const LaunchEnvironment& launch, Compute compute, int threads) {
  const int local = launch.local_size;
  if (-lowest(comm, -local) != local || lowest(comm, local) != local || comm.size() % local != 0)
    throw Error(
        "--cluster auto needs as many ranks on every host; describe mixed hosts in a JSON file (planner/README.md)",
        ExitCode::usage);
  const auto backend =
      make_cpu_backend({.threads = threads, .local_rank = launch.local_rank, .local_ranks = local, .compute = compute});
  constexpr std::int64_t rows = 2048, cols = 4096;
  // Read in turn, 128 MB of weights do not stay in a cache.
  std::vector<Matrix> bf16(8);
  for (Matrix& m : bf16) m = random_matrix(DType::bf16, rows, cols);
  const Products in_bf16 = measure(comm, *backend, bf16);
  bf16.clear();
  std::vector<Matrix> narrow(1);
  narrow[0] = random_matrix(DType::f8_e4m3, rows, cols);
  const Products in_fp8 = measure(comm, *backend, narrow);
  narrow[0] = random_q8(rows, cols);
  const Products in_int8 = measure(comm, *backend, narrow);

  Device device{.kind = Device::Kind::cpu, .name = backend->description()};
  device.memory_bytes = lowest(comm, static_cast<double>(available_memory_bytes()) / local);
  device.memory_bytes_per_s = in_bf16.bytes_per_s;
  device.bf16_flops = in_bf16.flops;
  device.fp8_flops = in_fp8.flops;
  device.int8_flops = in_int8.flops;
  device.measured = true;
  Cluster cluster;
  cluster.name = "auto";
  cluster.groups.push_back({.nodes = comm.size() / local, .ranks_per_node = local, .device = device, .intra_node = {}});
  if (local > 1) cluster.groups[0].intra_node = measure_link(comm, launch, true);
  if (comm.size() > local) cluster.inter_node = measure_link(comm, launch, false);
  return cluster;
}

}  // namespace shoal
