// The GPU's kernels at R1's shapes, each beside the time that memory or arithmetic sets for it on this very GPU.
//   gpu_bench [--json FILE] [--seconds S] [FILTER]
// Memory's limit is what a large copy reaches in the same run; arithmetic's is the tensor cores' rate at the GPU's
// highest clock. Weights change from call to call, so that they come from memory and not from L2.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/cuda/memory.h"
#include "kernels/cuda/expert_plan.h"
#include "kernels/cuda/kernels_overlap.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/placed_matrix.h"
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
    shared_bytes = p.sharedMemPerBlockOptin;
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
  std::size_t shared_bytes = 0;  // that a block can have

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
    make(limits);
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
  /// Quantized ones, read like `like`, `size` bytes each.
  Matrices(const Limits& limits, const Weights& like, int groups, std::size_t size) : count(groups), of_one(size) {
    make(limits);
    std::vector<Weights> all(static_cast<std::size_t>(groups * copies), like);
    for (std::size_t i = 0; i < all.size(); ++i) all[i].data = data.data() + i * of_one;
    views = on_device(all);
  }
  const Weights* at(int call) const {
    return reinterpret_cast<const Weights*>(views.data()) + std::size_t(call % copies) * std::size_t(count);
  }
  int count, copies;
  std::size_t of_one;  // bytes
  double bytes;
  DeviceBlock data, scales, views;

 private:
  void make(const Limits& limits) {
    const std::size_t of_all = of_one * static_cast<std::size_t>(count);
    bytes = static_cast<double>(of_all);
    copies = static_cast<int>(std::clamp<std::size_t>(3 * limits.l2_bytes / of_all + 1, 1, 64));
    data = random_block(of_all * static_cast<std::size_t>(copies));
  }
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

/// `tokens` rows of its own for each of `groups` matrices.
std::vector<Tile> tiles_of(int groups, std::int64_t tokens, int tile_rows) {
  std::vector<Tile> ranges;
  for (int g = 0; g < groups; ++g)
    ranges.push_back({g, static_cast<std::int32_t>(g * tokens), static_cast<std::int32_t>(tokens)});
  return cut_into_tiles(ranges, tile_rows);
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
  const std::vector<Tile> tiles = tiles_of(groups, tokens, tile_rows);
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
  if (groups > 1) call.tiles = reinterpret_cast<const Tile*>(tiles_there.data());
  call.n_tiles = static_cast<int>(tiles.size());
  const DeviceBlock arrived = on_device(std::vector<unsigned>(kF8FewBlocks));
  DeviceBlock piece_sums;
  if (form == WeightForm::f8 && groups == 1) {
    call.pieces.count = linear_f8_pieces({nullptr, nullptr, rows, cols, cols});
    if (const std::int64_t room = linear_f8_room(call, call.pieces.count); room > 0) {
      piece_sums = DeviceBlock(static_cast<std::size_t>(room) * sizeof(float));
      call.pieces.sums = reinterpret_cast<float*>(piece_sums.data());
      call.pieces.arrived = reinterpret_cast<unsigned*>(arrived.data());
    }
  }
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
        round_rows({call.x, all, cols}, {}, nullptr, halves, b.stream);
        linear_mma(now, form, halves, b.stream);
      } else {
        quantize_f8(now, f8, b.stream);
        linear_f8(now, f8, b.stream);
      }
    });
  if (form == WeightForm::f8 && b.hopper && groups == 1 && tokens >= 4) bench_peer(b, name + at, w, tokens, rows, cols);
}

