#pragma once
#include <span>
#include <vector>

#include "kernels/cpu/products.h"
#include "kernels/rows.h"

namespace shoal::cpu {

/// out = x w^T (+ bias if not empty).
struct LinearJob {
  Rows<const float> x;
  const Matrix* w;
  std::span<const float> bias;
  Rows<float> out;
};

/// Backend::linear, linears and linear_per_head: products that depend on nothing of one another, all shared out among
/// the threads at once. Keeps its room between calls.
class Linear {
 public:
  void run(Team& team, std::span<const LinearJob> jobs);

 private:
  std::vector<PackedRows> rows_;
  std::vector<Product> products_;
  std::vector<Piece> pieces_;
  Scratch storage_;
};

}  // namespace shoal::cpu
