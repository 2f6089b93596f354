// Products over the packed layout, included after the simd header of an instruction set. The innermost loop holds P
// panels times T tokens of sums in registers, and adds column after column; that order is the same for every P and T.
#include <cstring>
#include <type_traits>

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/tiles.h"

namespace shoal::cpu {
namespace {

/// Activations as floats, [cols][width] in a tile: the broadcast of one serves every panel held.
struct FloatTile {
  using Element = float;
  static constexpr int kColumns = 1;  // columns an element holds
  static constexpr bool kPlain = true;
  static constexpr const char* kUse = "FP32 FMA";
};

// The kinds of weights: `load` brings kStep columns of a panel into registers, `multiply` adds their products with the
// activations of token t. kPlain: not in blocks with scales.

struct F32Weights : FloatTile {
  using Loaded = Lanes;
  static constexpr int kStep = 1;
  static constexpr std::int64_t kStepBytes = 64;
  static constexpr float kUnit = 1.0f;
  static SHOAL_INLINE Loaded load(const std::byte* p) { return lanes_load(p); }
  template <int T>
  static SHOAL_INLINE Lanes multiply(Lanes sum, const Loaded& w, const float* x, int t) {
    return lanes_fma(w, lanes_broadcast(x[t]), sum);
  }
};

struct F8Weights : F32Weights {
  static constexpr std::int64_t kStepBytes = 16;
  static constexpr float kUnit = kF8Unit;
  static constexpr bool kPlain = false;
  static SHOAL_INLINE Loaded load(const std::byte* p) { return lanes_load_f8(p); }
};

struct Bf16Weights : FloatTile {
  using Loaded = LanePair;
  static constexpr int kStep = 2;
  static constexpr std::int64_t kStepBytes = 64;
  static constexpr float kUnit = 1.0f;
  static SHOAL_INLINE Loaded load(const std::byte* p) { return lanes_load_bf16(p); }
  template <int T>
  static SHOAL_INLINE Lanes multiply(Lanes sum, const Loaded& w, const float* x, int t) {
    return lanes_fma(w.odd, lanes_broadcast(x[T + t]), lanes_fma(w.even, lanes_broadcast(x[t]), sum));
  }
};

struct F16Weights : Bf16Weights {
  static SHOAL_INLINE Loaded load(const std::byte* p) { return lanes_load_f16(p); }
};

/// What a product asks the memory for meanwhile: in each step a line of every stream, all of which then move on.
struct Ahead {
  const std::byte* from = nullptr;
  int streams = 0;
  std::int64_t apart = 0, advance = 0;  // bytes between streams, and from step to step
};

/// sum[p][t] += the products of columns [0, columns) of panel p and token t.
template <class W, int P, int T>
SHOAL_INLINE void accumulate(const std::byte* w, std::int64_t panel_bytes, const typename W::Element* x,
                             std::int64_t columns, Ahead ahead, Lanes (&sum)[P][T]) {
  for (std::int64_t c = 0; c < columns; c += W::kStep) {
    typename W::Loaded loaded[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) loaded[p] = W::load(w + p * panel_bytes);
    if constexpr (W::kPlain) {
      for (int i = 0; i < ahead.streams; ++i) __builtin_prefetch(ahead.from + i * ahead.apart);
      ahead.from += ahead.advance;
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) sum[p][t] = W::template multiply<T>(sum[p][t], loaded[p], x, t);
    }
    w += W::kStepBytes;
    x += W::kStep / W::kColumns * T;
  }
}

/// A product of P panels and one tile over some columns: out = sums, or out += sums * scale of the panel.
struct Step {
  const std::byte* w;
  std::int64_t panel_bytes;
  const std::byte* x;
  std::int64_t columns;
  float* out;          // [P][T][16]
  const float* scale;  // [P] or null
  Ahead ahead;
};

/// Of one tile: the same panels further on. Many tokens keep a core busy between two lines of weights, and it then asks
/// for too few of them in time; fewer read faster as it does by itself.
template <class W>
SHOAL_INLINE Ahead of_same_panels(const std::byte* w, std::int64_t panel_bytes, int panels, int tokens) {
  constexpr int kFewTokens = 8, kBytes = 8192;
  return {w + kBytes, tokens < kFewTokens ? 0 : panels, panel_bytes, W::kStepBytes};
}

/// A function of its own, so that its sums have all registers.
template <class W, int P, int T>
__attribute__((noinline)) void multiply_step(const Step& s) {
  Lanes sum[P][T];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) sum[p][t] = lanes_zero();
  }
  accumulate<W, P, T>(s.w, s.panel_bytes, reinterpret_cast<const typename W::Element*>(s.x), s.columns, s.ahead, sum);
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      float* out = s.out + (p * T + t) * 16;
      lanes_store(out, s.scale ? lanes_fma(sum[p][t], lanes_broadcast(s.scale[p]), lanes_load(out)) : sum[p][t]);
    }
  }
}