/// The same for quantized weights, with activations in bytes: on tensor cores, and few rows without; and INT4 with
/// activations in BF16. INT8's rate is twice that of BF16, in which limits are counted.
void bench_packed(Bench& b, const std::string& what, const std::string& format, const PackedFormat& packed,
                  std::int64_t rows, std::int64_t cols, std::int64_t tokens, int groups) {
  const std::string name = what + " " + format + " T=" + std::to_string(tokens);
  if (!b.wanted(name)) return;
  const auto placed =
      MatrixPlacer().place(Matrix(packed, PackedFormat::kPanel, cols));  // for the layout and its tables
  Weights like = placed->view;
  like.rows = rows;
  const Matrices w(
      b.limits, like, groups,
      static_cast<std::size_t>(rows / PackedFormat::kPanel * (cols / packed.record()) * packed.record_bytes()));
  const std::int64_t all = tokens * groups;
  const DeviceBlock x = random_block(static_cast<std::size_t>(all * cols) * 4),
                    values(static_cast<std::size_t>(all * cols) * 2), scales(static_cast<std::size_t>(all * cols / 8)),
                    out(static_cast<std::size_t>(all * rows) * 4);
  const ByteRows bytes{reinterpret_cast<std::int8_t*>(values.data()), reinterpret_cast<float*>(scales.data())};
  const HalfRows halves{reinterpret_cast<std::uint16_t*>(values.data()), cols};
  for (const std::string_view family : {"mma bf16", "mma int8", "dp4a"}) {
    const bool tensor_cores = family != "dp4a", bf16 = family == "mma bf16";
    if ((!tensor_cores && tokens > kMmaFewRows) || (bf16 && !linear_int4_mma_takes(like))) continue;
    const int tile_rows = !tensor_cores || tokens <= kTileRows ? kTileRows
                          : tokens <= kMmaFewRows              ? kMmaFewRows
                                                               : kMmaManyRows;
    const std::vector<Tile> tiles = tiles_of(groups, tokens, tile_rows);
    const DeviceBlock tiles_there = on_device(tiles);
    LinearCall call;
    call.groups = groups;
    call.most_outputs = call.out_stride = rows;
    call.rows = tokens;
    call.out = reinterpret_cast<float*>(out.data());
    call.tiles = reinterpret_cast<const Tile*>(tiles_there.data());
    call.n_tiles = static_cast<int>(tiles.size());
    call.tile_rows = tile_rows;
    call.most_in_tile = static_cast<int>(std::min<std::int64_t>(tokens, tile_rows));
    const Rows<const float> x_rows(reinterpret_cast<const float*>(x.data()), all, cols);
    b.row(name + ", " + std::string(family), w.bytes + static_cast<double>(all * (cols + rows)) * 4,
          static_cast<double>(all * rows * cols) * (bf16 ? 2 : 1), [&](int i) {
            LinearCall now = call;
            now.weights = w.at(i);
            if (bf16) {
              round_rows(x_rows, {}, nullptr, halves, b.stream);
              return linear_int4_mma(now, like.packed, halves, b.stream);
            }
            quantize_rows(x_rows, {}, nullptr, bytes, b.stream);
            if (tensor_cores)
              linear_packed_mma(now, like.packed, bytes, cols, b.stream);
            else
              linear_packed(now, bytes, cols, b.stream);
          });
  }
}

