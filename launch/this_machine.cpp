#include "launch/this_machine.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <span>

#include "base/error.h"
#include "collectives/agreement.h"
#include "collectives/expert_exchange.h"
#include "kernels/cpu/isa.h"
#include "runtime/host.h"

namespace shoal {
namespace {

constexpr int kRuns = 3;         // of a piece of work, at least
constexpr double kVisit = 0.02;  // seconds that runs of it take one after the other, at least
/// Seconds that pieces of work take turns, so that each of them sees the machine as it is on average: what others do on
/// it, or beside it under the same hypervisor, comes and goes within about a second.
constexpr double kLongLook = 1.2, kShortLook = 0.15;
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

/// Of each number, the largest that a rank has.
std::vector<double> largest(Communicator& comm, const std::vector<double>& mine) {
  const auto ranks = static_cast<std::size_t>(comm.size());
  const std::vector<std::size_t> counts(ranks, mine.size());
  const std::vector<float> values(mine.begin(), mine.end());
  std::vector<float> all(ranks * mine.size());
  comm.all_gather_v(values, counts, all);
  std::vector<double> result = mine;
  for (std::size_t i = 0; i < all.size(); ++i)
    result[i % mine.size()] = std::max(result[i % mine.size()], static_cast<double>(all[i]));
  return result;
}

struct Work {
  std::function<void()> run;
  Who who = Who::all;
};

/// Seconds of each piece of work, the mean of the middle half of its runs, each from when the first rank begins to when
/// all are ready: of ranks that share a core one may begin, and look at the clock, when the other is done. The pieces
/// take turns for `look` seconds at least.
std::vector<double> seconds_of(Communicator& comm, const std::vector<Work>& pieces, double look) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); };
  std::vector<std::vector<double>> times(pieces.size());
  const auto run = [&](std::size_t i) {
    comm.barrier();
    const auto start = Clock::now();
    if (pieces[i].who == Who::all || comm.rank() == 0) pieces[i].run();
    comm.barrier();
    times[i].push_back(since(start));
  };
  std::vector<int> runs_of_visit(pieces.size());
  double cycle = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    run(i);  // touches memory, wakes threads
    run(i);
    const double one = -lowest(comm, -times[i].back());  // on all ranks the same
    runs_of_visit[i] = std::clamp(static_cast<int>(kVisit / std::max(one, 1e-6)), 1, 100);
    cycle += one * runs_of_visit[i];
    times[i].clear();
  }
  const int visits = std::clamp(static_cast<int>(look / std::max(cycle, 1e-6)), kRuns, 100);
  for (int visit = 0; visit < visits; ++visit)
    for (std::size_t i = 0; i < pieces.size(); ++i)
      for (int n = 0; n < runs_of_visit[i]; ++n) run(i);
  std::vector<double> means;
  for (std::vector<double>& mine : times) {
    std::vector<double> of = largest(comm, mine);
    std::sort(of.begin(), of.end());
    const auto out = static_cast<std::ptrdiff_t>(of.size() / 4);
    const double sum = std::accumulate(of.begin() + out, of.end() - out, 0.0);
    means.push_back(sum / static_cast<double>(std::ssize(of) - 2 * out));
  }
  return means;
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

/// Of one kind of products: those of all of its weights, from memory, with a few tokens each, and of some with many.
struct Probe {
  struct Part {
    std::int64_t tokens;
    double weights;  // that each of them is multiplied with
    std::function<void()> run;
  };
  std::vector<Part> parts;  // ascending in tokens, from one