/// The same for a width known only at run time.
template <class W, int kIndex = 0>
void multiply_tile(const Step& s, int panels, int width) {
  constexpr int kWidth = kTileWidths[kIndex];
  if constexpr (kIndex + 1 < int(sizeof kTileWidths / sizeof kTileWidths[0])) {
    if (width != kWidth) return multiply_tile<W, kIndex + 1>(s, panels, width);
  }
  if (panels == 1) return multiply_step<W, 1, kWidth>(s);
  multiply_step<W, panels_at_once(kWidth), kWidth>(s);
}

constexpr int kMostPanels = 4;

/// Panels [0, panels) in groups of at most `most`, and the rest one by one.
template <class Group>
SHOAL_INLINE void for_each_group(std::int64_t panels, int most, const Group& group) {
  for (std::int64_t p = 0; p < panels;) {
    const int n = panels - p >= most ? most : 1;
    group(p, n);
    p += n;
  }
}

/// Panels that pass all tiles before the next do, so that their weights stay in the second cache meanwhile.
SHOAL_INLINE int group_of(const Weights& w, int widest) {
  return w.panel_bytes * kMostPanels <= 400 * 1024 ? kMostPanels : panels_at_once(widest);
}

/// Weights without scales: one sum over all columns. While several tiles pass a group of panels, the next group comes
/// from memory.
template <class W>
void run_plain(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
               std::byte*) {
  constexpr std::int64_t kLine = 64;
  for_each_group(panels, group_of(w, tiles[0].width), [&](std::int64_t group, int n) {
    const bool last = group + n == panels;
    const std::byte* next = last ? w.after : w.data + (first + group + n) * w.panel_bytes;
    const std::int64_t room = next ? n * w.panel_bytes : 0;
    std::int64_t asked = 0;
    for (int i = 0; i < n_tiles; ++i) {
      const PackedTile& tile = tiles[i];
      for_each_group(n, panels_at_once(tile.width), [&](std::int64_t p, int m) {
        const std::byte* panel = w.data + (first + group + p) * w.panel_bytes;
        const Ahead ahead = n_tiles == 1   ? of_same_panels<W>(panel, w.panel_bytes, m, tile.width)
                            : asked < room ? Ahead{next + asked, 1, 0, kLine}
                                           : Ahead{};
        asked += w.padded_cols / W::kStep * kLine;
        multiply_tile<W>(
            {panel, w.panel_bytes, tile.x, w.padded_cols, tile.out + (group + p) * tile.width * 16, nullptr, ahead}, m,
            tile.width);
      });
    }
  });
}

/// Columns of the widest piece summed before its scale is applied. (A wider block is a few pieces with one scale.)
constexpr std::int64_t kPieceColumns = 512;

struct Piece {
  std::int64_t begin, end, block;
};
SHOAL_INLINE Piece piece_at(const Weights& w, std::int64_t begin) {
  const std::int64_t block_cols = w.scales ? w.block_cols : 128;
  const std::int64_t block = begin / block_cols;
  std::int64_t end = (block + 1) * block_cols;
  end = end < w.padded_cols ? end : w.padded_cols;
  // The padding column may lie beyond the last block of scales; its weights are zeros.
  const std::int64_t last = w.scales ? w.scale_cols - 1 : block;
  return {begin, end - begin > kPieceColumns ? begin + kPieceColumns : end, block < last ? block : last};
}
SHOAL_INLINE float scale_at(const Weights& w, std::int64_t panel, std::int64_t block) {
  return w.scales ? w.scales[panel * 16 / w.block_rows * w.scale_cols + block] : 1.0f;
}

