#pragma once
#include <string>
#include <vector>

#include "planner/tensor_names.h"
#include "runtime/checkpoint.h"

namespace shoal {

/// How a checkpoint compares with what its architecture needs. Lists hold names, with what is wrong where that is not
/// plain.
struct Completeness {
  std::vector<std::string> missing;
  std::vector<std::string> wrong;       // another shape, or a type Shoal cannot compute with
  std::vector<std::string> unexpected;  // no harm: nobody reads them
  int mtp_layers = 0;                   // that are there; the config may promise more

  bool whole() const { return missing.empty() && wrong.empty(); }
};

Completeness compare(const Checkpoint& checkpoint, const std::vector<ExpectedTensor>& expected);

}  // namespace shoal
