#pragma once
#include <span>
#include <vector>

#include "kernels/cpu/products.h"

namespace shoal::cpu {

/// Backend::experts and feed_forward (one expert that every row goes through). Keeps its room between calls.
class Experts {
 public:
  void run(Team& team, const ExpertBatch& batch, std::span<const FeedForward> experts);

 private:
  /// A row's way through one expert.
  struct Pair {
    std::int32_t row;
    float weight;
  };
  /// An expert that some rows go through: its pairs are pairs_[first ..] and so are its rows of the hidden layer.
  struct Active {
    const FeedForward* expert;
    std::size_t first, count;
    std::int64_t hidden;  // where its first row of gate * up lies, in floats
  };

  void sort_by_expert(const ExpertBatch& batch, std::span<const FeedForward> experts);
  void gate_and_up(Team& team, const ExpertBatch& batch);
  /// `any`: one expert's down projection; all have as many rows.
  void down(Team& team, const ExpertBatch& batch, const Matrix& any);

  std::vector<Pair> pairs_;
  std::vector<std::size_t> next_;
  std::vector<Active> active_;
  std::vector<PackedRows> inputs_, hidden_rows_;
  std::vector<Product> gates_, ups_, downs_;
  std::vector<Piece> pieces_;
  Scratch inputs_storage_, hidden_, hidden_storage_;
};

}  // namespace shoal::cpu
