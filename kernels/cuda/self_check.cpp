#include "kernels/cuda/self_check.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "base/cuda/memory.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/placed_matrix.h"
#include "kernels/kv_row.h"

namespace shoal::cuda {
namespace {

constexpr std::int64_t kOutputs = 200, kCols = 392, kColTiles = 4, kStride = kColTiles * kF8Tile;

template <class T>
DeviceBlock upload(std::span<const T> values, cudaStream_t stream) {
  DeviceBlock block(values.size_bytes());
  check(cudaMemcpyAsync(block.data(), values.data(), values.size_bytes(), cudaMemcpyHostToDevice, stream), "copying");
  wait_for(stream, "copying");
  return block;
}
template <class T>
std::vector<T> download(const DeviceBlock& block, std::size_t n, cudaStream_t stream) {
  std::vector<T> values(n);
  check(cudaMemcpyAsync(values.data(), block.data(), n * sizeof(T), cudaMemcpyDeviceToHost, stream), "copying");
  wait_for(stream, "the GPU's self-check");
  return values;
}
template <class T>
T* at(const DeviceBlock& block) {
  return reinterpret_cast<T*>(block.data());
}

/// A random matrix of a form, and a product with `rows` random rows in one tile size.
struct Case {
  Case(WeightForm form, int tile_rows, cudaStream_t s) : stream(s), rows(tile_rows + 3) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    const std::size_t size = form == WeightForm::f8 ? 1 : 2, row_tiles = 2;
    std::vector<std::byte> bytes(row_tiles * kF8Tile * kStride * size);
    for (std::int64_t r = 0; r < kOutputs; ++r)
      for (std::int64_t c = 0; c < kCols; ++c) {
        const float f = normal(random);
        const std::uint16_t half = f32_to_bf16(f);
        if (form == WeightForm::f8)
          bytes[static_cast<std::size_t>(f8_offset(r, c, kColTiles))] = static_cast<std::byte>(f32_to_f8_e4m3(f));
        else
          std::memcpy(bytes.data() + static_cast<std::size_t>(r * kStride + c) * 2, &half, 2);
      }
    std::vector<float> scale(row_tiles * kColTiles);
    for (float& f : scale) f = std::exp(normal(random));
    x_host.resize(static_cast<std::size_t>(rows * kCols));
    for (float& f : x_host) f = normal(random);
    weights = upload(std::span<const std::byte>(bytes), stream);
    scales = upload(std::span<const float>(scale), stream);
    Weights w{weights.data(), nullptr, kOutputs, kCols, kStride};
    w.form = form;
    if (form == WeightForm::f8) {
      w.scales = at<float>(scales);
      w.block_rows = w.block_cols = kF8Tile;
      w.scale_cols = kColTiles;
    }
    view = upload(std::span<const Weights>(&w, 1), stream);
    set_rows(x_host);
    call.x_stride = kCols;
    call.weights = at<Weights>(view);
    call.most_outputs = kOutputs;
    call.rows = rows;
    call.out_stride = kOutputs;
    call.tile_rows = tile_rows;
    call.n_tiles = 2;
    call.most_in_tile = tile_rows;
  }

  void set_rows(const std::vector<float>& values) {
    x = upload(std::span<const float>(values), stream);
    call.x = at<float>(x);
  }

  std::vector<float> simple(WeightForm form, bool bf16) {
    LinearCall all = call;
    all.tile_rows = all.most_in_tile = kTileRows;
    all.n_tiles = static_cast<int>((rows + kTileRows - 1) / kTileRows);
    all.out = at<float>(out);
    linear(all, form, bf16, stream);
    return download<float>(out, static_cast<std::size_t>(rows * kOutputs), stream);
  }