/// `groups` SwiGLU blocks of FP8, `tokens` rows of its own for each, from FP32 rows to FP32 results: three launches.
/// `in_vain`: tiles without rows behind the others, as a list has that a kernel makes.
void bench_experts(Bench& b, const std::string& name, std::int64_t tokens, int groups, int in_vain = 0) {
  const std::string at = name + " T=" + std::to_string(tokens) + ", fused fp8" +
                         (in_vain > 0 ? ", " + std::to_string(in_vain) + " empty tiles" : "");
  if (!b.hopper || !b.wanted(at)) return;
  const Matrices gates(b.limits, WeightForm::f8, groups, kExpert, kHidden),
      ups(b.limits, WeightForm::f8, groups, kExpert, kHidden),
      downs(b.limits, WeightForm::f8, groups, kHidden, kExpert);
  const std::int64_t all = tokens * groups;
  LinearCall call;
  call.tile_rows = tokens <= kMmaFewRows ? kMmaFewRows : kMmaManyRows;
  std::vector<Tile> tiles = tiles_of(groups, tokens, call.tile_rows);
  tiles.resize(tiles.size() + static_cast<std::size_t>(in_vain));
  call.tiles_made = in_vain > 0;
  const DeviceBlock tiles_there = on_device(tiles), x = random_block(static_cast<std::size_t>(all * kHidden) * 4);
  const DeviceBlock out(static_cast<std::size_t>(all * kHidden) * 4);
  const auto places = [&](std::int64_t cols) {
    return tiles.size() * static_cast<std::size_t>(cols / kF8Tile * call.tile_rows);
  };
  const DeviceBlock in(places(kHidden) * kF8Tile), in_scales(places(kHidden) * 4), hidden(places(kExpert) * kF8Tile),
      hidden_scales(places(kExpert) * 4);
  const F8Rows rows{in.data(), reinterpret_cast<float*>(in_scales.data()), static_cast<int>(kHidden / kF8Tile)};
  const F8Rows between{hidden.data(), reinterpret_cast<float*>(hidden_scales.data()),
                       static_cast<int>(kExpert / kF8Tile)};
  call.x = reinterpret_cast<const float*>(x.data());
  call.x_stride = call.out_stride = kHidden;
  call.groups = groups;
  call.rows = tokens;
  call.out = reinterpret_cast<float*>(out.data());
  call.tiles = reinterpret_cast<const Tile*>(tiles_there.data());
  call.n_tiles = static_cast<int>(tiles.size());
  // FP8's rate is twice that of BF16, in which limits are counted.
  b.row(at, gates.bytes + ups.bytes + downs.bytes + static_cast<double>(all * kHidden) * 8,
        static_cast<double>(all) * 3 * kHidden * kExpert, [&](int i) {
          LinearCall now = call;
          now.weights = gates.at(i);
          now.most_outputs = kExpert;
          quantize_f8(now, rows, b.stream);
          gated_f8(now, ups.at(i), rows, between, b.stream);
          now.weights = downs.at(i);
          now.most_outputs = kHidden;
          linear_f8(now, between, b.stream);
        });
}

