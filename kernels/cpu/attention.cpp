#include "kernels/cpu/attention.h"

#include <algorithm>

namespace shoal::cpu {
namespace {

/// Sums of a call that stay in the second cache while the cache's positions pass by: 128 KB of floats.
constexpr std::int64_t kStateFloats = 32 * 1024;
constexpr int kMostHeads = 32, kFewestHeads = 8;
constexpr int kItemsPerThread = 4;
/// Results of stretches that wait to be merged at most: 128 MB of floats, a sequence of 160,000 tokens with
/// 128 heads; planner/memory.cpp knows.
constexpr std::int64_t kMostPartFloats = 32 << 20;

std::int64_t items_wanted(const Team& team) { return std::int64_t{kItemsPerThread} * team.pool.size(); }

std::int64_t stretches(std::int64_t length) { return (length + kStretch - 1) / kStretch; }

std::int64_t all_stretches(std::span<const AttentionQuery> queries) {
  std::int64_t n = 0;
  for (const AttentionQuery& query : queries) n += std::max<std::int64_t>(1, stretches(query.length));
  return n;
}

bool may_split(const HeadGroups& shape, std::span<const AttentionQuery> queries) {
  return all_stretches(queries) * shape.groups * shape.heads * shape.value_dim <= kMostPartFloats;
}

/// A stretch's results: for `rows` heads, [rows] largest, [rows] sums, [rows, value_dim] values.
struct State {
  float *largest, *sum, *values;
  static std::int64_t floats(std::int64_t rows, int value_dim) {
    return (rows + 15) / 16 * 32 + (rows * value_dim + 15) / 16 * 16;
  }
  State(float* base, std::int64_t rows)
      : largest(base), sum(base + (rows + 15) / 16 * 16), values(base + (rows + 15) / 16 * 32) {}
};

}  // namespace

struct Attention::Call {
  Rows<const float> q;
  const HeadGroups& shape;
  float scale;
  std::span<const AttentionQuery> queries;
  const KvLayer& cache;
  Rows<float> out;
  bool in_bf16;

  /// Floats of scratch that an item takes.
  std::int64_t scratch(const KernelTable& kernels, const Item& item) const {
    if (in_bf16) return kernels.attention_scratch_bf16(item.queries, item.heads, shape.key_dim, shape.value_dim);
    return kernels.attention_scratch(item.heads, shape.key_dim, shape.value_dim);
  }

  /// Attention of an item over one stretch.
  void attend(const KernelTable& kernels, const Item& item, std::int64_t stretch, const State& state,
              float* scratch) const {
    AttentionStretch a{};
    a.cache = static_cast<const std::byte*>(cache.data);
    a.cache_type = cache.type;
    a.cache_width = cache.width;
    a.cache_row_bytes = cache.row_bytes();
    a.page_tokens = cache.page_tokens;
    a.begin = stretch * kStretch;
    a.end = a.begin + kStretch;
    a.key_offset = shape.first_key + item.group * shape.key_step;
    a.key_dim = shape.key_dim;
    a.value_offset = shape.first_value + item.group * shape.value_step;
    a.value_dim = shape.value_dim;
    a.queries = queries.data() + item.first_query;
    a.tokens = item.queries;
    a.heads = item.heads;
    a.q = q[item.first_query] + std::int64_t{item.group * shape.heads + item.first_head} * shape.key_dim;
    a.q_token_step = q.stride;
    a.q_head_step = shape.key_dim;
    a.scale = scale;
    a.largest = state.largest;
    a.sum = state.sum;
    a.values = state.values;
    a.scratch = scratch;
    in_bf16 ? kernels.attend_bf16(a) : kernels.attend(a);
  }

  /// Folds a later stretch into `state` for the heads that see any of it.
  void merge(const KernelTable& kernels, const Item& item, std::int64_t stretch, State& state,
             const State& later) const {
    for (int t = 0; t < item.queries; ++t) {
      if (queries[static_cast<std::size_t>(item.first_query + t)].length <= stretch * kStretch) continue;
      for (int h = 0; h < item.heads; ++h) {
        const int row = t * item.heads + h;
        kernels.attention_merge(state.largest[row], state.sum[row], state.values + row * shape.value_dim,
                                later.largest[row], later.sum[row], later.values + row * shape.value_dim,
                                shape.value_dim);
      }
    }
  }