/// F8 in regular blocks. One tile: codes are converted on their way to the multiplier. More: piece by piece into
/// scratch, once for all tiles, where `Converted` reads them (unless converting is so cheap that `Direct` and
/// `Converted` are the same); values and order are the same.
template <class Direct, class Converted, class Convert>
SHOAL_INLINE void run_blocks(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles,
                             int n_tiles, std::byte* scratch, const Convert& convert) {
  constexpr std::int64_t kScratchPanel = kPieceColumns / Converted::kStep * Converted::kStepBytes;
  const bool direct = n_tiles == 1 || std::is_same_v<Direct, Converted>;
  clear_outputs(tiles, n_tiles, panels);
  for_each_group(panels, kMostPanels, [&](std::int64_t group, int n) {
    const std::byte* data = w.data + (first + group) * w.panel_bytes;
    for (Piece piece{0, 0, 0}; piece.end < w.padded_cols;) {
      piece = piece_at(w, piece.end);
      const std::int64_t columns = piece.end - piece.begin;
      const std::byte* codes = data + piece.begin * 16;
      float scale[kMostPanels];
      for (int p = 0; p < n; ++p) {
        scale[p] = scale_at(w, first + group + p, piece.block) * Direct::kUnit;
        if (!direct) convert(codes + p * w.panel_bytes, columns, scratch + p * kScratchPanel);
      }
      for (int i = 0; i < n_tiles; ++i) {
        const PackedTile& tile = tiles[i];
        const auto element = static_cast<std::int64_t>(sizeof(typename Direct::Element));
        const std::byte* x = tile.x + piece.begin / Direct::kColumns * tile.width * element;
        for_each_group(n, panels_at_once(tile.width), [&](std::int64_t p, int m) {
          float* out = tile.out + (group + p) * tile.width * 16;
          if (direct) {
            multiply_tile<Direct>({codes + p * w.panel_bytes, w.panel_bytes, x, columns, out, scale + p, {}}, m,
                                  tile.width);
          } else {
            multiply_tile<Converted>({scratch + p * kScratchPanel, kScratchPanel, x, columns, out, scale + p, {}}, m,
                                     tile.width);
          }
        });
      }
    }
  });
}

void convert_f8_to_f32(const std::byte* codes, std::int64_t columns, std::byte* out) {
  for (std::int64_t c = 0; c < columns; ++c) {
    lanes_store(reinterpret_cast<float*>(out) + c * 16, lanes_load_f8(codes + c * 16));
  }
}

void run_f8(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
            std::byte* scratch) {
  run_blocks<F8Weights, F32Weights>(w, first, panels, tiles, n_tiles, scratch, convert_f8_to_f32);
}

std::int64_t scratch_f8(const Weights&) { return kMostPanels * kPieceColumns * 64; }
std::int64_t scratch_none(const Weights&) { return 0; }

/// One E4M3 code, NaN included (kernels/dtype.h has the readable form; its functions must not be compiled here).
SHOAL_INLINE float decode_f8(unsigned code) {
  const unsigned exponent = (code >> 3) & 15u, mantissa = code & 7u;
  if ((code & 0x7fu) == 0x7fu) return __builtin_nanf("");
  const float magnitude = exponent == 0 ? static_cast<float>(mantissa) * 0x1p-9f
                                        : __builtin_bit_cast(float, ((exponent + 120u) << 23) | (mantissa << 20));
  return (code & 0x80u) ? -magnitude : magnitude;
}