/// `batch` sequences of `context` cached tokens, the last `run` of each asking.
void bench_attention(Bench& b, const std::string& name, const HeadGroups& heads, KvType type, std::int64_t batch,
                     int context, int run) {
  const int width = std::max({heads.key_dim, heads.first_value + heads.groups * heads.value_step});
  const std::int64_t n = batch * run, all_heads = std::int64_t{heads.groups} * heads.heads;
  const int pages_each = (context + kPageTokens - 1) / kPageTokens;
  const DeviceBlock cache = random_block(static_cast<std::size_t>(batch) * std::size_t(pages_each) * kPageTokens *
                                         static_cast<std::size_t>(kv_row_bytes(type, width)));
  std::vector<std::int32_t> length, first, pages;
  const int most = attention_mma_queries(heads, run, b.shared_bytes);
  std::vector<Tile> tiles;
  for (std::int32_t s = 0; s < batch; ++s) {
    for (int p = 0; p < pages_each; ++p) pages.push_back(s * pages_each + p);
    for (int t = 0; t < run; ++t) {
      length.push_back(context - run + 1 + t);
      first.push_back(s * pages_each);
      if (t % most == 0) tiles.push_back({s, s * run + t, std::min(most, run - t)});
    }
  }
  const DeviceBlock lengths = on_device(length), firsts = on_device(first), tables = on_device(pages),
                    tiles_there = on_device(tiles);
  const DeviceBlock q = random_block(static_cast<std::size_t>(n * all_heads * heads.key_dim) * 4);
  const DeviceBlock out(static_cast<std::size_t>(n * all_heads * heads.value_dim) * 4);
  const DeviceBlock parts(static_cast<std::size_t>(std::max(run == 1 ? attention_parts(heads, n, context) : 0,
                                                            attention_mma_parts(heads, n, context))) *
                          4);
  auto* parts_there = reinterpret_cast<float*>(parts.data());
  const QueryTable table{reinterpret_cast<const std::int32_t*>(lengths.data()),
                         reinterpret_cast<const std::int32_t*>(firsts.data()),
                         reinterpret_cast<const std::int32_t*>(tables.data())};
  const KvLayer layer{cache.data(), type, kPageTokens, width};
  const double seen = static_cast<double>(n) * (context - (run - 1) / 2.0);
  const double bytes = static_cast<double>(batch) * context * static_cast<double>(kv_row_bytes(type, width));
  const double flops = seen * 2.0 * static_cast<double>(all_heads) * (heads.key_dim + heads.value_dim);
  const Rows<const float> queries(reinterpret_cast<const float*>(q.data()), n, all_heads * heads.key_dim);
  const Rows<float> results(reinterpret_cast<float*>(out.data()), n, all_heads * heads.value_dim);
  const AttentionTiles in_tiles{reinterpret_cast<const Tile*>(tiles_there.data()), static_cast<int>(tiles.size()),
                                std::min(most, run), 0};
  if (run == 1)
    b.row(name + ", fp32", bytes, flops,
          [&](int) { attention(queries, heads, 0.1f, table, context, layer, parts_there, results, b.stream); });
  const auto merge = [&] {
    if (context > kMmaPart)
      merge_parts(parts_there, kMmaPart, (context + kMmaPart - 1) / kMmaPart, table.length, heads.value_dim, results,
                  b.stream);
  };
  if (b.hopper && mla_wgmma_takes(heads))
    b.row(name + ", wgmma bf16", bytes, flops, [&](int) {
      mla_wgmma(queries, heads, 0.1f, table, context, in_tiles, layer, parts_there, results, b.stream);
      merge();
    });
  b.row(name + ", mma bf16", bytes, flops, [&](int) {
    attention_mma(queries, heads, 0.1f, table, context, in_tiles, layer, parts_there, b.shared_bytes, results,
                  b.stream);
    merge();
  });
}

void bench_mla(Bench& b, KvType type, std::int64_t batch, int context) {
  const std::string name =
      "mla_decode " + std::string(name_of(type)) + " " + std::to_string(batch) + "x" + std::to_string(context);
  if (!b.wanted(name)) return;
  const HeadGroups heads{
      1, static_cast<int>(kHeads), static_cast<int>(kLatent + kRope), static_cast<int>(kLatent), 0, 0, 0, 0};
  bench_attention(b, name, heads, type, batch, context, 1);
}

