#include "kernels/cuda/wire_row.h"

// Rows on their way between ranks that know how many come. All kernels are bound by memory.
namespace shoal::cuda {
namespace {

constexpr int kThreads = kWireThreads;

/// out[i] = x[row[i]], or x[i], as it travels.
template <Wire kWire>
__global__ void __launch_bounds__(kThreads)
    pack_rows_kernel(Rows<const float> x, const std::int32_t* row, std::byte* out) {
  follow_previous_kernels();
  const std::int64_t i = blockIdx.x;
  const WireColumns<kWire> columns;
  columns.put(columns.round(x.data + (row == nullptr ? i : row[i]) * x.stride, x.cols), x.cols,
              out + i * wire_row_bytes(kWire, x.cols));
}

/// out[i] = x[row[i]] as it would arrive, had it travelled.
template <Wire kWire>
__global__ void __launch_bounds__(kThreads)
    keep_rows_kernel(Rows<const float> x, const std::int32_t* row, Rows<float> out) {
  follow_previous_kernels();
  WireColumns<kWire>().keep(x.data + row[blockIdx.x] * x.stride, x.cols, out.data + blockIdx.x * out.stride);
}

/// out[i] = row row[i], or i, of what arrived.
template <Wire kWire>
__global__ void __launch_bounds__(kThreads)
    unpack_rows_kernel(const std::byte* in, const std::int32_t* row, Rows<float> out) {
  follow_previous_kernels();
  const std::int64_t i = blockIdx.x;
  WireColumns<kWire>().load(in + (row == nullptr ? i : row[i]) * wire_row_bytes(kWire, out.cols), out.cols,
                            out.data + i * out.stride);
}

/// Row i of `out` is row row[i] of `in`, both as they travel, in words of 4 bytes or (rows of an odd number of BF16) 2.
///   grid       (rows, 256 words)
///   traffic    each row once in and out: of an R1 token in E4M3 15 KB
template <class Word>
__global__ void __launch_bounds__(kThreads)
    forward_rows_kernel(const std::byte* in, const std::int32_t* row, std::int64_t words, std::byte* out) {
  follow_previous_kernels();
  const std::int64_t i = blockIdx.x, w = std::int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (w < words) reinterpret_cast<Word*>(out)[i * words + w] = reinterpret_cast<const Word*>(in)[row[i] * words + w];
}

/// out[t] += the answers place[first[t]] .. place[first[t + 1]], in this order: one that came from another rank, as it
/// travelled, or (~n) row n of this rank's own.
///   traffic    each answer once, out twice: of an R1 token with answers of four ranks 172 KB, or 115 in BF16
template <Wire kWire>
__global__ void __launch_bounds__(kThreads)
    add_answers_kernel(Rows<const float> own, const std::byte* others, const std::int32_t* first,
                       const std::int32_t* place, Rows<float> out) {
  follow_previous_kernels();
  const WireColumns<kWire> columns;
  const std::int64_t c = columns.c, t = blockIdx.x;
  if (c >= out.cols) return;
  float sum = out.data[t * out.stride + c];
  for (std::int32_t a = first[t]; a < first[t + 1]; ++a) {
    const std::int64_t at = place[a];
    sum += at < 0 ? columns.travelled(own.data[~at * own.stride + c])
                  : columns.at(others + at * wire_row_bytes(kWire, out.cols));
  }
  out.data[t * out.stride + c] = sum;
}

}  // namespace

void pack_rows(Rows<const float> x, const std::int32_t* row, std::int64_t n, Wire wire, std::byte* out,
               cudaStream_t stream) {
  with_wire(wire, [&]<Wire kWire>(std::integral_constant<Wire, kWire>) {
    launch("pack_rows", pack_rows_kernel<kWire>, wire_grid(wire, n, x.cols), kThreads, stream, x, row, out);
  });
}

void keep_rows(Rows<const float> x, const std::int32_t* row, Wire wire, Rows<float> out, cudaStream_t stream) {
  with_wire(wire, [&]<Wire kWire>(std::integral_constant<Wire, kWire>) {
    launch("keep_rows", keep_rows_kernel<kWire>, wire_grid(wire, out.rows, out.cols), kThreads, stream, x, row, out);
  });
}

void unpack_rows(const std::byte* in, const std::int32_t* row, Wire wire, Rows<float> out, cudaStream_t stream) {
  with_wire(wire, [&]<Wire kWire>(std::integral_constant<Wire, kWire>) {
    launch("unpack_rows", unpack_rows_kernel<kWire>, wire_grid(wire, out.rows, out.cols), kThreads, stream, in, row,
           out);
  });
}

void forward_rows(const std::byte* in, const std::int32_t* row, std::int64_t n, Wire wire, std::int64_t cols,
                  std::byte* out, cudaStream_t stream) {
  const std::int64_t bytes = wire_row_bytes(wire, cols);
  const auto in_words = [&]<class Word>(Word) {
    const std::int64_t words = bytes / std::int64_t{sizeof(Word)};
    const dim3 grid(static_cast<unsigned>(n), static_cast<unsigned>(ceil_div<std::int64_t>(words, kThreads)));
    launch("forward_rows", forward_rows_kernel<Word>, grid, kThreads, stream, in, row, words, out);
  };
  if (bytes % 4 == 0) return in_words(std::uint32_t{});
  in_words(std::uint16_t{});
}

void add_answers(Rows<const float> own, const std::byte* others, Wire wire, const std::int32_t* first,
                 const std::int32_t* place, Rows<float> out, cudaStream_t stream) {
  const dim3 grid = wire_grid(Wire::f32, out.rows, out.cols);
  with_answers(wire, [&]<Wire kWire>(std::integral_constant<Wire, kWire>) {
    launch("add_answers", add_answers_kernel<kWire>, grid, kThreads, stream, own, others, first, place, out);
  });
}

}  // namespace shoal::cuda
