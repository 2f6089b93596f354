// Quantized weights on tiles: codes become BF16, scaled, a few hundred columns at a time, and are multiplied as such.
// No scales are left for the sums, which is what makes byte tiles slow. Activations are BF16.
#include "kernels/cpu/gemm_amx.inl"
#include "kernels/cpu/gemm_quantized.inl"

namespace shoal::cpu {
namespace {

constexpr std::int64_t kQuantizedPieceColumns = 256;
constexpr std::int64_t kQuantizedPieceBytes = kQuantizedPieceColumns * 32;

/// A record's weights as pairs of BF16, [columns / 2][16 rows]; returns the end.
inline std::byte* record_to_bf16(const QuantizedLayout& f, const Expanded& from, std::byte* to) {
  auto* pairs = reinterpret_cast<std::uint32_t*>(to);
  for (int q = 0; q < f.record / 4; ++q) {
    const int g = q * f.groups / kQuadsOfStep;
    const float *scale = from.scale[g], *minimum = from.minimum[g];
    for (int half = 0; half < 2; ++half, pairs += 16) {
      for (int r = 0; r < 16; ++r) {
        std::uint32_t codes;
        std::memcpy(&codes, from.code + q * 64 + r * 4, 4);
        codes >>= 16 * half;
        const auto first = static_cast<float>(static_cast<std::int32_t>(codes & 255u));
        const auto second = static_cast<float>(static_cast<std::int32_t>((codes >> 8) & 255u));
        pairs[r] = nearest_bf16(scale[r] * first - minimum[r]) |
                   static_cast<std::uint32_t>(nearest_bf16(scale[r] * second - minimum[r])) << 16;
      }
    }
  }
  return to + f.record * 32;
}

template <class Tiles, class Isa>
void amx_run_quantized(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
                       std::byte* scratch) {
  const QuantizedLayout& f = w.quantized;
  auto* sums = reinterpret_cast<float*>(scratch + 2 * kQuantizedPieceBytes);
  auto* expanded = reinterpret_cast<Expanded*>(scratch + 2 * kQuantizedPieceBytes + 2 * 32 * 64);
  for (int i = 0; i < n_tiles; ++i) {
    std::memset(tiles[i].out, 0, static_cast<std::size_t>(panels * tiles[i].width) * 64);
  }
  int configured = 0;
  for_each_pair(first, panels, [&](std::int64_t panel, std::int64_t done, int count) {
    for (std::int64_t begin = 0; begin < w.cols; begin += kQuantizedPieceColumns) {
      const std::int64_t left = w.cols - begin;
      const std::int64_t columns = left < kQuantizedPieceColumns ? left : kQuantizedPieceColumns;
      for (int p = 0; p < count; ++p) {
        std::byte* to = scratch + p * kQuantizedPieceBytes;
        const std::byte* record = w.data + (panel + p) * w.panel_bytes + begin / f.record * f.record_bytes;
        for (std::int64_t c = 0; c < columns; c += f.record, record += f.record_bytes) {
          expand<Isa>(f, record, *expanded);
          to = record_to_bf16(f, *expanded, to);
        }
      }
      for_each_amx_tile<Tiles>(tiles, n_tiles, configured, [&](const PackedTile& tile) {
        const std::byte* x = tile.x + begin / kTileColumns * tile.width * 64;
        const std::int64_t steps = columns / kTileColumns;
        zero_sums<Tiles>();
        if (tile.width == 32) {
          if (count == 2) multiply_steps<Tiles, 1, 2, 2>(scratch, kQuantizedPieceBytes, x, 32, steps);
          if (count == 1) multiply_steps<Tiles, 1, 1, 2>(scratch, kQuantizedPieceBytes, x, 32, steps);
          store_sums<Tiles, 2, 2>(sums, 32);
        } else {
          if (count == 2) multiply_steps<Tiles, 1, 2, 1>(scratch, kQuantizedPieceBytes, x, tile.width, steps);
          if (count == 1) multiply_steps<Tiles, 1, 1, 1>(scratch, kQuantizedPieceBytes, x, tile.width, steps);
          store_sums<Tiles, 2, 1>(sums, tile.width);
        }
        constexpr float kUnscaled[2] = {1.0f, 1.0f};
        add_scaled_sums(sums, kUnscaled, count, tile.width, tile.out + done * tile.width * 16);
      });
    }
  });
  Tiles::release();
}

inline std::int64_t amx_scratch_quantized(const Weights&) {
  return 2 * kQuantizedPieceBytes + 2 * 32 * 64 + static_cast<std::int64_t>(sizeof(Expanded));
}

template <class Tiles, class Isa>
inline void fill_amx_quantized(KernelTable& table) {
  table.gemm[int(WeightKind::quantized)] = table.gemm_bf16[int(WeightKind::quantized)] = {
      amx_tile_width, amx_tile_bytes<1>, amx_pack<1>, amx_scratch_quantized, amx_run_quantized<Tiles, Isa>};
}

}  // namespace
}  // namespace shoal::cpu