/// The last `run` of `context` cached tokens in the form with keys and values of each head: what makes these, then the
/// attention; and, of whole prompts, the absorbed form beside it.
void bench_mla_prompt(Bench& b, KvType type, int context, int run) {
  constexpr int kNope = 128, kValue = 128, kDim = kNope + static_cast<int>(kRope);
  const std::string size = std::string(name_of(type)) + " " + std::to_string(run) + " of " + std::to_string(context);
  const std::string expand = "mla_expand f8 " + size, prompt = "mla_prompt " + size;
  const int heads = static_cast<int>(kHeads), width = static_cast<int>(kLatent + kRope);
  if (b.wanted(prompt) && run == context)
    bench_attention(b, prompt + " absorbed", {1, heads, width, static_cast<int>(kLatent), 0, 0, 0, 0}, type, 1, context,
                    run);
  if (!b.wanted(expand) && !b.wanted(prompt)) return;
  const int pages = (context + kPageTokens - 1) / kPageTokens, tile_rows = kPromptRows;
  const DeviceBlock cache =
      random_block(static_cast<std::size_t>(pages) * kPageTokens * static_cast<std::size_t>(kv_row_bytes(type, width)));
  std::vector<std::int32_t> table(static_cast<std::size_t>(2 * run));
  for (int t = 0; t < run; ++t) table[static_cast<std::size_t>(t)] = context - run + 1 + t;
  for (int p = 0; p < pages; ++p) table.push_back(p);
  std::vector<Tile> tiles;
  for (int t = (run - 1) / tile_rows * tile_rows; t >= 0; t -= tile_rows)
    tiles.push_back({0, t, std::min(tile_rows, run - t)});
  const DeviceBlock tables = on_device(table), tiles_there = on_device(tiles);
  const auto* lengths = reinterpret_cast<const std::int32_t*>(tables.data());
  const QueryTable queries{lengths, lengths + run, lengths + 2 * run};
  const Matrices k_up(b.limits, WeightForm::f8, heads, kLatent, kNope),
      v_up(b.limits, WeightForm::f8, heads, kValue, kLatent);
  ExpandedKv kv{nullptr, heads, kNope, static_cast<int>(kRope), kValue, b.hopper};
  const DeviceBlock expanded(static_cast<std::size_t>(ExpandedKv::elements(context, heads * kv.width())) * 2);
  const DeviceBlock q = random_block(static_cast<std::size_t>(run) * std::size_t(heads * kDim) * 4),
                    out(static_cast<std::size_t>(run) * std::size_t(heads * kValue) * 4);
  const Rows<const float> asking(reinterpret_cast<const float*>(q.data()), run, heads * kDim);
  const Rows<float> results(reinterpret_cast<float*>(out.data()), run, heads * kValue);
  const AttentionTiles in_tiles{reinterpret_cast<const Tile*>(tiles_there.data()), static_cast<int>(tiles.size()),
                                tile_rows, 0, context};
  const double made = static_cast<double>(context) * heads * kv.width() * 2;
  const double seen = static_cast<double>(run) * (context - (run - 1) / 2.0);
  const double flops = seen * 2.0 * heads * (kDim + kValue);
  const double rows = static_cast<double>(run) * heads * (kDim + kValue) * 4;
  // In tiles first, where this GPU's kernel reads those, then in rows.
  for (const bool tiled : b.hopper ? std::vector{true, false} : std::vector{false}) {
    kv.data = reinterpret_cast<std::uint16_t*>(expanded.data());
    kv.tiled = tiled;
    b.row(expand + (tiled ? " tiles" : " rows"), made + k_up.bytes + v_up.bytes,
          2.0 * context * heads * kLatent * (kNope + kValue), [&](int i) {
            mla_expand({cache.data(), type, kPageTokens, width}, queries, context, static_cast<int>(kLatent),
                       k_up.at(i), v_up.at(i), WeightForm::f8, kv, b.stream);
          });
    b.row(prompt + (tiled ? ", wgmma bf16" : ", mma bf16"), made + rows, flops, [&](int) {
      if (tiled)
        mla_prompt(asking, 0.1f, queries, in_tiles, kv, results, b.stream);
      else
        attention_mma(asking, {heads, 1, kDim, kValue, 0, kv.width(), kDim, kv.width()}, 0.1f, {queries.length},
                      context, in_tiles, {expanded.data(), KvType::bf16, 1, heads * kv.width()}, nullptr,
                      b.shared_bytes, results, b.stream);
    });
  }
}

