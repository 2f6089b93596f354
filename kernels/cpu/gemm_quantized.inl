// Products with quantized weights (packed_format.h), for an instruction set given as a struct `Isa`:
//
//   Pack                  what packs activations (PackPortable)
//   kWidths               widths of token tiles, narrowest first
//   begin(groups), end()  around the products of formats with so many scales a step
//   kWideCodesAreSigned   codes of 8 bits (and of tables) are multiplied as code - 128
//   kWholeFactors         scales of formats that are is_whole(f) are multiplied as whole numbers; then take_pairs(f,
//                         record, first step in it, expanded) gives them
//   halves(from, to)      16 FP16 as floats
//   multiply_signed, multiply_unsigned(by, bytes, to)   16 floats times as many bytes
//   take_nibbles(words, shift, table, to)   the table's entries for bits [shift, shift + 4) of 16 words of 32 bits
//   take_plane<W, L>(from, codes)   bits [L, L + W) of a step's codes (planes.h)
//   look_up(codes, table) replaces the codes of a step by their table entries
//   take_coded(f, record, step, codes)   a step of a format that is_coded(), table entries looked up
//   kPanels               panels that are multiplied together
//   kernel<T, G, P>(f)    the inner loop: T tokens, G scales a step, P panels (1 or kPanels), as a function of a
//                         BlockProduct; without P where kPanels is 1
//   kKnowsLayouts         the formats that most weights are in have functions of their own (run_quantized())
//   kBytesInPlace         codes of 8 bits are multiplied where they lie, `code_stride` apart, with some blocks of
//                         activations, of one step each, at a time: BlockProduct's parts() and sums() are not for these
//
// Activations become bytes, a block of 128 columns (of 32 for codes of 8 bits) at a time with one scale s, so that a
// group's sum of products is an integer and exact. A block adds to an output
//     s * sum over groups of ( weight scale * (sum(code * byte) - offset * sum(byte))  -  weight minimum * sum(byte) )
// where the offset, in most formats the middle of their codes, is taken off the integer.
// A block is expanded to plain bytes once for all tiles (codes of 8 bits in place are such already); in that form it
// stays in the first cache.
#include <cstring>
#include <type_traits>

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/tiles.h"

namespace shoal::cpu {
namespace {

constexpr int kStepColumns = 32, kQuadsOfStep = 8, kStepCodes = kStepColumns * 16;
/// Steps of a block of activations with one scale: the 128 columns that R1's own FP8 products take together; codes of 8
/// bits, which lose so little themselves that one would see it, have a scale for every 32.
constexpr int kBlockSteps = 4, kFineSteps = 1;
constexpr int block_steps_of(int bits) { return bits == 8 ? kFineSteps : kBlockSteps; }

/// A block of a tile of T tokens, n steps of it:
///     for each step: bytes [8 quads][T][4]   (with AVX-512 [T][32], as tiles of AMX have them)
///     for each step: -128 * sum of its bytes [T], of the first 16 [T], of the others [T], as integers
///     for each step: the sums of its first 16 and its last 16 bytes as a pair of 16 bits [T]
///     for each two steps: the sums of both steps' bytes as such a pair [T]
///     scale [T]
/// Only a row's last block may have fewer steps than the others.
constexpr std::int64_t kSumBytes = 3 * 4 + 4;
constexpr std::int64_t block_bytes_of(int width, std::int64_t steps) {
  return width * (steps * (kStepColumns + kSumBytes) + (steps + 1) / 2 * 4 + 4);
}

/// Where the parts of such a block lie. Byte: std::byte, const or not.
template <class Byte>
struct BlockParts {
  template <class T>
  using Like = std::conditional_t<std::is_const_v<Byte>, const T, T>;

  Byte* bytes;
  Like<std::int32_t>* sums;    // [steps][3][width]
  Like<std::int32_t>* halves;  // [steps][width]
  Like<std::int32_t>* pairs;   // [(steps + 1) / 2][width]
  Like<float>* scales;         // [width]

