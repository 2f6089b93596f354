// Products with tiles of 16 x 16 sums, written against the tile instructions as a template parameter (amx_tile.h, or
// amx_emulation.h in a test). A tile of weights is 16 pairs of columns of a panel: 1 KB as it lies in memory.
// Everything but the tile instructions and the conversions (of a class `Isa`, as in gemm_quantized.inl) is plain C++.
//
// With activations in FP32, each is split into three BF16 numbers whose sum it is exactly, and three products are
// summed.
#include <cstring>

#include "kernels/cpu/amx_shape.h"
#include "kernels/cpu/kernel_table.h"

namespace shoal::cpu {
namespace {

constexpr std::int64_t kTileColumns = 32, kTileBytes = 1024;

struct AmxWidths {
  /// Widest last. Rows of a tile that hold no token cost time too, so short tiles are made shorter.
  static constexpr int kAll[] = {1, 2, 4, 8, 16, 32};
};

inline int amx_tile_width(std::int64_t remaining, std::int64_t) {
  for (const int width : AmxWidths::kAll) {
    if (width >= remaining) return width;
  }
  return 32;
}

constexpr std::int64_t steps_of(std::int64_t cols) { return (cols + kTileColumns - 1) / kTileColumns; }

/// A tile of activations: for each 32 columns, for each part, [width][32] BF16.
template <int kParts>
std::int64_t amx_tile_bytes(int width, std::int64_t cols) {
  return steps_of(cols) * kParts * width * 64;
}

/// Upper half of a float: BF16 rounded towards zero, so that what is left over is exact.
inline std::uint16_t upper_half(float f) {
  return static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, f) >> 16);
}
inline float from_upper_half(std::uint16_t h) { return __builtin_bit_cast(float, static_cast<std::uint32_t>(h) << 16); }

inline std::uint16_t nearest_bf16(float f) {
  const auto u = __builtin_bit_cast(std::uint32_t, f);
  const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
}

/// part[0] + part[1] + .. = f. Infinity and NaN have no remainder; the first part of a NaN must not become infinity.
template <int kParts>
inline void split(float f, std::uint16_t* part, std::int64_t step) {
  if constexpr (kParts == 1) {
    part[0] = nearest_bf16(f);
  } else {
    const bool finite = (__builtin_bit_cast(std::uint32_t, f) & 0x7f800000u) != 0x7f800000u;
    part[0] = finite ? upper_half(f) : nearest_bf16(f);
    float left = finite ? f - from_upper_half(part[0]) : 0.0f;
    for (int i = 1; i < kParts; ++i) {
      part[i * step] = upper_half(left);
      left -= from_upper_half(part[i * step]);
    }
  }
}

template <class Isa, int kParts>
void amx_pack(const float* const* rows, int tokens, int width, std::int64_t cols, std::byte* tile) {
  auto* out = reinterpret_cast<std::uint16_t*>(tile);
  const std::int64_t part = width * kTileColumns;
  if (tokens < width || cols % kTileColumns != 0)
    std::memset(tile, 0, static_cast<std::size_t>(amx_tile_bytes<kParts>(width, cols)));
  for (std::int64_t step = 0; step < steps_of(cols); ++step) {
    const std::int64_t first = step * kTileColumns;
    const std::int64_t n = cols - first < kTileColumns ? cols - first : kTileColumns;
    for (int t = 0; t < tokens; ++t) {
      std::uint16_t* to = out + step * kParts * part + t * kTileColumns;
      const float* from = rows[t] + first;
      if (kParts == 1 && n == kTileColumns) {
        Isa::pack_bf16(from, reinterpret_cast<std::byte*>(to));
        continue;
      }
      for (std::int64_t c = 0; c < n; ++c) split<kParts>(from[c], to + c, part);
    }
  }
}

// Tiles 0..3 hold sums [panel][token half], 4 and 5 activations of the two halves, 6 and 7 weights of the two panels.

/// kPanels panels times kHalves x 16 tokens (fewer in a narrow tile) over `steps` times 32 columns.
template <class Tiles, int kParts, int kPanels, int kHalves>
inline void multiply_steps(const std::byte* w, std::int64_t panel_bytes, const std::byte* x, int width,
                           std::int64_t steps) {
  const std::int64_t part_bytes = std::int64_t{width} * 64;
  for (std::int64_t s = 0; s < steps; ++s) {
    Tiles::template load<6>(w, 64);
    if constexpr (kPanels == 2) Tiles::template load<7>(w + panel_bytes, 64);
    for (int part = 0; part < kParts; ++part) {
      Tiles::template load<4>(x, 64);
      Tiles::template multiply_bf16<0, 4, 6>();
      if constexpr (kPanels == 2) Tiles::template multiply_bf16<2, 4, 7>();
      if constexpr (kHalves == 2) {
        Tiles::template load<5>(x + 16 * 64, 64);
        Tiles::template multiply_bf16<1, 5, 6>();
        if constexpr (kPanels == 2) Tiles::template multiply_bf16<3, 5, 7>();
      }
      x += part_bytes;
    }
    w += kTileBytes;
  }
}

