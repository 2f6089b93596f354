#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/formats/format.h"
#include "planner/tensor_names.h"

namespace shoal {

/// Which format each tensor of a GGUF gets: a type of its own name (Q8_0, Q4_K, BF16, ...) or a mix by the part the
/// tensor plays, as llama.cpp names and composes them (Q4_K_M, Q3_K_M, ...), or one that spends bits on everything but
/// the routed experts (UD-IQ1_S, ...).
class Recipe {
 public:
  /// Error (wrong usage) listing what there is, where the name is none of them.
  explicit Recipe(std::string_view name);
  static std::vector<std::string> names();

  /// The format of a tensor with rows of `cols` elements. Vectors and routers stay FP32; a row that no block of the
  /// wanted format fits gets the next finer one that does.
  const QuantFormat& format_for(const ExpectedTensor& tensor, std::int64_t cols, int layers) const;
  /// GGUF's number for the mix (`general.file_type`), for people and programs that list files.
  std::uint32_t file_type() const { return file_type_; }

 private:
  const QuantFormat* base_ = nullptr;
  const QuantFormat* rest_ = nullptr;   // for what is no routed expert
  const QuantFormat* finer_ = nullptr;  // for values, down projections of some layers; null: base everywhere
  const QuantFormat* head_ = nullptr;
  std::uint32_t file_type_ = 0;
};

}  // namespace shoal
