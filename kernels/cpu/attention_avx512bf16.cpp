#include "kernels/cpu/attention_bf16.h"

/// Attention over a BF16 cache with BF16 dot products: queries and weights of positions are rounded to BF16 as the
/// cache is, sums stay FP32. Blocks of positions, their softmax and the order of sums are those of attention.inl.
namespace shoal::cpu {
namespace {

/// Columns of values taken together: so that a pair of rows fills whole registers.
constexpr int kColumns = 64;

__m512i load_bf16(const std::uint16_t* p) { return _mm512_loadu_si512(p); }

/// A block's keys where they lie in the cache, and its values as pairs of positions: [pairs][value_dim][2].
struct PairedBlock {
  const std::uint16_t* key[kBlock];
  const std::uint16_t* values;
  int positions;
};

const std::uint16_t* cache_row(const AttentionStretch& a, std::int64_t position) {
  const std::int64_t row =
      std::int64_t{a.queries[0].pages[position / a.page_tokens]} * a.page_tokens + position % a.page_tokens;
  return reinterpret_cast<const std::uint16_t*>(a.cache + row * a.cache_row_bytes);
}

/// Asks the memory for what a block reads of a position. (The empty statement has an effect as far as compilers know:
/// without one GCC drops calls of functions that do nothing but this.)
void prefetch_position(const AttentionStretch& a, std::int64_t position) {
  const auto* row = reinterpret_cast<const char*>(cache_row(a, position));
  const auto fetch = [row](int offset, int dim) {
    for (int i = 0; i < dim; i += 32) _mm_prefetch(row + 2 * (offset + i), _MM_HINT_T1);
  };
  fetch(a.key_offset, a.key_dim);
  if (a.value_offset >= a.key_offset + a.key_dim) fetch(a.value_offset, a.value_dim);  // else among the keys
  asm volatile("");
}

void load_block(const AttentionStretch& a, std::int64_t first, std::int64_t end, std::uint16_t* values,
                PairedBlock& block) {
  block.positions = static_cast<int>(end - first < kBlock ? end - first : kBlock);
  block.values = values;
  const std::uint16_t* value[kBlock];
  for (int j = 0; j < block.positions; ++j) {
    const std::uint16_t* p = cache_row(a, first + j);
    block.key[j] = p + a.key_offset;
    value[j] = p + a.value_offset;
  }
  alignas(64) std::uint16_t order[2][32];
  for (std::uint16_t i = 0; i < 16; ++i) {
    for (std::uint16_t half = 0; half < 2; ++half) {
      order[half][2 * i] = static_cast<std::uint16_t>(16 * half + i);
      order[half][2 * i + 1] = static_cast<std::uint16_t>(32 + 16 * half + i);
    }
  }
  const __m512i low = _mm512_load_si512(order[0]), high = _mm512_load_si512(order[1]);
  for (int j = 0; j < block.positions; j += 2) {
    std::uint16_t* out = values + j * a.value_dim;
    for (int c = 0; c < a.value_dim; c += 32, out += 64) {
      const __m512i even = load_bf16(value[j] + c);
      const __m512i odd = j + 1 < block.positions ? load_bf16(value[j + 1] + c) : _mm512_setzero_si512();
      _mm512_storeu_si512(out, _mm512_permutex2var_epi16(even, low, odd));
      _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi16(even, high, odd));
    }
  }
}

/// Dot products of kHeadTile queries with kPositionTile keys.
void score_tile(const std::uint16_t* const* q, const std::uint16_t* const* key, int dim, float* const* scores) {
  __m512 sum[kHeadTile][kPositionTile];
#pragma GCC unroll 4
  for (auto& of_head : sum) {
#pragma GCC unroll 4
    for (__m512& s : of_head) s = _mm512_setzero_ps();
  }
  for (int i = 0; i < dim; i += 32) {
    __m512i k[kPositionTile];
#pragma GCC unroll 4
    for (int j = 0; j < kPositionTile; ++j) k[j] = load_bf16(key[j] + i);
#pragma GCC unroll 4
    for (int h = 0; h < kHeadTile; ++h) {
      const __m512i v = load_bf16(q[h] + i);
#pragma GCC unroll 4
      for (int j = 0; j < kPositionTile; ++j) sum[h][j] = add_pairs(sum[h][j], v, k[j]);
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeadTile; ++h) vec_sum4({sum[h][0]}, {sum[h][1]}, {sum[h][2]}, {sum[h][3]}, scores[h]);
}

/// Scores of a block; after each few positions as many of a later block are prefetched by `prefetch_next`.
template <class PrefetchNext>
void score_block(const std::uint16_t* q, int heads, const PairedBlock& block, int positions, int dim, float* scores,
                 const PrefetchNext& prefetch_next) {
  for (int j = 0; j < positions; j += kPositionTile) {
    const std::uint16_t* key[kPositionTile];
    // Beyond the last head or position its neighbour is computed again, to no effect.
    for (int i = 0; i < kPositionTile; ++i) key[i] = block.key[j + i < positions ? j + i : positions - 1];
    for (int h = 0; h < heads; h += kHeadTile) {
      const std::uint16_t* query[kHeadTile];
      float* out[kHeadTile];
      for (int i = 0; i < kHeadTile; ++i) query[i] = q + std::int64_t{h + i < heads ? h + i : heads - 1} * dim;
      for (int i = 0; i < kHeadTile; ++i) out[i] = scores + (h + i) * kBlock + j;
      score_tile(query, key, dim, out);
    }
    for (int i = j; i < j + kPositionTile; ++i) prefetch_next(i);
  }
}

/// values[h] = values * factor + the block's values by their weights (pairs of BF16), for kHeads heads.
template <int kHeads>
void add_values(const PairedBlock& block, int positions, const std::int32_t* weights, const float* factor,
                float* values, std::int64_t value_dim) {
  constexpr int kRegisters = kColumns / 16;
  for (std::int64_t c = 0; c < value_dim; c += kColumns) {
    __m512 sum[kHeads][kRegisters];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
      for (int v = 0; v < kRegisters; ++v) {
        sum[h][v] = _mm512_mul_ps(_mm512_loadu_ps(values + h * value_dim + c + v * 16), _mm512_set1_ps(factor[h]));
      }
    }
    for (int pair = 0; 2 * pair < positions; ++pair) {
      // A later position's values may be infinite: they are left out, as a weight of zero would not do.
      const __mmask32 seen = 2 * pair + 1 < positions ? 0xffffffff : 0x55555555;
      __m512i x[kRegisters];
#pragma GCC unroll 4
      for (int v = 0; v < kRegisters; ++v) {
        x[v] = _mm512_maskz_loadu_epi16(seen, block.values + 2 * (pair * value_dim + c) + v * 32);
      }
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const __m512i w = _mm512_set1_epi32(weights[h * kPairs + pair]);
#pragma GCC unroll 4
        for (int v = 0; v < kRegisters; ++v) sum[h][v] = add_pairs(sum[h][v], w, x[v]);
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
      for (int v = 0; v < kRegisters; ++v) _mm512_storeu_ps(values + h * value_dim + c + v * 16, sum[h][v]);
    }
  }
}

/// The call's scratch, cut up.
struct Room {
  std::uint16_t *queries, *values;  // [tokens * heads][key_dim], [kPairs][value_dim][2]
  float *scores, *factor;           // [heads rounded up][kBlock], [heads]
  std::int32_t* weights;            // [heads][kPairs]
  std::int64_t floats;