  cudaStream_t stream;
  const std::int64_t rows;
  std::vector<float> x_host;
  DeviceBlock weights, scales, view, x, out{static_cast<std::size_t>(rows * kOutputs) * 4};
  LinearCall call;
};

/// "" or what differs: the distance of two results by the length of the right one.
std::string compare(const char* kernel, int tile_rows, const std::vector<float>& tested,
                    const std::vector<float>& expected, double tolerance) {
  double difference = 0, length = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (double(tested[i]) - expected[i]) * (double(tested[i]) - expected[i]);
    length += double(expected[i]) * expected[i];
  }
  const double relative = std::sqrt(difference / length);
  if (relative <= tolerance) return "";
  return fmt::format("{} of {} rows is off by {:.2g} of its result", kernel, tile_rows, relative);
}

}  // namespace

std::string check_overlap(cudaStream_t stream) {
  // Each kernel reads what the one before wrote, in other blocks: y = x + y, x = y + x, ..., so Fibonacci numbers.
  constexpr std::int64_t kTokens = 16, kWidth = 4096, kRounds = 15;
  const DeviceBlock first(kTokens * kWidth * sizeof(float)), second(kTokens * kWidth * sizeof(float));
  const Rows<float> x(at<float>(first), kTokens, kWidth), y(at<float>(second), kTokens, kWidth);
  std::vector<std::int64_t> reversed(kTokens);
  for (std::int64_t t = 0; t < kTokens; ++t) reversed[static_cast<std::size_t>(t)] = kTokens - 1 - t;
  const DeviceBlock order = upload(std::span<const std::int64_t>(reversed), stream);
  const DeviceBlock turned_memory(kTokens * kWidth * sizeof(float));
  const Rows<float> turned(at<float>(turned_memory), kTokens, kWidth);
  const DeviceBlock ones = upload(std::span<const float>(std::vector<float>(kTokens * kWidth, 1.0f)), stream);
  for (int repeat = 0; repeat < 3; ++repeat) {
    fill_zero(x, stream);
    fill_zero(y, stream);
    add({at<float>(ones), kTokens, kWidth}, x, stream);
    float smaller = 0, larger = 1;
    for (int i = 0; i < kRounds; ++i) {
      gather_rows(i % 2 == 0 ? x : y, at<std::int64_t>(order), turned, stream);
      add(turned, i % 2 == 0 ? y : x, stream);
      smaller = std::exchange(larger, smaller + larger);
    }
    const auto result = download<float>(kRounds % 2 == 1 ? second : first, kTokens * kWidth, stream);
    if (std::any_of(result.begin(), result.end(), [&](float f) { return f != larger; }))
      return "a kernel did not wait for the one before it";
  }
  return "";
}

std::string check_linear_mma(cudaStream_t stream) {
  for (const WeightForm form : {WeightForm::bf16, WeightForm::f8})
    for (const int tile_rows : {kMmaFewRows, kMmaManyRows}) {
      Case c(form, tile_rows, stream);
      const std::vector<float> expected = c.simple(form, true);
      const DeviceBlock halves(static_cast<std::size_t>(c.rows * kCols) * 2);
      const HalfRows x{at<std::uint16_t>(halves), kCols};
      c.call.out = at<float>(c.out);
      round_rows({c.call.x, c.rows, kCols}, {}, nullptr, x, stream);
      linear_mma(c.call, form, x, stream);
      const auto tested = download<float>(c.out, expected.size(), stream);
      if (std::string wrong = compare("linear_mma", tile_rows, tested, expected, 1e-5); !wrong.empty()) return wrong;
    }
  return "";
}

