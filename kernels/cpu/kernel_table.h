#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/code_layout.h"

/// The kernels of one instruction set, as a table of plain functions over plain data. The files that fill a table are
/// compiled for their instruction set, so they must not leave behind any function the linker could hand to others: what
/// they include beyond this header lives in unnamed namespaces.
namespace shoal::cpu {

/// PackedFormat as plain numbers, for files that must not compile its functions.
struct QuantizedLayout {
  int bits, record, groups;  // of a code; columns of a record; scales of a step
  bool super, nibbles, bfloat, single, minima, zeros;
  float offset, unit, minimum_unit;
  int largest;                     // code; of tables and codes of 8 bits the greatest difference from 128
  const std::uint8_t* table;       // [16], or null
  const std::int8_t* scale_of;     // [16], of nibbles
  const std::uint8_t* minimum_of;  // [16], where minima come with the scales' nibbles; else null
  int head_bytes, step_bytes, scale_bytes, record_bytes, zero_at, factor_at;
  CodeLayout codes;
};

/// What a product reads of a Matrix.
struct Weights {
  const std::byte* data;
  std::int64_t panel_bytes;
  std::int64_t cols;
  std::int64_t padded_cols;  // even
  std::int64_t rows;
  const float* scales;  // null: none
  std::int64_t scale_cols;
  int block_rows, block_cols;
  QuantizedLayout quantized;  // of the quantized kinds
  const std::byte* after;     // panels read next, asked for while the last are multiplied; null: not known
};

/// Some tokens' activations in the order a kernel reads them, and room for their results.
struct PackedTile {
  const std::byte* x;
  int width;   // tokens the tile is made for; those beyond the real ones are zeros
  float* out;  // [panels of the call][width][16], 64-byte aligned
};

/// A product of packed activations with panels of weights, for one kind of weights. Every output is summed in an order
/// that neither the tile's width, nor its neighbours, nor the number of panels in the call can change.
struct Gemm {
  /// Width of the tile to pack next when `remaining` of `all` tokens are left.
  int (*tile_width)(std::int64_t remaining, std::int64_t all);
  std::int64_t (*tile_bytes)(int width, std::int64_t cols);
  /// Packs `tokens` rows of `cols` floats into a tile (64-byte aligned).
  void (*pack)(const float* const* rows, int tokens, int width, std::int64_t cols, std::byte* tile);
  /// Scratch that `run` needs for these weights.
  std::int64_t (*scratch_bytes)(const Weights& w);
  void (*run)(const Weights& w, std::int64_t first_panel, std::int64_t panels, const PackedTile* tiles, int n_tiles,
              std::byte* scratch);
};

/// Kinds of weights with a product of their own. f8: in blocks of rows a multiple of 16 and columns of
/// KernelTable::f8_block_columns, without NaN codes; f8_any: every other F8 matrix, slower; quantized: packed
/// formats, multiplied with activations of 8 bits; quantized_8: those of them whose codes have 8 bits; quantized_coded:
/// those whose codes are no planes of bits.
enum class WeightKind { f32, f16, bf16, f8, f8_any, quantized, quantized_8, quantized_coded };
constexpr int kWeightKinds = 8;

/// Attention of some tokens of one sequence, some heads each, over one stretch of positions [begin, end) of its cache.
/// For each (token, head): the largest score, the sum of exp(score - largest), and the values weighted by those.
struct AttentionStretch {
  const std::byte* cache;
  KvType cache_type;
  std::int64_t cache_width;  // elements in a cache row
  std::int64_t cache_row_bytes;
  int page_tokens;
  std::int64_t begin, end;
  int key_offset, key_dim, value_offset, value_dim;  // columns of a cache row

  const AttentionQuery* queries;  // [tokens], all with the same pages
  int tokens, heads;
  const float* q;  // head h of token t: q + t * q_token_step + h * q_head_step, key_dim floats
  std::int64_t q_token_step, q_head_step;
  float scale;

