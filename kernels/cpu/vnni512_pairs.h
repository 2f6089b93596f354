#pragma once
#include "kernels/cpu/vnni512_expanded.h"

/// Products of many tiles with codes in planes that take long to put together: it is done once for all tiles, and pairs
/// of panels share the loads of activations. What comes out has the bits of multiply_direct().
namespace shoal::cpu {
namespace {

/// A panel, from its first step on.
template <int kBits, int kGroups, bool kTable, Offsets kOffsets>
struct PlanesReader {
  using Code = Codes<kBits, kTable>;
  const std::byte* step;
  int left_of_record = 0;
  Head head{};

  /// The next `steps` steps, no more than kBlockSteps.
  void take(const QuantizedLayout& f, int steps, Expanded& out) {
    const Code codes = Code::of(f);
    for (int s = 0; s < steps; ++s) {
      if (left_of_record == 0) {
        head = Head::read<kOffsets>(f, step, 1.0f / (1 << Code::kShift));
        step += f.head_bytes;
        left_of_record = f.record;
      }
      const auto* planes = reinterpret_cast<const std::uint8_t*>(step + f.scale_bytes);
#pragma GCC unroll 8
      for (int q = 0; q < kQuadsOfStep; ++q) {
        _mm512_store_si512(out.code + s * kStepCodes + q * 64, codes.quad(planes, q));
      }
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        __m512 scale = head.d;
        if (f.super) {
          const __m128i of_group = _mm_loadu_si128(reinterpret_cast<const __m128i*>(step + g * 16));
          scale = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(of_group)));
        }
        _mm512_store_ps(out.scale[s * kGroups + g], scale);
        if constexpr (kOffsets == Offsets::other) {
          _mm512_store_ps(out.minimum[s * kGroups + g], f.minima ? head.dmin : _mm512_mul_ps(scale, head.zero));
        }
      }
      if constexpr (kOffsets == Offsets::paired) {
        if (s % 2 == 1) {
          const std::byte* minima = step + 16;
          _mm512_store_si512(out.pairs[s / 2], paired_minima(minima - f.step_bytes, minima));
        }
      }
      step += f.step_bytes;
      left_of_record -= kStepColumns;
    }
    if constexpr (kOffsets == Offsets::paired) _mm512_store_ps(out.pair_unit, head.dmin);
  }
};

/// Memory answers while so many blocks are multiplied; what is asked for earlier may be gone again.
constexpr int kBlocksAhead = 4;

/// Reader: a PlanesReader.
template <class Reader>
void run_pairs(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
               std::byte* scratch) {
  const QuantizedLayout& f = w.quantized;
  auto* expanded = reinterpret_cast<Expanded*>(scratch);
  const std::int64_t blocks = (w.cols + kBlockSteps * kStepColumns - 1) / (kBlockSteps * kStepColumns);
  const std::int64_t block_bytes = w.panel_bytes / blocks;
  const std::int64_t bytes_of_tile = (block_bytes / n_tiles + kLine - 1) / kLine * kLine;
  const std::byte* const end = w.data + (first + panels) * w.panel_bytes;
  clear_outputs(tiles, n_tiles, panels);
  BlockProducts<Expanded512> products(f);
  for (std::int64_t p = 0; p < panels;) {
    const int together = panels_together<Expanded512>(panels - p, n_tiles);
    const std::byte* const panel = w.data + (first + p) * w.panel_bytes;
    const PanelGroup group{panel, w.panel_bytes, together, end, w.after};
    Reader readers[Expanded512::kPanels];
    for (int i = 0; i < together; ++i) readers[i] = Reader{panel + i * w.panel_bytes};
    for (std::int64_t block = 0; block < blocks; ++block) {
      const int steps = steps_of_block(kBlockSteps, w.cols, block * kBlockSteps * kStepColumns);
      for (int i = 0; i < together; ++i) readers[i].take(f, steps, expanded[i]);
      // Requests for memory are few at a time: what is read meanwhile would wait behind many.
      const std::byte* const next = group.later(block * block_bytes, kBlocksAhead * block_bytes);
      const auto ask = [&](int tile) {
        if (!next) return;
        for (int i = 0; i < together; ++i) ask_for(next + i * w.panel_bytes + tile * bytes_of_tile, bytes_of_tile);
      };
      products.multiply(expanded, nullptr, 0, 0, block * kBlockSteps * kStepColumns, steps, p, together, tiles, n_tiles,
                        ask);
    }
    p += together;
  }
}

/// Whether codes are taken out first: where tiles are many, unless direct products are as fast.
inline bool runs_pairs(const QuantizedLayout& f, int n_tiles) {
  constexpr int kManyTiles = 8;
  return n_tiles >= kManyTiles && !f.nibbles && !takes_pairs(f.bits);
}

inline void run_planes(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
                       std::byte* scratch) {
  if (!runs_pairs(w.quantized, n_tiles)) return run_direct(w, first, panels, tiles, n_tiles, scratch);
  of_planes(w.quantized, [=]<int kBits, int kGroups, bool kTable, Offsets kOffsets>() {
    if constexpr (!takes_pairs(kBits)) {
      run_pairs<PlanesReader<kBits, kGroups, kTable, kOffsets>>(w, first, panels, tiles, n_tiles, scratch);
    }
  });
}

}  // namespace
}  // namespace shoal::cpu