namespace {

/// Random codes and factors, heads that are ordinary numbers, zeros that are codes.
Matrix random_packed(const PackedFormat& format, std::int64_t rows, std::int64_t cols, std::mt19937& random) {
  Matrix m(format, rows, cols);
  std::vector<std::byte> panels(m.packed().size());
  for (std::byte& b : panels) b = static_cast<std::byte>(random());
  std::uniform_real_distribution<float> scales(0.5f, 1.5f);
  for (std::size_t at = 0; at < panels.size(); at += static_cast<std::size_t>(format.record_bytes())) {
    for (int row = 0; format.zeros && row < PackedFormat::kPanel; ++row)
      panels[at + static_cast<std::size_t>(format.zero_at() + row)] &= static_cast<std::byte>((1 << format.bits) - 1);
    for (std::size_t i = 0; i < (format.has_dmin() ? 2u : 1u) * PackedFormat::kPanel; ++i) {
      const float scale = scales(random);
      const std::uint16_t half = format.scales == Scales::bfloat ? f32_to_bf16(scale) : f32_to_f16(scale);
      if (format.scales == Scales::single)
        std::memcpy(panels.data() + at + 4 * i, &scale, 4);
      else
        std::memcpy(panels.data() + at + 2 * i, &half, 2);
    }
  }
  m.set_packed(panels);
  return m;
}

constexpr std::int64_t kFewOutputs = 72, kWide = 1280;  // five chunks of columns, so that quarters of them differ

/// `tested` against `simple`, products of a random matrix of the format with random rows that BF16 holds, in tiles of
/// every size; "" or what differs. Both are called with (call, x, matrix in device memory); a call says the same as x
/// and the matrix.
template <class Simple, class Tested>
std::string compare_packed(const char* kernel, const Matrix& matrix, std::mt19937& random, cudaStream_t stream,
                           const Simple& simple, const Tested& tested) {
  const auto placed = MatrixPlacer().place(matrix);
  std::normal_distribution<float> normal;
  for (const int tile_rows : {kTileRows, kMmaFewRows, kMmaManyRows}) {
    LinearCall call;
    call.rows = tile_rows + 3;
    call.weights = at<Weights>(placed->view_on_device);
    call.most_outputs = kFewOutputs;
    call.out_stride = kFewOutputs;
    std::vector<float> x(static_cast<std::size_t>(call.rows * kWide));
    for (float& f : x) f = bf16_to_f32(f32_to_bf16(normal(random)));
    const DeviceBlock x_there = upload(std::span<const float>(x), stream),
                      out(static_cast<std::size_t>(call.rows * kFewOutputs) * sizeof(float));
    call.x = at<float>(x_there);
    call.x_stride = kWide;
    call.out = at<float>(out);
    const auto in_tiles_of = [&](int rows) {
      call.tile_rows = call.most_in_tile = rows;
      call.n_tiles = static_cast<int>((call.rows + rows - 1) / rows);
    };
    const Rows<const float> rows(call.x, call.rows, kWide);
    in_tiles_of(kTileRows);
    simple(call, rows, placed->view);
    const auto expected = download<float>(out, out.bytes() / sizeof(float), stream);
    in_tiles_of(tile_rows);
    tested(call, rows, placed->view);
    const auto actual = download<float>(out, expected.size(), stream);
    if (std::string wrong = compare(kernel, tile_rows, actual, expected, 1e-5); !wrong.empty())
      return fmt::format("{} ({})", wrong, matrix.format()->name);
  }
  return "";
}

}  // namespace

std::string check_linear_packed_mma(cudaStream_t stream) {
  std::mt19937 random(17);
  // A kernel for each layout: all GGUF types, INT8 and INT4 with one zero, and with one for each row.
  std::vector<const PackedFormat*> formats{&integer_format(8, Scales::single, 128, 128),
                                           &integer_format(4, Scales::half, 128, 8),
                                           &integer_format(4, Scales::half, 128, std::nullopt)};
  for (const QuantFormat& stored : quant_formats())
    if (const PackedFormat* format = packed_format(stored)) formats.push_back(format);
  DeviceBlock values, scales;
  ByteRows bytes;
  const auto simple = [&](const LinearCall& call, Rows<const float> x, const Weights&) {
    const auto elements = static_cast<std::size_t>(x.rows * x.cols);
    values = DeviceBlock(elements);
    scales = DeviceBlock(elements / 8);
    bytes = {at<std::int8_t>(values), at<float>(scales)};
    quantize_rows(x, {}, nullptr, bytes, stream);
    linear_packed(call, bytes, x.cols, stream);
  };
  const auto tested = [&](const LinearCall& call, Rows<const float> x, const Weights& w) {
    linear_packed_mma(call, w.packed, bytes, x.cols, stream);
  };
  for (const PackedFormat* format : formats) {
    const Matrix matrix = random_packed(*format, kFewOutputs, kWide, random);
    if (std::string wrong = compare_packed("linear_packed_mma", matrix, random, stream, simple, tested); !wrong.empty())
      return wrong;
  }
  return "";
}