/// F8 of any blocks and codes: a panel becomes F32, scales applied, and is multiplied as such.
void run_f8_any(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
                std::byte* scratch) {
  auto* values = reinterpret_cast<float*>(scratch);
  for (std::int64_t panel = first; panel < first + panels; ++panel) {
    const std::byte* codes = w.data + panel * w.panel_bytes;
    for (std::int64_t c = 0; c < w.padded_cols; ++c) {
      for (std::int64_t r = 0; r < 16; ++r) {
        float scale = 1.0f;
        if (w.scales && c < w.cols) {
          // Rows of padding may lie beyond the last block; they are zeros and their sums are never read.
          const std::int64_t row = panel * 16 + r < w.rows ? panel * 16 + r : w.rows - 1;
          scale = w.scales[row / w.block_rows * w.scale_cols + c / w.block_cols];
        }
        values[c * 16 + r] = decode_f8(static_cast<unsigned>(codes[c * 16 + r])) * scale;
      }
    }
    for (int i = 0; i < n_tiles; ++i) {
      const PackedTile& tile = tiles[i];
      multiply_tile<F32Weights>(
          {scratch, 0, tile.x, w.padded_cols, tile.out + (panel - first) * tile.width * 16, nullptr, {}}, 1,
          tile.width);
    }
  }
}
std::int64_t scratch_f8_any(const Weights& w) { return w.padded_cols * 64; }

/// One tile where it holds all tokens, so that weights are read once; else tiles of about the same width.
int tile_width(std::int64_t remaining, std::int64_t all) {
  constexpr int kWidths = sizeof kTileWidths / sizeof kTileWidths[0];
  const int most = all <= kTileWidths[kWidths - 1] ? kTileWidths[kWidths - 1] : kManyWidth;
  const int wanted = even_tile_width(remaining, most);
  int i = 0;
  while (kTileWidths[i] < wanted) ++i;
  return kTileWidths[i];
}

constexpr std::int64_t even(std::int64_t cols) { return (cols + 1) / 2 * 2; }
std::int64_t tile_bytes(int width, std::int64_t cols) { return even(cols) * width * 4; }

/// Round to nearest, ties to even, as bits; NaN stays NaN.
SHOAL_INLINE std::uint32_t bf16_bits(float f) {
  const auto u = __builtin_bit_cast(std::uint32_t, f);
  const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded;
}

SHOAL_INLINE float keep(float f) { return f; }
SHOAL_INLINE float round_to_bf16(float f) { return __builtin_bit_cast(float, bf16_bits(f) << 16); }

template <float (*kPrepare)(float)>
void pack_floats(const float* const* rows, int tokens, int width, std::int64_t cols, std::byte* tile) {
  auto* out = reinterpret_cast<float*>(tile);
  // Blocks of columns, so that the lines of the tile being written stay in the first cache while all rows pass.
  constexpr std::int64_t kGroup = 64;
  for (std::int64_t begin = 0; begin < cols; begin += kGroup) {
    const std::int64_t end = begin + kGroup < cols ? begin + kGroup : cols;
    for (int t = 0; t < width; ++t) {
      for (std::int64_t c = begin; c < end; ++c) out[c * width + t] = t < tokens ? kPrepare(rows[t][c]) : 0.0f;
    }
  }
  if (cols % 2 != 0) std::memset(out + cols * width, 0, static_cast<std::size_t>(width) * sizeof(float));
}

/// The products of activations in FP32 tiles; `kPrepare` is what packing does to each.
template <float (*kPrepare)(float)>
void fill_float_products(Gemm (&gemm)[kWeightKinds]) {
  const auto product = [](auto run, auto scratch) {
    return Gemm{tile_width, tile_bytes, pack_floats<kPrepare>, scratch, run};
  };
  gemm[int(WeightKind::f32)] = product(run_plain<F32Weights>, scratch_none);
  gemm[int(WeightKind::f16)] = product(run_plain<F16Weights>, scratch_none);
  gemm[int(WeightKind::bf16)] = product(run_plain<Bf16Weights>, scratch_none);
  gemm[int(WeightKind::f8)] = product(run_f8, scratch_f8);
  gemm[int(WeightKind::f8_any)] = product(run_f8_any, scratch_f8_any);
}

/// Fills both halves of the table with FP32 multiplications.
inline void fill_gemm(KernelTable& table) {
  table.f8_block_columns = 2;
  fill_float_products<keep>(table.gemm);
  fill_float_products<round_to_bf16>(table.gemm_bf16);
  // A matrix kept in F32 or F16 is one that needs its precision (a router's, say): activations stay as they are.
  table.gemm_bf16[int(WeightKind::f32)] = table.gemm[int(WeightKind::f32)];
  table.gemm_bf16[int(WeightKind::f16)] = table.gemm[int(WeightKind::f16)];
}

}  // namespace
}  // namespace shoal::cpu
