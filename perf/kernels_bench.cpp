// Linear layers, experts and attention at the sizes of two models: hidden 2048 (the 1.6 B model of R1's architecture
// that other engines were measured with) and hidden 7168 (R1), beside this machine's limits measured in the same run.
//
//   kernels_bench [--threads=N] [--isa=avx512] [--benchmark_filter=...]
#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/amx_shape.h"
#include "kernels/cpu/isa.h"
#include "kernels/thread_pool.h"

namespace shoal {
namespace {

CpuOptions g_options;

Backend& backend_for(Compute compute) {
  static std::map<Compute, std::unique_ptr<Backend>> backends;
  auto& b = backends[compute];
  if (!b) {
    CpuOptions options = g_options;
    options.compute = compute;
    b = make_cpu_backend(options);
  }
  return *b;
}

ThreadPool& pool() {
  static ThreadPool p(g_options.threads);
  return p;
}

/// Values do not matter for speed as long as they are ordinary numbers; a few rows repeat.
Matrix filled(DType dtype, std::int64_t rows, std::int64_t cols) {
  Matrix m(dtype, rows, cols);
  const auto bytes = static_cast<std::size_t>(cols) * size_of(dtype);
  std::vector<std::byte> row(bytes);
  std::uint32_t state = 1;
  for (std::size_t c = 0; c < static_cast<std::size_t>(cols); ++c) {
    state = state * 1664525u + 1013904223u;
    const float f = static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
    const std::uint16_t half =
        dtype == DType::bf16 ? f32_to_bf16(f) : static_cast<std::uint16_t>(0x3000u | (state >> 22));
    const auto code = static_cast<std::uint8_t>((state >> 25) & 0x6fu);
    const void* from = dtype == DType::f32       ? static_cast<const void*>(&f)
                       : dtype == DType::f8_e4m3 ? static_cast<const void*>(&code)
                                                 : &half;
    std::memcpy(row.data() + c * size_of(dtype), from, size_of(dtype));
  }
  m.pack_rows(0, rows, row.data(), 0);
  if (dtype == DType::f8_e4m3) {
    const auto blocks = static_cast<std::size_t>((rows + 127) / 128 * ((cols + 127) / 128));
    m.set_scales({std::vector<float>(blocks, 0.01f), 128, 128});
  }
  return m;
}

/// The same of a quantized format: one row, many times.
Matrix filled(const QuantFormat& format, std::int64_t rows, std::int64_t cols) {
  std::vector<float> row(static_cast<std::size_t>(cols));
  for (std::size_t c = 0; c < row.size(); ++c) row[c] = std::sin(static_cast<float>(c));
  std::vector<std::byte> blocks(static_cast<std::size_t>(format.bytes(cols)));
  if (format.quantize) {
    format.quantize(row.data(), cols, nullptr, blocks.data());
  } else {
    // Formats that are only read: any codes will do, with scales that cannot be infinite.
    std::fill(blocks.begin(), blocks.end(), std::byte{0x2a});
  }
  Matrix m(*packed_format(format), rows, cols);
  m.pack_rows(0, rows, blocks.data(), 0);
  return m;
}

/// A kind of weights and how they are multiplied.
struct Kind {
  std::string name;
  std::function<Matrix(std::int64_t rows, std::int64_t cols)> make;
  Compute compute = Compute::f32;
};

std::vector<float> activations(std::int64_t n) {
  std::vector<float> x(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = 0.1f * std::sin(static_cast<float>(i));
  return x;
}

void report(benchmark::State& state, double flops, double bytes) {
  const auto n = static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(flops * n * 1e-9, benchmark::Counter::kIsRate);
  state.counters["GB/s"] = benchmark::Counter(bytes * n * 1e-9, benchmark::Counter::kIsRate);
}

// ---- Limits ----

void limit_read(benchmark::State& state) {
  const std::size_t words = std::size_t{64} << 20;  // 512 MB
  // In huge pages, as weights are.
  static const std::shared_ptr<void> memory = backend_for(Compute::f32).allocate(words * sizeof(std::uint64_t));
  auto* const data = static_cast<std::uint64_t*>(memory.get());
  std::fill_n(data, words, 1);
  const std::size_t part = std::size_t{1} << 17;
  for (auto _ : state) {
    pool().parallel_for(words / part, 1, [&](std::size_t begin, std::size_t end, int) {
      std::uint64_t sum[8] = {};
      for (std::size_t i = begin * part; i < end * part; i += 8) {
        for (std::size_t j = 0; j < 8; ++j) sum[j] += data[i + j];
      }
      benchmark::DoNotOptimize(sum);
    });
  }
  report(state, 0, static_cast<double>(words) * 8);
}

// Sums that start apart, or the compiler would see that one chain gives them all.
constexpr int kChains = 16, kSteps = 1 << 16;

__attribute__((target("avx2,fma"))) void chains_avx2() {
  const __m256 x = _mm256_set1_ps(1.0f), y = _mm256_set1_ps(1e-9f);
  __m256 sum[kChains / 2];
#pragma GCC unroll 8
  for (int c = 0; c < kChains / 2; ++c) sum[c] = _mm256_set1_ps(static_cast<float>(c));
  for (int i = 0; i < kSteps * 4; ++i) {
#pragma GCC unroll 8
    for (auto& s : sum) s = _mm256_fmadd_ps(x, y, s);
  }
#pragma GCC unroll 8
  for (auto& s : sum) benchmark::DoNotOptimize(s[0]);
}

/// What AVX2 has for bytes: pairs of products as 16 bits, and an addition.
__attribute__((target("avx2"))) void chains_pairs() {
  __m256i x = _mm256_set1_epi8(1);
  __m256i sum[kChains / 2];
#pragma GCC unroll 8
  for (int c = 0; c < kChains / 2; ++c) sum[c] = _mm256_set1_epi16(static_cast<short>(c));
  for (int i = 0; i < kSteps * 2; ++i) {
#pragma GCC unroll 8
    for (auto& s : sum) {
      asm("" : "+x"(x));  // or the product would be made once
      s = _mm256_add_epi16(s, _mm256_maddubs_epi16(x, x));
    }
  }
#pragma GCC unroll 8
  for (auto& s : sum) benchmark::DoNotOptimize(s[0]);
}

/// The same of AVX-512 without VNNI.
__attribute__((target("avx512f,avx512bw"))) void chains_pairs_512() {
  __m512i x = _mm512_set1_epi8(1);
  __m512i sum[kChains / 2];
#pragma GCC unroll 8
  for (int c = 0; c < kChains / 2; ++c) sum[c] = _mm512_set1_epi16(static_cast<short>(c));
  for (int i = 0; i < kSteps * 2; ++i) {
#pragma GCC unroll 8
    for (auto& s : sum) {
      asm("" : "+v"(x));
      s = _mm512_add_epi16(s, _mm512_maddubs_epi16(x, x));
    }
  }
#pragma GCC unroll 8
  for (auto& s : sum) benchmark::DoNotOptimize(s[0]);
}

/// Twelve chains: Intel's cores begin two of these a cycle and each takes five.
__attribute__((target("avx2,avxvnni"))) void chains_avxvnni() {
  const __m256i x = _mm256_set1_epi8(1);
  __m256i sum[12];
#pragma GCC unroll 12
  for (int c = 0; c < 12; ++c) sum[c] = _mm256_set1_epi32(c);
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (auto& s : sum) s = _mm256_dpbusd_avx_epi32(s, x, x);
  }
#pragma GCC unroll 12
  for (auto& s : sum) benchmark::DoNotOptimize(s[0]);
}

__attribute__((target("avx512f"))) void chains_avx512() {
  const __m512 x = _mm512_set1_ps(1.0f), y = _mm512_set1_ps(1e-9f);
  __m512 sum[kChains];
#pragma GCC unroll 16
  for (int c = 0; c < kChains; ++c) sum[c] = _mm512_set1_ps(static_cast<float>(c));
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 16
    for (auto& s : sum) s = _mm512_fmadd_ps(x, y, s);
  }
#pragma GCC unroll 16
  for (auto& s : sum) benchmark::DoNotOptimize(s[0]);
}

__attribute__((target("avx512f,avx512bf16"))) void chains_bf16() {
  const __m512i x = _mm512_set1_epi32(0x3f803f80);
  __m512 sum[kChains];
#pragma GCC unroll 16
  for (int c = 0; c < kChains; ++c) sum[c] = _mm512_set1_ps(static_cast<float>(c));
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 16
    for (auto& s : sum) s = _mm512_dpbf16_ps(s, (__m512bh)x, (__m512bh)x);
  }
#pragma GCC unroll 16
  for (auto& s : sum) benchmark::DoNotOptimize(s[0]);
}