std::string check_linear_int4_mma(cudaStream_t stream) {
  std::mt19937 random(19);
  for (const PackedFormat* format :
       {&integer_format(4, Scales::half, 128, std::nullopt), &integer_format(4, Scales::bfloat, 32, 8),
        &integer_format(4, Scales::single, 256, 8)}) {
    const Matrix matrix = random_packed(*format, kFewOutputs, kWide, random);
    // What the weights are worth, for the product that rounds nothing.
    std::vector<float> worth(static_cast<std::size_t>(kFewOutputs * kWide));
    for (std::int64_t r = 0; r < kFewOutputs; ++r) matrix.unpack_row(r, worth.data() + r * kWide);
    const DeviceBlock worth_there = upload(std::span<const float>(worth), stream);
    const Weights plain{worth_there.data(), nullptr, kFewOutputs, kWide, kWide};
    const DeviceBlock view = upload(std::span<const Weights>(&plain, 1), stream);
    DeviceBlock halves;
    const auto simple = [&](LinearCall call, Rows<const float>, const Weights&) {
      call.weights = at<Weights>(view);
      linear(call, WeightForm::f32, false, stream);
    };
    const auto tested = [&](const LinearCall& call, Rows<const float> x, const Weights& w) {
      halves = DeviceBlock(static_cast<std::size_t>(x.rows * x.cols) * 2);
      const HalfRows rounded{at<std::uint16_t>(halves), x.cols};
      round_rows(x, {}, nullptr, rounded, stream);
      linear_int4_mma(call, w.packed, rounded, stream);
    };
    if (std::string wrong = compare_packed("linear_int4_mma", matrix, random, stream, simple, tested); !wrong.empty())
      return wrong;
  }
  return "";
}

