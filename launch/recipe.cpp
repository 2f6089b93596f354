#include "launch/recipe.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace shoal {
namespace {

struct Entry {
  std::string_view name, base, finer, rest, head;
  std::uint32_t file_type;
};

// The numbers are llama.cpp's llama_ftype. The head decides directly over tokens, so it is never coarser than Q6_K
// where the body is. In the UD mixes only routed experts, nearly all of a large model, get the few bits of the name:
// what every token passes through keeps four to six.
constexpr std::array kRecipes = {
    Entry{"F32", "F32", "", "", "F32", 0},
    Entry{"F16", "F16", "", "", "F16", 1},
    Entry{"BF16", "BF16", "", "", "BF16", 32},
    Entry{"Q8_0", "Q8_0", "", "", "Q8_0", 7},
    Entry{"Q6_K", "Q6_K", "", "", "Q6_K", 18},
    Entry{"Q5_K", "Q5_K", "", "", "Q6_K", 16},
    Entry{"Q5_K_S", "Q5_K", "", "", "Q6_K", 16},
    Entry{"Q5_K_M", "Q5_K", "Q6_K", "", "Q6_K", 17},
    Entry{"Q5_1", "Q5_1", "", "", "Q6_K", 9},
    Entry{"Q5_0", "Q5_0", "", "", "Q6_K", 8},
    Entry{"Q4_K", "Q4_K", "", "", "Q6_K", 14},
    Entry{"Q4_K_S", "Q4_K", "", "", "Q6_K", 14},
    Entry{"Q4_K_M", "Q4_K", "Q6_K", "", "Q6_K", 15},
    Entry{"Q4_1", "Q4_1", "", "", "Q6_K", 3},
    Entry{"Q4_0", "Q4_0", "", "", "Q6_K", 2},
    Entry{"IQ4_NL", "IQ4_NL", "", "", "Q6_K", 25},
    Entry{"IQ4_XS", "IQ4_XS", "", "", "Q6_K", 30},
    Entry{"MXFP4", "MXFP4", "", "", "Q6_K", 38},
    Entry{"Q3_K", "Q3_K", "", "", "Q6_K", 11},
    Entry{"Q3_K_S", "Q3_K", "", "", "Q6_K", 11},
    Entry{"Q3_K_M", "Q3_K", "Q5_K", "", "Q6_K", 12},
    Entry{"IQ3_S", "IQ3_S", "", "", "Q6_K", 26},
    Entry{"IQ3_XXS", "IQ3_XXS", "", "", "Q6_K", 23},
    Entry{"Q2_K", "Q2_K", "Q4_K", "", "Q6_K", 10},
    Entry{"Q2_K_S", "Q2_K", "", "", "Q6_K", 21},
    Entry{"IQ2_S", "IQ2_S", "", "", "Q6_K", 28},
    Entry{"IQ2_XS", "IQ2_XS", "", "", "Q6_K", 20},
    Entry{"IQ2_XXS", "IQ2_XXS", "", "", "Q6_K", 19},
    Entry{"IQ1_M", "IQ1_M", "", "", "Q6_K", 31},
    Entry{"IQ1_S", "IQ1_S", "", "", "Q6_K", 24},
    Entry{"TQ2_0", "TQ2_0", "", "", "Q6_K", 37},
    Entry{"TQ1_0", "TQ1_0", "", "", "Q6_K", 36},
    Entry{"UD-Q2_K_XL", "Q2_K", "Q3_K", "Q5_K", "Q6_K", 10},
    Entry{"UD-IQ2_XXS", "IQ2_XXS", "IQ2_S", "Q5_K", "Q6_K", 19},
    Entry{"UD-IQ1_M", "IQ1_M", "IQ2_XXS", "Q5_K", "Q6_K", 31},
    Entry{"UD-IQ1_S", "IQ1_S", "IQ2_XXS", "Q5_K", "Q6_K", 24},
};

/// The first and last eighth of the layers and every third between: where llama.cpp found finer values to matter most.
bool sensitive(int layer, int layers) {
  const int eighth = layers / 8;
  return layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
}

bool ends_with(const std::string& name, std::string_view end) { return name.ends_with(end); }

/// A format of smaller blocks and about as many bits or more, for rows that `wanted` does not fit.
const QuantFormat& fitting(const QuantFormat* wanted, std::int64_t cols) {
  if (cols % wanted->block_elements == 0) return *wanted;
  std::string_view smaller = "Q8_0";
  if (wanted->name == "Q5_K") smaller = "Q5_1";
  if (wanted->name == "Q4_K") smaller = "Q5_0";
  if (wanted->bits_per_element() < 4.4) smaller = "IQ4_NL";
  const QuantFormat* format = find_format(smaller);
  return cols % format->block_elements == 0 ? *format : *find_format("F16");
}

}  // namespace

Recipe::Recipe(std::string_view name) {
  const auto* entry = std::find_if(kRecipes.begin(), kRecipes.end(), [&](const Entry& e) { return e.name == name; });
  if (entry == kRecipes.end()) {
    throw Error(fmt::format("--type {} is not known; there are FP8, INT8, INT4, {}", name, fmt::join(names(), ", ")),
                ExitCode::usage);
  }
  base_ = find_format(entry->base);
  head_ = find_format(entry->head);
  rest_ = entry->rest.empty() ? base_ : find_format(entry->rest);
  if (!entry->finer.empty()) finer_ = find_format(entry->finer);
  file_type_ = entry->file_type;
}

std::vector<std::string> Recipe::names() {
  std::vector<std::string> all;
  for (const Entry& e : kRecipes) all.emplace_back(e.name);
  return all;
}

const QuantFormat& Recipe::format_for(const ExpectedTensor& tensor, std::int64_t cols, int layers) const {
  if (tensor.shape.size() < 2 || tensor.part == Part::router) return *find_format("F32");
  // A tied head is the embedding.
  if (tensor.part == Part::head) return fitting(head_, cols);
  const bool mixed = rest_ != base_;
  if (mixed && tensor.part != Part::routed_experts) return fitting(rest_, cols);
  // Values and down projections add to the residual stream directly.
  const bool counts_more = ends_with(tensor.name, "v_proj.weight") || ends_with(tensor.name, "down_proj.weight");
  return fitting(finer_ && counts_more && sensitive(tensor.layer, layers) ? finer_ : base_, cols);
}

}  // namespace shoal
