#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/formats/format.h"
#include "planner/tensor_names.h"

namespace shoal {

/// Which format each tensor of a GGUF gets: a type of its own name (Q8_0, Q4_K, BF16, ...), or what the planner reckons
/// with for a mix (Q4_K_M, Q3_K_M, UD-IQ1_S, ...; planner/gguf_mixes.h).
class Recipe {
 public:
  /// Error (wrong usage) listing what there is, where the name is none of them.
  explicit Recipe(std::string_view name);
  static std::vector<std::string> names();

  /// The format of a tensor of `config`, or of a part of it, with rows of `cols` elements. Vectors and routers stay
  /// FP32; a row that no block of the wanted format fits gets one of smaller blocks.
  const QuantFormat& format_for(const ModelConfig& config, const ExpectedTensor& tensor, std::int64_t cols) const;
  /// GGUF's number for the mix (`general.file_type`), for people and programs that list files.
  std::uint32_t file_type() const { return file_type_; }

 private:
  std::string_view name_, type_, head_;  // type_ is empty for a mix
  std::uint32_t file_type_ = 0;
};

}  // namespace shoal
