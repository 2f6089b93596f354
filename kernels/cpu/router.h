#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace shoal::cpu {

/// Backend::route for one token. Plain C++ with the library's exp on every machine: which experts are chosen must not
/// hang on a vector approximation.
class Router {
 public:
  void route(const float* logits, std::span<const float> bias, const RouterShape& shape, std::int32_t* expert,
             float* weight);

 private:
  std::vector<float> score_, choice_, group_;
  std::vector<char> kept_;
};

}  // namespace shoal::cpu
