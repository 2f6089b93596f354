// The GPU's kernels at R1's shapes, each beside the time that memory or arithmetic sets for it on this very GPU.
//   gpu_bench [--json FILE] [--seconds S] [FILTER]
// Memory's limit is what a large copy reaches in the same run; arithmetic's is the tensor cores' rate at the GPU's
// highest clock. Weights change from call to call, so that they come from memory and not from L2.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "base/cuda/memory.h"
#include "kernels/cuda/operations.h"
#include "perf/gpu/cublaslt_peer.h"

namespace shoal {
namespace {

using namespace cuda;

constexpr std::int64_t kHidden = 7168, kExpert = 2048, kLatent = 512, kRope = 64, kHeads = 128;
constexpr int kPageTokens = 64;

/// Random bytes on the device, each a finite E4M3 or part of a small BF16 or float.
DeviceBlock random_block(std::size_t bytes) {
  static const std::vector<std::uint32_t> pattern = [] {
    std::mt19937 random(1);
    std::vector<std::uint32_t> words(1 << 20);
    for (auto& w : words) w = 0x3a003a00u ^ (random() & 0x83ff83ffu);  // BF16 near 1/2048, FP8 pairs, floats alike
    return words;
  }();
  DeviceBlock block(bytes);
  const std::size_t piece = pattern.size() * sizeof pattern[0];
  for (std::size_t at = 0; at < bytes; at += piece)
    check(cudaMemcpy(block.data() + at, pattern.data(), std::min(piece, bytes - at), cudaMemcpyHostToDevice), "copy");
  return block;
}

template <class T>
DeviceBlock on_device(const std::vector<T>& values) {
  DeviceBlock block(values.size() * sizeof(T));
  check(cudaMemcpy(block.data(), values.data(), block.bytes(), cudaMemcpyHostToDevice), "copy");
  return block;
}

struct Limits {
  double bytes_per_us, flops_per_us;  // of the tensor cores in BF16
  std::size_t l2_bytes;
};

class Bench {
 public:
  Bench(std::string filter, double seconds) : filter_(std::move(filter)), seconds_(seconds) {
    check(cudaSetDevice(0), "cudaSetDevice");
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    cudaDeviceProp p{};
    check(cudaGetDeviceProperties(&p, 0), "cudaGetDeviceProperties");
    int clock_khz = 0, driver = 0;
    check(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, 0), "cudaDeviceGetAttribute");
    check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    hopper = p.major == 9;
    const double per_clock = p.major == 8 ? 2048 : p.major == 9 ? 4096 : 8192;  // FLOP of an SM, dense BF16
    limits.flops_per_us = per_clock * p.multiProcessorCount * clock_khz * 1e-3;
    limits.l2_bytes = static_cast<std::size_t>(p.l2CacheSize);
    DeviceBlock from = random_block(std::size_t{1} << 30), to(std::size_t{1} << 30);
    const double us = median_us([&](int) {
      check(cudaMemcpyAsync(to.data(), from.data(), to.bytes(), cudaMemcpyDeviceToDevice, stream), "copy");
    });
    limits.bytes_per_us = 2.0 * static_cast<double>(to.bytes()) / us;
    report = {{"gpu", p.name},
              {"driver", driver},
              {"copy_TB_per_s", limits.bytes_per_us * 1e-6},
              {"bf16_TFLOP_per_s", limits.flops_per_us * 1e-6},
              {"rows", nlohmann::json::array()}};
    std::printf("%s, driver %d: copies %.2f TB/s, BF16 %.0f TFLOP/s at the highest clock\n", p.name, driver,
                limits.bytes_per_us * 1e-6, limits.flops_per_us * 1e-6);
    std::printf("%-44s %10s %10s %8s %9s %9s\n", "kernel", "us", "limit us", "share", "TB/s", "TFLOP/s");
  }

  bool wanted(const std::string& name) const { return name.find(filter_) != std::string::npos; }

  void row(const std::string& name, double bytes, double flops, const std::function<void(int)>& call) {
    if (!wanted(name)) return;
    const double us = median_us(call), limit = std::max(bytes / limits.bytes_per_us, flops / limits.flops_per_us);
    std::printf("%-44s %10.1f %10.1f %7.0f%% %9.2f %9.1f\n", name.c_str(), us, limit, 100 * limit / us,
                bytes / us * 1e-6, flops / us * 1e-6);
    std::fflush(stdout);
    report["rows"].push_back({{"kernel", name}, {"us", us}, {"limit_us", limit}, {"bytes", bytes}, {"flops", flops}});
  }

  cudaStream_t stream = nullptr;
  Limits limits{};
  nlohmann::json report;
  bool hopper = false;

