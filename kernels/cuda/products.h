#pragma once
#include <algorithm>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/cuda/memory.h"
#include "kernels/backend.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/placed_matrix.h"

namespace shoal::cuda {

/// A matrix's place in device memory; Error where it has none.
inline const PlacedMatrix& placed(const Matrix& m) {
  if (!m.placed()) fail("a matrix of {} x {} is not in GPU memory: it was not placed there", m.rows(), m.cols());
  return *static_cast<const PlacedMatrix*>(m.placed().get());
}

/// Vectors of weights (norms, biases) in device memory.
class WeightVectors {
 public:
  WeightVectors(cudaStream_t stream, Uploads& uploads) : stream_(stream), uploads_(uploads) {}
  void place(std::span<const float> vector) {
    DeviceBlock block(vector.size_bytes());
    check(cudaMemcpyAsync(block.data(), vector.data(), vector.size_bytes(), cudaMemcpyHostToDevice, stream_),
          "copying weights to the GPU");
    wait_for(stream_, "copying weights to the GPU");
    vectors_[vector.data()] = std::move(block);
  }
  /// Placed, or on its way there for this call.
  const float* on_device(std::span<const float> vector) {
    if (vector.empty()) return nullptr;
    const auto found = vectors_.find(vector.data());
    return found == vectors_.end() ? uploads_.put(vector) : reinterpret_cast<const float*>(found->second.data());
  }

 private:
  cudaStream_t stream_;
  Uploads& uploads_;
  std::unordered_map<const float*, DeviceBlock> vectors_;
};

/// Which matrices a product of several is made with.
struct Operands {
  const Weights* on_device = nullptr;   // [groups]
  std::vector<const Weights*> weights;  // [groups] as the host sees them
  std::int64_t most_outputs = 0;
  bool has(WeightForm form) const {
    return std::any_of(weights.begin(), weights.end(), [&](const Weights* w) { return w->form == form; });
  }
  std::int64_t widest() const {  // columns, filled up
    std::int64_t most = 0;
    for (const Weights* w : weights) most = std::max(most, w->stride);
    return most;
  }
  bool has_order() const {
    return std::any_of(weights.begin(), weights.end(), [](const Weights* w) { return w->order != nullptr; });
  }
};

/// Lists of matrices that a product is made of, in device memory; each is brought there once, and leaves when another
/// comes after its first matrix was given up (experts move).
class MatrixLists {
 public:
  explicit MatrixLists(cudaStream_t stream) : stream_(stream) {}
  Operands of(const Matrix& w) {
    const PlacedMatrix& p = placed(w);
    return {reinterpret_cast<const Weights*>(p.view_on_device.data()), {&p.view}, w.rows()};
  }
  template <class T, class MatrixOf>
  Operands of(std::span<const T> all, const MatrixOf& matrix_of) {
    Operands result;
    views_.clear();
    for (const T& one : all) {
      const Weights& view = placed(matrix_of(one)).view;
      result.weights.push_back(&view);
      views_.push_back(view);
      result.most_outputs = std::max(result.most_outputs, view.rows);
    }
    result.on_device = on_device(matrix_of(all.front()).placed());
    return result;
  }
  /// Lists brought to the device so far.
  std::uint64_t brought() const { return brought_; }

 private:
  const Weights* on_device(const std::shared_ptr<const void>& first);

  struct List {
    std::weak_ptr<const void> first;
    std::vector<Weights> views;
    DeviceBlock memory;
  };
  cudaStream_t stream_;
  std::vector<Weights> views_;
  std::unordered_map<const void*, List> lists_;  // by the first matrix
  std::uint64_t brought_ = 0;
};

/// (row, expert) pairs sorted by expert, as a kernel has listed them (slot_plan.cu).
struct ListedPairs {
  const std::int32_t* row;    // [most] of the rows
  const std::int32_t* begin;  // [experts + 1] of each expert's pairs; the last is their number
  std::int64_t most;          // that there may be
  std::int64_t usual;         // of an expert, where all get as many
};

/// Which rows go with which matrix: as the host has listed them, or a kernel; all with each, where there is no list.
struct Ranges {
  std::span<const Tile> list;
  const ListedPairs* pairs = nullptr;

  bool all() const { return list.empty() && !pairs; }
};

/// Products of rows in device memory with matrices there, by the fastest kernels that take them and that are trusted.
class Products {
 public:
  Products(Compute compute, cudaStream_t stream, Uploads& uploads, WeightVectors& vectors);
  /// Kernels whose self-check failed are not used.
  void distrust_mma() { mma_ = false; }
  void distrust_packed_mma() { packed_mma_ = false; }
  void distrust_int4_mma() { int4_mma_ = false; }
  void distrust_f8() { f8_ = false; }

