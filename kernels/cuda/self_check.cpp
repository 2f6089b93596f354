#include "kernels/cuda/self_check.h"

#include <cmath>
#include <random>
#include <span>
#include <vector>

#include "base/cuda/memory.h"
#include "kernels/cuda/operations.h"

namespace shoal::cuda {
namespace {

constexpr std::int64_t kOutputs = 200, kCols = 392, kColTiles = 4, kStride = kColTiles * kF8Tile;

template <class T>
DeviceBlock upload(std::span<const T> values, cudaStream_t stream) {
  DeviceBlock block(values.size_bytes());
  check(cudaMemcpyAsync(block.data(), values.data(), values.size_bytes(), cudaMemcpyHostToDevice, stream), "copying");
  check(cudaStreamSynchronize(stream), "copying");
  return block;
}
template <class T>
std::vector<T> download(const DeviceBlock& block, std::size_t n, cudaStream_t stream) {
  std::vector<T> values(n);
  check(cudaMemcpyAsync(values.data(), block.data(), n * sizeof(T), cudaMemcpyDeviceToHost, stream), "copying");
  check(cudaStreamSynchronize(stream), "the GPU's self-check");
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

std::string check_linear_mma(cudaStream_t stream) {
  for (const WeightForm form : {WeightForm::bf16, WeightForm::f8})
    for (const int tile_rows : {kMmaFewRows, kMmaManyRows}) {
      Case c(form, tile_rows, stream);
      const std::vector<float> expected = c.simple(form, true);
      const DeviceBlock halves(static_cast<std::size_t>(c.rows * kCols) * 2);
      const HalfRows x{at<std::uint16_t>(halves), kCols};
      c.call.out = at<float>(c.out);
      round_rows({c.call.x, c.rows, kCols}, x, stream);
      linear_mma(c.call, form, x, stream);
      const auto tested = download<float>(c.out, expected.size(), stream);
      if (std::string wrong = compare("linear_mma", tile_rows, tested, expected, 1e-5); !wrong.empty()) return wrong;
    }
  return "";
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
  }
  return "";
}

}  // namespace shoal::cuda
