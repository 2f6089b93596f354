#include "collectives/row_hop.h"

#include <utility>

#include "base/error.h"
#include "collectives/aligned_buffer.h"

namespace shoal {

RowHop::RowHop(Communicator& comm, std::vector<int> among, std::size_t row_bytes, Answers kind)
    : rank_(comm.rank()),
      ranks_(std::move(among)),
      row_stride_(align_up(row_bytes)),
      record_(row_bytes, row_stride_),
      plan_(ranks_.size(), kind),
      exchange_(comm.make_all_to_all(0, ranks_)),
      bytes_(ranks_.size()),
      answers_to_(ranks_.size()) {}

const std::vector<RowHop::Outgoing>& RowHop::outgoing() {
  outgoing_.clear();
  for (std::size_t d = 0; d < ranks_.size(); ++d) {
    const RankSlot& slot = plan_.to()[d];
    bytes_[d] = record_.bytes(slot);
    if (bytes_[d] == 0) continue;
    std::byte* row = record_.write(slot, exchange_->outgoing(static_cast<int>(d), bytes_[d]));
    for (const std::int32_t token : slot.token) {
      outgoing_.push_back({token, row});
      row += row_stride_;
    }
  }
  return outgoing_;
}

void RowHop::receive() {
  exchange_->wait();
  rows_.clear();
  arrived_.clear();
  for (std::size_t src = 0; src < ranks_.size(); ++src) {
    const SlotRecord::View slot = record_.read(exchange_->incoming(static_cast<int>(src)), ranks_[src], rank_);
    answers_to_[src] = slot.answers(plan_.kind());
    for (std::size_t row = 0; row < slot.n_experts.size(); ++row) rows_.push_back(slot.rows + row * row_stride_);
    arrived_.add(slot.n_experts, slot.expert, slot.weight);
  }
}

const std::vector<std::byte*>& RowHop::answers() {
  answers_.clear();
  for (std::size_t src = 0; src < ranks_.size(); ++src) {
    bytes_[src] = answers_to_[src] * row_stride_;
    if (bytes_[src] == 0) continue;
    std::byte* slot = exchange_->outgoing(static_cast<int>(src), bytes_[src]).data();
    for (std::size_t i = 0; i < answers_to_[src]; ++i) answers_.push_back(slot + i * row_stride_);
  }
  return answers_;
}

void RowHop::send_answers() { exchange_->post(bytes_); }

void RowHop::receive_answers() {
  exchange_->wait();
  for (std::size_t src = 0; src < ranks_.size(); ++src) {
    const std::size_t answers = plan_.to()[src].answers(plan_.kind());
    const std::size_t bytes = exchange_->incoming(static_cast<int>(src)).size();
    if (bytes != answers * row_stride_)
      fail("expert exchange: rank {} answered {} bytes to {} rows of rank {}", ranks_[src], bytes, answers, rank_);
  }
}

}  // namespace shoal