  void linears(Rows<const float> x, std::span<const Projection> projections);
  void norm_linears(Rows<const float> branch, Rows<float> stream, std::span<const float> weight, float eps,
                    Rows<float> h, std::span<const Projection> projections);
  void linear_per_head(Rows<const float> x, std::int64_t x_step, std::span<const Matrix> w, Rows<float> out,
                       std::int64_t out_step);
  void feed_forward(Rows<const float> x, const FeedForward& ffn, Rows<float> out);
  Operands of(std::span<const Matrix> w) {
    return lists_.of(w, [](const Matrix& m) -> const Matrix& { return m; });
  }
  /// The batch's rows are those of x, its results go to out.
  void experts(const ExpertBatch& batch, std::span<const FeedForward> experts, Rows<const float> x, Rows<float> out);
  /// What each pair's expert makes of its row: [pairs.most, hidden], valid until the next call.
  Rows<const float> experts(const ListedPairs& pairs, std::span<const FeedForward> experts, Rows<const float> x);
  /// Of lists of matrices to the device: while this grows, launches cannot be repeated.
  std::uint64_t lists_brought() const { return lists_.brought(); }

 private:
  /// The kernels that products are made by.
  enum class Family { cuda_cores, mma, f8, packed, packed_mma, int4_mma };
  static bool takes_halves(Family f) { return f == Family::mma || f == Family::int4_mma; }
  static bool takes_bytes(Family f) { return f == Family::packed || f == Family::packed_mma; }
  /// Whose kernels are for matrices that are read alike, in tiles from 8 rows up.
  static bool is_for_layouts(Family f) { return f == Family::packed_mma || f == Family::int4_mma; }
  /// Rows of a product as families take them, made at most once.
  struct Activations : Rounded {
    std::int64_t listed = 0;              // rows of the product's list
    const std::int32_t* count = nullptr;  // on the device: of the rows, those that are there
    Rows<const float> up;                 // where it has columns, silu(x) * up is multiplied
  };

  /// Of a product of all rows with one matrix: how its columns are cut, and room for it.
  F8Pieces pieces_of(const LinearCall& call, const Weights& w);
  Family family_of(const Weights& w, const LinearCall& call) const;
  void make_room_f8(Rounded& to, const LinearCall& call, std::int64_t steps);
  void make_room_halves(Rounded& to, std::int64_t n, std::int64_t cols);
  void make_room_bytes(Rounded& to, std::int64_t n, std::int64_t cols);
  /// The rows of x in BF16, if they are not there.
  void make_halves(Rows<const float> x, Activations& made);
  void multiply(Rows<const float> x, std::span<const Projection> projections, Activations& rounded);
  /// Products of silu(gate) * up. `gate` may be overwritten.
  void gated_product(Rows<float> gate, Rows<const float> up, const Operands& w, const Ranges& ranges, Rows<float> out);
  /// Whether SwiGLU blocks are all of what gated_f8() takes.
  bool are_f8(const Operands& gates, const Operands& ups, const Operands& downs) const;
  /// SwiGLU blocks of FP8 in three launches: rows to E4M3; gate and up, whose results are E4M3 at once; down.
  void f8_blocks(Rows<const float> x, LinearCall call, const Operands& gates, const Operands& ups,
                 const Operands& downs, const Ranges& ranges, Rows<float> out);
  /// [pairs, hidden]; `row` [pairs]: of x.
  Rows<float> pair_results(Rows<const float> x, const std::int32_t* row, std::int64_t pairs, const Ranges& ranges,
                           std::span<const FeedForward> experts);
  /// One launch for each kind of weights that occurs. `call` has what is not said by the other arguments.
  void product(Rows<const float> x, LinearCall call, const Operands& w, const Ranges& ranges, Activations& rounded,
               Rows<float> out);
  /// Tiles of the size that the kernels take; a row's result does not depend on it. `wanted`: on the device, of which
  /// of the ranges that a kernel has listed; null: all.
  void set_tiles(LinearCall& call, const Ranges& ranges, Family family, const std::int32_t* wanted = nullptr);
  void make_tiles(LinearCall& call, const ListedPairs& pairs, const std::int32_t* wanted);
  /// `like`: one of the matrices, which are all of its kind.
  void launch_product(const LinearCall& call, const Weights& like, Family family, Rows<const float> x,
                      const Operands& w, Activations& made);
  Rows<float> rows(Scratch& memory, std::int64_t n, std::int64_t cols) {
    return {memory.room<float>(n * cols), n, cols};
  }

  const Compute compute_;
  bool mma_ = true, packed_mma_ = true, int4_mma_ = true, f8_ = true;
  cudaStream_t stream_;
  Uploads& uploads_;
  WeightVectors& vectors_;
  MatrixLists lists_;
  Scratch rows_, firsts_, places_, weights_;  // an expert batch's lists, where they are large
  Scratch tiles_;                             // made by a kernel
  const std::int32_t* tiles_of_ = nullptr;    // of which pairs they are, all of them, and how large; null: none
  int tiles_rows_ = 0;
  Scratch gate_, up_, results_, byte_values_, byte_scales_, halves_, f8_values_, f8_scales_, hidden_values_,
      hidden_scales_, piece_sums_;
  DeviceBlock pieces_arrived_{kF8FewBlocks * sizeof(unsigned)};
};

}  // namespace shoal::cuda
