#include "planner/weight_types.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

namespace shoal {
namespace {

constexpr auto types = std::to_array<WeightType>({
    {"F32", 1, 4},
    {"F16", 1, 2},
    {"BF16", 1, 2},
    {"FP8", 128, 128 * 128, 128, 4},
    {"INT8-G32", 32, 34},
    {"INT8-G64", 64, 66},
    {"INT8-G128", 128, 130},
    {"INT4-G32", 32, 18},
    {"INT4-G64", 64, 34},
    {"INT4-G128", 128, 66},
    {"Q4_0", 32, 18},
    {"Q4_1", 32, 20},
    {"Q5_0", 32, 22},
    {"Q5_1", 32, 24},
    {"Q8_0", 32, 34},
    {"Q2_K", 256, 84},
    {"Q3_K", 256, 110, 1, 0, 114},
    {"Q4_K", 256, 144, 1, 0, 148},
    {"Q5_K", 256, 176, 1, 0, 180},
    {"Q6_K", 256, 210},
    {"IQ1_S", 256, 50, 1, 0, 58},
    {"IQ1_M", 256, 56, 1, 0, 66},
    {"IQ2_XXS", 256, 66, 1, 0, 70},
    {"IQ2_XS", 256, 74, 1, 0, 78},
    {"IQ2_S", 256, 82},
    {"IQ3_XXS", 256, 98, 1, 0, 102},
    {"IQ3_S", 256, 110},
    {"IQ4_NL", 32, 18},
    {"IQ4_XS", 256, 136, 1, 0, 138},
    {"TQ1_0", 256, 54},
    {"TQ2_0", 256, 66},
    {"MXFP4", 32, 17, 1, 0, 18},
});

std::int64_t blocks(std::int64_t n, int block) { return (n + block - 1) / block; }

}  // namespace

std::int64_t WeightType::bytes(std::int64_t rows, std::int64_t cols) const {
  const std::int64_t n_blocks = blocks(rows, block_rows) * blocks(cols, block_cols);
  if (factor_bytes == 0) return n_blocks * block_bytes;
  return rows * cols * block_bytes / (std::int64_t{block_rows} * block_cols) + n_blocks * factor_bytes;
}

WeightType WeightType::held() const {
  WeightType type = *this;
  if (held_block_bytes > 0) type.block_bytes = held_block_bytes;
  return type;
}

const WeightType* find_weight_type(std::string_view name) {
  const auto* type = std::find_if(types.begin(), types.end(), [&](const WeightType& t) { return t.name == name; });
  return type == types.end() ? nullptr : type;
}

const WeightType& weight_type(std::string_view name) {
  if (const WeightType* type = find_weight_type(name)) return *type;
  throw std::logic_error("no weight type " + std::string(name));
}

}  // namespace shoal