__attribute__((target("avx512f,avx512vnni"))) void chains_vnni() {
  const __m512i x = _mm512_set1_epi8(1);
  __m512i sum[kChains];
#pragma GCC unroll 16
  for (int c = 0; c < kChains; ++c) sum[c] = _mm512_set1_epi32(c);
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 16
    for (auto& s : sum) s = _mm512_dpbusd_epi32(s, x, x);
  }
#pragma GCC unroll 16
  for (auto& s : sum) benchmark::DoNotOptimize(s[0]);
}

/// Tiles of 16 x 64 with 64 x 16 bytes: 16,384 products each, as many a call as 16 chains of 64 bytes have.
void tiles_of_bytes() {
  cpu::TileConfig config{};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
  asm volatile("ldtilecfg %0" : : "m"(config));
  for (int i = 0; i < kSteps * kChains * 64 / 16384 / 4; ++i) {
    asm volatile(
        "tdpbssd %tmm6, %tmm4, %tmm0\n tdpbssd %tmm6, %tmm5, %tmm1\n"
        "tdpbssd %tmm7, %tmm4, %tmm2\n tdpbssd %tmm7, %tmm5, %tmm3");
  }
  asm volatile("tilerelease");
}

/// Every thread multiplies registers with registers. FLOPs per call and thread: kChains times kSteps times `products`,
/// times 2.
void limit_multiply(benchmark::State& state, void (*chains)(), int products) {
  for (auto _ : state) {
    pool().parallel_for(static_cast<std::size_t>(pool().size()) * 8, 1, [&](std::size_t begin, std::size_t end, int) {
      for (; begin < end; ++begin) chains();
    });
  }
  report(state, 2.0 * products * kChains * kSteps * pool().size() * 8, 0);
}