template <class Tiles>
inline void zero_sums() {
  Tiles::template zero<0>();
  Tiles::template zero<1>();
  Tiles::template zero<2>();
  Tiles::template zero<3>();
}

/// Sums to out [kPanels][width][16].
template <class Tiles, int kPanels, int kHalves>
inline void store_sums(float* out, int width) {
  Tiles::template store<0>(out, 64);
  if constexpr (kHalves == 2) Tiles::template store<1>(out + 256, 64);
  if constexpr (kPanels == 2) Tiles::template store<2>(out + width * 16, 64);
  if constexpr (kPanels == 2 && kHalves == 2) Tiles::template store<3>(out + width * 16 + 256, 64);
}

/// Tile registers for token tiles of a width.
template <class Tiles>
inline void configure_for(int width) {
  const auto rows = static_cast<std::uint8_t>(width < 16 ? width : 16);
  const TileShape sums{rows, 64}, activations{rows, 64}, weights{16, 64};
  const TileShape shape[8] = {sums, sums, sums, sums, activations, activations, weights, weights};
  Tiles::configure(shape);
}

/// What is left of a panel's columns beyond whole tiles, completed with zeros.
inline void copy_tail(const std::byte* w, std::int64_t columns, std::byte* out) {
  std::memset(out, 0, kTileBytes);
  std::memcpy(out, w, static_cast<std::size_t>(columns) * 32);
}

template <class Tiles, int kParts, int kPanels, int kHalves>
void multiply_panels(const Weights& w, std::int64_t panel, const PackedTile& tile, float* out, std::byte* scratch) {
  const std::byte* data = w.data + panel * w.panel_bytes;
  const std::int64_t whole = w.padded_cols / kTileColumns, rest = w.padded_cols % kTileColumns;
  zero_sums<Tiles>();
  multiply_steps<Tiles, kParts, kPanels, kHalves>(data, w.panel_bytes, tile.x, tile.width, whole);
  if (rest > 0) {
    for (int p = 0; p < kPanels; ++p) {
      copy_tail(data + p * w.panel_bytes + whole * kTileBytes, rest, scratch + p * kTileBytes);
    }
    const std::byte* x = tile.x + whole * kParts * tile.width * 64;
    multiply_steps<Tiles, kParts, kPanels, kHalves>(scratch, kTileBytes, x, tile.width, 1);
  }
  store_sums<Tiles, kPanels, kHalves>(out, tile.width);
}

/// Calls body(panel, done, count) for pairs of panels and a last single one.
template <class Body>
inline void for_each_pair(std::int64_t first, std::int64_t panels, const Body& body) {
  for (std::int64_t p = 0; p < panels; p += 2) body(first + p, p, panels - p >= 2 ? 2 : 1);
}

/// Configures the tiles for each run of token tiles of one width; widths only ever shrink.
template <class Tiles, class Body>
inline void for_each_amx_tile(const PackedTile* tiles, int n_tiles, int& configured, const Body& body) {
  for (int i = 0; i < n_tiles; ++i) {
    if (tiles[i].width != configured) {
      configured = tiles[i].width;
      configure_for<Tiles>(configured);
    }
    body(tiles[i]);
  }
}

template <class Tiles, int kParts>
void amx_run_bf16(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
                  std::byte* scratch) {
  int configured = 0;
  for_each_pair(first, panels, [&](std::int64_t panel, std::int64_t done, int count) {
    for_each_amx_tile<Tiles>(tiles, n_tiles, configured, [&](const PackedTile& tile) {
      float* out = tile.out + done * tile.width * 16;
      const bool both = tile.width == 32;
      if (count == 2 && both) multiply_panels<Tiles, kParts, 2, 2>(w, panel, tile, out, scratch);
      if (count == 2 && !both) multiply_panels<Tiles, kParts, 2, 1>(w, panel, tile, out, scratch);
      if (count == 1 && both) multiply_panels<Tiles, kParts, 1, 2>(w, panel, tile, out, scratch);
      if (count == 1 && !both) multiply_panels<Tiles, kParts, 1, 1>(w, panel, tile, out, scratch);
    });
  });
  Tiles::release();
}

/// Columns [0, columns) of a panel of F8 as pairs of BF16, completed with zeros to whole tiles.
template <class Isa>
inline void convert_f8_panel(const std::byte* codes, std::int64_t columns, std::byte* out) {
  for (std::int64_t c = 0; c < columns; c += 2) Isa::f8_pairs(codes + c * 16, out + c * 32);
  const std::int64_t end = steps_of(columns) * kTileColumns;
  std::memset(out + columns * 32, 0, static_cast<std::size_t>(end - columns) * 32);
}

