#pragma once
#include <cstdint>
#include <vector>

#include "kernels/rows.h"

namespace shoal {

/// Rows of work for the experts of one rank. Row r goes through experts expert[first[r] .. first[r+1]) (indices into
/// the rank's own expert list, ascending), each weighted by the weight of the same index.
struct ExpertBatch {
  std::vector<const float*> rows;    // [rows] pointers to inputs [hidden]
  std::vector<float*> out;           // [rows] pointers to outputs [hidden]: the weighted sum, overwritten
  std::vector<std::int32_t> first;   // [rows + 1]
  std::vector<std::int32_t> expert;  // [first.back()]
  std::vector<float> weight;         // [first.back()]

  /// From a back end's own TokenExchange instead of rows and out, in the device's memory: row r is x[row[r]], its
  /// output results[r].
  Rows<const float> x;
  std::vector<std::int32_t> row;
  Rows<float> results;
};

}  // namespace shoal
