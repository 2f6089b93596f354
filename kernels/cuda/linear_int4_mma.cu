#include "kernels/cuda/packed_mma.h"

namespace shoal::cuda {
namespace {

using namespace packed_mma;

constexpr int kChunkColumns = 128;  // 256 would be 104 KB for 16 rows, more than a block has on sm_86, 89 and 120
constexpr int kXRow = row_bytes(kChunkColumns, 2);
constexpr int kCodeBytes = kPanelRows * kStepCols / 2;  // of a step

/// Codes of four bits in one plane, worth (code - zero) * scale, with one scale and one zero in a row's record. Codes
/// less their zero are whole numbers that BF16 holds, and the sums of a record are brought to scale at its end. Scales
/// may be of any type, zeros of each row or one for all: to ask for that once a record costs little.
///
/// A byte has a quad of columns in its low half and the fourth after it in its high half (packed_codes.h), so lane
/// l's word, with g = l / 4 and t = l % 4, has columns 4 t to 4 t + 3 and 16 + 4 t to 16 + 4 t + 3 of a row. The order
/// of columns within an mma_bf16() is free where weights and activations agree: number i takes columns 16 i to 16 i +
/// 15, of which a lane's are neighbours, so that one load of 8 bytes brings its activations.
class HalfProduct {
 public:
  static constexpr int kChunk = kChunkColumns, kElement = 2;
  static constexpr bool kScaled = false, kLooksUp = false;
  /// 16 rows in BF16 of 16 outputs would be four times the weights' bytes.
  static constexpr int panels_each(int rows) { return rows <= kTileRows ? 1 : 2; }
  /// Neighbours, which one load brings.
  __device__ __forceinline__ static int output_of(int g, int half) { return 2 * g + half; }

  __device__ __forceinline__ HalfProduct(const PackedLayout& f, const Weights&, void*, int)
      : f_(f), minus_(twice_minus(static_cast<unsigned>(f.offset))) {}

  template <int kBlocks>
  __device__ __forceinline__ void add_record(const std::byte* record, const std::byte* x, const float*, int lane,
                                             float (&sum)[kBlocks][4]) const {
    const int g = lane / 4, t = lane % 4;
    const Head head = head_of_rows(record, g);
    const std::byte *codes = record + f_.head_bytes + (t * kPanelRows + 2 * g) * 4, *columns = x + g * kXRow + t * 8;
    float part[kBlocks][4] = {};
#pragma unroll 2
    for (int step = 0; step < min(f_.record, kChunk) / kStepCols;
         ++step, codes += kCodeBytes, columns += kStepCols * kElement) {
      const uint2 words = *reinterpret_cast<const uint2*>(codes);
      unsigned a[2][4];
      take_codes(words.x, head.minus[0], 0, a);
      take_codes(words.y, head.minus[1], 1, a);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint2 four = *reinterpret_cast<const uint2*>(columns + b * 8 * kXRow + i * 16 * kElement);
          const unsigned of_lane[2] = {four.x, four.y};
          mma_bf16(part[b], a[i], of_lane);
        }
    }
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[b][i] = fmaf(head.scale[i / 2], part[b][i], sum[b][i]);
  }