  Room(float* base, int tokens, int heads, int key_dim, int value_dim) {
    FloatRoom room{base};
    queries = reinterpret_cast<std::uint16_t*>(room.take(std::int64_t{tokens} * heads * key_dim / 2));
    values = reinterpret_cast<std::uint16_t*>(room.take(std::int64_t{kPairs} * value_dim));
    scores = room.take(std::int64_t{heads + kHeadTile} * kBlock);
    factor = room.take(heads);
    weights = reinterpret_cast<std::int32_t*>(room.take(std::int64_t{heads} * kPairs));
    floats = room.next - base;
  }
};

std::int64_t scratch_floats(int tokens, int heads, int key_dim, int value_dim) {
  return Room(nullptr, tokens, heads, key_dim, value_dim).floats;
}

void attend_paired(const AttentionStretch& a) {
  const Room room(a.scratch, a.tokens, a.heads, a.key_dim, a.value_dim);
  const std::int64_t rows = std::int64_t{a.tokens} * a.heads;
  std::int64_t longest = 0;
  for (int t = 0; t < a.tokens; ++t) longest = a.queries[t].length > longest ? a.queries[t].length : longest;
  for (std::int64_t r = 0; r < rows; ++r) {
    a.largest[r] = -__builtin_inff();
    a.sum[r] = 0;
    const float* q = a.q + r / a.heads * a.q_token_step + r % a.heads * a.q_head_step;
    for (int i = 0; i < a.key_dim; i += 32) _mm512_storeu_si512(room.queries + r * a.key_dim + i, to_bf16(q + i));
  }
  std::memset(a.values, 0, static_cast<std::size_t>(rows * a.value_dim) * sizeof(float));

  const std::int64_t end = longest < a.end ? longest : a.end;
  PairedBlock block;
  for (std::int64_t first = a.begin; first < end; first += kBlock) {
    load_block(a, first, end, room.values, block);
    std::int64_t next = first + kBlock;  // comes from memory while the first token is computed
    for (int t = 0; t < a.tokens; ++t) {
      const std::int64_t seen = a.queries[t].length - first;
      if (seen <= 0) continue;
      const int positions = seen < block.positions ? static_cast<int>(seen) : block.positions;
      const std::int64_t row = std::int64_t{t} * a.heads;
      score_block(room.queries + row * a.key_dim, a.heads, block, positions, a.key_dim, room.scores, [&](int i) {
        if (next + i < end) prefetch_position(a, next + i);
      });
      next = end;
      for (int h = 0; h < a.heads; ++h) {
        room.factor[h] = soften_to_pairs(room.scores + h * kBlock, positions, a.scale, a.largest[row + h],
                                         a.sum[row + h], room.weights + h * kPairs);
      }
      int h = 0;
      float* values = a.values + row * a.value_dim;
      for (; h + kHeadTile <= a.heads; h += kHeadTile) {
        add_values<kHeadTile>(block, positions, room.weights + h * kPairs, room.factor + h, values + h * a.value_dim,
                              a.value_dim);
      }
      for (; h < a.heads; ++h) {
        add_values<1>(block, positions, room.weights + h * kPairs, room.factor + h, values + h * a.value_dim,
                      a.value_dim);
      }
    }
  }
}

}  // namespace

void fill_attention_avx512bf16(KernelTable& table) {
  table.attention_scratch_bf16 = scratch_floats;
  table.attend_bf16 = attend_paired;
}

}  // namespace shoal::cpu
