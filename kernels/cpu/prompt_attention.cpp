#include "kernels/cpu/prompt_attention.h"

#include <algorithm>
#include <array>

namespace shoal::cpu {
namespace {

/// Latents are expanded so many positions at a time that products are large enough for many threads, and floats few.
constexpr std::int64_t kExpandedRows = 8192, kFewestPositions = 256;  // positions times heads; planner/memory.cpp knows
static_assert(kPromptRows % kPromptTile == 0);
/// Heads whose half of kv_b_proj is turned together.
constexpr std::int64_t kTurnedAtOnce = 16;

std::int64_t up_to(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

struct PromptAttention::Call {
  Rows<const float> q;
  const MlaShape& shape;
  const MlaUp& up;
  float scale;
  std::span<const AttentionQuery> queries;
  const KvLayer& cache;
  Rows<float> out;

  std::int64_t rank() const { return shape.kv_lora_rank; }
  std::int64_t rope() const { return shape.qk_rope_head_dim; }
  std::int64_t nope() const { return up.k_up[0].cols(); }
  std::int64_t value() const { return up.v_up[0].rows(); }
  std::int64_t key() const { return nope() + rope(); }
  std::int64_t positions() const { return queries.back().length; }
  std::int64_t blocks() const { return (positions() + kPromptBlock - 1) / kPromptBlock; }
  /// Elements of a head's block.
  std::int64_t block_elements() const { return kPromptBlock * (key() + value()); }
  std::int64_t head_elements() const { return blocks() * block_elements(); }
};

bool PromptAttention::takes(const Team& team, const MlaShape& shape, const MlaUp& up) {
  return team.compute == Compute::bf16 && !up.k_up.empty() && shape.qk_rope_head_dim % 2 == 0 &&
         up.k_up[0].cols() % 2 == 0 && up.v_up[0].rows() % kPromptColumns == 0;
}

/// The absorbed form multiplies queries with the keys' half of kv_b_proj, this one latents with it turned: what it
/// makes of unit vectors.
void PromptAttention::turn_keys(Team& team, Linear& linear, const Call& call) {
  const std::int64_t nope = call.nope(), rank = call.rank(), heads = call.shape.heads;
  const bool as_before = std::ssize(key_up_) == heads && key_up_[0].rows() == nope && key_up_[0].cols() == rank;
  if (!as_before) {
    key_up_.clear();
    for (std::int64_t h = 0; h < heads; ++h) key_up_.emplace_back(DType::bf16, nope, rank);
    unit_vectors_.assign(static_cast<std::size_t>(nope * nope), 0.0f);
    for (std::int64_t i = 0; i < nope; ++i) unit_vectors_[static_cast<std::size_t>(i * nope + i)] = 1.0f;
  }
  const Rows<const float> units(unit_vectors_.data(), nope, nope);
  for (std::int64_t first = 0; first < heads; first += kTurnedAtOnce) {
    const std::int64_t count = std::min(kTurnedAtOnce, heads - first);
    float* const turned = expanded_.floats(count * nope * rank);
    jobs_.clear();
    for (std::int64_t h = 0; h < count; ++h) {
      const Rows<float> to(turned + h * nope * rank, nope, rank);
      jobs_.push_back({units, &call.up.k_up[static_cast<std::size_t>(first + h)], {}, to});
    }
    linear.run(team, jobs_);
    constexpr std::int64_t kPanel = Matrix::kPanel;
    const std::int64_t panels = (nope + kPanel - 1) / kPanel;
    team.run(static_cast<std::size_t>(count * panels), 1, static_cast<double>(count * nope * rank),
             [&](std::size_t begin, std::size_t end, int thread) {
               auto* const rounded = reinterpret_cast<std::uint16_t*>(
                   team.scratch[static_cast<std::size_t>(thread)].bytes(kPanel * rank * 2));
               for (auto i = static_cast<std::int64_t>(begin); i < static_cast<std::int64_t>(end); ++i) {
                 const std::int64_t h = i / panels, row = i % panels * kPanel, rows = std::min(kPanel, nope - row);
                 team.kernels.to_bf16(turned + (h * nope + row) * rank, rounded, rows * rank);
                 key_up_[static_cast<std::size_t>(first + h)].pack_rows(row, rows, rounded, rank * 2);
               }
             });
  }
}

/// Keys and values of some heads, by head in blocks as PromptHead has them.
void PromptAttention::expand(Team& team, Linear& linear, const Call& call, std::int64_t first_head,
                             std::int64_t heads) {
  const std::int64_t rank = call.rank(), rope = call.rope(), nope = call.nope(), value = call.value();
  // Rows of a scaled cache come in whole groups.
  const std::int64_t width = up_to(rank + rope, kKvGroup), all = heads * (nope + value);
  const std::int64_t head_elements = call.head_elements(), element = team.kernels.prompt_element_bytes;
  std::byte* const blocks = blocks_.bytes(heads * head_elements * element);
  const std::int32_t* pages = call.queries.back().pages;
  const std::int64_t at_once =
      std::min(std::max(up_to(kExpandedRows / heads, kPromptBlock), kFewestPositions), call.positions());
  for (std::int64_t first = 0; first < call.positions(); first += at_once) {
    const std::int64_t count = std::min(at_once, call.positions() - first);
    const Rows<float> latents(latents_.floats(at_once * width), count, width);
    const Rows<float> expanded(expanded_.floats(at_once * all), count, all);
    team.run(static_cast<std::size_t>(count), 1, static_cast<double>(count * width),
             [&](std::size_t begin, std::size_t end, int) {
               for (auto i = static_cast<std::int64_t>(begin); i < static_cast<std::int64_t>(end); ++i) {
                 const std::int64_t at = first + i, page = pages[at / call.cache.page_tokens];
                 const std::byte* row = call.cache.row(page * call.cache.page_tokens + at % call.cache.page_tokens);
                 team.kernels.load_kv(call.cache.type, row, call.cache.width, rank + rope, latents[i]);
               }
             });
    jobs_.clear();
    const Rows<const float> of_rank = latents.columns(0, rank);
    for (std::int64_t h = 0; h < heads; ++h) {
      const auto head = static_cast<std::size_t>(first_head + h);
      jobs_.push_back({of_rank, &key_up_[head], {}, expanded.columns(h * nope, nope)});
    }
    for (std::int64_t h = 0; h < heads; ++h) {
      const auto head = static_cast<std::size_t>(first_head + h);
      jobs_.push_back({of_rank, &call.up.v_up[head], {}, expanded.columns(heads * nope + h * value, value)});
    }
    linear.run(team, jobs_);

    const std::int64_t n_blocks = (count + kPromptBlock - 1) / kPromptBlock;
    team.run(static_cast<std::size_t>(n_blocks * heads), 1, static_cast<double>(count * all),
             [&](std::size_t begin, std::size_t end, int) {
               for (auto i = static_cast<std::int64_t>(begin); i < static_cast<std::int64_t>(end); ++i) {
                 const std::int64_t h = i / n_blocks, block = i % n_blocks, from = block * kPromptBlock;
                 std::array<const float*, kPromptBlock> keys, rotated, values;
                 const auto n = static_cast<int>(std::min<std::int64_t>(kPromptBlock, count - from));
                 for (std::int64_t j = 0; j < n; ++j) {
                   keys[static_cast<std::size_t>(j)] = expanded[from + j] + h * nope;
                   rotated[static_cast<std::size_t>(j)] = latents[from + j] + rank;
                   values[static_cast<std::size_t>(j)] = expanded[from + j] + heads * nope + h * value;
                 }
                 std::byte* const to =
                     blocks + (h * head_elements + (first / kPromptBlock + block) * call.block_elements()) * element;
                 team.kernels.pack_prompt_keys(keys.data(), n, nope, to);
                 team.kernels.pack_prompt_keys(rotated.data(), n, rope, to + kPromptBlock * nope * element);
                 team.kernels.pack_prompt_values(values.data(), n, value, to + kPromptBlock * call.key() * element);
               }
             });
  }
}

void PromptAttention::attend(Team& team, const Call& call, std::int64_t first_head, std::int64_t heads) {
  // The more queries pass a block together the less is read; but each thread wants some parts.
  constexpr std::int64_t kPartsOfThread = 4;
  const std::int64_t n = call.q.rows;
  const std::int64_t wanted = (kPartsOfThread * team.pool.size() + heads - 1) / heads;  // of a head
  const std::int64_t rows =
      std::clamp<std::int64_t>(up_to((n + wanted - 1) / wanted, kPromptTile), kPromptTile, kPromptRows);
  const std::int64_t parts = (n + rows - 1) / rows;
  const std::byte* const blocks = blocks_.bytes(0);
  const double operations = static_cast<double>(n * call.positions()) * static_cast<double>(heads * call.key()) / 8;
  team.run(static_cast<std::size_t>(heads * parts), 1, operations, [&](std::size_t begin, std::size_t end, int thread) {
    Scratch& scratch = team.scratch[static_cast<std::size_t>(thread)];
    for (auto i = static_cast<std::int64_t>(begin); i < static_cast<std::int64_t>(end); ++i) {
      // The last queries see most: they come first, so that threads finish together.
      const std::int64_t part = parts - 1 - i / heads, h = i % heads, first = part * rows;
      const std::int64_t head = first_head + h;
      PromptHead todo{};
      todo.blocks = blocks + h * call.head_elements() * team.kernels.prompt_element_bytes;
      todo.block_elements = call.block_elements();
      todo.key_dim = static_cast<int>(call.key());
      todo.value_dim = static_cast<int>(call.value());
      todo.scale = call.scale;
      todo.rows = static_cast<int>(std::min(rows, n - first));
      todo.queries = call.queries.data() + first;
      todo.q = call.q[first] + head * call.key();
      todo.q_step = call.q.stride;
      todo.out = call.out[first] + head * call.value();
      todo.out_step = call.out.stride;
      todo.scratch = scratch.floats(team.kernels.prompt_scratch(todo.key_dim, todo.value_dim));
      team.kernels.attend_prompt(todo);
    }
  });
}

void PromptAttention::run(Team& team, Linear& linear, Rows<const float> q, const MlaShape& shape, const MlaUp& up,
                          float scale, std::span<const AttentionQuery> queries, const KvLayer& cache, Rows<float> out) {
  const Call call{q, shape, up, scale, queries, cache, out};
  turn_keys(team, linear, call);
  const std::int64_t heads = shape.heads;
  const std::int64_t element = team.kernels.prompt_element_bytes, head_bytes = call.head_elements() * element;
  // All heads of BF16, half of them as floats: then blocks take no more memory either way.
  const std::int64_t most = (heads * 2 + element - 1) / element;
  const std::int64_t at_once = std::clamp<std::int64_t>(most_block_bytes_ / head_bytes, 1, most);
  for (std::int64_t first = 0; first < heads; first += at_once) {
    const std::int64_t count = std::min(at_once, heads - first);
    expand(team, linear, call, first, count);
    attend(team, call, first, count);
  }
}

}  // namespace shoal::cpu