 private:
  /// call(i) with i counting up.
  double median_us(const std::function<void(int)>& call) {
    cudaEvent_t begin = nullptr, end = nullptr;
    check(cudaEventCreate(&begin), "cudaEventCreate");
    check(cudaEventCreate(&end), "cudaEventCreate");
    std::vector<float> ms;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0;
         i < 5 || (i < 40 && std::chrono::steady_clock::now() - start < std::chrono::duration<double>(seconds_)); ++i) {
      check(cudaEventRecord(begin, stream), "cudaEventRecord");
      call(i);
      check(cudaEventRecord(end, stream), "cudaEventRecord");
      check(cudaStreamSynchronize(stream), "the GPU's work");
      check(cudaGetLastError(), "the GPU's work");
      ms.push_back(0);
      check(cudaEventElapsedTime(&ms.back(), begin, end), "cudaEventElapsedTime");
    }
    static_cast<void>(cudaEventDestroy(begin));
    static_cast<void>(cudaEventDestroy(end));
    ms.erase(ms.begin(), ms.begin() + 2);  // the first ones load code
    std::nth_element(ms.begin(), ms.begin() + std::ssize(ms) / 2, ms.end());
    return ms[ms.size() / 2] * 1e3;
  }

  const std::string filter_;
  const double seconds_;
};

/// `groups` matrices of R1's kinds, enough copies of them that L2 holds none from one call to the next.
struct Matrices {
  Matrices(const Limits& limits, WeightForm form, int groups, std::int64_t rows, std::int64_t cols) : count(groups) {
    const std::size_t size = form == WeightForm::f32 ? 4 : form == WeightForm::bf16 ? 2 : 1;
    // F8 lies in tiles of 128 rows.
    const std::int64_t stored = form == WeightForm::f8 ? (rows + kF8Tile - 1) / kF8Tile * kF8Tile : rows;
    of_one = static_cast<std::size_t>(stored * cols) * size;
    bytes = static_cast<double>(of_one) * groups;
    copies = static_cast<int>(std::clamp<std::size_t>(3 * limits.l2_bytes / (of_one * std::size_t(groups)) + 1, 1, 64));
    data = random_block(of_one * static_cast<std::size_t>(groups * copies));
    const std::int64_t scale_cols = (cols + 127) / 128;
    scales = on_device(std::vector<float>(static_cast<std::size_t>((rows + 127) / 128 * scale_cols), 0.01f));
    std::vector<Weights> all;
    for (int i = 0; i < groups * copies; ++i) {
      Weights w{data.data() + static_cast<std::size_t>(i) * of_one, nullptr, rows, cols, cols};
      w.form = form;
      if (form == WeightForm::f8) {
        w.scales = reinterpret_cast<const float*>(scales.data());
        w.block_rows = w.block_cols = 128;
        w.scale_cols = static_cast<int>(scale_cols);
      }
      all.push_back(w);
    }
    views = on_device(all);
  }
  const Weights* at(int call) const {
    return reinterpret_cast<const Weights*>(views.data()) + std::size_t(call % copies) * std::size_t(count);
  }
  int count, copies;
  std::size_t of_one;  // bytes
  double bytes;
  DeviceBlock data, scales, views;
};

/// cuBLASLt on data of the same size. What it lacks is said, not an error.
void bench_peer(Bench& b, const std::string& name, const Matrices& w, std::int64_t tokens, std::int64_t rows,
                std::int64_t cols) {
  try {
    CublasLtPeer peer;
    peer.prepare(tokens, rows, cols);
    const DeviceBlock x = random_block(static_cast<std::size_t>(tokens * cols));
    const DeviceBlock out(static_cast<std::size_t>(tokens * rows) * 2);
    const std::vector<float> ones(static_cast<std::size_t>((cols + 127) / 128 * (tokens + (rows + 127) / 128)), 1.0f);
    const DeviceBlock scales = on_device(ones);
    const auto* scale = reinterpret_cast<const float*>(scales.data());
    b.row(name + ", cuBLASLt fp8", w.bytes + static_cast<double>(tokens * (cols + 2 * rows)),
          static_cast<double>(tokens * rows * cols), [&](int i) {
            peer.run(x.data(), scale, w.data.data() + static_cast<std::size_t>(i % w.copies) * w.of_one, scale,
                     out.data(), b.stream);
          });
  } catch (const Error& error) {
    std::printf("%-44s %s\n", (name + ", cuBLASLt fp8").c_str(), error.what());
  }
}

