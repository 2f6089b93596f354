#include "kernels/cuda/operations.h"
#include "kernels/cuda/packed_row.h"
#include "kernels/cuda/weight_row.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 128;

/// Token ids to rows of the embedding.
///   shape      ids [tokens], table [vocab, hidden] -> out [tokens, hidden] FP32
///   grid       a block for each token and 1,024 columns; a thread widens eight of them
///   traffic    a row read and a row of floats written per token: 43 KB for R1's BF16 table
///   limit      memory: 128 tokens 5.5 MB, about 1 us on H200; the launch costs more
template <WeightForm kForm>
__global__ void __launch_bounds__(kThreads)
    embed_kernel(const std::int32_t* ids, Weights table, float* out, std::int64_t out_stride) {
  follow_previous_kernels();
  const std::int64_t token = blockIdx.x;
  const std::int64_t col = (std::int64_t{blockIdx.y} * kThreads + threadIdx.x) * kVector;
  if (col >= table.cols) return;
  float values[kVector];
  load_weights<kForm>(table, ids[token], col, values);
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    if (col + i < table.cols) out[token * out_stride + col + i] = values[i];
}

/// The same from a packed table. A thread expands four columns.
__global__ void __launch_bounds__(kThreads)
    embed_packed_kernel(const std::int32_t* ids, const __grid_constant__ Weights table, float* out,
                        std::int64_t out_stride) {
  follow_previous_kernels();
  const std::int64_t token = blockIdx.x, id = ids[token];
  const std::int64_t col = (std::int64_t{blockIdx.y} * kThreads + threadIdx.x) * 4;
  if (col >= table.cols) return;
  const PackedLayout& f = table.packed;
  const int row = static_cast<int>(id % kPanelRows), in_record = static_cast<int>(col) % f.record;
  const int quad = in_record % kStepCols / 4, group = quad * 4 / f.group;
  const std::int64_t records = static_cast<int>(table.cols) / f.record;
  const std::byte* record =
      table.data + (id / kPanelRows * records + static_cast<int>(col) / f.record) * f.record_bytes;
  const std::byte* step = record + f.head_bytes + in_record / kStepCols * f.step_bytes;
  const unsigned codes = quad_of(f, record, in_record / kStepCols, quad, row);
  const RowHead head = head_of(f, record, row);
  const GroupScale g = scale_of_group(f, head, record, step, in_record / kStepCols, group, row);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto code = static_cast<float>(codes >> (8 * i) & 0xffu);
    // With an offset, the difference first: it is exact.
    out[token * out_stride + col + i] = f.minima ? g.scale * code - g.minimum : g.scale * (code - head.offset);
  }
}

}  // namespace

void embed(const std::int32_t* ids, const Weights& table, Rows<float> out, cudaStream_t stream) {
  const bool packed = table.form == WeightForm::packed;
  const dim3 grid(static_cast<unsigned>(out.rows),
                  static_cast<unsigned>(ceil_div<std::int64_t>(out.cols, kThreads * (packed ? 4 : kVector))));
  switch (table.form) {
    case WeightForm::f32:
      return launch("embed", embed_kernel<WeightForm::f32>, grid, kThreads, stream, ids, table, out.data, out.stride);
    case WeightForm::f16:
      return launch("embed", embed_kernel<WeightForm::f16>, grid, kThreads, stream, ids, table, out.data, out.stride);
    case WeightForm::bf16:
      return launch("embed", embed_kernel<WeightForm::bf16>, grid, kThreads, stream, ids, table, out.data, out.stride);
    case WeightForm::f8:
      return launch("embed", embed_kernel<WeightForm::f8>, grid, kThreads, stream, ids, table, out.data, out.stride);
    case WeightForm::packed:
      return launch("embed_packed", embed_packed_kernel, grid, kThreads, stream, ids, table, out.data, out.stride);
  }
}

}  // namespace shoal::cuda