void bench_gqa(Bench& b, std::int64_t batch, int context, int run) {
  const std::string name =
      (run == 1 ? "gqa_decode " : "gqa_prompt ") + std::to_string(batch) + "x" + std::to_string(context);
  if (!b.wanted(name)) return;
  bench_attention(b, name, {4, 7, 128, 128, 0, 128, 512, 128}, KvType::bf16, batch, context, run);  // Qwen2.5-7B
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
  const std::int64_t steps = kHidden / kF8Tile, tile_rows = tokens <= kMmaFewRows ? kMmaFewRows : kMmaManyRows;
  const std::int64_t places = (tokens + tile_rows - 1) / tile_rows * tile_rows * steps;
  const DeviceBlock branch = random_block(static_cast<std::size_t>(tokens * kHidden) * 4),
                    codes(static_cast<std::size_t>(places) * kF8Tile), scales(static_cast<std::size_t>(places) * 4),
                    sum(static_cast<std::size_t>(tokens * kHidden) * 4);
  Rounded rounded;
  rounded.f8 = {codes.data(), reinterpret_cast<float*>(scales.data()), static_cast<int>(steps)};
  rounded.f8_tile_rows = static_cast<int>(tile_rows);
  b.row("add+rms_norm+f8" + at, static_cast<double>(tokens * kHidden) * 17, 0, [&](int) {
    add_rms_norm(in, {reinterpret_cast<const float*>(branch.data()), tokens, kHidden},
                 {reinterpret_cast<float*>(sum.data()), tokens, kHidden}, reinterpret_cast<const float*>(weight.data()),
                 1e-6f, {floats, tokens, kHidden}, rounded, b.stream);
  });
  const RouterShape shape{256, 8, 8, 4, Scoring::sigmoid, GroupScore::best_two_sum, true, 2.5f};
  const DeviceBlock picked(static_cast<std::size_t>(tokens) * 64), shares(static_cast<std::size_t>(tokens) * 64);
  b.row("route" + at, static_cast<double>(tokens) * 256 * 4, 0, [&](int) {
    route({in.data, tokens, 256}, nullptr, shape, reinterpret_cast<std::int32_t*>(picked.data()),
          reinterpret_cast<float*>(shares.data()), b.stream);
  });
}

