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

/// out = what arrived, of BF16 or E4M3.
template <Wire kWire>
__global__ void __launch_bounds__(kThreads) unpack_rows_kernel(const std::byte* in, Rows<float> out) {
  follow_previous_kernels();
  WireColumns<kWire>().load(in + blockIdx.x * wire_row_bytes(kWire, out.cols), out.cols,
                            out.data + blockIdx.x * out.stride);
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

void unpack_rows(const std::byte* in, Wire wire, Rows<float> out, cudaStream_t stream) {
  with_wire(wire, [&]<Wire kWire>(std::integral_constant<Wire, kWire>) {
    if constexpr (kWire != Wire::f32)
      launch("unpack_rows", unpack_rows_kernel<kWire>, wire_grid(wire, out.rows, out.cols), kThreads, stream, in, out);
  });
}

void add_answers(Rows<const float> own, const std::byte* others, Wire wire, const std::int32_t* first,
                 const std::int32_t* place, Rows<float> out, cudaStream_t stream) {
  const dim3 grid = wire_grid(Wire::f32, out.rows, out.cols);
  with_answers(wire, [&]<Wire kWire>(std::integral_constant<Wire, kWire>) {
    launch("add_answers", add_answers_kernel<kWire>, grid, kThreads, stream, own, others, first, place, out);
  });
}

}  // namespace shoal::cuda