// ---- Operations ----

void linear(benchmark::State& state, const Kind& kind, std::int64_t rows, std::int64_t cols) {
  const std::int64_t tokens = state.range(0);
  // Enough copies that no cache holds them, as in a model's other layers.
  std::vector<Matrix> w;
  for (std::int64_t bytes = 0; bytes < (std::int64_t{200} << 20); bytes += w.back().bytes())
    w.push_back(kind.make(rows, cols));
  const auto x = activations(tokens * cols);
  std::vector<float> out(static_cast<std::size_t>(tokens * rows));
  std::size_t next = 0;
  for (auto _ : state) {
    backend_for(kind.compute).linear({x.data(), tokens, cols}, w[next++ % w.size()], {}, {out.data(), tokens, rows});
  }
  report(state, 2.0 * double(tokens) * double(rows) * double(cols), double(w[0].bytes()));
}

void experts(benchmark::State& state, const Kind& kind, int n_experts, std::int64_t hidden, std::int64_t intermediate) {
  // Of the last kind only: a few hundred MB each.
  static std::string of;
  static std::vector<FeedForward> e;
  if (of != kind.name + std::to_string(hidden)) e.clear();
  of = kind.name + std::to_string(hidden);
  while (std::ssize(e) < n_experts) {
    e.push_back({kind.make(intermediate, hidden), kind.make(intermediate, hidden), kind.make(hidden, intermediate)});
  }
  const std::int64_t tokens = state.range(0);
  const auto x = activations(tokens * hidden);
  std::vector<float> out(x.size());
  ExpertBatch batch;
  batch.first.push_back(0);
  std::vector<char> used(static_cast<std::size_t>(n_experts));
  std::uint32_t random = 7;
  for (std::int64_t t = 0; t < tokens; ++t) {
    batch.rows.push_back(x.data() + t * hidden);
    batch.out.push_back(out.data() + t * hidden);
    std::vector<char> mine(used.size());
    for (int k = 0; k < 8;) {
      random = random * 1664525u + 1013904223u;
      const std::size_t id = (random >> 10) % mine.size();
      if (!mine[id]) mine[id] = used[id] = 1, ++k;
    }
    for (std::size_t id = 0; id < mine.size(); ++id) {
      if (mine[id]) batch.expert.push_back(static_cast<std::int32_t>(id)), batch.weight.push_back(0.125f);
    }
    batch.first.push_back(static_cast<std::int32_t>(batch.expert.size()));
  }
  double bytes = 0;
  for (std::size_t i = 0; i < used.size(); ++i) {
    if (used[i]) bytes += double(e[i].gate.bytes() + e[i].up.bytes() + e[i].down.bytes());
  }
  for (auto _ : state) backend_for(kind.compute).experts(batch, e);
  report(state, 6.0 * double(batch.expert.size()) * double(hidden) * double(intermediate), bytes);
}