  BlockParts(Byte* block, int width, int steps)
      : bytes(block),
        sums(reinterpret_cast<Like<std::int32_t>*>(block + steps * width * kStepColumns)),
        halves(sums + steps * 3 * width),
        pairs(halves + steps * width),
        scales(reinterpret_cast<Like<float>*>(pairs + (steps + 1) / 2 * width)) {}
};

inline int steps_of_block(int most, std::int64_t cols, std::int64_t column) {
  const std::int64_t left = (cols - column) / kStepColumns;
  return left < most ? static_cast<int>(left) : most;
}

/// Minima are kept multiplied by this, so that minimum * (-128 * sum of bytes) is what they add.
constexpr float kSumUnit = 1.0f / 128;

/// Steps at a time of codes that are multiplied in place; as many as a record has at most.
constexpr int kMostInPlace = 8;

/// A block of a panel.
struct Expanded {
  alignas(64) std::uint8_t code[kBlockSteps * kStepCodes];  // [steps][quads][16 rows][4]
  alignas(64) float scale[kMostInPlace][16];                // by group: two of a step, or one
  alignas(64) float minimum[kMostInPlace][16];              // times kSumUnit
  alignas(64) std::int16_t pairs[kBlockSteps / 2][16][2];   // where has_paired_minima()
  alignas(64) float pair_unit[16];
  // Where Isa::is_whole(), in place of minima and, but with AVX-VNNI, scales: factors of pairs of groups, or (AVX2)
  // each group's twice.
  alignas(64) std::int32_t scale_pairs[kBlockSteps][16];
  alignas(64) std::int32_t factor_pairs[2 * kBlockSteps][16];
  alignas(64) std::int32_t minimum_pairs[kBlockSteps][16];
  alignas(64) float unit[16];
};

// ---- Activations ----

/// What packing does in plain C++.
struct PackPortable {
  /// n floats as bytes times a scale; nearest, ties to even. Not finite ones give a scale that is not finite either.
  static float quantize(const float* x, int n, std::int8_t* q) {
    std::uint32_t largest = 0;
    for (int i = 0; i < n; ++i) {
      const std::uint32_t magnitude = __builtin_bit_cast(std::uint32_t, x[i]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    const float most = __builtin_bit_cast(float, largest);
    const float inverse = largest != 0 ? 127.0f / most : 0.0f;
    // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the lowest bits.
    constexpr float kRound = 12582912.0f;
    for (int i = 0; i < n; ++i) {
      q[i] = static_cast<std::int8_t>(__builtin_bit_cast(std::int32_t, x[i] * inverse + kRound));
    }
    return most / 127.0f;
  }
  /// Of a step's bytes: the first 16, the last 16.
  static void add_halves(const std::int8_t* q, int& low, int& high) {
    for (int i = 0; i < 16; ++i) low += q[i];
    for (int i = 16; i < 32; ++i) high += q[i];
  }
};

template <int kSteps>
inline std::int64_t quantized_tile_bytes(int width, std::int64_t cols) {
  const std::int64_t whole = cols / kStepColumns / kSteps, left = cols / kStepColumns % kSteps;
  return whole * block_bytes_of(width, kSteps) + (left > 0 ? block_bytes_of(width, left) : 0);
}

/// Pack: PackPortable, or what does the same to the bit.
template <class Pack, int kSteps>
void pack_bytes(const float* const* rows, int tokens, int width, std::int64_t cols, std::byte* tile) {
  if (tokens < width) std::memset(tile, 0, static_cast<std::size_t>(quantized_tile_bytes<kSteps>(width, cols)));
  for (std::int64_t c = 0; c < cols; c += kSteps * kStepColumns) {
    const int steps = steps_of_block(kSteps, cols, c);
    const BlockParts<std::byte> block(tile, width, steps);
    for (int t = 0; t < tokens; ++t) {
      std::int8_t q[kSteps * kStepColumns];
      block.scales[t] = Pack::quantize(rows[t] + c, steps * kStepColumns, q);
      std::int16_t both[(kSteps + 1) / 2 * 2] = {};
      for (int s = 0; s < steps; ++s) {
        const std::int8_t* of_step = q + s * kStepColumns;
        int low = 0, high = 0;
        Pack::add_halves(of_step, low, high);
        std::int32_t* to = block.sums + s * 3 * width + t;
        to[0] = -128 * (low + high);
        to[width] = -128 * low;
        to[2 * width] = -128 * high;
        const std::int16_t half[2] = {static_cast<std::int16_t>(low), static_cast<std::int16_t>(high)};
        std::memcpy(block.halves + s * width + t, half, 4);
        both[s] = static_cast<std::int16_t>(low + high);
        std::memcpy(block.pairs + s / 2 * width + t, both + s / 2 * 2, 4);
        std::byte* bytes = block.bytes + s * width * kStepColumns;
        for (int i = 0; i < kQuadsOfStep; ++i) std::memcpy(bytes + (i * width + t) * 4, of_step + i * 4, 4);
      }
    }
    tile += block_bytes_of(width, steps);
  }
}

/// Some panels that are multiplied together, out of those of a call.
struct PanelGroup {
  const std::byte* first;
  std::int64_t panel_bytes;
  int panels;
  const std::byte* end;    // of the call's panels
  const std::byte* after;  // those that are read next; null: not known

  /// What memory is asked for while the group's first panel is multiplied `offset` bytes behind its beginning, and as
  /// far on in the others: `ahead` bytes on in the same panels, or in the next ones. Null: nothing is known.
  const std::byte* later(std::int64_t offset, std::int64_t ahead = 8192) const {
    const std::int64_t at = offset + ahead;
    if (at < panel_bytes) return first + at;
    const std::byte* next = first + panels * panel_bytes;
    if (next == end) next = after;
    return next ? next + at - panel_bytes : nullptr;
  }
};
/// Of so many panels that are left: all that are multiplied together, or one. With few tiles more panels cost more in
/// waiting for memory than they save.
template <class Isa>
inline int panels_together(std::int64_t left, int n_tiles) {
  constexpr int kManyTiles = 3;
  return n_tiles >= kManyTiles && left >= Isa::kPanels ? Isa::kPanels : 1;
}
SHOAL_INLINE void ask_for(const void* from, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const std::byte*>(from) + i, 0, 2);
  asm volatile("");  // has an effect as far as compilers know: GCC drops calls of functions that only prefetch
}

// ---- Weights ----

template <class Isa, int kWidth, int kLow>
inline const std::uint8_t* take_plane(const std::uint8_t* from, std::uint8_t* codes) {
  Isa::template take_plane<kWidth, kLow>(from, codes);
  return from + kWidth * 64;
}

template <class Isa>
SHOAL_INLINE void take_plain_codes(int bits, const std::uint8_t* from, std::uint8_t* codes) {
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

/// Whether codes are no planes of bits.
inline bool is_coded(const QuantizedLayout& f) { return f.codes.coding != Coding::planes; }

/// Whether codes need all eight bits.
inline bool is_wide(const QuantizedLayout& f) { return f.bits == 8 || f.table != nullptr; }

/// Whether the offset is the middle of the codes' range (128 of those in a table): it is then taken off the integer
/// sums of products; any other offset becomes a minimum.
inline bool is_centred(const QuantizedLayout& f) {
  const int middle = f.table ? 128 : 1 << (f.bits - 1);
  return !f.minima && !f.zeros && f.offset == static_cast<float>(middle);
}

/// Whether minima are whole numbers times one factor a record (the K formats with groups of 32): what a block takes off
/// is then an integer as well, and that times the factor.
inline bool has_paired_minima(const QuantizedLayout& f) { return f.minima && f.super && f.groups == 1; }

/// Whether scales and minima are whole numbers so small, and codes too, that products of a block can be: Q2_K and
/// IQ1_S.
inline bool has_whole_factors(const QuantizedLayout& f) { return f.nibbles && f.bits == 2; }

template <class Isa>
inline bool takes_whole(const QuantizedLayout& f) {
  if constexpr (Isa::kWholeFactors) return Isa::is_whole(f);
  return false;
}

/// What a record's rows have in common.
struct RecordScales {
  alignas(64) float d[16], dmin[16], zero[16];
};

template <class Isa>
SHOAL_INLINE void read_head(const QuantizedLayout& f, const std::byte* record, RecordScales& head) {
  if (f.single) {
    std::memcpy(head.d, record, sizeof head.d);
  } else if (f.bfloat) {
    for (int r = 0; r < 16; ++r) {
      std::uint16_t bits;
      std::memcpy(&bits, record + 2 * r, 2);
      head.d[r] = __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
    }
  } else {
    Isa::halves(record, head.d);
  }
  if (f.minimum_of) {
    std::memcpy(head.dmin, head.d, sizeof head.d);
  } else if (f.minima) {
    Isa::halves(record + 32, head.dmin);
  }
#pragma GCC ivdep
  for (int r = 0; r < 16; ++r) head.d[r] *= f.unit;
  if (is_centred(f)) return;
#pragma GCC ivdep
  for (int r = 0; r < 16; ++r) {
    head.dmin[r] = f.minima ? head.dmin[r] * f.minimum_unit : 0.0f;
    head.zero[r] = f.zeros ? static_cast<float>(static_cast<std::uint8_t>(record[f.zero_at + r])) : f.offset;
  }
}

/// The factors of a group's 16 rows, where they are nibbles.
struct FactorBytes {
  alignas(16) std::uint8_t scale[16], minimum[16];
};
template <class Isa>
inline void take_factors(const QuantizedLayout& f, const std::byte* record, int group, FactorBytes& out) {
  alignas(16) static constexpr std::uint8_t kPlain[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const auto* scale_of = reinterpret_cast<const std::uint8_t*>(f.scale_of);
  const int fields = f.minima && !f.minimum_of ? 2 : 1;  // of a pair of groups
  const int field = group / 2 * fields, word = group % 2 * 16;
  const auto words_of = [&](int i) { return record + f.factor_at + i / 4 * 64; };
  Isa::take_nibbles(words_of(field), word + field % 4 * 4, scale_of, out.scale);
  if (!f.minima) return;
  const int at = field + fields - 1;
  Isa::take_nibbles(words_of(at), word + at % 4 * 4, f.minimum_of ? f.minimum_of : kPlain, out.minimum);
}

/// A step's codes; wide ones as the Isa multiplies them.
template <class Isa>
SHOAL_INLINE void expand_codes(const QuantizedLayout& f, const std::byte* record, int step, std::uint8_t* codes) {
  if (is_coded(f)) {
    Isa::take_coded(f, record, step, codes);
  } else {
    const std::byte* planes = record + f.head_bytes + step * f.step_bytes + f.scale_bytes;
    take_plain_codes<Isa>(f.bits, reinterpret_cast<const std::uint8_t*>(planes), codes);
    if (f.table) Isa::look_up(codes, f.table);
  }
  if (Isa::kWideCodesAreSigned && is_wide(f)) {
    for (int i = 0; i < kStepCodes; ++i) codes[i] ^= 0x80;
  }
}

/// Expands `steps` steps from step `of_record` of a record on, but their codes where these are multiplied in place.
template <class Isa>
SHOAL_INLINE void expand(const QuantizedLayout& f, const std::byte* record, int of_record, int steps, bool in_place,
                         Expanded& out) {
  const int steps_of_record = f.record / kStepColumns;
  if constexpr (Isa::kWholeFactors) {
    if (takes_whole<Isa>(f)) {  // records of 256 columns, in each of which a block lies
      Isa::take_pairs(f, record, of_record, out);
      for (int s = 0; s < steps; ++s) expand_codes<Isa>(f, record, of_record + s, out.code + s * kStepCodes);
      return;
    }
  }
  const bool centred = is_centred(f);
  RecordScales head{};
  for (int s = 0; s < steps; ++s, ++of_record) {
    if (of_record == steps_of_record) of_record = 0, record += f.record_bytes;
    if (s == 0 || of_record == 0) {
      read_head<Isa>(f, record, head);
      if (Isa::kWideCodesAreSigned && is_wide(f))
        for (float& zero : head.zero) zero -= 128.0f;
    }
    const std::byte* step = record + f.head_bytes + of_record * f.step_bytes;
    if (!in_place) expand_codes<Isa>(f, record, of_record, out.code + s * kStepCodes);
    for (int g = 0; g < f.groups; ++g) {
      float* scale = out.scale[s * f.groups + g];
      float* minimum = out.minimum[s * f.groups + g];
      const std::byte *scales = step + g * 16, *minima = step + (f.groups + g) * 16;
      FactorBytes factors;
      if (f.nibbles) {
        take_factors<Isa>(f, record, of_record * f.groups + g, factors);
        scales = reinterpret_cast<const std::byte*>(factors.scale);
        minima = reinterpret_cast<const std::byte*>(factors.minimum);
      }
      const bool by_group = f.super || f.nibbles;
      if (by_group) {
        Isa::multiply_signed(head.d, scales, scale);
      } else {
        std::memcpy(scale, head.d, sizeof head.d);
      }
      if (centred) continue;
      if (!f.minima) {
#pragma GCC ivdep
        for (int r = 0; r < 16; ++r) minimum[r] = scale[r] * head.zero[r];
      } else if (by_group) {  // of unsigned codes: no format has minima and wide codes
        Isa::multiply_unsigned(head.dmin, minima, minimum);
      } else {
        std::memcpy(minimum, head.dmin, sizeof head.dmin);
      }
#pragma GCC ivdep
      for (int r = 0; r < 16; ++r) minimum[r] *= kSumUnit;
    }
    if (has_paired_minima(f)) {
      const auto* m = reinterpret_cast<const std::uint8_t*>(step + 16);
      for (int r = 0; r < 16; ++r) out.pairs[s / 2][r][s % 2] = m[r];
    }
  }
#pragma GCC ivdep
  for (int r = 0; r < 16; ++r) out.pair_unit[r] = -head.dmin[r];
}

// ---- Products ----

/// What the inner loop reads: expanded blocks, and a tile's.
struct BlockProduct {
  const Expanded* weights;    // [panels]
  const std::uint8_t* codes;  // [steps][quads][16 rows][4], of the first panel
  std::int64_t code_stride;   // from step to step
  std::int64_t ahead;         // of codes in place, the distance of what is asked for; 0: of nothing
  int steps;
  bool minima;  // else the offset is in `start`
  bool paired;  // minima are the pairs (AMX asks for this and the next)
  bool whole;   // scales and minima are whole numbers
  int start;    // a sum of products starts with the tile's -128 * sum(byte) shifted right by so many bits; 32: with 0
  int code_shift;  // of codes in planes, where these are shifted left until their middle is 128
  const std::byte* x;
  float* out;  // [panels][T][16], added to

  /// Before a step of codes in place, whose products are too few to wait behind requests for a whole block.
  SHOAL_INLINE void ask_ahead(const std::uint8_t* codes_of_step) const {
    if (ahead != 0) ask_for(codes_of_step + ahead, code_stride);
  }
  std::int32_t start_of(std::int32_t sum) const { return start < 32 ? sum >> start : 0; }
  template <int T>
  BlockParts<const std::byte> parts() const {
    return {x, T, steps};
  }
  /// [T], of group g of G of a step.
  template <int T, int G>
  const std::int32_t* sums(int step, int g) const {
    return parts<T>().sums + (step * 3 + (G == 1 ? 0 : 1 + g)) * T;
  }
};

using BlockKernel = void (*)(const BlockProduct&);

template <class Isa, int kGroups, int kPanels, int kIndex = 0>
inline BlockKernel kernel_of_width(const QuantizedLayout& f, int width) {
  constexpr int kWidth = Isa::kWidths[kIndex];
  if constexpr (kIndex + 1 < int(sizeof Isa::kWidths / sizeof(int))) {
    if (width != kWidth) return kernel_of_width<Isa, kGroups, kPanels, kIndex + 1>(f, width);
  }
  if constexpr (Isa::kPanels == 1) {
    return Isa::template kernel<kWidth, kGroups>(f);
  } else {
    return Isa::template kernel<kWidth, kGroups, kPanels>(f);
  }
}

template <class Isa, int kPanels>
inline BlockKernel block_kernel(const QuantizedLayout& f, int width) {
  return f.groups == 1 ? kernel_of_width<Isa, 1, kPanels>(f, width) : kernel_of_width<Isa, 2, kPanels>(f, width);
}

/// What the products of all blocks of a call have in common.
template <class Isa>
struct BlockProducts {
  static constexpr int kCount = sizeof Isa::kWidths / sizeof(int);
  static constexpr int kWidest = Isa::kWidths[kCount - 1];
  BlockKernel of_one[kWidest + 1], of_all[kWidest + 1];  // panels
  BlockProduct product;
  int block_steps;

  explicit BlockProducts(const QuantizedLayout& f) : product{}, block_steps(block_steps_of(f.bits)) {
    for (const int width : Isa::kWidths) {
      of_one[width] = block_kernel<Isa, 1>(f, width);
      of_all[width] = block_kernel<Isa, Isa::kPanels>(f, width);
    }
    const int start = is_wide(f) ? (Isa::kWideCodesAreSigned ? 32 : 0) : 8 - f.bits;
    product.minima = !is_centred(f);
    product.paired = has_paired_minima(f);
    product.whole = takes_whole<Isa>(f);
    product.start = product.minima ? 32 : start;
    product.code_shift = 8 - f.bits;
  }

  /// The expanded blocks from column c on of `panels` panels (1 or Isa::kPanels) from panel p of the call on, times all
  /// tiles. `codes` are not the block's own where they are multiplied in place. before_tile(i) comes before tile i.
  template <class BeforeTile = void (*)(int)>
  void multiply(
      const Expanded* expanded, const std::uint8_t* codes, std::int64_t code_stride, std::int64_t ahead, std::int64_t c,
      int steps, std::int64_t p, int panels, const PackedTile* tiles, int n_tiles,
      const BeforeTile& before_tile = [](int) {}) {
    const BlockKernel* const of_width = panels == 1 ? of_one : of_all;
    product.weights = expanded;
    product.codes = codes;
    product.code_stride = code_stride;
    product.steps = steps;
    const std::int64_t block = c / kStepColumns / block_steps;
    for (int i = 0; i < n_tiles; ++i) {
      const PackedTile& tile = tiles[i];
      before_tile(i);
      product.ahead = i == 0 ? ahead : 0;
      product.x = tile.x + block * block_bytes_of(tile.width, block_steps);
      product.out = tile.out + p * tile.width * 16;
      of_width[tile.width](product);
    }
  }
};

/// What the compiler is told of a layout: nothing.
struct AnyLayout {
  static bool is(const QuantizedLayout&) { return true; }
  static void assume(QuantizedLayout&) {}
};
/// What these have in common: codes in planes, heads of FP16, neither zeros nor tables.
SHOAL_INLINE void assume_planes(QuantizedLayout& f, int bits, int head_bytes, int scale_bytes) {
  f.bits = bits;
  f.nibbles = f.bfloat = f.single = f.zeros = false;
  f.table = nullptr;
  f.minimum_of = nullptr;
  f.head_bytes = head_bytes;
  f.scale_bytes = scale_bytes;
  f.step_bytes = f.codes.step_bytes = scale_bytes + 64 * bits;
  f.codes.coding = Coding::planes;
  f.codes.codes_at = head_bytes + scale_bytes;
}
/// K formats whose scales (and minima) are bytes.
template <int kBits, int kGroups, bool kMinima>
struct KLayout {
  static constexpr int kScaleBytes = 16 * kGroups * (kMinima ? 2 : 1), kHeadBytes = kMinima ? 64 : 32;
  static bool is(const QuantizedLayout& f) {
    return f.super && f.bits == kBits && f.groups == kGroups && f.minima == kMinima && !f.table && !f.zeros &&
           f.codes.coding == Coding::planes;
  }
  static SHOAL_INLINE void assume(QuantizedLayout& f) {
    assume_planes(f, kBits, kHeadBytes, kScaleBytes);
    f.super = true;
    f.groups = kGroups;
    f.minima = kMinima;
    f.record = 256;
    f.record_bytes = kHeadBytes + 8 * f.step_bytes;
  }
};

/// Codes of four bits around 8, an FP16 scale for each record: Q4_0, INT4.
struct NibbleLayout {
  static bool is(const QuantizedLayout& f) {
    return !f.super && !f.nibbles && !f.bfloat && !f.single && f.bits == 4 && !f.minima && !f.table && !f.zeros &&
           f.offset == 8 && f.unit == 1 && f.codes.coding == Coding::planes;
  }
  static SHOAL_INLINE void assume(QuantizedLayout& f) {
    assume_planes(f, 4, 32, 0);
    f.super = f.minima = false;
    f.groups = 1;
    f.offset = 8;
    f.unit = 1;
  }
};

/// Formats whose scales (and minima, of their own or of the scales) are nibbles: Q2_K, IQ1_S and those of points.
template <Coding kCoding, int kGroups, bool kMinima, bool kMinimaOfScales = false>
struct NibbleScaleLayout {
  static bool is(const QuantizedLayout& f) {
    return f.nibbles && f.codes.coding == kCoding && f.groups == kGroups && f.minima == kMinima &&
           (f.minimum_of != nullptr) == kMinimaOfScales;
  }
  static SHOAL_INLINE void assume(QuantizedLayout& f) {
    f.nibbles = true;
    f.super = f.bfloat = f.single = f.zeros = false;
    f.groups = kGroups;
    f.minima = kMinima;
    if (!kMinimaOfScales) f.minimum_of = nullptr;
    if (kMinimaOfScales && !f.minimum_of) __builtin_unreachable();
    f.codes.coding = kCoding;
    f.record = 256;
    f.factor_at = kMinima && !kMinimaOfScales ? 64 : 32;
    if (kCoding == Coding::planes) {
      f.bits = 2;
      f.table = nullptr;
    }
  }
};

/// Codes of eight bits, an FP16 scale for every 32: Q8_0.
struct ByteLayout {
  static bool is(const QuantizedLayout& f) {
    return !f.super && !f.nibbles && !f.bfloat && !f.single && f.bits == 8 && f.record == kStepColumns &&
           f.groups == 1 && !f.minima && !f.table && !f.zeros && f.offset == 128 && f.unit == 1 &&
           f.codes.coding == Coding::planes;
  }
  static SHOAL_INLINE void assume(QuantizedLayout& f) {
    assume_planes(f, 8, 32, 0);
    f.super = f.minima = false;
    f.groups = 1;
    f.offset = 128;
    f.unit = 1;
    f.record = kStepColumns;
    f.record_bytes = 32 + f.step_bytes;
  }
};

template <class Isa, class Layout>
void run_layout(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
                std::byte* scratch) {
  QuantizedLayout f = w.quantized;
  Layout::assume(f);
  auto* expanded = reinterpret_cast<Expanded*>(scratch);
  clear_outputs(tiles, n_tiles, panels);
  const int steps_of_record = f.record / kStepColumns;
  static_assert(!Isa::kBytesInPlace || Isa::kPanels == 1, "only the first panel's codes are where they lie");
  const bool in_place = Isa::kBytesInPlace && f.bits == 8;
  // Codes in place are as far apart as steps of a record, or as records of one step.
  const int most = !in_place ? block_steps_of(f.bits) : steps_of_record == 1 ? kMostInPlace : steps_of_record;
  const std::int64_t stride = !in_place ? kStepCodes : steps_of_record == 1 ? f.record_bytes : f.step_bytes;
  const std::byte* const end = w.data + (first + panels) * w.panel_bytes;
  const std::int64_t block_bytes = std::int64_t{f.record_bytes} * most / steps_of_record;
  BlockProducts<Isa> products(f);
  Isa::begin(f.groups);
  for (std::int64_t p = 0; p < panels;) {
    const int together = panels_together<Isa>(panels - p, n_tiles);
    const std::byte *record = w.data + (first + p) * w.panel_bytes, *at = record;
    const PanelGroup group{record, w.panel_bytes, together, end, w.after};
    int of_record = 0;
    for (std::int64_t c = 0; c < w.cols; c += most * kStepColumns, at += block_bytes) {
      const std::byte* const later = group.later(at - group.first);
      const std::int64_t ahead = later ? later - at : 0;
      const int steps = steps_of_block(most, w.cols, c);
      for (int i = 0; i < together; ++i) {
        const std::int64_t of_panel = i * w.panel_bytes;
        if (!in_place && later) ask_for(later + of_panel, block_bytes);
        expand<Isa>(f, record + of_panel, of_record, steps, in_place, expanded[i]);
      }
      const std::byte* step = record + f.codes.codes_at + of_record * f.step_bytes;
      const std::uint8_t* codes = in_place ? reinterpret_cast<const std::uint8_t*>(step) : expanded->code;
      products.multiply(expanded, codes, stride, in_place ? ahead : 0, c, steps, p, together, tiles, n_tiles);
      for (of_record += most; of_record >= steps_of_record; of_record -= steps_of_record) record += f.record_bytes;
    }
    p += together;
  }
  Isa::end();
}

/// With one token, deciding for each block how it lies takes longer than multiplying it: so an Isa that kKnowsLayouts
/// has functions of their own for the formats that most weights are in.
template <class Isa>
void run_quantized(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
                   std::byte* scratch) {
  const auto run_as = [&]<class Layout>(Layout) {
    if (!Layout::is(w.quantized)) return false;
    run_layout<Isa, Layout>(w, first, panels, tiles, n_tiles, scratch);
    return true;
  };
  if constexpr (Isa::kKnowsLayouts) {
    if (run_as(KLayout<4, 1, true>()) || run_as(KLayout<5, 1, true>()) || run_as(KLayout<6, 2, false>()) ||
        run_as(KLayout<3, 2, false>()) || run_as(NibbleLayout()) ||
        run_as(NibbleScaleLayout<Coding::planes, 2, true>()) || run_as(NibbleScaleLayout<Coding::points, 1, false>()) ||
        run_as(NibbleScaleLayout<Coding::points, 2, false>()) ||
        run_as(NibbleScaleLayout<Coding::trits, 1, true, true>()))
      return;
  }
  if constexpr (Isa::kBytesInPlace) {
    if (run_as(ByteLayout())) return;
  }
  run_as(AnyLayout());
}

/// The narrowest that makes no more tiles than the widest would.
template <class Isa>
int quantized_tile_width(std::int64_t remaining, std::int64_t) {
  constexpr int kCount = sizeof Isa::kWidths / sizeof(int);
  const int wanted = even_tile_width(remaining, Isa::kWidths[kCount - 1]);
  int i = 0;
  while (Isa::kWidths[i] < wanted) ++i;
  return Isa::kWidths[i];
}

template <class Isa>
inline std::int64_t quantized_scratch(const Weights&) {
  return Isa::kPanels * static_cast<std::int64_t>(sizeof(Expanded));
}

/// Activations are bytes whatever they are elsewhere.
inline void set_gemm(KernelTable& table, WeightKind kind, const Gemm& gemm) {
  table.gemm[int(kind)] = table.gemm_bf16[int(kind)] = gemm;
}

/// OfBytes: for codes of 8 bits.
template <class Isa, class OfBytes = Isa>
inline void fill_quantized(KernelTable& table) {
  const Gemm gemm{quantized_tile_width<Isa>, quantized_tile_bytes<kBlockSteps>,
                  pack_bytes<typename Isa::Pack, kBlockSteps>, quantized_scratch<Isa>, run_quantized<Isa>};
  const Gemm fine{quantized_tile_width<OfBytes>, quantized_tile_bytes<kFineSteps>,
                  pack_bytes<typename Isa::Pack, kFineSteps>, quantized_scratch<OfBytes>, run_quantized<OfBytes>};
  set_gemm(table, WeightKind::quantized, gemm);
  set_gemm(table, WeightKind::quantized_coded, gemm);
  set_gemm(table, WeightKind::quantized_8, fine);
}

}  // namespace
}  // namespace shoal::cpu
