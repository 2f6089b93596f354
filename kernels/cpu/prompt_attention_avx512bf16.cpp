#include "kernels/cpu/attention_bf16.h"
#include "kernels/cpu/bf16_dot.h"

/// Attention of many queries of one head over keys and values of its own, in BF16 with FP32 sums: products of small
/// matrices, tiles of queries by a block of positions. A query's sums are taken in the order of positions, whatever
/// its neighbours are.
namespace shoal::cpu {
namespace {

static_assert(kPromptBlock == kBlock, "soften() and the pairs of a block");
constexpr int kRegisters = 2;
/// Queries of a tile: so many that sums fill the registers, or what is left of those.
constexpr int kWide = 12, kNarrow = 4;
static_assert(kPromptColumns == kRegisters * 16);

void pack_keys(const float* const* rows, int positions, std::int64_t columns, std::uint16_t* out) {
  pack_pairs(rows, positions, kPromptBlock, columns, reinterpret_cast<std::byte*>(out));
}

/// [kPairs][columns][2]; positions that are not there are zeros.
void pack_values(const float* const* rows, int positions, std::int64_t columns, std::uint16_t* out) {
  alignas(64) static constexpr std::uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(kOrder);
  for (int pair = 0; pair < kPairs; ++pair) {
    const int j = 2 * pair;
    for (std::int64_t c = 0; c < columns; c += 16, out += 32) {
      const __m512 first = j < positions ? _mm512_loadu_ps(rows[j] + c) : _mm512_setzero_ps();
      const __m512 second = j + 1 < positions ? _mm512_loadu_ps(rows[j + 1] + c) : _mm512_setzero_ps();
      const auto both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
      _mm512_storeu_si512(out, _mm512_permutexvar_epi16(order, both));
    }
  }
}

/// The call's scratch, cut up.
struct Room {
  std::uint16_t* q;        // [kPromptRows][key_dim]
  float *values, *scores;  // [kPromptRows][value_dim], [kWide][kBlock]
  std::int32_t* weights;   // [kWide][kPairs]
  float *largest, *sum;    // [kPromptRows]
  std::int64_t floats;

  Room(float* base, std::int64_t key_dim, std::int64_t value_dim) {
    FloatRoom room{base};
    q = reinterpret_cast<std::uint16_t*>(room.take(kPromptRows * key_dim / 2));
    values = room.take(kPromptRows * value_dim);
    scores = room.take(kWide * kBlock);
    weights = reinterpret_cast<std::int32_t*>(room.take(kWide * kPairs));
    largest = room.take(kPromptRows);
    sum = room.take(kPromptRows);
    floats = room.next - base;
  }
};

std::int64_t prompt_scratch(int key_dim, int value_dim) { return Room(nullptr, key_dim, value_dim).floats; }

/// scores [T][kBlock] of queries q [T][pairs] with a block's keys.
template <int T>
SHOAL_INLINE void score(const std::int32_t* q, std::int64_t pairs, const std::uint16_t* keys, float* scores) {
  __m512 sum[T][kRegisters];
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
    for (int r = 0; r < kRegisters; ++r) sum[t][r] = _mm512_setzero_ps();
  }
  for (std::int64_t i = 0; i < pairs; ++i, keys += 2 * kPromptBlock) {
    const __m512i first = _mm512_loadu_si512(keys), second = _mm512_loadu_si512(keys + 32);
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      const __m512i pair = _mm512_set1_epi32(q[t * pairs + i]);
      sum[t][0] = add_pairs(sum[t][0], first, pair);
      sum[t][1] = add_pairs(sum[t][1], second, pair);
    }
  }
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
    for (int r = 0; r < kRegisters; ++r) _mm512_storeu_ps(scores + t * kBlock + r * 16, sum[t][r]);
  }
}