namespace {

/// Three queries of one sequence at its end, and the last of another; pages in disorder.
std::string check_heads(const HeadGroups& heads, KvType type, int length, std::size_t shared_limit, bool wgmma,
                        cudaStream_t stream) {
  constexpr int kPageTokens = 16;
  const int width =
      std::max(heads.first_key + heads.groups * heads.key_step, heads.first_value + heads.groups * heads.value_step) +
      (heads.key_step == 0 ? heads.key_dim : 0);
  const std::int64_t n = 4, all = std::int64_t{heads.groups} * heads.heads;
  const int pages = (length + kPageTokens - 1) / kPageTokens;
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> q(static_cast<std::size_t>(n * all * heads.key_dim));
  // Both kernels get queries that BF16 holds.
  for (float& f : q) f = bf16_to_f32(f32_to_bf16(normal(random)));
  const std::int64_t row_bytes = kv_row_bytes(type, width);
  std::vector<std::byte> rows(static_cast<std::size_t>(pages * kPageTokens * row_bytes));
  std::vector<float> values(static_cast<std::size_t>(width));
  for (int r = 0; r < pages * kPageTokens; ++r) {
    for (float& f : values) f = normal(random);
    encode_kv(type, values.data(), width, 0, width, rows.data() + r * row_bytes);
  }
  std::vector<std::int32_t> table{length - 2, length - 1, length, 7, 0, 0, 0, 0};
  int step = 7;  // which reaches every page
  while (std::gcd(step, pages) != 1) ++step;
  for (int p = 0; p < pages; ++p) table.push_back((p * step + 3) % pages);
  const DeviceBlock q_there = upload(std::span<const float>(q), stream);
  const DeviceBlock cache = upload(std::span<const std::byte>(rows), stream);
  const DeviceBlock tables = upload(std::span<const std::int32_t>(table), stream);
  const std::vector<Tile> tiles = [&] {
    const int most = wgmma ? mla_wgmma_queries(heads) : attention_mma_queries(heads, 3, shared_limit);
    std::vector<Tile> list;
    for (int first = 0; first < 3; first += most) list.push_back({0, first, std::min(most, 3 - first)});
    list.push_back({1, 3, 1});
    return list;
  }();
  const DeviceBlock tiles_there = upload(std::span<const Tile>(tiles), stream);
  const std::size_t results = static_cast<std::size_t>(n * all * heads.value_dim);
  const DeviceBlock out(results * sizeof(float));
  const DeviceBlock parts(
      static_cast<std::size_t>(std::max(attention_parts(heads, n, length), attention_mma_parts(heads, n, length))) *
      sizeof(float));
  const QueryTable queries{at<std::int32_t>(tables), at<std::int32_t>(tables) + n, at<std::int32_t>(tables) + 2 * n};
  const KvLayer layer{cache.data(), type, kPageTokens, width};
  const Rows<const float> q_rows(at<float>(q_there), n, all * heads.key_dim);
  const Rows<float> out_rows(at<float>(out), n, all * heads.value_dim);
  const float scale = 1.0f / std::sqrt(static_cast<float>(heads.key_dim));
  attention(q_rows, heads, scale, queries, length, layer, at<float>(parts), out_rows, stream);
  const auto expected = download<float>(out, results, stream);
  AttentionTiles part{at<Tile>(tiles_there), static_cast<int>(tiles.size()), 0, 0};
  for (const Tile& t : tiles) part.queries = std::max(part.queries, t.count);
  if (wgmma)
    mla_wgmma(q_rows, heads, scale, queries, length, part, layer, at<float>(parts), out_rows, stream);
  else
    attention_mma(q_rows, heads, scale, queries, length, part, layer, at<float>(parts), shared_limit, out_rows, stream);
  if (length > kMmaPart)
    merge_parts(at<float>(parts), kMmaPart, (length + kMmaPart - 1) / kMmaPart, queries.length, heads.value_dim,
                out_rows, stream);
  // BF16 rounds what positions count for, and 8-bit rows again.
  return compare(wgmma ? "mla_wgmma" : "attention_mma", heads.heads, download<float>(out, results, stream), expected,
                 1e-2);
}

}  // namespace

std::string check_attention_mma(std::size_t shared_limit, cudaStream_t stream) {
  const struct {
    HeadGroups heads;
    int length;
  } cases[] = {{{1, 20, 576, 512, 0, 0, 0, 0}, 70},              // MLA
               {{2, 6, 128, 128, 0, 128, 256, 128}, 130},        // GQA, many rows in a tile
               {{1, 3, 64, 64, 0, 64, 64, 64}, kMmaPart + 40}};  // GQA, few rows; two parts
  for (const auto& [heads, length] : cases)
    for (const KvType type : {KvType::bf16, KvType::fp8}) {
      if (!attention_mma_takes(heads, {nullptr, type, 16, 576}, shared_limit)) continue;
      if (std::string wrong = check_heads(heads, type, length, shared_limit, false, stream); !wrong.empty())
        return wrong;
    }
  return "";
}

std::string check_mla_wgmma(cudaStream_t stream) {
  for (const KvType type : {KvType::bf16, KvType::fp8})
    if (std::string wrong = check_heads({1, 20, 576, 512, 0, 0, 0, 0}, type, 150, 0, true, stream); !wrong.empty())
      return wrong;
  return "";
}