  void finish(const KernelTable& kernels, const Item& item, const State& state) const {
    for (int t = 0; t < item.queries; ++t) {
      for (int h = 0; h < item.heads; ++h) {
        const int row = t * item.heads + h;
        const int head = item.group * shape.heads + item.first_head + h;
        kernels.attention_finish(state.values + row * shape.value_dim, state.sum[row],
                                 out[item.first_query + t] + std::int64_t{head} * shape.value_dim, shape.value_dim);
      }
    }
  }
};

void Attention::run(Team& team, Rows<const float> q, const HeadGroups& shape, float scale,
                    std::span<const AttentionQuery> queries, const KvLayer& cache, Rows<float> out) {
  if (queries.empty()) return;
  divide(team, shape, queries);
  const bool in_bf16 = team.compute == Compute::bf16 && cache.type == KvType::bf16 && team.kernels.attend_bf16 &&
                       shape.key_dim % 32 == 0 && shape.value_dim % 64 == 0;
  const Call call{q, shape, scale, queries, cache, out, in_bf16};
  std::int64_t longest = 0;
  for (const Item& item : items_) longest = std::max(longest, item.longest);
  // Few queries with long pasts: their stretches are spread over the threads as well.
  const bool few = std::ssize(items_) < items_wanted(team) && may_split(shape, queries);
  if (few && team.pool.size() > 1 && stretches(longest) > 1) {
    run_split(team, call);
  } else {
    run_whole(team, call);
  }
}

void Attention::divide(const Team& team, const HeadGroups& shape, std::span<const AttentionQuery> queries) {
  const auto n = static_cast<std::int64_t>(queries.size());
  // Heads together share the reading of keys; where contexts are too short to be split instead, fewer of them give
  // more threads something to do.
  int heads = std::min(shape.heads, kMostHeads);
  const std::int64_t wanted = items_wanted(team);
  const std::int64_t parts = may_split(shape, queries) ? all_stretches(queries) : n;
  while (heads >= 2 * kFewestHeads && parts * shape.groups * (shape.heads / heads) < wanted)
    heads = (heads / 2 + 3) / 4 * 4;
  const std::int64_t state_tokens = std::max<std::int64_t>(1, kStateFloats / (std::int64_t{heads} * shape.value_dim));
  const std::int64_t items_a_query = std::int64_t{shape.groups} * ((shape.heads + heads - 1) / heads);
  const std::int64_t tokens =
      std::clamp<std::int64_t>(n * items_a_query / wanted, 1, std::min<std::int64_t>(state_tokens, 32));

  items_.clear();
  for (std::int64_t first = 0; first < n;) {
    const std::int32_t* pages = queries[static_cast<std::size_t>(first)].pages;
    std::int64_t count = 0, longest = 0;
    while (count < tokens && first + count < n && queries[static_cast<std::size_t>(first + count)].pages == pages) {
      longest = std::max<std::int64_t>(longest, queries[static_cast<std::size_t>(first + count)].length);
      ++count;
    }
    for (int g = 0; g < shape.groups; ++g) {
      for (int h = 0; h < shape.heads; h += heads) {
        items_.push_back({first, static_cast<int>(count), g, h, std::min(heads, shape.heads - h), longest});
      }
    }
    first += count;
  }
}

void Attention::run_whole(Team& team, const Call& call) {
  const HeadGroups& shape = call.shape;
  double operations = 0;
  for (const Item& item : items_) {
    operations += static_cast<double>(item.longest) * item.queries * item.heads * (shape.key_dim + shape.value_dim) / 8;
  }
  team.run(items_.size(), 1, operations, [&](std::size_t begin, std::size_t end, int thread) {
    for (std::size_t i = begin; i < end; ++i) {
      const Item& item = items_[i];
      const std::int64_t rows = std::int64_t{item.queries} * item.heads;
      const std::int64_t state_floats = State::floats(rows, shape.value_dim);
      const std::int64_t scratch = call.scratch(team.kernels, item);
      float* base = team.scratch[static_cast<std::size_t>(thread)].floats(2 * state_floats + scratch);
      State state(base, rows), later(base + state_floats, rows);
      float* kernel_scratch = base + 2 * state_floats;
      call.attend(team.kernels, item, 0, state, kernel_scratch);
      for (std::int64_t s = 1; s < stretches(item.longest); ++s) {
        call.attend(team.kernels, item, s, later, kernel_scratch);
        call.merge(team.kernels, item, s, state, later);
      }
      call.finish(team.kernels, item, state);
    }
  });
}

void Attention::run_split(Team& team, const Call& call) {
  const HeadGroups& shape = call.shape;
  // Parts are numbered item by item; a part's results lie at parts + its offset.
  struct Part {
    std::size_t item;
    std::int64_t stretch, offset;
  };
  std::vector<Part> parts;
  first_part_.clear();
  std::int64_t floats = 0;
  for (std::size_t i = 0; i < items_.size(); ++i) {
    const Item& item = items_[i];
    first_part_.push_back(static_cast<std::int64_t>(parts.size()));
    for (std::int64_t s = 0; s < std::max<std::int64_t>(1, stretches(item.longest)); ++s) {
      parts.push_back({i, s, floats});
      floats += State::floats(std::int64_t{item.queries} * item.heads, shape.value_dim);
    }
  }
  first_part_.push_back(static_cast<std::int64_t>(parts.size()));
  float* results = parts_.floats(floats);
  const auto state_of = [&](const Part& part) {
    const Item& item = items_[part.item];
    return State(results + part.offset, std::int64_t{item.queries} * item.heads);
  };

  team.pool.parallel_for(parts.size(), 1, [&](std::size_t begin, std::size_t end, int thread) {
    for (std::size_t i = begin; i < end; ++i) {
      const Item& item = items_[parts[i].item];
      const std::int64_t scratch = call.scratch(team.kernels, item);
      call.attend(team.kernels, item, parts[i].stretch, state_of(parts[i]),
                  team.scratch[static_cast<std::size_t>(thread)].floats(scratch));
    }
  });
  team.pool.parallel_for(items_.size(), 1, [&](std::size_t begin, std::size_t end, int) {
    for (std::size_t i = begin; i < end; ++i) {
      const auto first = static_cast<std::size_t>(first_part_[i]), last = static_cast<std::size_t>(first_part_[i + 1]);
      State state = state_of(parts[first]);
      for (std::size_t part = first + 1; part < last; ++part) {
        call.merge(team.kernels, items_[i], parts[part].stretch, state, state_of(parts[part]));
      }
      call.finish(team.kernels, items_[i], state);
    }
  });
}

}  // namespace shoal::cpu
