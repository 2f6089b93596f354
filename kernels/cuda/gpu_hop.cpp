#include "kernels/cuda/gpu_hop.h"

#include <algorithm>
#include <utility>

namespace shoal::cuda {
namespace {

/// Bytes of a record that go with its length: of a thousand rows with two experts each where ranks are few, and 256 KB
/// to all.
std::size_t usual_record(std::size_t ranks) { return std::clamp<std::size_t>((256 << 10) / ranks, 4 << 10, 32 << 10); }

}  // namespace

GpuHop::GpuHop(Communicator& comm, std::vector<int> among, std::int64_t hidden, Wire there, Wire back, Answers kind)
    : rank_(comm.rank()),
      ranks_(std::move(among)),
      me_(static_cast<std::size_t>(std::ranges::find(ranks_, rank_) - ranks_.begin())),
      hidden_(hidden),
      there_(there),
      back_(back),
      records_(ranks_.size() > 1 ? comm.make_all_to_all(usual_record(ranks_.size()), ranks_) : nullptr),
      record_(static_cast<std::size_t>(wire_row_bytes(there, hidden)), 0),
      plan_(ranks_.size(), kind),
      bytes_(ranks_.size()),
      rows_from_(ranks_.size()),
      answers_to_(ranks_.size()),
      to_(static_cast<std::size_t>(comm.size())),
      from_(to_.size()) {}

const std::vector<std::int32_t>& GpuHop::announce() {
  leaving_.clear();
  std::ranges::fill(bytes_, 0);
  for (std::size_t d = 0; d < ranks_.size(); ++d) {
    const RankSlot& slot = plan_.to()[d];
    if (d == me_ || slot.rows() == 0) continue;
    bytes_[d] = record_.bytes(slot);
    record_.write(slot, records_->outgoing(static_cast<int>(d), bytes_[d]));
    leaving_.insert(leaving_.end(), slot.token.begin(), slot.token.end());
  }
  if (records_) records_->post(bytes_);
  return leaving_;
}

void GpuHop::hear() {
  arrived_.clear();
  const auto take = [&](std::size_t r, const SlotRecord::View& slot) {
    rows_from_[r] = slot.n_experts.size();
    answers_to_[r] = slot.answers(plan_.kind());
    arrived_.add(slot.n_experts, slot.expert, slot.weight);
  };
  take(me_, {own().n_experts, own().expert, own().weight});
  if (records_) records_->wait();
  for (std::size_t r = 0; r < ranks_.size(); ++r)
    if (r != me_) take(r, record_.read(records_->incoming(static_cast<int>(r)), ranks_[r], rank_));
}

/// Divides memory of rows as they travel among the other ranks, in ascending order.
template <class RowsOf>
void GpuHop::divide(std::byte* memory, Wire wire, const RowsOf& rows_of, std::vector<Piece>& pieces) const {
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    Piece& piece = pieces[static_cast<std::size_t>(ranks_[r])];
    piece = {memory, r == me_ ? 0 : rows_of(r) * static_cast<std::size_t>(wire_row_bytes(wire, hidden_))};
    memory += piece.bytes;
  }
}

void GpuHop::exchange_rows(Traffic& traffic, std::byte* leaving, std::byte* arriving) {
  divide(
      leaving, there_, [&](std::size_t r) { return plan_.to()[r].rows(); }, to_);
  divide(
      arriving, there_, [&](std::size_t r) { return rows_from_[r]; }, from_);
  traffic.exchange(to_, from_);
}

void GpuHop::exchange_answers(Traffic& traffic, std::byte* leaving, std::byte* arriving) {
  divide(
      leaving, back_, [&](std::size_t r) { return answers_to_[r]; }, to_);
  divide(
      arriving, back_, [&](std::size_t r) { return plan_.to()[r].answers(plan_.kind()); }, from_);
  traffic.exchange(to_, from_);
}

const std::vector<std::int32_t>& GpuHop::places() {
  std::vector<std::int32_t> before(ranks_.size());  // of others' answers, those that lie ahead of a rank's
  std::size_t all = 0;
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    before[r] = static_cast<std::int32_t>(all);
    if (r != me_) all += plan_.to()[r].answers(plan_.kind());
  }
  places_.clear();
  for (const auto& [rank, row] : plan_.answers())
    places_.push_back(rank == me_ ? ~static_cast<std::int32_t>(row) : before[rank] + static_cast<std::int32_t>(row));
  return places_;
}

}  // namespace shoal::cuda
