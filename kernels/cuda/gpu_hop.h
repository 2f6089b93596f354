#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "collectives/communicator.h"
#include "collectives/device_transport.h"
#include "collectives/dispatch_plan.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/traffic.h"

namespace shoal::cuda {

/// A hop of rows in the memories of GPUs, and of the answers back (collectives/hops.h). Which go where is known to the
/// hosts, who tell each other, with the experts' ids and weights; rows travel as a Traffic has them. Of one layer:
///
///   add tokens to plan();  announce();  hear();  exchange_rows(...);  exchange_answers(...);  add places() up
class GpuHop {
 public:
  /// among: as make_all_to_all()'s. `there`, `back`: how rows travel, and answers.
  GpuHop(Communicator& comm, std::vector<int> among, std::int64_t hidden, Wire there, Wire back, Answers kind);

  /// No other rank is in it: then nothing is exchanged, and the communicator may have no GPUs.
  bool alone() const { return ranks_.size() == 1; }
  DispatchPlan& plan() { return plan_; }
  /// What stays on this rank.
  const RankSlot& own() const { return plan_.to()[me_]; }

  /// Tells the others what they will get. Returns the plan's tokens that leave, in the order in which they do.
  const std::vector<std::int32_t>& announce();
  /// Waits until it is known what comes.
  void hear();
  /// All rows with their experts: the own ones first, then those that come, in ascending order of ranks.
  const ArrivedRows& arrived() const { return arrived_; }
  std::size_t own_answers() const { return own().answers(plan_.kind()); }

  /// Rows that leave, to the others; what comes, packed, behind each other.
  void exchange_rows(Traffic& traffic, std::byte* leaving, std::byte* arriving);
  /// The answers to rows that came, and those of others to the plan's tokens.
  void exchange_answers(Traffic& traffic, std::byte* leaving, std::byte* arriving);
  /// How many these are.
  std::size_t awaited() const { return plan_.answers().size() - own_answers(); }
  /// Where add_answers() finds the plan's answers: of token t places()[plan().first_answer()[t]] to [t + 1].
  const std::vector<std::int32_t>& places();

 private:
  using Piece = DeviceTransport::Piece;
  template <class RowsOf>
  void divide(std::byte* memory, Wire wire, const RowsOf& rows_of, std::vector<Piece>& pieces) const;

  const int rank_;                // of the job
  const std::vector<int> ranks_;  // of the job
  const std::size_t me_;          // among them
  const std::int64_t hidden_;
  const Wire there_, back_;
  const std::unique_ptr<AllToAll> records_;  // null where alone
  const SlotRecord record_;
  DispatchPlan plan_;

  std::vector<std::int32_t> leaving_;
  ArrivedRows arrived_;
  std::vector<std::size_t> bytes_, rows_from_, answers_to_;  // [ranks]
  std::vector<Piece> to_, from_;                             // of all ranks of the job
  std::vector<std::int32_t> places_;
};

}  // namespace shoal::cuda