/// The last `tokens` tokens of one sequence attend to `context` positions: attend(backend, q, queries, cache, out) of
/// `heads` with queries of `query_dim` and answers of `value_dim`.
template <class Attend>
void attention(benchmark::State& state, int heads, int query_dim, int value_dim, int width, std::int32_t context,
               const Attend& attend) {
  const std::int64_t tokens = state.range(0);
  constexpr int kPage = 16;
  Backend& backend = backend_for(Compute::f32);
  const auto pages_needed = static_cast<std::size_t>(context / kPage + 1);
  const auto memory = backend.allocate(pages_needed * kPage * static_cast<std::size_t>(width) * 2);
  std::vector<std::int32_t> pages(pages_needed);
  for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<std::int32_t>(i);
  std::vector<AttentionQuery> queries;
  for (std::int64_t t = 0; t < tokens; ++t)
    queries.push_back({pages.data(), static_cast<std::int32_t>(context - tokens + t + 1)});
  const std::int64_t q_cols = std::int64_t{heads} * query_dim, out_cols = std::int64_t{heads} * value_dim;
  const auto q = activations(tokens * q_cols);
  std::vector<float> out(static_cast<std::size_t>(tokens * out_cols));
  const KvLayer cache{memory.get(), KvType::bf16, kPage, width};
  for (auto _ : state) {
    attend(backend, Rows<const float>{q.data(), tokens, q_cols}, queries, cache,
           Rows<float>{out.data(), tokens, out_cols});
  }
  report(state, 2.0 * double(tokens) * heads * context * (query_dim + value_dim), double(context) * width * 2);
}

void mla(benchmark::State& state, int heads, std::int32_t context) {
  attention(state, heads, 576, 512, 576, context,
            [&](Backend& backend, const auto& q, const auto& queries, const KvLayer& cache, const auto& out) {
              backend.mla_attention(q, {heads, 512, 64}, 0.1f, queries, cache, out);
            });
}

void gqa(benchmark::State& state, int heads, int kv_heads, std::int32_t context) {
  constexpr int kDim = 128;
  attention(state, heads, kDim, kDim, 2 * kv_heads * kDim, context,
            [&](Backend& backend, const auto& q, const auto& queries, const KvLayer& cache, const auto& out) {
              backend.gqa_attention(q, {heads, kv_heads, kDim}, 0.1f, queries, cache, out);
            });
}

