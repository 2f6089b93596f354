#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/formats/format.h"

namespace shoal {

/// A tensor to choose a format for.
struct Choosable {
  std::string name;                 // GGUF's
  std::int64_t rows = 0, cols = 0;  // of all its matrices together
  std::int64_t matrix_rows = 0;     // of one; `read` is asked for rows of one at a time
  /// Reads `count` rows from `first` on, and how much each column counts in them (empty: alike). From any threads.
  std::function<void(std::int64_t first, std::int64_t count, std::vector<float>& values,
                     std::vector<float>& importance)>
      read;
};

/// A format and what it costs: bytes, and the part of the output's power that becomes noise,
///     sum(importance * (value - stored)^2) / sum(importance * value^2).
struct Measured {
  const QuantFormat* format;
  double bytes, noise;
};

/// Measures every candidate format on a sample of the tensor's rows; formats whose blocks do not fit are left out.
std::vector<Measured> measure(const Choosable& tensor);

/// How much a little noise in a tensor's outputs matters, beside that in others'.
double sensitivity(const std::string& gguf_name);

/// The formats, by name, that make the sum of what noise costs least within `budget_bytes`: each tensor gives up the
/// bits that it misses least (the lower convex hull of its formats, then the steepest steps first). Error (does not
/// fit) naming the least size where even the smallest formats are too large.
std::map<std::string, const QuantFormat*> choose_formats(const std::vector<Choosable>& tensors, double budget_bytes,
                                                         int threads, bool progress);

/// "140GB", "900 MB", "2.51bpw" (bits a weight, of `parameters`) in bytes. Error (wrong usage) where it is neither.
double parse_size(const std::string& text, double parameters);

}  // namespace shoal
