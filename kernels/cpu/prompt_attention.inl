// Attention of many queries of one head over keys and values of its own: products of small matrices, tiles of queries
// by a block of positions. A query's sums are taken in the order of positions, whatever its neighbours are. Included
// after attention.inl. How elements are multiplied is a struct `Form`:
//
//   Element               of keys and values, and of queries as score() reads them
//   Weight, kWeights      what a block's softmax becomes: so many
//   kWide, kNarrow        queries of a tile: so many that sums fill the registers, or what is left of those
//   take_query(row, columns, to)
//   score<T>(q, columns, keys, scores)   scores [T][kBlock] of queries q [T][columns] with a block's keys
//   soften(scores, positions, scale, largest, sum, weights)   as soften(), with weights [kWeights]
//   weigh<T>(weights, factor, values, positions, dim, out)   out [T][dim] = out * factor + the block's values by
//                         weights [T][kWeights], of its first `positions`
//   pack_keys, pack_values   of KernelTable
#include <cstring>

#include "kernels/cpu/tiles.h"

namespace shoal::cpu {
namespace {

static_assert(kPromptBlock == kBlock, "soften() takes blocks of one length");

template <class Form>
struct PromptRoom {
  typename Form::Element* q;       // [kPromptRows][key_dim]
  float *values, *scores;          // [kPromptRows][value_dim], [kWide][kBlock]
  typename Form::Weight* weights;  // [kWide][kWeights]
  float *largest, *sum;            // [kPromptRows]
  std::int64_t floats;

  PromptRoom(float* base, std::int64_t key_dim, std::int64_t value_dim) {
    static_assert(sizeof(typename Form::Weight) == sizeof(float) && kPromptTile % Form::kWide == 0);
    FloatRoom room{base};
    constexpr auto element = static_cast<std::int64_t>(sizeof(typename Form::Element));
    q = reinterpret_cast<typename Form::Element*>(room.take(kPromptRows * key_dim * element / 4));
    values = room.take(kPromptRows * value_dim);
    scores = room.take(Form::kWide * kBlock);
    weights = reinterpret_cast<typename Form::Weight*>(room.take(Form::kWide * Form::kWeights));
    largest = room.take(kPromptRows);
    sum = room.take(kPromptRows);
    floats = room.next - base;
  }
};

template <class Form>
std::int64_t prompt_scratch(int key_dim, int value_dim) {
  return PromptRoom<Form>(nullptr, key_dim, value_dim).floats;
}

/// T queries from row `row` on and one block, whose first position is `first`.
template <class Form, int T>
void attend_tile(const PromptHead& a, const PromptRoom<Form>& room, int row, const typename Form::Element* block,
                 std::int64_t first) {
  const auto* const values = block + std::int64_t{kBlock} * a.key_dim;
  Form::template score<T>(room.q + std::int64_t{row} * a.key_dim, a.key_dim, block, room.scores);
  float factor[T];
  int positions[T];
  bool whole = true;
  for (int t = 0; t < T; ++t) {
    const std::int64_t seen = a.queries[row + t].length - first;
    positions[t] = seen < kBlock ? static_cast<int>(seen) : kBlock;
    whole = whole && seen >= kBlock;
  }
  for (int t = 0; t < T; ++t) {
    factor[t] = Form::soften(room.scores + t * kBlock, positions[t], a.scale, room.largest[row + t], room.sum[row + t],
                             room.weights + t * Form::kWeights);
  }
  float* const out = room.values + std::int64_t{row} * a.value_dim;
  if (whole) return Form::template weigh<T>(room.weights, factor, values, kBlock, a.value_dim, out);
  for (int t = 0; t < T; ++t) {
    Form::template weigh<1>(room.weights + t * Form::kWeights, factor + t, values, positions[t], a.value_dim,
                            out + t * a.value_dim);
  }
}

template <class Form>
void attend_prompt(const PromptHead& a) {
  const PromptRoom<Form> room(a.scratch, a.key_dim, a.value_dim);
  for (int r = 0; r < a.rows; ++r) {
    room.largest[r] = -__builtin_inff();
    room.sum[r] = 0;
    Form::take_query(a.q + r * a.q_step, a.key_dim, room.q + std::int64_t{r} * a.key_dim);
  }
  std::memset(room.values, 0, static_cast<std::size_t>(a.rows * a.value_dim) * sizeof(float));

  const auto* block = static_cast<const typename Form::Element*>(a.blocks);
  const std::int64_t end = a.queries[a.rows - 1].length;
  int row = 0;  // the first that sees a block
  for (std::int64_t first = 0; first < end; first += kBlock, block += a.block_elements) {
    while (a.queries[row].length <= first) ++row;
    int r = row;
    for (; r + Form::kWide <= a.rows; r += Form::kWide) attend_tile<Form, Form::kWide>(a, room, r, block, first);
    for (; r + Form::kNarrow <= a.rows; r += Form::kNarrow) attend_tile<Form, Form::kNarrow>(a, room, r, block, first);
    for (; r < a.rows; ++r) attend_tile<Form, 1>(a, room, r, block, first);
  }
  for (int r = 0; r < a.rows; ++r) {
    attention_finish(room.values + std::int64_t{r} * a.value_dim, room.sum[r], a.out + r * a.out_step, a.value_dim);
  }
}

template <class Form>
void fill_prompt_attention(KernelTable& table) {
  table.prompt_element_bytes = sizeof(typename Form::Element);
  table.pack_prompt_keys = [](const float* const* rows, int positions, std::int64_t columns, void* out) {
    Form::pack_keys(rows, positions, columns, static_cast<typename Form::Element*>(out));
  };
  table.pack_prompt_values = [](const float* const* rows, int positions, std::int64_t columns, void* out) {
    Form::pack_values(rows, positions, columns, static_cast<typename Form::Element*>(out));
  };
  table.prompt_scratch = prompt_scratch<Form>;
  table.attend_prompt = attend_prompt<Form>;
}

/// Keys [key_dim][kPromptBlock] and values [kPromptBlock][value_dim] as floats.
struct FloatPrompt {
  using Element = float;
  using Weight = float;
  static constexpr int kWeights = kBlock, kWide = kQueryTile, kNarrow = kFewQueries;
  static constexpr int kLanes = 2;  // of 16 positions or columns, for each query of a tile
  static_assert(kPromptColumns == kLanes * 16 && kBlock == kLanes * 16);