std::string check_mla_prompt(std::size_t shared_limit, bool wgmma, cudaStream_t stream) {
  constexpr int kHeads = 2, kRank = 512, kRope = 64, kNope = 128, kValue = 128, kWidth = kRank + kRope;
  constexpr int kPageTokens = 16, kLength = 150, kQueries = 20, kPages = (kLength + kPageTokens - 1) / kPageTokens;
  std::mt19937 random(13);
  std::normal_distribution<float> normal;
  const auto bf16_floats = [&](int n, float deviation) {
    std::vector<float> floats(static_cast<std::size_t>(n));
    for (float& f : floats) f = bf16_to_f32(f32_to_bf16(deviation * normal(random)));
    return floats;
  };
  const auto q = bf16_floats(kQueries * kHeads * (kNope + kRope), 1), latents = bf16_floats(kLength * kWidth, 1);
  const auto k_up = bf16_floats(kHeads * kRank * kNope, 0.05f), v_up = bf16_floats(kHeads * kValue * kRank, 0.05f);

  std::vector<std::uint16_t> cached(std::size_t{kPages * kPageTokens * kWidth}), weights;
  std::vector<std::int32_t> table;  // lengths, first pages, pages from the last to the first
  for (int t = 0; t < kQueries; ++t) table.push_back(kLength - kQueries + 1 + t);
  table.resize(2 * kQueries);
  for (int p = 0; p < kPages; ++p) table.push_back(kPages - 1 - p);
  for (int p = 0; p < kLength; ++p)
    for (int c = 0; c < kWidth; ++c) {
      const int row = (kPages - 1 - p / kPageTokens) * kPageTokens + p % kPageTokens;
      cached[static_cast<std::size_t>(row * kWidth + c)] =
          f32_to_bf16(latents[static_cast<std::size_t>(p * kWidth + c)]);
    }
  for (const auto* all : {&k_up, &v_up})
    for (const float f : *all) weights.push_back(f32_to_bf16(f));
  const DeviceBlock weights_there = upload(std::span<const std::uint16_t>(weights), stream);
  std::vector<Weights> views;
  for (int i = 0; i < 2 * kHeads; ++i) {
    const bool keys = i < kHeads;
    Weights w{weights_there.data() + i * kRank * kNope * 2, nullptr, keys ? kRank : kValue, keys ? kNope : kRank,
              keys ? kNope : kRank};
    w.form = WeightForm::bf16;
    views.push_back(w);
  }
  const std::vector<Tile> tile{{0, 0, kQueries}};
  const DeviceBlock q_there = upload(std::span<const float>(q), stream),
                    cache = upload(std::span<const std::uint16_t>(cached), stream),
                    tables = upload(std::span<const std::int32_t>(table), stream),
                    views_there = upload(std::span<const Weights>(views), stream),
                    tile_there = upload(std::span<const Tile>(tile), stream);
  ExpandedKv kv{nullptr, kHeads, kNope, kRope, kValue, wgmma};
  const auto elements = ExpandedKv::elements(kLength, kHeads * kv.width());
  const DeviceBlock expanded(static_cast<std::size_t>(elements) * 2), out(kQueries * kHeads * kValue * sizeof(float));
  kv.data = at<std::uint16_t>(expanded);
  const QueryTable queries{at<std::int32_t>(tables), at<std::int32_t>(tables) + kQueries,
                           at<std::int32_t>(tables) + 2 * kQueries};
  const float scale = 1.0f / std::sqrt(static_cast<float>(kNope + kRope));
  const Rows<const float> q_rows(at<float>(q_there), kQueries, kHeads * (kNope + kRope));
  const Rows<float> out_rows(at<float>(out), kQueries, kHeads * kValue);
  const AttentionTiles tiles{at<Tile>(tile_there), 1, kQueries, 0, kLength};
  mla_expand({cache.data(), KvType::bf16, kPageTokens, kWidth}, queries, kLength, kRank, at<Weights>(views_there),
             at<Weights>(views_there) + kHeads, WeightForm::bf16, kv, stream);
  if (wgmma)
    mla_prompt(q_rows, scale, queries, tiles, kv, out_rows, stream);
  else
    attention_mma(q_rows, {kHeads, 1, kNope + kRope, kValue, 0, kv.width(), kNope + kRope, kv.width()}, scale,
                  {queries.length}, kLength, tiles, {kv.data, KvType::bf16, 1, kHeads * kv.width()}, nullptr,
                  shared_limit, out_rows, stream);
  const auto tested = download<float>(out, static_cast<std::size_t>(kQueries * kHeads * kValue), stream);

  std::vector<float> expected(tested.size());
  for (int h = 0; h < kHeads; ++h) {
    std::vector<double> keys(kLength * kNope), values(kLength * kValue);
    for (int p = 0; p < kLength; ++p)
      for (int c = 0; c < kRank; ++c) {
        const double latent = latents[static_cast<std::size_t>(p * kWidth + c)];
        for (int i = 0; i < kNope; ++i)
          keys[static_cast<std::size_t>(p * kNope + i)] +=
              latent * k_up[static_cast<std::size_t>((h * kRank + c) * kNope + i)];
        for (int i = 0; i < kValue; ++i)
          values[static_cast<std::size_t>(p * kValue + i)] +=
              latent * v_up[static_cast<std::size_t>((h * kValue + i) * kRank + c)];
      }
    for (int t = 0; t < kQueries; ++t) {
      const float* query = q.data() + (t * kHeads + h) * (kNope + kRope);
      double total = 0, sum[kValue] = {};
      for (int p = 0; p < kLength - kQueries + 1 + t; ++p) {
        double score = std::inner_product(query, query + kNope, keys.begin() + p * kNope, 0.0);
        score = std::inner_product(query + kNope, query + kNope + kRope, latents.begin() + p * kWidth + kRank, score);
        const double share = std::exp(score * scale);
        total += share;
        for (int i = 0; i < kValue; ++i) sum[i] += share * values[static_cast<std::size_t>(p * kValue + i)];
      }
      for (int i = 0; i < kValue; ++i)
        expected[static_cast<std::size_t>((t * kHeads + h) * kValue + i)] = static_cast<float>(sum[i] / total);
    }
  }
  return compare(wgmma ? "mla_prompt" : "mla_expand with attention_mma", kQueries, tested, expected, 1e-2);
}

