#include "launch/recipe.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "planner/gguf_mixes.h"

namespace shoal {
namespace {

struct Entry {
  std::string_view name, type, head;
  std::uint32_t file_type;
};

// The numbers are llama.cpp's llama_ftype. The head decides directly over tokens, so it is never coarser than Q6_K
// where the body is. Entries without a type are mixes.
constexpr std::array kRecipes = {
    Entry{"F32", "F32", "F32", 0},
    Entry{"F16", "F16", "F16", 1},
    Entry{"BF16", "BF16", "BF16", 32},
    Entry{"Q8_0", "Q8_0", "Q8_0", 7},
    Entry{"Q6_K", "Q6_K", "Q6_K", 18},
    Entry{"Q5_K", "Q5_K", "Q6_K", 16},
    Entry{"Q5_K_S", "", "", 16},
    Entry{"Q5_K_M", "", "", 17},
    Entry{"Q5_1", "Q5_1", "Q6_K", 9},
    Entry{"Q5_0", "Q5_0", "Q6_K", 8},
    Entry{"Q4_K", "Q4_K", "Q6_K", 14},
    Entry{"Q4_K_S", "", "", 14},
    Entry{"Q4_K_M", "", "", 15},
    Entry{"Q4_1", "Q4_1", "Q6_K", 3},
    Entry{"Q4_0", "Q4_0", "Q6_K", 2},
    Entry{"IQ4_NL", "IQ4_NL", "Q6_K", 25},
    Entry{"IQ4_XS", "IQ4_XS", "Q6_K", 30},
    Entry{"MXFP4", "MXFP4", "Q6_K", 38},
    Entry{"Q3_K", "Q3_K", "Q6_K", 11},
    Entry{"Q3_K_S", "", "", 11},
    Entry{"Q3_K_M", "", "", 12},
    Entry{"Q3_K_L", "", "", 13},
    Entry{"IQ3_S", "IQ3_S", "Q6_K", 26},
    Entry{"IQ3_XXS", "IQ3_XXS", "Q6_K", 23},
    Entry{"Q2_K", "", "", 10},
    Entry{"Q2_K_S", "", "", 21},
    Entry{"IQ2_S", "IQ2_S", "Q6_K", 28},
    Entry{"IQ2_XS", "IQ2_XS", "Q6_K", 20},
    Entry{"IQ2_XXS", "IQ2_XXS", "Q6_K", 19},
    Entry{"IQ1_M", "IQ1_M", "Q6_K", 31},
    Entry{"IQ1_S", "IQ1_S", "Q6_K", 24},
    Entry{"TQ2_0", "TQ2_0", "Q6_K", 37},
    Entry{"TQ1_0", "TQ1_0", "Q6_K", 36},
    Entry{"UD-Q2_K_XL", "", "", 10},
    Entry{"UD-IQ2_XXS", "", "", 19},
    Entry{"UD-IQ1_M", "", "", 31},
    Entry{"UD-IQ1_S", "", "", 24},
};

}  // namespace

Recipe::Recipe(std::string_view name) {
  const auto* entry = std::find_if(kRecipes.begin(), kRecipes.end(), [&](const Entry& e) { return e.name == name; });
  if (entry == kRecipes.end()) {
    throw Error(fmt::format("--type {} is not known; there are FP8, INT8, INT4, {}", name, fmt::join(names(), ", ")),
                ExitCode::usage);
  }
  name_ = entry->name;
  type_ = entry->type;
  head_ = entry->head;
  file_type_ = entry->file_type;
}

std::vector<std::string> Recipe::names() {
  std::vector<std::string> all;
  for (const Entry& e : kRecipes) all.emplace_back(e.name);
  return all;
}

const QuantFormat& Recipe::format_for(const ModelConfig& config, const ExpectedTensor& tensor,
                                      std::int64_t cols) const {
  if (type_.empty()) {
    const bool half = tensor.need == Need::unless_split;
    return *find_format((half ? gguf_half_type(config, name_, tensor, cols) : gguf_type(config, name_, tensor)).name);
  }
  if (tensor.shape.size() < 2 || tensor.part == Part::router) return *find_format("F32");
  // A tied head is the embedding.
  return *find_format(fitting_gguf_type(tensor.part == Part::head ? head_ : type_, cols));
}

}  // namespace shoal