/// The families that a product of these weights can go through on this GPU.
std::vector<std::string> families(WeightForm form, bool hopper) {
  if (form == WeightForm::f32) return {"fp32"};
  if (form == WeightForm::f8 && hopper) return {"mma bf16", "wgmma fp8"};
  return {"mma bf16"};
}

/// `groups` matrices, `tokens` rows of its own for each.
void bench_linear(Bench& b, const std::string& name, WeightForm form, std::int64_t rows, std::int64_t cols,
                  std::int64_t tokens, int groups = 1) {
  const std::string at = " T=" + std::to_string(tokens);
  if (!b.wanted(name + at)) return;
  const Matrices w(b.limits, form, groups, rows, cols);
  const std::int64_t all = tokens * groups, steps = (cols + kF8Tile - 1) / kF8Tile;
  const int tile_rows = form == WeightForm::f32 ? kTileRows : tokens <= kMmaFewRows ? kMmaFewRows : kMmaManyRows;
  std::vector<Tile> tiles;
  for (int g = 0; g < groups; ++g)
    for (std::int64_t t = 0; t < tokens; t += tile_rows)
      tiles.push_back({g, static_cast<std::int32_t>(g * tokens + t),
                       static_cast<std::int32_t>(std::min<std::int64_t>(tile_rows, tokens - t))});
  const DeviceBlock tiles_there = on_device(tiles), x = random_block(static_cast<std::size_t>(all * cols) * 4);
  const DeviceBlock out(static_cast<std::size_t>(all * rows) * 4);
  const std::size_t places = tiles.size() * static_cast<std::size_t>(steps * tile_rows);
  const DeviceBlock narrow(std::max(places * kF8Tile, static_cast<std::size_t>(all * cols) * 2)), scales(places * 4);
  LinearCall call;
  call.x = reinterpret_cast<const float*>(x.data());
  call.x_stride = cols;
  call.groups = groups;
  call.most_outputs = rows;
  call.rows = tokens;
  call.out = reinterpret_cast<float*>(out.data());
  call.out_stride = rows;
  call.tile_rows = tile_rows;
  call.most_in_tile = static_cast<int>(std::min<std::int64_t>(tokens, tile_rows));
  call.tiles = reinterpret_cast<const Tile*>(tiles_there.data());
  call.n_tiles = static_cast<int>(tiles.size());
  const HalfRows halves{reinterpret_cast<std::uint16_t*>(narrow.data()), cols};
  const F8Rows f8{narrow.data(), reinterpret_cast<float*>(scales.data()), static_cast<int>(steps)};
  const double bytes = w.bytes + static_cast<double>(all * (cols + rows)) * 4;
  const double flops = 2.0 * static_cast<double>(all * rows * cols);
  for (const std::string& family : families(form, b.hopper))
    b.row(name + at + ", " + family, bytes, family == "wgmma fp8" ? flops / 2 : flops, [&](int i) {
      LinearCall now = call;
      now.weights = w.at(i);
      if (family == "fp32") {
        linear(now, form, false, b.stream);
      } else if (family == "mma bf16") {
        round_rows({call.x, all, cols}, halves, b.stream);
        linear_mma(now, form, halves, b.stream);
      } else {
        quantize_f8(now, f8, b.stream);
        linear_f8(now, f8, b.stream);
      }
    });
  if (form == WeightForm::f8 && b.hopper && groups == 1 && tokens >= 4) bench_peer(b, name + at, w, tokens, rows, cols);
}

void bench_mla(Bench& b, KvType type, std::int64_t batch, int context) {
  const std::string name =
      "mla_decode " + std::string(name_of(type)) + " " + std::to_string(batch) + "x" + std::to_string(context);
  if (!b.wanted(name)) return;
  const HeadGroups heads{
      1, static_cast<int>(kHeads), static_cast<int>(kLatent + kRope), static_cast<int>(kLatent), 0, 0, 0, 0};
  const int width = static_cast<int>(kLatent + kRope);
  const int pages_each = (context + kPageTokens - 1) / kPageTokens;
  const DeviceBlock cache = random_block(static_cast<std::size_t>(batch) * std::size_t(pages_each) * kPageTokens *
                                         static_cast<std::size_t>(kv_row_bytes(type, width)));
  std::vector<std::int32_t> length(static_cast<std::size_t>(batch), context), first, pages;
  for (std::int32_t s = 0; s < batch; ++s) {
    first.push_back(s * pages_each);
    for (int p = 0; p < pages_each; ++p) pages.push_back(s * pages_each + p);
  }
  const DeviceBlock lengths = on_device(length), firsts = on_device(first), tables = on_device(pages);
  const DeviceBlock q = random_block(static_cast<std::size_t>(batch * kHeads * width) * 4);
  const DeviceBlock out(static_cast<std::size_t>(batch * kHeads * kLatent) * 4);
  const DeviceBlock parts(static_cast<std::size_t>(attention_parts(heads, batch, context)) * 4);
  const QueryTable table{reinterpret_cast<const std::int32_t*>(lengths.data()),
                         reinterpret_cast<const std::int32_t*>(firsts.data()),
                         reinterpret_cast<const std::int32_t*>(tables.data())};
  const KvLayer layer{cache.data(), type, kPageTokens, width};
  const double seen = static_cast<double>(batch) * context;
  b.row(name, seen * static_cast<double>(kv_row_bytes(type, width)), seen * 2.0 * kHeads * (2 * kLatent + kRope),
        [&](int) {
          attention({reinterpret_cast<const float*>(q.data()), batch, kHeads * width}, heads, 0.1f, table, context,
                    layer, reinterpret_cast<float*>(parts.data()),
                    {reinterpret_cast<float*>(out.data()), batch, kHeads * kLatent}, b.stream);
        });
}