  float* largest;  // [tokens * heads]; -inf where no position is seen
  float* sum;      // [tokens * heads]
  float* values;   // [tokens * heads, value_dim]
  float* scratch;  // attention_scratch(heads, key_dim, value_dim) floats, 64-byte aligned
};

/// Positions a stretch may hold at most, and where stretches begin: at its multiples. Absolute, so that how work is
/// split over threads changes no sum.
constexpr std::int64_t kStretch = 512;

/// Positions of a block of keys and values, columns its values are a multiple of, and queries at most, of a PromptHead.
constexpr int kPromptBlock = 32, kPromptColumns = 32, kPromptRows = 96;
/// A PromptHead's queries, but for a head's last, are a multiple of so many: of each instruction set's tiles.
constexpr int kPromptTile = 12;

/// Attention of some queries of one head, in ascending order, over keys and values of its own. By block of positions:
/// keys [key_dim][kPromptBlock], then values [kPromptBlock][value_dim] as floats; or in BF16 keys as pairs of columns
/// [key_dim / 2][kPromptBlock][2], values as pairs of positions [kPromptBlock / 2][value_dim][2].
struct PromptHead {
  const void* blocks;
  std::int64_t block_elements;
  int key_dim, value_dim;
  float scale;
  int rows;
  const AttentionQuery* queries;  // [rows]; only lengths are read
  const float* q;                 // row r: q + r * q_step, key_dim floats
  std::int64_t q_step;
  float* out;  // value_dim floats each
  std::int64_t out_step;
  float* scratch;  // prompt_scratch(key_dim, value_dim) floats, 64-byte aligned
};

struct KernelTable {
  int f8_block_columns;          // WeightKind::f8 takes scale blocks of a multiple of so many columns
  Gemm gemm[kWeightKinds];       // activations as they are
  Gemm gemm_bf16[kWeightKinds];  // activations rounded to BF16 (the same as gemm for F32 and F16 weights)

  void (*rms_norm)(const float* x, const float* weight, float eps, std::int64_t n, float* out);
  void (*add)(const float* x, float* acc, std::int64_t n);
  /// One token's outputs, out of a product's results [panels][width][16], as a row of n <= panels * 16 (+ bias if any).
  void (*copy_outputs)(const float* results, int width, int token, std::int64_t n, const float* bias, float* out);
  /// The same, out += factor * outputs.
  void (*add_outputs)(const float* results, int width, int token, std::int64_t n, float factor, float* out);
  /// out = silu(gate) * up.
  void (*silu_mul)(const float* gate, const float* up, float* out, std::int64_t n);
  /// Rotates one vector of 2 * pairs elements in place.
  void (*rope)(float* x, const float* cos, const float* sin, int pairs, bool interleaved);
  void (*to_bf16)(const float* x, std::uint16_t* out, std::int64_t n);
  void (*exp)(const float* x, float* out, std::int64_t n);

  std::int64_t (*attention_scratch)(int heads, int key_dim, int value_dim);
  void (*attend)(const AttentionStretch& stretch);
  /// The same over a BF16 cache, with queries and weights rounded to BF16, for keys of a multiple of 32 and values of a
  /// multiple of 64 columns; null where there is nothing faster than the above.
  std::int64_t (*attention_scratch_bf16)(int tokens, int heads, int key_dim, int value_dim);
  void (*attend_bf16)(const AttentionStretch& stretch);
  /// Of a prompt's keys and values: floats, or BF16 where there are dot products of these.
  int prompt_element_bytes;
  /// Positions' floats as a block's keys or values; of columns an even number, and a multiple of kPromptColumns.
  void (*pack_prompt_keys)(const float* const* rows, int positions, std::int64_t columns, void* out);
  void (*pack_prompt_values)(const float* const* rows, int positions, std::int64_t columns, void* out);
  std::int64_t (*prompt_scratch)(int key_dim, int value_dim);
  void (*attend_prompt)(const PromptHead& todo);
  /// The first n elements of a cache row as floats.
  void (*load_kv)(KvType type, const std::byte* row, std::int64_t width, std::int64_t n, float* out);
  /// Folds a later stretch's (largest, sum, values) of one head into that of the earlier ones.
  void (*attention_merge)(float& largest, float& sum, float* values, float other_largest, float other_sum,
                          const float* other_values, int value_dim);
  /// out = values / sum.
  void (*attention_finish)(const float* values, float sum, float* out, int value_dim);
};

/// The table for an instruction set this CPU supports.
const KernelTable& kernels_for(Isa isa);

// Each instruction set's files fill their part.
void fill_gemm_portable(KernelTable& table);
void fill_gemm_avx2(KernelTable& table);
void fill_gemm_avx512(KernelTable& table);
void fill_gemm_avx512bf16(KernelTable& table);
void fill_gemm_avx512vbmi(KernelTable& table);
void fill_attention_avx512bf16(KernelTable& table);
void fill_prompt_attention_avx512bf16(KernelTable& table);
void fill_gemm_amx(KernelTable& table);
void fill_quantized_portable(KernelTable& table);
void fill_quantized_avx2(KernelTable& table);
void fill_quantized_avxvnni(KernelTable& table);
void fill_quantized_avx512bw(KernelTable& table);
void fill_quantized_avx512vnni(KernelTable& table);
/// After fill_quantized_avx512vnni().
void fill_quantized_avx512vnnivbmi(KernelTable& table);
void fill_quantized_amx(KernelTable& table);
void fill_vector_portable(KernelTable& table);
void fill_vector_avx2(KernelTable& table);
void fill_vector_avx512(KernelTable& table);

}  // namespace shoal::cpu