std::string check_linear_f8(cudaStream_t stream) {
  for (const int tile_rows : {kMmaFewRows, kMmaManyRows}) {
    Case c(WeightForm::f8, tile_rows, stream);
    const std::size_t places = static_cast<std::size_t>(2 * kColTiles * tile_rows);
    const DeviceBlock codes(places * kF8Tile), scales(places * 4);
    const F8Rows x{codes.data(), at<float>(scales), static_cast<int>(kColTiles)};
    c.call.out = at<float>(c.out);
    quantize_f8(c.call, x, stream);
    linear_f8(c.call, x, stream);
    const auto tested = download<float>(c.out, static_cast<std::size_t>(c.rows * kOutputs), stream);

    // The simple kernel takes what the rounded rows are worth.
    const auto code = download<std::uint8_t>(codes, places * kF8Tile, stream);
    const auto scale = download<float>(scales, places, stream);
    std::vector<float> worth(c.x_host.size());
    for (std::int64_t r = 0; r < c.rows; ++r)
      for (std::int64_t col = 0; col < kCols; ++col) {
        const std::int64_t place = (r / tile_rows * kColTiles + col / kF8Tile) * tile_rows;
        const std::int64_t in_tile = f8_offset(r % tile_rows, col % kF8Tile, 1);
        worth[static_cast<std::size_t>(r * kCols + col)] =
            f8_e4m3_to_f32(code[static_cast<std::size_t>(place * kF8Tile + in_tile)]) *
            scale[static_cast<std::size_t>(place + r % tile_rows)];
      }
    double difference = 0, length = 0;
    for (std::size_t i = 0; i < worth.size(); ++i) {
      difference += (double(worth[i]) - c.x_host[i]) * (double(worth[i]) - c.x_host[i]);
      length += double(c.x_host[i]) * c.x_host[i];
    }
    if (!(std::sqrt(difference / length) < 0.05)) return "quantize_f8 does not give back what it rounded";
    c.set_rows(worth);
    const std::vector<float> expected = c.simple(WeightForm::f8, false);
    if (std::string wrong = compare("linear_f8", tile_rows, tested, expected, 2e-3); !wrong.empty()) return wrong;

    // In two pieces: by a block for each as by one for both, to the bit.
    const DeviceBlock counts = upload(std::span<const unsigned>(std::vector<unsigned>(kF8FewBlocks)), stream);
    const DeviceBlock sums(static_cast<std::size_t>(linear_f8_room(c.call, 2)) * sizeof(float));
    c.call.x = at<float>(c.x);
    quantize_f8(c.call, x, stream);
    LinearCall in_pieces = c.call;
    in_pieces.pieces.count = 2;
    linear_f8(in_pieces, x, stream);
    const auto by_one = download<std::uint32_t>(c.out, expected.size(), stream);
    in_pieces.pieces = {2, at<float>(sums), at<unsigned>(counts)};
    for (int i = 0; i < 2; ++i) {
      linear_f8(in_pieces, x, stream);
      if (download<std::uint32_t>(c.out, expected.size(), stream) != by_one)
        return "linear_f8 gives other numbers in pieces";
    }
    const auto pieces = download<float>(c.out, expected.size(), stream);
    if (std::string wrong = compare("linear_f8 in pieces", tile_rows, pieces, expected, 2e-3); !wrong.empty())
      return wrong;

    // Gate and up in one, the same matrix here, are what the products by themselves and then SwiGLU give: to the bit.
    const std::int64_t out_steps = (kOutputs + kF8Tile - 1) / kF8Tile;
    const std::size_t hidden_places = static_cast<std::size_t>(2 * out_steps * tile_rows);
    const DeviceBlock hidden(hidden_places * kF8Tile), hidden_scales(hidden_places * 4), gate(c.out.bytes());
    const F8Rows rounded{hidden.data(), at<float>(hidden_scales), static_cast<int>(out_steps)};
    const auto codes_of = [&] {
      auto bytes = download<std::uint8_t>(hidden, hidden_places * kF8Tile, stream);
      const auto scale_bytes = download<std::uint8_t>(hidden_scales, hidden_places * 4, stream);
      bytes.insert(bytes.end(), scale_bytes.begin(), scale_bytes.end());
      return bytes;
    };
    c.call.x = at<float>(c.x);
    quantize_f8(c.call, x, stream);
    gated_f8(c.call, c.call.weights, x, rounded, stream);
    const std::vector<std::uint8_t> fused = codes_of();
    c.call.out = at<float>(gate);
    linear_f8(c.call, x, stream);
    Weights narrow{nullptr, nullptr, 0, kOutputs, out_steps * kF8Tile};
    const DeviceBlock narrow_view = upload(std::span<const Weights>(&narrow, 1), stream);
    LinearCall again = c.call;
    again.x = again.up = at<float>(gate);
    again.x_stride = again.up_stride = kOutputs;
    again.weights = at<Weights>(narrow_view);
    quantize_f8(again, rounded, stream);
    if (codes_of() != fused) return "gated_f8 gives other numbers than linear_f8 and SwiGLU";
  }
  return "";
}

}  // namespace shoal::cuda
