#include "launch/this_machine.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <random>

#include "base/error.h"
#include "runtime/host_memory.h"

namespace shoal {
namespace {

constexpr int kRepeats = 9;            // of a measurement, at least
constexpr double kLeastSeconds = 0.1;  // that its runs take together
constexpr std::chrono::seconds kPatience{3};

enum class Who { all, first };  // ranks at work, while the others wait

/// The lowest of any rank.
double lowest(Communicator& comm, double mine) {
  const std::vector<std::size_t> one(static_cast<std::size_t>(comm.size()), 1);
  std::vector<float> all(one.size());
  const auto value = static_cast<float>(mine);
  comm.all_gather_v({&value, 1}, one, all);
  return static_cast<double>(*std::min_element(all.begin(), all.end()));
}

/// Seconds of a run in the middle of some, each from when all ranks begin to when all are ready: ranks that share a
/// core are not ready before the last of them is. Not the fastest, which has the machine as a step seldom has it.
double seconds_of(Communicator& comm, const std::function<void()>& work, Who who = Who::all) {
  std::vector<double> times;
  const auto run = [&] {
    comm.barrier();
    const auto start = std::chrono::steady_clock::now();
    if (who == Who::all || comm.rank() == 0) work();
    comm.barrier();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  };
  run();  // touches memory, wakes threads
  const double first = -lowest(comm, -times[0]);
  times.clear();
  const int runs = std::clamp(static_cast<int>(kLeastSeconds / std::max(first, 1e-6)), kRepeats, 200);
  for (int i = 0; i < runs; ++i) run();
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  return times[static_cast<std::size_t>(runs / 2)];
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

Matrix random_packed(const PackedFormat& format, const QuantFormat& stored, std::int64_t rows, std::int64_t cols) {
  Matrix m(format, rows, cols);
  const std::int64_t row_bytes = stored.bytes(cols);
  std::vector<std::byte> panel(static_cast<std::size_t>(row_bytes * Matrix::kPanel));
  std::mt19937 random(1);
  for (std::byte& b : panel) b = static_cast<std::byte>(random() & 0x3f);
  for (std::int64_t r = 0; r < rows; r += Matrix::kPanel)
    m.pack_rows(r, std::min<std::int64_t>(Matrix::kPanel, rows - r), panel.data(), row_bytes);
  return m;
}

/// A matrix of a WeightType; empty where kernels do not take it in this shape.
Matrix random_matrix(const std::string& type, std::int64_t rows, std::int64_t cols) {
  if (type == "FP8") return random_matrix(DType::f8_e4m3, rows, cols);
  if (type == "BF16") return random_matrix(DType::bf16, rows, cols);
  if (type == "F16") return random_matrix(DType::f16, rows, cols);
  if (type == "F32") return random_matrix(DType::f32, rows, cols);
  const QuantFormat* stored = find_format(type);
  const PackedFormat* format = stored ? packed_format(*stored) : nullptr;
  if (!format || cols % format->record() != 0) return {};
  return random_packed(*format, *stored, rows, cols);
}

constexpr double kNotCached = 512e6;  // bytes of weights which, read in turn by a host's ranks, do not stay in a cache
constexpr std::int64_t kMany = 256;

/// Of one kind of products, seconds of all of its weights with one token, and of some with many.
struct Probe {
  std::function<void()> once, many;
  double weights = 0, weights_of_many = 0, tokens_of_many = 0;

  ProductRate rate(Communicator& comm) const {
    const double one = seconds_of(comm, once), busy = seconds_of(comm, many);
    return {lowest(comm, weights / one), lowest(comm, 2 * weights_of_many * tokens_of_many / busy)};
  }
};

/// What all probes need.
struct Bench {
  Communicator& comm;
  Backend& backend;
  const ModelConfig& config;
  double bytes;  // of weights on this rank
  double most;   // where products need several matrices at once
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();

  /// On the terminal, once it is clear that the user has to wait.
  void say(const std::string& what) const {
    if (comm.rank() == 0 && std::chrono::steady_clock::now() - start > kPatience)
      std::fprintf(stderr, "measuring this machine: %s\n", what.c_str());
  }
};

/// Square matrices of the model's width: about the mean of a layer's, so that what a call costs besides is in the rate.
ProductRate measure_linear(const Bench& b, const std::string& type, Device* alone = nullptr) {
  b.say("products with " + type + " weights");
  Communicator& comm = b.comm;
  Backend& backend = b.backend;
  const std::int64_t rows = b.config.hidden_size, cols = (b.config.hidden_size + 255) / 256 * 256;
  std::vector<Matrix> weights;
  weights.push_back(random_matrix(type, rows, cols));
  if (weights[0].empty()) return {};
  while (static_cast<double>(weights[0].bytes()) * static_cast<double>(weights.size()) < b.bytes)
    weights.push_back(weights[0].clone());
  const std::vector<float> in(static_cast<std::size_t>(kMany * cols), 0.01f);
  std::vector<float> out(static_cast<std::size_t>(kMany * rows));
  const Probe probe{[&] {
                      for (const Matrix& m : weights)
                        backend.linear({in.data(), 1, cols}, m, {}, {out.data(), 1, rows});
                    },
                    [&] {
                      backend.linear({in.data(), kMany, cols}, weights[0], {}, {out.data(), kMany, rows});
                    },
                    static_cast<double>(std::ssize(weights) * rows * cols), static_cast<double>(rows * cols), kMany};
  if (alone) {
    const double read = seconds_of(comm, probe.once, Who::first), all_read = seconds_of(comm, probe.once);
    const double multiplied = seconds_of(comm, probe.many, Who::first), all_multiplied = seconds_of(comm, probe.many);
    // Rank 0's clock counts.
    alone->alone_memory = std::max(1.0, lowest(comm, all_read / read));
    alone->alone_products = std::max(1.0, lowest(comm, all_multiplied / multiplied));
  }
  return probe.rate(comm);
}

/// Experts of the model's shape: one token to each of as many as it is sent to, or as there is memory for, and many to
/// each.
ProductRate measure_experts(const Bench& b, const std::string& type) {
  b.say("experts with " + type + " weights");
  Backend& backend = b.backend;
  const ModelConfig& config = b.config;
  const std::int64_t hidden = config.hidden_size, width = config.moe_intermediate_size;
  std::vector<FeedForward> experts(1);
  experts[0] = {random_matrix(type, width, hidden), random_matrix(type, width, hidden),
                random_matrix(type, hidden, width)};
  if (experts[0].gate.empty() || experts[0].down.empty()) return {};
  const auto bytes = static_cast<double>(experts[0].gate.bytes() + experts[0].up.bytes() + experts[0].down.bytes());
  const int at_once = std::clamp(static_cast<int>(b.most / bytes), 1, config.num_experts_per_tok);
  while (bytes * static_cast<double>(experts.size()) < b.bytes || std::ssize(experts) % at_once != 0)
    experts.push_back({experts[0].gate.clone(), experts[0].up.clone(), experts[0].down.clone()});

  constexpr int rows = 64;
  const std::vector<float> in(static_cast<std::size_t>(rows * hidden), 0.01f);
  std::vector<float> out(in.size());
  const auto batch_of = [&](int tokens) {
    ExpertBatch batch;
    batch.first.push_back(0);
    for (int t = 0; t < tokens; ++t) {
      batch.rows.push_back(in.data() + t * hidden);
      batch.out.push_back(out.data() + t * hidden);
      for (int e = 0; e < at_once; ++e) batch.expert.push_back(e);
      batch.weight.resize(batch.expert.size(), 0.1f);
      batch.first.push_back(static_cast<std::int32_t>(batch.expert.size()));
    }
    return batch;
  };
  const ExpertBatch one = batch_of(1), many = batch_of(rows);
  const double weights_of_one = 3.0 * static_cast<double>(hidden * width);
  const Probe probe{[&] {
                      for (std::size_t e = 0; e < experts.size(); e += static_cast<std::size_t>(at_once))
                        backend.experts(one, std::span(experts).subspan(e, static_cast<std::size_t>(at_once)));
                    },
                    [&] { backend.experts(many, std::span(experts).first(static_cast<std::size_t>(at_once))); },
                    weights_of_one * static_cast<double>(experts.size()), weights_of_one * at_once, rows};
  return probe.rate(b.comm);
}

/// Types that make up more than a hundredth of the weights of a part.
std::vector<std::string> types_of(const ModelConfig& config, const Precision& precision, bool experts) {
  std::map<std::string, double> weights;
  double sum = 0;
  for (const ExpectedTensor& t : expected_tensors(config)) {
    if (!t.required() || t.part == Part::mtp || t.part == Part::embedding || t.shape.size() < 2) continue;
    if ((t.part == Part::routed_experts) != experts) continue;
    const auto count = static_cast<double>(t.shape[0]) * static_cast<double>(t.shape[1]);
    weights[std::string(precision.type_of(config, t).name)] += count;
    sum += count;
  }
  std::vector<std::string> types;
  for (const auto& [type, count] : weights)
    if (count > sum / 100) types.push_back(type);
  return types;
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
    return seconds_of(comm,
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

Cluster measure_cluster(Communicator& comm, const LaunchEnvironment& launch, Compute compute, const ModelConfig& config,
                        const Precision& precision, int threads) {
  const int local = launch.local_size;
  if (-lowest(comm, -local) != local || lowest(comm, local) != local || comm.size() % local != 0)
    throw Error(
        "--cluster auto needs as many ranks on every host; describe mixed hosts in a JSON file (planner/README.md)",
        ExitCode::usage);
  const auto backend =
      make_cpu_backend({.threads = threads, .local_rank = launch.local_rank, .local_ranks = local, .compute = compute});
  Device device{.kind = Device::Kind::cpu, .name = backend->description()};
  device.memory_bytes = lowest(comm, static_cast<double>(available_memory_bytes()) / local);
  device.measured = true;
  const Bench bench{comm, *backend, config, std::min(kNotCached / local, device.memory_bytes / 4),
                    device.memory_bytes / 4};
  device.linear["BF16"] = measure_linear(bench, "BF16", comm.size() > 1 ? &device : nullptr);
  for (const char* type : {"FP8", "Q8_0"}) device.linear[type] = measure_linear(bench, type);
  device.memory_bytes_per_s = device.linear["BF16"].weights_per_s * 2;
  device.bf16_flops = device.linear["BF16"].flops;
  device.fp8_flops = device.linear["FP8"].flops;
  device.int8_flops = device.linear["Q8_0"].flops;
  for (const std::string& type : types_of(config, precision, false))
    if (!device.linear.contains(type)) device.linear[type] = measure_linear(bench, type);
  for (const std::string& type : types_of(config, precision, true)) device.experts[type] = measure_experts(bench, type);
  for (ProductRates* rates : {&device.linear, &device.experts})
    std::erase_if(*rates, [](const auto& rate) { return rate.second.flops <= 0; });  // no kernel takes it so

  Cluster cluster;
  cluster.name = "auto";
  cluster.groups.push_back({.nodes = comm.size() / local, .ranks_per_node = local, .device = device, .intra_node = {}});
  if (comm.size() > 1) bench.say("the exchange between ranks");
  if (local > 1) cluster.groups[0].intra_node = measure_link(comm, launch, true);
  if (comm.size() > local) cluster.inter_node = measure_link(comm, launch, false);
  return cluster;
}

}  // namespace shoal