void register_all() {
  const auto add = [](const std::string& name, auto... args) {
    return benchmark::RegisterBenchmark(name.c_str(), args...)->UseRealTime()->MeasureProcessCPUTime();
  };
  add("limit/read", limit_read);
  const Isa isa = cpu::choose_isa(g_options.isa);
  if (isa >= Isa::avx2) add("limit/fma_avx2", limit_multiply, chains_avx2, 16);
  if (isa >= Isa::avx2) add("limit/pairs_of_bytes", limit_multiply, chains_pairs, 32);
  if (isa == Isa::avxvnni) add("limit/dot_bytes_avxvnni", limit_multiply, chains_avxvnni, 24);
  if (isa >= Isa::avx512bw) {
    add("limit/fma_avx512", limit_multiply, chains_avx512, 16);
    add("limit/pairs_of_bytes_avx512", limit_multiply, chains_pairs_512, 64);
  }
  if (isa >= Isa::avx512) {
    if (cpu::has_avx512_bf16()) add("limit/dot_bf16", limit_multiply, chains_bf16, 32);
    add("limit/dot_bytes", limit_multiply, chains_vnni, 64);
  }
  if (isa == Isa::amx) add("limit/tiles_of_bytes", limit_multiply, tiles_of_bytes, 64);

  const auto plain = [](DType dtype) {
    return [dtype](std::int64_t rows, std::int64_t cols) { return filled(dtype, rows, cols); };
  };
  std::vector<Kind> kinds = {{"bf16", plain(DType::bf16)},
                             {"bf16_dot", plain(DType::bf16), Compute::bf16},
                             {"f8", plain(DType::f8_e4m3)},
                             {"f8_dot", plain(DType::f8_e4m3), Compute::bf16}};
  for (const QuantFormat& format : quant_formats()) {
    if (!packed_format(format)) continue;
    kinds.push_back({std::string(format.name),
                     [&format](std::int64_t rows, std::int64_t cols) { return filled(format, rows, cols); }});
  }
  const std::vector<std::int64_t> tokens{1, 4, 16, 64, 256};
  for (const Kind& kind : kinds) {
    add("linear/" + kind.name + "/2048x2048", linear, kind, 2048, 2048)->ArgsProduct({tokens});
    add("linear/" + kind.name + "/7168x16384", linear, kind, 7168, 16384)->ArgsProduct({tokens});
    add("experts/" + kind.name + "/64x512x2048", experts, kind, 64, 2048, 512)->ArgsProduct({tokens});
    add("experts/" + kind.name + "/16x2048x7168", experts, kind, 16, 7168, 2048)->ArgsProduct({tokens});
  }
  add("mla/16_heads/context_256", mla, 16, 256)->ArgsProduct({tokens});
  add("mla/16_heads/context_4096", mla, 16, 4096)->ArgsProduct({tokens});
  add("mla/128_heads/context_4096", mla, 128, 4096)->ArgsProduct({{1, 4, 16}});
  // The distilled Qwen 1.5B and Llama 8B.
  add("gqa/12_heads_of_2/context_4096", gqa, 12, 2, 4096)->ArgsProduct({tokens});
  add("gqa/32_heads_of_8/context_4096", gqa, 32, 8, 4096)->ArgsProduct({tokens});
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const std::size_t equals = option.find('=');
    const std::string name = option.substr(0, equals),
                      value = equals == std::string::npos ? "" : option.substr(equals + 1);
    if (name == "--threads" && !value.empty()) {
      shoal::g_options.threads = std::stoi(value);
    } else if (name == "--isa" && !value.empty()) {
      shoal::g_options.isa = value;
    } else {
      fmt::print(stderr, "unknown option {}; there are --threads=N, --isa=NAME and Google Benchmark's\n", option);
      return 2;
    }
  }
  if (shoal::g_options.threads == 0) shoal::g_options.threads = static_cast<int>(std::thread::hardware_concurrency());
  shoal::register_all();
  benchmark::AddCustomContext("back end", shoal::backend_for(shoal::Compute::f32).description());
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
