#pragma once
#include <span>
#include <vector>

#include "kernels/cpu/products.h"
#include "kernels/rows.h"

namespace shoal::cpu {

/// Backend::linear and linear_per_head. Keeps its room between calls.
class Linear {
 public:
  void run(Team& team, Rows<const float> x, std::int64_t x_step, std::span<const Matrix> w, std::span<const float> bias,
           Rows<float> out, std::int64_t out_step);

 private:
  std::vector<PackedRows> rows_;
  std::vector<Product> products_;
  std::vector<Piece> pieces_;
  Scratch storage_;
};

}  // namespace shoal::cpu
