#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "collectives/communicator.h"
#include "collectives/dispatch_plan.h"

namespace shoal {

/// A hop of rows in the host's memory, and of the answers back (hops.h). Of one layer:
///
///   add tokens to plan();  write rows at outgoing();  send();  receive();  write at answers();  send_answers();
///   receive_answers(); read answer(...) of plan().answers()
class RowHop {
 public:
  /// among: as make_all_to_all()'s. row_bytes: of a row as it travels.
  RowHop(Communicator& comm, std::vector<int> among, std::size_t row_bytes, Answers kind);

  DispatchPlan& plan() { return plan_; }

  /// A token of the plan, and where its row is to be written as it travels.
  struct Outgoing {
    std::int32_t token;
    std::byte* row;
  };
  /// The rows of the plan. To be written before send().
  const std::vector<Outgoing>& outgoing();
  /// Returns at once.
  void send() { exchange_->post(bytes_); }

  /// Waits for what all ranks of the hop sent here, this one too.
  void receive();
  /// In ascending order of the ranks that they came from, valid until answers have come back; each with its experts.
  const std::vector<const std::byte*>& rows() const { return rows_; }
  const ArrivedRows& arrived() const { return arrived_; }

  /// Where the answers to them are to be written, one to each row or to each of its experts. After receive().
  const std::vector<std::byte*>& answers();
  void send_answers();

  /// Waits for the answers to the plan's own tokens.
  void receive_answers();
  const std::byte* answer(DispatchPlan::Answer a) const {
    return exchange_->incoming(static_cast<int>(a.rank)).data() + a.row * row_stride_;
  }

 private:
  const int rank_;                // of the job
  const std::vector<int> ranks_;  // of the job
  const std::size_t row_stride_;
  const SlotRecord record_;
  DispatchPlan plan_;
  std::unique_ptr<AllToAll> exchange_;  // rows and answers take turns on it
  std::vector<std::size_t> bytes_;      // [ranks]
  std::vector<Outgoing> outgoing_;

  std::vector<const std::byte*> rows_;
  ArrivedRows arrived_;
  std::vector<std::size_t> answers_to_;  // [ranks]
  std::vector<std::byte*> answers_;
};

}  // namespace shoal