 private:
  /// Of a lane's two rows in a record: the scale, and -(128 + zero) twice in BF16.
  struct Head {
    float scale[2];
    unsigned minus[2];
  };
  __device__ __forceinline__ static unsigned twice_minus(unsigned zero) { return 0xc300c300u | zero * 0x00010001u; }
  __device__ __forceinline__ Head head_of_rows(const std::byte* record, int g) const {
    Head head{{}, {minus_, minus_}};
    if (f_.scales == Scales::single) {
      const float2 both = reinterpret_cast<const float2*>(record)[g];
      head.scale[0] = both.x, head.scale[1] = both.y;
    } else {
      const unsigned both = reinterpret_cast<const unsigned*>(record)[g];
      const bool half = f_.scales == Scales::half;
      head.scale[0] = half ? widen_f16(both & 0xffffu) : widen_bf16(both & 0xffffu);
      head.scale[1] = half ? widen_f16(both >> 16) : widen_bf16(both >> 16);
    }
    if (f_.zeros) {
      const unsigned both = reinterpret_cast<const std::uint16_t*>(record + f_.zero_at)[g];
      head.minus[0] = twice_minus(both & 0xffu), head.minus[1] = twice_minus(both >> 8);
    }
    return head;
  }
  /// A row's eight codes: 0x4300 with a code in the lowest bits is 128 + code in BF16.
  __device__ __forceinline__ static void take_codes(unsigned word, unsigned minus, int half, unsigned (&a)[2][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned quad = word >> (4 * i) & 0x0f0f0f0fu;
      a[i][half] = add_bf16_pairs(choose_bytes(quad, 0x43, 0x4140), minus);
      a[i][2 + half] = add_bf16_pairs(choose_bytes(quad, 0x43, 0x4342), minus);
    }
  }

  const PackedLayout& f_;
  const unsigned minus_;  // where all rows have the same zero
};

/// Products of INT4 weights with activations rounded to BF16 (W4A16) on the tensor cores of every GPU from sm_80 on.
///   shape      x [rows, cols] BF16, weights [outputs, cols] in packed panels, records of 32 to 256 columns -> FP32
///   precision  codes less their zero are exact in BF16; FP32 sums of a record (of up to 128 columns), brought to scale
///   grid       of 8 or 16 rows (tiles, one or two panels of 16 outputs), a block's four warps take a quarter of the
///              columns each; of 64 rows (tiles, four panels), a warp each. 128 columns are fetched (cp.async) while
///              those before are multiplied; a lane makes BF16 of 16 codes by 22 instructions, once for all rows
///   order      ascending columns in a record's sum, records in four sums, a quarter each, then these in order,
///              whatever the tile: a row's result does not depend on its neighbours
///   traffic    packed weights once for 8, 16 or 64 rows (0.52 bytes each in groups of 128), activations once for 16,
///              32 or 64 outputs
///   limit      few rows: memory, R1's experts of a layer on one of 8 GPUs 0.73 GB, 152 us on H200; but 8 or 16 full
///              rows of a tile are twice the weights' bytes from L2. 64 rows: shared memory, which brings a warp's
///              activations in twice the cycles that the tensor cores take, so half of their rate: o_proj of 4,096
///              tokens 1.9 ms
template <int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    linear_int4_mma_kernel(const __grid_constant__ LinearCall call, const __grid_constant__ PackedLayout f,
                           HalfRows x) {
  multiply<HalfProduct, kRows>(call, f, {reinterpret_cast<const std::byte*>(x.value), nullptr, x.stride});
}

}  // namespace

bool linear_int4_mma_takes(const Weights& w) {
  const PackedLayout& f = w.packed;
  const bool whole =
      f.unit == 1 &&
      (f.zeros || (f.offset >= 0 && f.offset < 16 && f.offset == static_cast<float>(static_cast<int>(f.offset))));
  return w.form == WeightForm::packed && f.coding == Coding::planes && f.bits == 4 && !f.minima && !f.has_table &&
         whole && (f.scales == Scales::half || f.scales == Scales::bfloat || f.scales == Scales::single);
}

void linear_int4_mma(const LinearCall& call, const PackedLayout& layout, const HalfRows& x, cudaStream_t stream) {
  with_tile_rows(call, [&]<int kRows>(std::integral_constant<int, kRows>) {
    using S = Shares<HalfProduct, kRows>;
    launch_with_shared("linear_int4_mma", linear_int4_mma_kernel<kRows>, S::grid(call), kThreads, S::bytes(layout),
                       stream, call, layout, x);
  });
}

}  // namespace shoal::cuda