void bench_small(Bench& b, std::int64_t tokens) {
  const std::string at = " T=" + std::to_string(tokens);
  const DeviceBlock x = random_block(static_cast<std::size_t>(tokens * kHidden) * 4),
                    weight = random_block(kHidden * 4);
  const DeviceBlock out(static_cast<std::size_t>(tokens * kHidden) * 4);
  auto* floats = reinterpret_cast<float*>(out.data());
  const Rows<const float> in(reinterpret_cast<const float*>(x.data()), tokens, kHidden);
  b.row("rms_norm" + at, static_cast<double>(tokens * kHidden) * 8, 0, [&](int) {
    rms_norm(in, reinterpret_cast<const float*>(weight.data()), 1e-6f, {floats, tokens, kHidden}, b.stream);
  });
  b.row("add" + at, static_cast<double>(tokens * kHidden) * 12, 0, [&](int) {
    add(in, {floats, tokens, kHidden}, b.stream);
  });
  const RouterShape shape{256, 8, 8, 4, Scoring::sigmoid, GroupScore::best_two_sum, true, 2.5f};
  const DeviceBlock picked(static_cast<std::size_t>(tokens) * 64), shares(static_cast<std::size_t>(tokens) * 64);
  b.row("route" + at, static_cast<double>(tokens) * 256 * 4, 0, [&](int) {
    route({in.data, tokens, 256}, nullptr, shape, reinterpret_cast<std::int32_t*>(picked.data()),
          reinterpret_cast<float*>(shares.data()), b.stream);
  });
}

int run(int argc, char** argv) {
  std::string json, filter;
  double seconds = 0.5;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--json" && i + 1 < argc)
      json = argv[++i];
    else if (word == "--seconds" && i + 1 < argc)
      seconds = std::stod(argv[++i]);
    else
      filter = word;
  }
  Bench b(filter, seconds);
  for (const std::int64_t t : {32, 128, 4096}) bench_small(b, t);
  for (const std::int64_t t : {1, 16, 128, 4096}) {
    bench_linear(b, "q_a+kv_a f8", WeightForm::f8, 2112, kHidden, t);
    bench_linear(b, "q_b f8", WeightForm::f8, 24576, 1536, t);
    bench_linear(b, "o_proj f8", WeightForm::f8, kHidden, 16384, t);
    bench_linear(b, "router f32", WeightForm::f32, 256, kHidden, t);
  }
  for (const std::int64_t t : {1, 32, 128}) bench_linear(b, "lm_head bf16", WeightForm::bf16, 129280, kHidden, t);
  // A rank's share of the routed experts under expert parallelism; T: rows of each.
  const struct { int ranks, slots; } shares[] = {{8, 32}, {32, 9}, {64, 4}, {144, 2}};
  for (const auto& [ranks, slots] : shares)
    for (const std::int64_t rows : {4, 16, 64, 256}) {
      const std::string ep = " EP" + std::to_string(ranks);
      bench_linear(b, "experts gate+up f8" + ep, WeightForm::f8, 2 * kExpert, kHidden, rows, slots);
      bench_linear(b, "experts down f8" + ep, WeightForm::f8, kHidden, kExpert, rows, slots);
    }
  for (const KvType type : {KvType::bf16, KvType::fp8}) {
    bench_mla(b, type, 32, 4096);
    bench_mla(b, type, 128, 4096);
  }
  if (!json.empty()) std::ofstream(json) << b.report.dump(1) << "\n";
  return 0;
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  try {
    return shoal::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_bench: %s\n", error.what());
    return 1;
  }
}
