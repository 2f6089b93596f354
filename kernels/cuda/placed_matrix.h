#pragma once
#include "base/cuda/memory.h"
#include "base/cuda/stream.h"
#include "kernels/cuda/weights.h"
#include "kernels/matrix.h"

namespace shoal::cuda {

/// A matrix in device memory.
struct PlacedMatrix {
  Weights view;
  DeviceBlock data, scales, order, view_on_device;
};

/// Copies a matrix to the device, in the form of weights.h, through pinned memory, on a stream of its own; returns when
/// it is there.
class MatrixPlacer {
 public:
  MatrixPlacer();
  std::shared_ptr<const PlacedMatrix> place(const Matrix& matrix);
  /// A placed matrix in host memory once more.
  Matrix fetch(const Matrix& matrix, const PlacedMatrix& placed);

 private:
  void copy_rows(const Matrix& matrix, const Weights& view, std::byte* to);
  void copy_tiles(const Matrix& matrix, const Weights& view, std::byte* to);
  void copy(const void* from, std::byte* to, std::size_t bytes);
  void copy_back(const std::byte* from, std::byte* to, std::size_t bytes);
  Stream stream_;
  PinnedBlock staging_;
};

}  // namespace shoal::cuda