/// What a rank does of a layer whose host learns nothing of it, but for its products: each of `ranks` has so many
/// tokens, whose experts are spread evenly.
void bench_slots(Bench& b, int ranks, int tokens) {
  constexpr int kTopK = 8, kExperts = 256;
  const std::string at = " EP" + std::to_string(ranks) + " T=" + std::to_string(tokens);
  const Slots slots{ranks, 0, tokens, tokens, kTopK, kHidden, Wire::f8, Wire::bf16, false};
  const int here = kExperts / ranks;
  std::mt19937 random(8);
  std::vector<std::int32_t> first, place, id;
  std::vector<std::uint32_t> edge(kExperts, 0xffffffffu);
  for (std::int32_t e = 0; e <= kExperts; ++e) {
    first.push_back(e);
    if (e < kExperts) place.push_back(place_of(e / here, e % here));
  }
  const auto draw = [&] {
    std::set<std::int32_t> of_token;
    while (of_token.size() < kTopK) of_token.insert(static_cast<std::int32_t>(random() % kExperts));
    return of_token;
  };
  std::vector<std::byte> all(static_cast<std::size_t>(slots.all() * slots.slot_bytes()));
  std::int64_t pairs = 0, rows = 0;
  for (std::int64_t slot = 0; slot < slots.all(); ++slot) {
    auto* entry = reinterpret_cast<SlotEntry*>(all.data() + slots.part_at(static_cast<int>(slot / tokens)) +
                                               slots.entries_at(slot % tokens));
    bool is_here = false;
    for (const std::int32_t e : draw()) {
      *entry++ = {place[static_cast<std::size_t>(e)], 0.1f};
      pairs += e < here ? 1 : 0;
      is_here = is_here || e < here;
      if (slot < tokens) id.push_back(e);
    }
    rows += is_here ? 1 : 0;
  }
  const DeviceBlock firsts = on_device(first), places = on_device(place), edges = on_device(edge), ids = on_device(id),
                    weights = random_block(id.size() * 4), turn = on_device(std::vector<std::uint32_t>{1}),
                    h = random_block(static_cast<std::size_t>(tokens * kHidden) * 4), in = on_device(all),
                    own(static_cast<std::size_t>(tokens * slots.slot_bytes())), chosen(id.size() * 4),
                    x(static_cast<std::size_t>(slots.all() * kHidden) * 4), begin((kMaxExperts + 1) * 4),
                    row(static_cast<std::size_t>(slots.all()) * kTopK * 4),
                    pair(static_cast<std::size_t>(slots.all()) * kTopK * 4), work(4),
                    results = random_block(static_cast<std::size_t>(pairs * kHidden) * 4),
                    sent(static_cast<std::size_t>(slots.all() * slots.answer_bytes())),
                    answers(static_cast<std::size_t>(slots.all() * slots.answer_bytes())),
                    out(static_cast<std::size_t>(tokens * kHidden) * 4),
                    tiles(static_cast<std::size_t>(slots.all()) * kTopK * sizeof(Tile));
  const auto ints = [](const DeviceBlock& block) { return reinterpret_cast<std::int32_t*>(block.data()); };
  const double of_slot = static_cast<double>(slots.slot_bytes()), of_row = 4.0 * kHidden;
  b.row("pack_slots" + at, tokens * (of_slot + of_row), 0, [&](int) {
    pack_slots({reinterpret_cast<const float*>(h.data()), tokens, kHidden}, ints(ids),
               reinterpret_cast<const float*>(weights.data()), kTopK, 1,
               {ints(firsts), ints(places), reinterpret_cast<const std::uint32_t*>(edges.data())},
               reinterpret_cast<const std::uint32_t*>(turn.data()), slots, own.data(), {}, ints(chosen), b.stream);
  });
  const SlotPlan plan{ints(begin), ints(row), ints(pair), ints(work)};
  b.row("plan_slots" + at, static_cast<double>(slots.all()) * kTopK * 12, 0,
        [&](int) { plan_slots(in.data(), slots, here, plan, b.stream); });
  b.row("cut_ranges" + at, here * 16.0, 0, [&](int) {
    cut_ranges(ints(begin), here, nullptr, kMmaFewRows, here + static_cast<int>(slots.all()) * kTopK / kMmaFewRows,
               reinterpret_cast<Tile*>(tiles.data()), b.stream);
  });
  b.row("unpack_slots" + at, static_cast<double>(rows) * of_slot + static_cast<double>(slots.all()) * of_row, 0,
        [&](int) { unpack_slots(in.data(), slots, reinterpret_cast<float*>(x.data()), b.stream); });
  const double of_answer = static_cast<double>(slots.answer_bytes());
  b.row("combine_slots" + at, static_cast<double>(pairs) * of_row + static_cast<double>(rows) * of_answer, 0, [&](int) {
    combine_slots({reinterpret_cast<const float*>(results.data()), pairs, kHidden}, in.data(), ints(pair), slots,
                  sent.data(), answers.data(), {}, b.stream);
  });
  const double ranks_asked = ranks * (1 - std::pow(1.0 - 1.0 / ranks, kTopK));
  b.row("add_slot_answers" + at, tokens * (ranks_asked * of_answer + 2 * of_row), 0, [&](int) {
    add_slot_answers(in.data(), answers.data(), slots, {reinterpret_cast<float*>(out.data()), tokens, kHidden},
                     b.stream);
  });
}

/// Kernels that wait for each other, as in a decode step: what a launch costs, and what overlapping them saves.
void bench_chain(Bench& b) {
  constexpr std::int64_t kTokens = 32;
  constexpr int kKernels = 24;
  const DeviceBlock x = random_block(kTokens * kHidden * 4), acc(kTokens * kHidden * 4);
  const Rows<const float> in(reinterpret_cast<const float*>(x.data()), kTokens, kHidden);
  const Rows<float> to(reinterpret_cast<float*>(acc.data()), kTokens, kHidden);
  for (const bool overlap : {false, true}) {
    if (overlap && !b.hopper) return;
    kernels_overlap = overlap;
    b.row(std::string("24 adds T=32") + (overlap ? ", overlapped" : ""), kKernels * 12.0 * kTokens * kHidden, 0,
          [&](int) {
            for (int i = 0; i < kKernels; ++i) add(in, to, b.stream);
          });
  }
  kernels_overlap = false;
}

