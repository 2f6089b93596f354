// Products with quantized weights (packed_format.h), for an instruction set given as a struct `Isa`:
//
//   kWidths               widths of token tiles, narrowest first
//   kTokensOfTiles        width of tiles whose tokens' bytes are to lie side by side, or 0
//   begin(groups), end()  around the products of formats with so many scales a step
//   kWideCodesAreSigned   codes of 8 bits (and of tables) are multiplied as code - 128
//   halves(from, to)      16 FP16 as floats
//   multiply_signed, multiply_unsigned(by, bytes, to)   16 floats times as many bytes
//   take_plane<W, L>(from, codes)   bits [L, L + W) of a step's codes (planes.h)
//   look_up(codes, table) replaces the codes of a step by their table entries
//   multiply<T, G>(...)   the inner loop: T tokens, G scales a step
//
// Activations become bytes, 32 at a time with one scale, so that a step's sum of products is an integer and exact. A
// step adds to an output, with s the activations' scale:
//     weight scale * s * sum(code * byte)  -  weight minimum * s * sum(byte)
// 256 columns are expanded to plain bytes once for all tiles; in that form they stay in the first cache.
#include <cstring>

#include "kernels/cpu/kernel_table.h"

namespace shoal::cpu {
namespace {

constexpr int kStepColumns = 32, kQuadsOfStep = 8, kStepCodes = kStepColumns * 16, kMostSteps = 8;

/// A step of a tile of T tokens: bytes [8 quads][T][4] ([T][32] where T is Isa::kTokensOfTiles), then floats: scale
/// [T], scale * sum of all bytes [T], of the first 16 [T], of the others [T].
constexpr std::int64_t step_bytes_of(int width) { return std::int64_t{width} * (kStepColumns + 16); }

/// Some steps of a panel, of one record or several.
struct Expanded {
  alignas(64) std::uint8_t code[kMostSteps * kStepCodes];  // [steps][quads][16 rows][4]
  alignas(64) float scale[2 * kMostSteps][16];             // by group
  alignas(64) float minimum[2 * kMostSteps][16];
};

// ---- Activations ----

/// 32 floats as bytes times a scale; nearest, ties to even. Not finite ones give a scale that is not finite either.
inline float quantize_step(const float* x, std::int8_t* q) {
  std::uint32_t largest = 0;
  for (int i = 0; i < kStepColumns; ++i) {
    const std::uint32_t magnitude = __builtin_bit_cast(std::uint32_t, x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float most = __builtin_bit_cast(float, largest);
  const float inverse = largest != 0 ? 127.0f / most : 0.0f;
  // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the lowest bits.
  constexpr float kRound = 12582912.0f;
  for (int i = 0; i < kStepColumns; ++i) {
    q[i] = static_cast<std::int8_t>(__builtin_bit_cast(std::int32_t, x[i] * inverse + kRound));
  }
  return most / 127.0f;
}

inline std::int64_t quantized_tile_bytes(int width, std::int64_t cols) {
  return cols / kStepColumns * step_bytes_of(width);
}

template <class Isa>
void pack_bytes(const float* const* rows, int tokens, int width, std::int64_t cols, std::byte* tile) {
  const bool by_token = width == Isa::kTokensOfTiles;
  if (tokens < width) std::memset(tile, 0, static_cast<std::size_t>(quantized_tile_bytes(width, cols)));
  for (std::int64_t c = 0; c < cols; c += kStepColumns, tile += step_bytes_of(width)) {
    auto* scales = reinterpret_cast<float*>(tile + width * kStepColumns);
    for (int t = 0; t < tokens; ++t) {
      std::int8_t q[kStepColumns];
      const float scale = quantize_step(rows[t] + c, q);
      int low = 0, high = 0;
      for (int i = 0; i < 16; ++i) low += q[i];
      for (int i = 16; i < 32; ++i) high += q[i];
      if (by_token) {
        std::memcpy(tile + t * kStepColumns, q, kStepColumns);
      } else {
        for (int i = 0; i < kQuadsOfStep; ++i) std::memcpy(tile + (i * width + t) * 4, q + i * 4, 4);
      }
      scales[t] = scale;
      scales[width + t] = scale * static_cast<float>(low + high);
      scales[2 * width + t] = scale * static_cast<float>(low);
      scales[3 * width + t] = scale * static_cast<float>(high);
    }
  }
}

// ---- Weights ----

template <class Isa, int kWidth, int kLow>
inline const std::uint8_t* take_plane(const std::uint8_t* from, std::uint8_t* codes) {
  Isa::template take_plane<kWidth, kLow>(from, codes);
  return from + kWidth * 64;
}

template <class Isa>
inline void take_codes(int bits, const std::uint8_t* from, std::uint8_t* codes) {
  switch (bits) {
    case 2:
      take_plane<Isa, 2, 0>(from, codes);
      break;
    case 3:
      take_plane<Isa, 1, 2>(take_plane<Isa, 2, 0>(from, codes), codes);
      break;
    case 4:
      take_plane<Isa, 4, 0>(from, codes);
      break;
    case 5:
      take_plane<Isa, 1, 4>(take_plane<Isa, 4, 0>(from, codes), codes);
      break;
    case 6:
      take_plane<Isa, 2, 4>(take_plane<Isa, 4, 0>(from, codes), codes);
      break;
    default:
      std::memcpy(codes, from, kStepCodes);
  }
}

/// Expands a record into the steps of `out` from `first` on.
template <class Isa>
inline void expand(const QuantizedLayout& f, const std::byte* record, int first, Expanded& out) {
  const int steps = f.record / kStepColumns;
  const bool wide = Isa::kWideCodesAreSigned && (f.bits == 8 || f.table);
  alignas(64) float d[16], dmin[16] = {}, offset[16];
  for (int r = 0; r < 16; ++r) {
    const float zero = f.zeros ? static_cast<float>(static_cast<std::uint8_t>(record[f.zero_at + r])) : f.offset;
    offset[r] = wide ? zero - 128.0f : zero;
  }
  if (f.single) {
    std::memcpy(d, record, sizeof d);
  } else if (f.bfloat) {
    for (int r = 0; r < 16; ++r) {
      std::uint16_t bits;
      std::memcpy(&bits, record + 2 * r, 2);
      d[r] = __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
    }
  } else {
    Isa::halves(record, d);
  }
  if (f.minima) Isa::halves(record + 32, dmin);
  for (int r = 0; r < 16; ++r) {
    d[r] *= f.unit;
    dmin[r] *= f.minimum_unit;
  }

  const std::byte* step = record + f.head_bytes;
  for (int s = 0; s < steps; ++s, step += f.step_bytes) {
    std::uint8_t* codes = out.code + (first + s) * kStepCodes;
    take_codes<Isa>(f.bits, reinterpret_cast<const std::uint8_t*>(step + f.scale_bytes), codes);
    if (f.table) Isa::look_up(codes, f.table);
    if (wide) {
      for (int i = 0; i < kStepCodes; ++i) codes[i] ^= 0x80;
    }
    for (int g = 0; g < f.groups; ++g) {
      float* scale = out.scale[(first + s) * f.groups + g];
      float* minimum = out.minimum[(first + s) * f.groups + g];
      if (f.super) {
        Isa::multiply_signed(d, step + g * 16, scale);
      } else {
        std::memcpy(scale, d, sizeof d);
      }
      if (!f.minima) {
        for (int r = 0; r < 16; ++r) minimum[r] = scale[r] * offset[r];
      } else if (f.super) {  // of unsigned codes: no format has minima and wide codes
        Isa::multiply_unsigned(dmin, step + (f.groups + g) * 16, minimum);
      } else {
        std::memcpy(minimum, dmin, sizeof dmin);
      }
    }
  }
}

// ---- Products ----

/// What the inner loop reads: expanded steps, and a tile from the first of them on.
struct RecordProduct {
  const Expanded* weights;
  int steps;
  bool wide;  // codes need all eight bits
  const std::byte* x;
  float* out;  // [T][16], added to
};

template <class Isa, int kGroups, int kIndex = 0>
inline void multiply_width(const RecordProduct& p, int width) {
  constexpr int kWidth = Isa::kWidths[kIndex];
  if constexpr (kIndex + 1 < int(sizeof Isa::kWidths / sizeof(int))) {
    if (width != kWidth) return multiply_width<Isa, kGroups, kIndex + 1>(p, width);
  }
  Isa::template multiply<kWidth, kGroups>(p);
}

template <class Isa>
void run_quantized(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
                   std::byte* scratch) {
  const QuantizedLayout& f = w.quantized;
  auto* expanded = reinterpret_cast<Expanded*>(scratch);
  for (int i = 0; i < n_tiles; ++i) {
    std::memset(tiles[i].out, 0, static_cast<std::size_t>(panels * tiles[i].width * 16) * sizeof(float));
  }
  Isa::begin(f.groups);
  for (std::int64_t p = 0; p < panels; ++p) {
    const std::byte* record = w.data + (first + p) * w.panel_bytes;
    for (std::int64_t c = 0; c < w.cols; c += kMostSteps * kStepColumns) {
      int steps = 0;
      for (; steps < kMostSteps && c + steps * kStepColumns < w.cols; steps += f.record / kStepColumns) {
        expand<Isa>(f, record, steps, *expanded);
        record += f.record_bytes;
      }
      for (int i = 0; i < n_tiles; ++i) {
        const PackedTile& tile = tiles[i];
        const RecordProduct product{expanded, steps, f.bits == 8 || f.table != nullptr,
                                    tile.x + c / kStepColumns * step_bytes_of(tile.width),
                                    tile.out + p * tile.width * 16};
        if (f.groups == 1) multiply_width<Isa, 1>(product, tile.width);
        if (f.groups == 2) multiply_width<Isa, 2>(product, tile.width);
      }
    }
  }
  Isa::end();
}

template <class Isa>
int quantized_tile_width(std::int64_t remaining) {
  int width = 0;
  for (const int candidate : Isa::kWidths) {
    width = candidate;
    if (candidate >= remaining) break;
  }
  return width;
}

inline std::int64_t quantized_scratch(const Weights&) { return static_cast<std::int64_t>(sizeof(Expanded)); }

template <class Isa>
inline void fill_quantized(KernelTable& table) {
  table.gemm[int(WeightKind::quantized)] = table.gemm_bf16[int(WeightKind::quantized)] = {
      quantized_tile_width<Isa>, quantized_tile_bytes, pack_bytes<Isa>, quantized_scratch, run_quantized<Isa>};
}

}  // namespace
}  // namespace shoal::cpu