  static void take_query(const float* row, std::int64_t columns, float* to) {
    std::memcpy(to, row, static_cast<std::size_t>(columns) * sizeof(float));
  }

  /// sum[t] += x[t * step] * the kLanes of `from`.
  template <int T>
  static SHOAL_INLINE void add(const float* x, std::int64_t step, const float* from, Lanes (&sum)[T][kLanes]) {
#pragma GCC unroll 2
    for (int i = 0; i < kLanes; ++i) {
      const Lanes lanes = lanes_load(from + i * 16);
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) sum[t][i] = lanes_fma(lanes, lanes_broadcast(x[t * step]), sum[t][i]);
    }
  }

  template <int T>
  static void score(const float* q, std::int64_t columns, const float* keys, float* scores) {
    Lanes sum[T][kLanes];
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (int i = 0; i < kLanes; ++i) sum[t][i] = lanes_zero();
    }
    for (std::int64_t c = 0; c < columns; ++c) add<T>(q + c, columns, keys + c * kBlock, sum);
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (int i = 0; i < kLanes; ++i) lanes_store(scores + t * kBlock + i * 16, sum[t][i]);
    }
  }

  static float soften(float* scores, int positions, float scale, float& largest, float& sum, float* weights) {
    const float factor = shoal::cpu::soften(scores, positions, scale, largest, sum);
    std::memcpy(weights, scores, kBlock * sizeof(float));
    return factor;
  }

  template <int T>
  static void weigh(const float* weights, const float* factor, const float* values, int positions, std::int64_t dim,
                    float* out) {
    for (std::int64_t c = 0; c < dim; c += kPromptColumns) {
      Lanes sum[T][kLanes];
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
        for (int i = 0; i < kLanes; ++i) {
          sum[t][i] = lanes_fma(lanes_load(out + t * dim + c + i * 16), lanes_broadcast(factor[t]), lanes_zero());
        }
      }
      for (int j = 0; j < positions; ++j) add<T>(weights + j, kWeights, values + j * dim + c, sum);
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
        for (int i = 0; i < kLanes; ++i) lanes_store(out + t * dim + c + i * 16, sum[t][i]);
      }
    }
  }

  static void pack_keys(const float* const* rows, int positions, std::int64_t columns, float* out) {
    for (std::int64_t c = 0; c < columns; ++c) {
      for (int j = 0; j < kBlock; ++j) out[c * kBlock + j] = j < positions ? rows[j][c] : 0.0f;
    }
  }
  static void pack_values(const float* const* rows, int positions, std::int64_t columns, float* out) {
    for (int j = 0; j < positions; ++j) {
      std::memcpy(out + j * columns, rows[j], static_cast<std::size_t>(columns) * sizeof(float));
    }
  }
};

}  // namespace
}  // namespace shoal::cpu