void bench_sample(Bench& b, std::int64_t rows) {
  constexpr std::int64_t kVocabulary = 129280;
  const std::string at = " T=" + std::to_string(rows);
  const DeviceBlock logits = random_block(static_cast<std::size_t>(rows * kVocabulary) * 4);
  const DeviceBlock room(static_cast<std::size_t>(rows) * sample_room_bytes(kVocabulary)),
      tokens(std::size_t(rows) * 4);
  const struct {
    const char* name;
    Draw draw;
  } cases[] = {{"sample greedy", {}}, {"sample top_p 0.95", {1 / 0.6f, 0, 0.95f, 0, 0.5}}};
  for (const auto& [name, draw] : cases) {
    const DeviceBlock draws = on_device(std::vector<Draw>(static_cast<std::size_t>(rows), draw));
    b.row(name + at, static_cast<double>(rows * kVocabulary) * 4, 0, [&](int) {
      sample({reinterpret_cast<const float*>(logits.data()), rows, kVocabulary},
             reinterpret_cast<const Draw*>(draws.data()), reinterpret_cast<std::int32_t*>(tokens.data()), room.data(),
             b.stream);
    });
  }
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
  for (const int t : {8, 64, 128}) bench_slots(b, 8, t);
  bench_slots(b, 32, 16);
  bench_chain(b);
  for (const std::int64_t t : {1, 32}) bench_sample(b, t);
  for (const std::int64_t t : {1, 16, 128, 4096}) {
    bench_linear(b, "q_a f8", WeightForm::f8, 1536, kHidden, t);
    bench_linear(b, "kv_a f8", WeightForm::f8, kLatent + kRope, kHidden, t);
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
      bench_experts(b, "experts" + ep, rows, slots);
    }
  // 8 ranks of 16 and of 128 tokens, all of which might need one rank's experts.
  bench_experts(b, "experts EP8", 4, 32, 8 * 16 * 8 / 16);
  bench_experts(b, "experts EP8", 32, 32, 8 * 128 * 8 / 64);
  // One user, a few dozen, a prompt: with 8 ranks an expert meets as many rows.
  std::vector<std::pair<std::string, const PackedFormat*>> formats{
      {"INT4", &integer_format(4, Scales::half, 128, std::nullopt)}};  // AWQ, GPTQ
  for (const char* format : {"Q4_K", "Q8_0", "Q6_K", "Q2_K", "IQ2_XXS", "IQ1_S"})
    formats.emplace_back(format, packed_format(*find_format(format)));
  for (const auto& [format, packed] : formats)
    for (const std::int64_t rows : {1, 16, 128}) {
      bench_packed(b, "experts gate+up EP8", format, *packed, 2 * kExpert, kHidden, rows, 32);
      bench_packed(b, "experts down EP8", format, *packed, kHidden, kExpert, rows, 32);
    }
  for (const auto& [format, packed] : {formats[0], formats[1]})
    for (const std::int64_t t : {1, 128, 4096}) bench_packed(b, "o_proj", format, *packed, kHidden, 16384, t, 1);
  for (const KvType type : {KvType::bf16, KvType::fp8}) {
    bench_mla(b, type, 32, 4096);
    bench_mla(b, type, 128, 4096);
  }
  bench_mla_prompt(b, KvType::bf16, 4096, 4096);
  bench_mla_prompt(b, KvType::fp8, 4096, 4096);
  bench_mla_prompt(b, KvType::bf16, 32768, 2048);
  bench_gqa(b, 128, 4096, 1);
  bench_gqa(b, 2, 4096, 2048);
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
