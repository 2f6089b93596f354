#pragma once
#include "kernels/cuda/convert.h"

// Reading packed panels (kernels/packed_format.h): 16 rows side by side, 32 columns a step, in quads of four columns.
// Half a warp holds a panel's rows: lane r and lane r + 16 share row r, the first the even quads, the second the odd
// ones, which lie in different bytes whatever the width of the planes.
namespace shoal::cuda {

constexpr int kPanelRows = 16, kStepCols = 32, kQuads = 8;

/// Bytes of a row's quad in a plane of `bits` bits: byte i of part j holds quads j, j + bits, ...
__device__ __forceinline__ unsigned quad_of_plane(const std::byte* plane, int bits, int quad, int row) {
  const unsigned word = *reinterpret_cast<const unsigned*>(plane + (quad % bits * kPanelRows + row) * 4);
  const unsigned mask = (1u << bits) - 1;
  return word >> (quad / bits * bits) & mask * 0x01010101u;
}

/// The codes of four columns, a byte each; `codes` are those of the step.
__device__ __forceinline__ unsigned quad_of(const PackedLayout& f, const std::byte* codes, int quad, int row) {
  const int low = f.bits == 3 ? 2 : f.bits >= 5 && f.bits <= 6 ? 4 : f.bits, high = f.bits - low;
  unsigned quad_codes = quad_of_plane(codes, low, quad, row);
  if (high > 0) quad_codes |= quad_of_plane(codes + low * kPanelRows * 4, high, quad, row) << low;
  if (!f.has_table) return quad_codes;
  unsigned worth = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) worth |= static_cast<unsigned>(f.table[quad_codes >> (8 * i) & 15u]) << (8 * i);
  return worth;
}

struct GroupScale {
  float scale, minimum;  // a weight is worth scale * code - minimum
};

/// The nibble of a field of a row's group.
__device__ __forceinline__ unsigned nibble_of(const PackedLayout& f, const std::byte* record, int group, int field,
                                              int row) {
  const std::byte* words = record + f.factor_at + field / 4 * kPanelRows * 4;
  const unsigned word = reinterpret_cast<const std::uint16_t*>(words)[row * 2 + group % 2];
  return word >> (field % 4 * 4) & 15u;
}

/// Of a row's group in step `s` of a record; `record` and `step` are where these begin.
__device__ __forceinline__ GroupScale scale_of_group(const PackedLayout& f, const std::byte* record,
                                                     const std::byte* step, int s, int group, int row) {
  const auto* head = reinterpret_cast<const std::uint16_t*>(record);
  float scale = f.unit * (f.scales == Scales::single   ? reinterpret_cast<const float*>(record)[row]
                          : f.scales == Scales::bfloat ? widen_bf16(head[row])
                                                       : widen_f16(head[row]));
  float minimum = f.minima ? f.minimum_unit * widen_f16(head[f.minima_of_scale ? row : kPanelRows + row]) : 0.0f;
  const int groups = kStepCols / f.group;
  if (f.scales == Scales::nibbles) {
    const int of_record = s * groups + group;
    const bool own_minima = f.minima && !f.minima_of_scale;
    const int field = of_record / 2 * (own_minima ? 2 : 1);
    const unsigned n = nibble_of(f, record, of_record, field, row);
    scale *= static_cast<float>(f.scale_of[n]);
    if (f.minima)
      minimum *= static_cast<float>(own_minima ? nibble_of(f, record, of_record, field + 1, row) : f.minimum_of[n]);
  }
  if (f.scales == Scales::super) {
    const auto* factors = reinterpret_cast<const std::int8_t*>(step);
    scale *= static_cast<float>(factors[group * kPanelRows + row]);
    if (f.minima)
      minimum *= static_cast<float>(static_cast<std::uint8_t>(factors[(groups + group) * kPanelRows + row]));
  }
  if (f.minima) return {scale, minimum};
  const float offset = f.zeros ? static_cast<float>(static_cast<std::uint8_t>(record[f.zero_at + row])) : f.offset;
  return {scale, scale * offset};
}

}  // namespace shoal::cuda