/// Columns converted and summed at a time; a wider scale block is several pieces.
constexpr std::int64_t kAmxPieceColumns = 512;
constexpr std::int64_t kAmxPieceBytes = kAmxPieceColumns * 32;

/// out [panels][width][16] += sums * scale of the panel.
inline void add_scaled_sums(const float* sums, const float* scale, int panels, int width, float* out) {
  for (int p = 0; p < panels; ++p) {
    for (int i = 0; i < width * 16; ++i) out[p * width * 16 + i] += sums[p * width * 16 + i] * scale[p];
  }
}

template <class Tiles, class Isa, int kParts>
void amx_run_f8(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
                std::byte* scratch) {
  int configured = 0;
  auto* sums = reinterpret_cast<float*>(scratch + 2 * kAmxPieceBytes);
  for (int i = 0; i < n_tiles; ++i) {
    std::memset(tiles[i].out, 0, static_cast<std::size_t>(panels * tiles[i].width) * 64);
  }
  const std::int64_t block_cols = w.scales ? w.block_cols : 128;
  for_each_pair(first, panels, [&](std::int64_t panel, std::int64_t done, int count) {
    for (std::int64_t begin = 0; begin < w.padded_cols;) {
      const std::int64_t block = begin / block_cols;
      std::int64_t end = (block + 1) * block_cols;
      if (end > begin + kAmxPieceColumns) end = begin + kAmxPieceColumns;
      if (end > w.padded_cols) end = w.padded_cols;
      float scale[2] = {1.0f, 1.0f};
      for (int p = 0; p < count; ++p) {
        if (w.scales) {
          const std::int64_t last = w.scale_cols - 1;  // the padding column may lie beyond the last block
          scale[p] = w.scales[(panel + p) * 16 / w.block_rows * w.scale_cols + (block < last ? block : last)];
        }
        convert_f8_panel<Isa>(w.data + (panel + p) * w.panel_bytes + begin * 16, end - begin,
                              scratch + p * kAmxPieceBytes);
      }
      for_each_amx_tile<Tiles>(tiles, n_tiles, configured, [&](const PackedTile& tile) {
        const std::byte* x = tile.x + begin / kTileColumns * kParts * tile.width * 64;
        const std::int64_t steps = steps_of(end - begin);
        zero_sums<Tiles>();
        if (tile.width == 32) {
          if (count == 2) multiply_steps<Tiles, kParts, 2, 2>(scratch, kAmxPieceBytes, x, 32, steps);
          if (count == 1) multiply_steps<Tiles, kParts, 1, 2>(scratch, kAmxPieceBytes, x, 32, steps);
          store_sums<Tiles, 2, 2>(sums, 32);
        } else {
          if (count == 2) multiply_steps<Tiles, kParts, 2, 1>(scratch, kAmxPieceBytes, x, tile.width, steps);
          if (count == 1) multiply_steps<Tiles, kParts, 1, 1>(scratch, kAmxPieceBytes, x, tile.width, steps);
          store_sums<Tiles, 2, 1>(sums, tile.width);
        }
        add_scaled_sums(sums, scale, count, tile.width, tile.out + done * tile.width * 16);
      });
      begin = end;
    }
  });
  Tiles::release();
}

inline std::int64_t amx_scratch_bf16(const Weights&) { return 2 * kTileBytes; }
inline std::int64_t amx_scratch_f8(const Weights&) { return 2 * kAmxPieceBytes + 2 * 32 * 16 * 4; }

template <class Tiles, class Isa, int kParts>
inline void fill_amx_products(Gemm (&gemm)[kWeightKinds]) {
  gemm[int(WeightKind::bf16)] = {amx_tile_width, amx_tile_bytes<kParts>, amx_pack<Isa, kParts>, amx_scratch_bf16,
                                 amx_run_bf16<Tiles, kParts>};
  gemm[int(WeightKind::f8)] = {amx_tile_width, amx_tile_bytes<kParts>, amx_pack<Isa, kParts>, amx_scratch_f8,
                               amx_run_f8<Tiles, Isa, kParts>};
}

/// Replaces the products with BF16 and F8 weights. F32 and F16 weights do not fit BF16 and keep theirs.
template <class Tiles, class Isa>
inline void fill_amx(KernelTable& table) {
  table.f8_block_columns = kTileColumns;
  fill_amx_products<Tiles, Isa, 3>(table.gemm);
  fill_amx_products<Tiles, Isa, 1>(table.gemm_bf16);
}

}  // namespace
}  // namespace shoal::cpu
