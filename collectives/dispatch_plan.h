#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "collectives/hops.h"

namespace shoal {

/// What a rank answers to a token whose experts it holds; what a host does, with two hops.
enum class Answers {
  summed,  // one row, the weighted sum of its experts there: the least traffic. The bits of the answer depend on which
           // experts share a rank and, with two hops (hops.h), a host.
  by_expert  // a row for each of its experts, added by the token's rank in the order of the experts' ids: the answer is
             // the same, bit for bit, wherever the experts are, and on however many ranks
};

/// Which rows go from one rank to another in a hop of a layer, and for which experts there.
struct RankSlot {
  std::vector<std::int32_t> token;       // [rows] of the sender, ascending
  std::vector<std::uint32_t> n_experts;  // [rows], at least one
  std::vector<std::int32_t> expert;      // ids of Destinations; ascending within a row, or in the token's own order
  std::vector<float> weight;             // of each

  void clear();
  std::size_t rows() const { return token.size(); }
  /// Rows that come back.
  std::size_t answers(Answers kind) const { return kind == Answers::summed ? token.size() : expert.size(); }
};

/// Rows that came by a hop, each with its experts here.
struct ArrivedRows {
  std::vector<std::uint32_t> n_experts;  // [rows]
  std::vector<std::int32_t> expert;      // ids of Destinations
  std::vector<float> weight;             // of each

  void clear();
  void add(std::span<const std::uint32_t> of_rows, std::span<const std::int32_t> experts,
           std::span<const float> weights);
  std::size_t rows() const { return n_experts.size(); }
  std::size_t answers(Answers kind) const { return kind == Answers::summed ? rows() : expert.size(); }
  /// Calls answer(row, n) for each answer that is to be given, in order: the sum over so many of its experts, or one.
  template <class Answer>
  void for_each_answer(Answers kind, const Answer& answer) const {
    for (std::size_t row = 0; row < rows(); ++row) {
      const std::uint32_t n = n_experts[row], times = kind == Answers::summed ? 1 : n;
      for (std::uint32_t i = 0; i < times; ++i) answer(row, static_cast<std::int32_t>(n / times));
    }
  }
};

/// What one rank does with the tokens that it has before a hop: a token travels once to each rank that it needs an
/// expert of, by that hop. Pure arithmetic.
class DispatchPlan {
 public:
  /// An answer that a token gets: from which rank, and the how manyth of those that come from there.
  struct Answer {
    std::uint32_t rank, row;
  };

  DispatchPlan(std::size_t ranks, Answers kind) : kind_(kind), to_(ranks) {}

  void clear();
  /// One more token, which has an expert at each of `to` that is somewhere.
  void add(std::span<const Destination> to, std::span<const float> weight);
  /// Those of a layer, by the first hop. expert, weight [tokens, top_k]: global ids, ascending within a token; -1:
  /// none.
  void make(std::span<const std::int32_t> expert, std::span<const float> weight, int top_k, ExpertMap& map,
            const Hops& hops);

  Answers kind() const { return kind_; }
  /// Those that came by the first of two hops, by the second.
  void forward(const ArrivedRows& came);
  const std::vector<RankSlot>& to() const { return to_; }
  /// Of token t those from first_answer()[t] to [t + 1]: in ascending order of ranks, or of experts.
  const std::vector<Answer>& answers() const { return answers_; }
  const std::vector<std::uint32_t>& first_answer() const { return first_answer_; }

 private:
  const Answers kind_;
  std::vector<RankSlot> to_;                 // [ranks]
  std::vector<Answer> answers_;              // tokens in order
  std::vector<std::uint32_t> first_answer_;  // [tokens + 1]
  std::vector<std::uint32_t> token_ranks_;   // of one token
  std::vector<Destination> token_to_;        // of one token
};

/// A slot as it travels; empty when no token goes there:
///
///   header
///   u32 n_experts[rows]
///   i32 expert[experts]
///   f32 weight[experts]
///   (to the next multiple of 64 bytes)
///   rows, each starting on a multiple of 64 bytes, where they travel with it
class SlotRecord {
 public:
  /// row_bytes: what both sides must agree on. row_stride: of the rows in the record; 0: they go another way.
  SlotRecord(std::size_t row_bytes, std::size_t row_stride) : row_bytes_(row_bytes), row_stride_(row_stride) {}

  std::size_t bytes(const RankSlot& slot) const { return slot.rows() == 0 ? 0 : rows_at(slot) + rows_bytes(slot); }
  /// Writes all but the rows; returns where these begin.
  std::byte* write(const RankSlot& slot, std::span<std::byte> record) const;

  struct View {
    std::span<const std::uint32_t> n_experts;
    std::span<const std::int32_t> expert;
    std::span<const float> weight;
    const std::byte* rows = nullptr;
    std::size_t answers(Answers kind) const { return kind == Answers::summed ? n_experts.size() : expert.size(); }
  };
  /// What came from rank `src` of the job to `rank`; Error where it is no such record.
  View read(std::span<const std::byte> record, int src, int rank) const;

 private:
  std::size_t rows_at(const RankSlot& slot) const { return rows_at(slot.rows(), slot.expert.size()); }
  static std::size_t rows_at(std::size_t rows, std::size_t experts);
  std::size_t rows_bytes(const RankSlot& slot) const { return slot.rows() * row_stride_; }

  const std::size_t row_bytes_, row_stride_;
};

}  // namespace shoal
