// Attention over a paged cache, included after the simd header of an instruction set and vector_math.inl.
//
// Positions are taken in blocks of 32 that begin at absolute multiples of 32: scores of the block, its softmax with a
// running maximum (Milakov and Gimelshein, arXiv 1805.02867), values. Where a block or stretch begins depends on
// nothing but the position, so neither pages, nor other tokens, nor threads can change a result.
#include <cstring>

namespace shoal::cpu {
namespace {

constexpr int kBlock = 32;

/// To whole groups of a scaled cache, which are converted as a whole.
constexpr std::int64_t padded(std::int64_t n) { return (n + kKvGroup - 1) / kKvGroup * kKvGroup; }

/// Cuts a call's scratch into pieces of whole registers.
struct FloatRoom {
  float* next;

  float* take(std::int64_t n) {
    float* p = next;
    next += (n + 15) / 16 * 16;
    return p;
  }
};

/// The block's keys and values as floats: where they lie in an F32 cache, or converted copies.
struct Block {
  const float* key[kBlock];
  const float* value[kBlock];
  std::int64_t first;
  int positions;
};

inline void widen_bf16(const std::uint16_t* x, std::int64_t n, float* out) {
  for_each_vec(
      n, [&](std::int64_t i) { vec_store(out + i, vec_load_bf16(x + i)); },
      [&](std::int64_t i, std::int64_t left) {
        for (std::int64_t j = i; j < i + left; ++j) {
          out[j] = __builtin_bit_cast(float, static_cast<std::uint32_t>(x[j]) << 16);
        }
      });
}

/// Whole groups of a row, until `n` elements from column `column` on are there.
template <class Load>
inline void widen_groups(const std::byte* row, const std::byte* values, std::int64_t column, std::int64_t n, float unit,
                         const Load& load, float* out) {
  for (std::int64_t i = 0; i < n; i += kKvGroup) {
    std::uint16_t scale;
    std::memcpy(&scale, row + (column + i) / kKvGroup * 2, sizeof scale);
    const Lanes factor = lanes_broadcast(__builtin_bit_cast(float, static_cast<std::uint32_t>(scale) << 16) * unit);
    for (std::int64_t j = i; j < i + kKvGroup; j += 16) {
      lanes_store(out + j, lanes_fma(load(values + column + j), factor, lanes_zero()));
    }
  }
}

/// Elements of a row of a cache that is not F32 as floats, to whole groups of a scaled one.
inline void widen(KvType type, std::int64_t width, const std::byte* row, std::int64_t column, std::int64_t n,
                  float* out) {
  if (type == KvType::bf16) return widen_bf16(reinterpret_cast<const std::uint16_t*>(row) + column, n, out);
  const std::byte* values = row + 2 * kv_groups(width);
  if (type == KvType::fp8)
    widen_groups(
        row, values, column, n, kF8Unit, [](const std::byte* p) { return lanes_load_f8(p); }, out);
  else
    widen_groups(
        row, values, column, n, 1.0f, [](const std::byte* p) { return lanes_load_i8(p); }, out);
}

inline void load_block(const AttentionStretch& a, std::int64_t first, std::int64_t end, Block& block) {
  block.first = first;
  block.positions = static_cast<int>(end - first < kBlock ? end - first : kBlock);
  const bool values_among_keys =
      a.value_offset >= a.key_offset && a.value_offset + a.value_dim <= a.key_offset + a.key_dim;
  float* keys = a.scratch;
  float* values = a.scratch + kBlock * padded(a.key_dim);
  const std::int32_t* pages = a.queries[0].pages;
  for (int j = 0; j < block.positions; ++j) {
    const std::int64_t position = first + j;
    const std::int64_t row = std::int64_t{pages[position / a.page_tokens]} * a.page_tokens + position % a.page_tokens;
    const std::byte* p = a.cache + row * a.cache_row_bytes;
    if (a.cache_type == KvType::f32) {
      block.key[j] = reinterpret_cast<const float*>(p) + a.key_offset;
      block.value[j] = reinterpret_cast<const float*>(p) + a.value_offset;
      continue;
    }
    float* key = keys + j * padded(a.key_dim);
    widen(a.cache_type, a.cache_width, p, a.key_offset, a.key_dim, key);
    block.key[j] = key;
    block.value[j] = key + (a.value_offset - a.key_offset);
    if (!values_among_keys) {
      float* value = values + j * padded(a.value_dim);
      widen(a.cache_type, a.cache_width, p, a.value_offset, a.value_dim, value);
      block.value[j] = value;
    }
  }
}

/// Dot products of kHeadTile queries with kPositionTile keys: scores[h][0..3].
inline void score_tile(const float* const* q, const float* const* key, int dim, float* const* scores) {
  static_assert(kPositionTile == 4, "vec_sum4 finishes four sums");
  Vec sum[kHeadTile][kPositionTile];
#pragma GCC unroll 4
  for (int h = 0; h < kHeadTile; ++h) {
#pragma GCC unroll 4
    for (int j = 0; j < kPositionTile; ++j) sum[h][j] = vec_set(0.0f);
  }
  const auto add_products = [&](const auto& load) {
    Vec k[kPositionTile];
#pragma GCC unroll 4
    for (int j = 0; j < kPositionTile; ++j) k[j] = load(key[j]);
#pragma GCC unroll 4
    for (int h = 0; h < kHeadTile; ++h) {
      const Vec v = load(q[h]);
#pragma GCC unroll 4
      for (int j = 0; j < kPositionTile; ++j) sum[h][j] = vec_fma(v, k[j], sum[h][j]);
    }
  };
  for_each_vec(
      dim, [&](std::int64_t i) { add_products([i](const float* p) { return vec_load(p + i); }); },
      [&](std::int64_t i, std::int64_t left) {
        add_products([i, left](const float* p) { return vec_load_first(p + i, left); });
      });
#pragma GCC unroll 4
  for (int h = 0; h < kHeadTile; ++h) vec_sum4(sum[h][0], sum[h][1], sum[h][2], sum[h][3], scores[h]);
}

/// scores [heads rounded up to kHeadTile][kBlock], not yet scaled.
inline void score_block(const float* q, std::int64_t q_head_step, int heads, const Block& block, int positions, int dim,
                        float* scores) {
  for (int h = 0; h < heads; h += kHeadTile) {
    const float* query[kHeadTile];
    // Beyond the last head or position its neighbour is computed again, to no effect.
    for (int i = 0; i < kHeadTile; ++i) query[i] = q + (h + i < heads ? h + i : heads - 1) * q_head_step;
    for (int j = 0; j < positions; j += kPositionTile) {
      const float* key[kPositionTile];
      float* out[kHeadTile];
      for (int i = 0; i < kPositionTile; ++i) key[i] = block.key[j + i < positions ? j + i : positions - 1];
      for (int i = 0; i < kHeadTile; ++i) out[i] = scores + (h + i) * kBlock + j;
      score_tile(query, key, dim, out);
    }
  }
}

/// Scores become weights exp(score - largest); returns what earlier sums must be multiplied by.
__attribute__((always_inline)) inline float soften(float* scores, int positions, float scale, float& largest,
                                                   float& sum) {
  const float infinity = __builtin_inff();
  const int whole = (positions + kVec - 1) / kVec * kVec;
  for (int j = 0; j < whole; j += kVec) vec_store(scores + j, vec_load(scores + j) * vec_set(scale));
  for (int j = positions; j < whole; ++j) scores[j] = -infinity;
  Vec best = vec_set(largest);
  for (int j = 0; j < whole; j += kVec) best = vec_greater(best, vec_load(scores + j));
  const float now = vec_max(best);
  // No score yet, or none above -inf: what was gathered so far weighs nothing.
  const float factor = largest == -infinity ? 0.0f : largest == now ? 1.0f : __builtin_expf(largest - now);
  Vec total = vec_set(0.0f);
  for (int j = 0; j < whole; j += kVec) {
    const Vec weight = vec_exp(vec_load(scores + j) - vec_set(now));
    vec_store(scores + j, weight);
    total = total + weight;
  }
  sum = sum * factor + vec_sum(total);
  largest = now;
  return factor;
}

/// values[h][dims of V registers] = values * factor + the block's values by their weights, for kHeads heads.
template <int kHeads, int V>
inline void add_values(const Block& block, int positions, std::int64_t dim, const float* weights, const float* factor,
                       float* values, std::int64_t value_dim) {
  Vec sum[kHeads][V];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[h][v] = vec_load(values + h * value_dim + dim + v * kVec) * vec_set(factor[h]);
  }
  for (int j = 0; j < positions; ++j) {
    Vec x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = vec_load(block.value[j] + dim + v * kVec);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const Vec w = vec_set(weights[h * kBlock + j]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[h][v] = vec_fma(w, x[v], sum[h][v]);
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) vec_store(values + h * value_dim + dim + v * kVec, sum[h][v]);
  }
}

template <int kHeads>
inline void add_values_of_heads(const Block& block, int positions, const float* weights, const float* factor,
                                float* values, std::int64_t value_dim) {
  std::int64_t d = 0;
  for (; d + kValueTile * kVec <= value_dim; d += kValueTile * kVec) {
    add_values<kHeads, kValueTile>(block, positions, d, weights, factor, values, value_dim);
  }
  for (; d + kVec <= value_dim; d += kVec) {
    add_values<kHeads, 1>(block, positions, d, weights, factor, values, value_dim);
  }
  const std::int64_t left = value_dim - d;
  if (left == 0) return;
  for (int h = 0; h < kHeads; ++h) {
    float* out = values + h * value_dim + d;
    Vec sum = vec_load_first(out, left) * vec_set(factor[h]);
    for (int j = 0; j < positions; ++j) {
      sum = vec_fma(vec_set(weights[h * kBlock + j]), vec_load_first(block.value[j] + d, left), sum);
    }
    vec_store_first(out, sum, left);
  }
}

std::int64_t attention_scratch(int heads, int key_dim, int value_dim) {
  return kBlock * (padded(key_dim) + padded(value_dim) + heads + kHeadTile) + padded(heads);
}

void attend(const AttentionStretch& a) {
  const std::int64_t rows = std::int64_t{a.tokens} * a.heads;
  std::int64_t longest = 0;
  for (int t = 0; t < a.tokens; ++t) longest = a.queries[t].length > longest ? a.queries[t].length : longest;
  for (std::int64_t r = 0; r < rows; ++r) {
    a.largest[r] = -__builtin_inff();
    a.sum[r] = 0;
  }
  std::memset(a.values, 0, static_cast<std::size_t>(rows * a.value_dim) * sizeof(float));
  float* factor = a.scratch + kBlock * (padded(a.key_dim) + padded(a.value_dim));
  float* scores = factor + padded(a.heads);

  const std::int64_t end = longest < a.end ? longest : a.end;
  Block block;
  for (std::int64_t first = a.begin; first < end; first += kBlock) {
    load_block(a, first, end, block);
    for (int t = 0; t < a.tokens; ++t) {
      const std::int64_t seen = a.queries[t].length - first;
      if (seen <= 0) continue;
      const int positions = seen < block.positions ? static_cast<int>(seen) : block.positions;
      score_block(a.q + t * a.q_token_step, a.q_head_step, a.heads, block, positions, a.key_dim, scores);
      const std::int64_t row = std::int64_t{t} * a.heads;
      for (int h = 0; h < a.heads; ++h) {
        factor[h] = soften(scores + h * kBlock, positions, a.scale, a.largest[row + h], a.sum[row + h]);
      }
      int h = 0;
      float* values = a.values + row * a.value_dim;
      for (; h + kHeadTile <= a.heads; h += kHeadTile) {
        add_values_of_heads<kHeadTile>(block, positions, scores + h * kBlock, factor + h, values + h * a.value_dim,
                                       a.value_dim);
      }
      for (; h < a.heads; ++h) {
        add_values_of_heads<1>(block, positions, scores + h * kBlock, factor + h, values + h * a.value_dim,
                               a.value_dim);
      }
    }
  }
}

void attention_merge(float& largest, float& sum, float* values, float other_largest, float other_sum,
                     const float* other_values, int value_dim) {
  const float now = largest > other_largest ? largest : other_largest;
  const float mine = __builtin_expf(largest - now), theirs = __builtin_expf(other_largest - now);
  for_each_vec(
      value_dim,
      [&](std::int64_t i) {
        vec_store(values + i,
                  vec_fma(vec_load(other_values + i), vec_set(theirs), vec_load(values + i) * vec_set(mine)));
      },
      [&](std::int64_t i, std::int64_t left) {
        const Vec v = vec_load_first(values + i, left) * vec_set(mine);
        vec_store_first(values + i, vec_fma(vec_load_first(other_values + i, left), vec_set(theirs), v), left);
      });
  sum = sum * mine + other_sum * theirs;
  largest = now;
}

void attention_finish(const float* values, float sum, float* out, int value_dim) {
  const Vec s = vec_set(sum);
  for_each_vec(
      value_dim, [&](std::int64_t i) { vec_store(out + i, vec_load(values + i) / s); },
      [&](std::int64_t i, std::int64_t left) { vec_store_first(out + i, vec_load_first(values + i, left) / s, left); });
}

void load_kv(KvType type, const std::byte* row, std::int64_t width, std::int64_t n, float* out) {
  if (type == KvType::f32) {
    std::memcpy(out, row, static_cast<std::size_t>(n) * sizeof(float));
  } else {
    widen(type, width, row, 0, n, out);
  }
}

inline void fill_attention(KernelTable& table) {
  table.attention_scratch = attention_scratch;
  table.attend = attend;
  table.load_kv = load_kv;
  table.attention_merge = attention_merge;
  table.attention_finish = attention_finish;
}

}  // namespace
}  // namespace shoal::cpu