/// values [T][dim] = values * factor + the block's by their weights, of its first `positions`.
template <int T>
SHOAL_INLINE void weigh(const std::int32_t* weights, const float* factor, const std::uint16_t* block, int positions,
                        std::int64_t dim, float* values) {
  const int pairs = (positions + 1) / 2;
  // A later position's values may be infinite: they are left out, as a weight of zero would not do.
  const __mmask32 of_last = positions % 2 == 0 ? 0xffffffffu : 0x55555555u;
  for (std::int64_t c = 0; c < dim; c += kPromptColumns) {
    __m512 sum[T][kRegisters];
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (int r = 0; r < kRegisters; ++r) {
        sum[t][r] = _mm512_mul_ps(_mm512_loadu_ps(values + t * dim + c + r * 16), _mm512_set1_ps(factor[t]));
      }
    }
    const auto add = [&](int pair, __mmask32 seen) __attribute__((always_inline)) {
      const std::uint16_t* x = block + 2 * (pair * dim + c);
      const __m512i first = _mm512_maskz_loadu_epi16(seen, x), second = _mm512_maskz_loadu_epi16(seen, x + 32);
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) {
        const __m512i weight = _mm512_set1_epi32(weights[t * kPairs + pair]);
        sum[t][0] = add_pairs(sum[t][0], first, weight);
        sum[t][1] = add_pairs(sum[t][1], second, weight);
      }
    };
    for (int pair = 0; pair < pairs - 1; ++pair) add(pair, 0xffffffffu);
    add(pairs - 1, of_last);
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (int r = 0; r < kRegisters; ++r) _mm512_storeu_ps(values + t * dim + c + r * 16, sum[t][r]);
    }
  }
}

/// T queries from row `row` on and one block, whose first position is `first`.
template <int T>
void attend_tile(const PromptHead& a, const Room& room, int row, const std::uint16_t* block, std::int64_t first) {
  const std::uint16_t* const values = block + kPromptBlock * a.key_dim;
  score<T>(reinterpret_cast<const std::int32_t*>(room.q + std::int64_t{row} * a.key_dim), a.key_dim / 2, block,
           room.scores);
  float factor[T];
  int positions[T];
  bool whole = true;
  for (int t = 0; t < T; ++t) {
    const std::int64_t seen = a.queries[row + t].length - first;
    positions[t] = seen < kBlock ? static_cast<int>(seen) : kBlock;
    whole = whole && seen >= kBlock;
  }
  for (int t = 0; t < T; ++t) {
    factor[t] = soften_to_pairs(room.scores + t * kBlock, positions[t], a.scale, room.largest[row + t],
                                room.sum[row + t], room.weights + t * kPairs);
  }
  float* const out = room.values + std::int64_t{row} * a.value_dim;
  if (whole) return weigh<T>(room.weights, factor, values, kBlock, a.value_dim, out);
  for (int t = 0; t < T; ++t) {
    weigh<1>(room.weights + t * kPairs, factor + t, values, positions[t], a.value_dim, out + t * a.value_dim);
  }
}

void attend_prompt(const PromptHead& a) {
  const Room room(a.scratch, a.key_dim, a.value_dim);
  for (int r = 0; r < a.rows; ++r) {
    room.largest[r] = -__builtin_inff();
    room.sum[r] = 0;
    for (std::int64_t c = 0; c < a.key_dim; c += 32) {
      const __m512i pairs = load_pairs(a.q + r * a.q_step, c, a.key_dim);
      const std::int64_t left = a.key_dim - c;
      const __mmask16 there = left >= 32 ? __mmask16{0xffff} : first_lanes(left / 2);
      _mm512_mask_storeu_epi32(room.q + std::int64_t{r} * a.key_dim + c, there, pairs);
    }
  }
  std::memset(room.values, 0, static_cast<std::size_t>(a.rows * a.value_dim) * sizeof(float));

  const std::int64_t end = a.queries[a.rows - 1].length;
  int row = 0;  // the first that sees a block
  for (std::int64_t first = 0; first < end; first += kPromptBlock) {
    const std::uint16_t* const block = a.blocks + first / kPromptBlock * a.block_elements;
    while (a.queries[row].length <= first) ++row;
    int r = row;
    for (; r + kWide <= a.rows; r += kWide) attend_tile<kWide>(a, room, r, block, first);
    for (; r + kNarrow <= a.rows; r += kNarrow) attend_tile<kNarrow>(a, room, r, block, first);
    for (; r < a.rows; ++r) attend_tile<1>(a, room, r, block, first);
  }
  for (int r = 0; r < a.rows; ++r) {
    attention_finish(room.values + std::int64_t{r} * a.value_dim, room.sum[r], a.out + r * a.out_step, a.value_dim);
  }
}

}  // namespace

void fill_prompt_attention_avx512bf16(KernelTable& table) {
  table.pack_prompt_keys = pack_keys;
  table.pack_prompt_values = pack_values;
  table.prompt_scratch = prompt_scratch;
  table.attend_prompt = attend_prompt;
}

}  // namespace shoal::cpu