  /// The parts, and the first of them on one rank alone.
  std::vector<Work> work(const Communicator& comm) const {
    std::vector<Work> pieces;
    for (const Part& p : parts) pieces.push_back({p.run});
    if (comm.size() > 1) pieces.push_back({parts.front().run, Who::first});
    return pieces;
  }
  ProductRate rate(std::span<const double> seconds) const {
    const Part& most = parts.back();
    ProductRate rate{parts[0].weights / seconds[0],
                     2 * most.weights * static_cast<double>(most.tokens) / seconds[parts.size() - 1]};
    if (seconds.size() > parts.size()) rate.alone = std::max(1.0, seconds[0] / seconds[parts.size()]);
    double before = 1 / rate.weights_per_s;
    for (std::size_t i = 1; i < parts.size(); ++i) {
      const double of_weight = std::max(before, seconds[i] / parts[i].weights);  // more tokens are never faster
      rate.few[static_cast<int>(parts[i].tokens)] = 1 / of_weight;
      before = of_weight;
    }
    return rate;
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
ProductRate measure_linear(const Bench& b, const std::string& type, double look, Device* alone = nullptr) {
  b.say("products with " + type + " weights");
  Backend& backend = b.backend;
  const std::int64_t rows = b.config.hidden_size, cols = (b.config.hidden_size + 255) / 256 * 256;
  std::vector<Matrix> weights;
  weights.push_back(random_matrix(type, rows, cols));
  if (weights[0].empty()) return {};
  while (static_cast<double>(weights[0].bytes()) * static_cast<double>(weights.size()) < b.bytes)
    weights.push_back(weights[0].clone());
  constexpr std::int64_t few[] = {1, 4, 16}, many[] = {64, 256};
  const std::vector<float> in(static_cast<std::size_t>(many[1] * cols), 0.01f);
  std::vector<float> out(static_cast<std::size_t>(many[1] * rows));
  Probe probe;
  const auto add = [&](std::int64_t tokens, std::size_t matrices) {
    probe.parts.push_back(
        {tokens, static_cast<double>(matrices) * static_cast<double>(rows * cols), [&, tokens, matrices] {
           for (std::size_t i = 0; i < matrices; ++i)
             backend.linear({in.data(), tokens, cols}, weights[i], {}, {out.data(), tokens, rows});
         }});
  };
  for (const std::int64_t tokens : few) add(tokens, weights.size());
  for (const std::int64_t tokens : many) add(tokens, 1);
  std::vector<Work> work = probe.work(b.comm);
  const std::size_t n = work.size();
  if (alone) work.push_back({probe.parts.back().run, Who::first});
  const std::vector<double> seconds = seconds_of(b.comm, work, look);
  const ProductRate rate = probe.rate(seconds);
  if (alone) {
    alone->alone_memory = rate.alone;
    alone->alone_products = std::max(1.0, seconds[probe.parts.size() - 1] / seconds[n]);
  }
  return rate;
}

/// Experts of the model's shape: a few tokens to each of as many as a token is sent to, or as there is memory for, and
/// many to each.
ProductRate measure_experts(const Bench& b, const std::string& type, double look) {
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

  constexpr int few[] = {1, 2, 4, 16}, many = 64;
  const std::vector<float> in(static_cast<std::size_t>(many * hidden), 0.01f);
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
  const double weights_of_one = 3.0 * static_cast<double>(hidden * width);
  const auto step = static_cast<std::size_t>(at_once);
  Probe probe;
  const auto add = [&](int tokens, std::size_t count) {
    probe.parts.push_back({tokens, weights_of_one * static_cast<double>(count), [&, batch = batch_of(tokens), count] {
                             for (std::size_t e = 0; e < count; e += step)
                               backend.experts(batch, std::span(experts).subspan(e, step));
                           }});
  };
  for (const int tokens : few) add(tokens, experts.size());
  add(many, step);
  return probe.rate(seconds_of(b.comm, probe.work(b.comm), look));
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

/// The exchange of a layer with experts, as it is run: tokens go out to ranks on this host, or to all that are not, and
/// answers come back, with what packing them takes, and with waiting for ranks that share a core.
Link measure_link(const Bench& b, const LaunchEnvironment& launch, bool bf16_rows, bool within) {
  Communicator& comm = b.comm;
  const std::int64_t hidden = b.config.hidden_size;
  ExpertExchange exchange(comm, static_cast<int>(hidden), bf16_rows, Answers::summed, 1);  // straight to each
  const auto host = [&](int rank) { return rank / launch.local_size; };
  std::vector<std::vector<ExpertReplica>> one_each;  // an expert on every rank
  std::vector<std::int32_t> peers;
  for (int r = 0; r < comm.size(); ++r) {
    one_each.push_back({{r, 0, 1}});
    if (r != comm.rank() && (host(r) == host(comm.rank())) == within) peers.push_back(r);
  }
  ExpertMap map(std::move(one_each));
  const int top_k = std::min(static_cast<int>(peers.size()), std::max(1, b.config.num_experts_per_tok));
  constexpr int few = 1, many = 128;
  const std::vector<float> in(static_cast<std::size_t>(many * hidden), 0.01f),
      weight(static_cast<std::size_t>(many * top_k), 1.0f);
  std::vector<float> out(in.size());
  std::vector<std::int32_t> expert;
  for (int t = 0; t < many; ++t) {
    std::vector<std::int32_t> of_token;
    for (int k = 0; k < top_k; ++k) of_token.push_back(peers[static_cast<std::size_t>(t + k) % peers.size()]);
    std::ranges::sort(of_token);
    expert.insert(expert.end(), of_token.begin(), of_token.end());
  }
  constexpr int times = 10;
  const auto exchanges_of = [&](std::int64_t tokens) {
    return Work{[&, tokens] {
      for (int i = 0; i < times; ++i) {
        exchange.dispatch(in.data(), hidden, tokens, expert.data(), weight.data(), top_k, map);
        exchange.dispatched();
        exchange.combine();
        exchange.combined(out.data(), hidden);
      }
    }};
  };
  const std::vector<double> seconds = seconds_of(comm, {exchanges_of(few), exchanges_of(many)}, kLongLook);
  const double row = static_cast<double>(hidden) * (bf16_rows ? 2 : 4) * 2;  // out and back
  const double bytes = (many - few) * top_k * row, small = seconds[0] / times, large = seconds[1] / times;
  return {bytes / std::max(1e-9, large - small), small / 2 * 1e6};
}

}  // namespace

Cluster measure_cluster(Communicator& comm, const LaunchEnvironment& launch, Compute compute, const ModelConfig& config,
                        const Precision& precision, bool pin) {
  const int local = launch.local_size;
  if (-lowest(comm, -local) != local || lowest(comm, local) != local || comm.size() % local != 0)
    throw Error(
        "--cluster auto needs as many ranks on every host; describe mixed hosts in a JSON file (planner/README.md)",
        ExitCode::usage);
  if (comm.ranks_per_host() != local)  // a cluster's ranks are, and what is on whose host follows from their numbers
    throw Error(
        fmt::format("--cluster auto needs ranks that are numbered host by host, here {} in a row on each: mpirun "
                    "--map-by slot, not --map-by node",
                    local),
        ExitCode::usage);
  const auto backend =
      make_cpu_backend({.pin = pin, .local_rank = launch.local_rank, .local_ranks = local, .compute = compute});
  Device device{.kind = Device::Kind::cpu, .name = backend->description()};
  device.memory_bytes = lowest(comm, static_cast<double>(available_memory_bytes()) / local);
  device.measured = true;
  const Bench bench{comm, *backend, config, std::min(kNotCached / local, device.memory_bytes / 4),
                    device.memory_bytes / 4};
  device.linear["BF16"] = measure_linear(bench, "BF16", kLongLook, comm.size() > 1 ? &device : nullptr);
  const std::vector<std::string> dense = types_of(config, precision, false);
  for (const char* type : {"FP8", "Q8_0"})  // what other precisions are reckoned with
    if (std::ranges::find(dense, type) == dense.end()) device.linear[type] = measure_linear(bench, type, kShortLook);
  for (const std::string& type : dense)
    if (!device.linear.contains(type)) device.linear[type] = measure_linear(bench, type, kLongLook);
  device.memory_bytes_per_s = device.linear["BF16"].weights_per_s * 2;
  device.bf16_flops = device.linear["BF16"].flops;
  device.bf16_products = all_agree(comm, cpu::has_avx512_bf16());
  device.fp8_flops = device.linear["FP8"].flops;
  device.int8_flops = device.linear["Q8_0"].flops;
  for (const std::string& type : types_of(config, precision, true))
    device.experts[type] = measure_experts(bench, type, kLongLook);
  for (ProductRates* rates : {&device.linear, &device.experts})
    std::erase_if(*rates, [](const auto& rate) { return rate.second.flops <= 0; });  // no kernel takes it so

  Cluster cluster;
  cluster.name = "auto";
  cluster.groups.push_back({.nodes = comm.size() / local, .ranks_per_node = local, .device = device, .intra_node = {}});
  if (comm.size() > 1) bench.say("the exchange between ranks");
  if (local > 1) cluster.groups[0].intra_node = measure_link(bench, launch, compute == Compute::bf16, true);
  if (comm.size() > local) cluster.inter_node = measure_link(bench, launch, compute == Compute::bf16, false);
  return cluster;
}

}  // namespace shoal
