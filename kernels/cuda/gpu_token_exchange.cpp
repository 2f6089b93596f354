#include "kernels/cuda/gpu_token_exchange.h"

#include "kernels/cuda/exchange_wire.h"

namespace shoal::cuda {
namespace {

constexpr std::size_t kUsualRecord = 4 << 10;  // bytes: of some 200 rows with two experts each

}  // namespace

GpuTokenExchange::GpuTokenExchange(cudaStream_t stream, Uploads& uploads, Communicator& comm,
                                   const ExchangeShape& shape, bool f8_rows)
    : stream_(stream),
      uploads_(uploads),
      ranks_(static_cast<std::size_t>(comm.size())),
      rank_(static_cast<std::size_t>(comm.rank())),
      hidden_(shape.hidden),
      there_(wire_there(shape, f8_rows)),
      back_(wire_back(shape)),
      traffic_(comm.device_transport()),
      records_(ranks_ > 1 ? comm.make_all_to_all(kUsualRecord) : nullptr),
      record_(static_cast<std::size_t>(wire_row_bytes(there_, hidden_)), 0),
      plan_(comm.size(), comm.rank(), shape.answers),
      rows_from_(ranks_),
      answers_to_(ranks_),
      to_(ranks_),
      from_(ranks_),
      x_(stream),
      results_(stream),
      sent_(stream),
      received_(stream),
      answers_sent_(stream),
      answers_(stream) {}

template <class RowsOf>
void GpuTokenExchange::divide(std::byte* memory, Wire wire, const RowsOf& rows_of, std::vector<Piece>& pieces) const {
  for (std::size_t r = 0; r < ranks_; ++r) {
    pieces[r] = {memory, r == rank_ ? 0 : rows_of(r) * static_cast<std::size_t>(wire_row_bytes(wire, hidden_))};
    memory += pieces[r].bytes;
  }
}

void GpuTokenExchange::dispatch(Rows<float> h, const std::int32_t* expert, const float* weight, int top_k,
                                ExpertMap& map) {
  const auto entries = static_cast<std::size_t>(h.rows * top_k);
  plan_.make({expert, entries}, {weight, entries}, top_k, map);
  h_ = h;
  if (ranks_ == 1) return;
  std::vector<std::size_t> bytes(ranks_);
  list_.clear();
  for (std::size_t d = 0; d < ranks_; ++d) {
    const RankSlot& slot = plan_.to()[d];
    if (d == rank_ || slot.rows() == 0) continue;
    bytes[d] = record_.bytes(slot);
    record_.write(slot, records_->outgoing(static_cast<int>(d), bytes[d]));
    list_.insert(list_.end(), slot.token.begin(), slot.token.end());
  }
  records_->post(bytes);
  std::byte* sent = room(sent_, there_, list_.size());
  if (!list_.empty()) pack_rows(h, uploads_.put(list_), std::ssize(list_), there_, sent, stream_);
  // Now, so that they need not wait for what is asked for before dispatched(). All that used their buffers is done
  // then.
  traffic_.follow(stream_);
  divide(
      sent, there_, [&](std::size_t r) { return plan_.to()[r].rows(); }, to_);
}

void GpuTokenExchange::append(const SlotRecord::View& slot, std::int32_t row) {
  const bool summed = plan_.kind() == Answers::summed;
  for (const std::uint32_t n : slot.n_experts) {
    for (std::uint32_t i = 0; i < (summed ? 1 : n); ++i) {
      batch_.row.push_back(row);
      batch_.first.push_back(batch_.first.back() + static_cast<std::int32_t>(summed ? n : 1));
    }
    ++row;
  }
  batch_.expert.insert(batch_.expert.end(), slot.expert.begin(), slot.expert.end());
  batch_.weight.insert(batch_.weight.end(), slot.weight.begin(), slot.weight.end());
}

const ExpertBatch& GpuTokenExchange::dispatched() {
  batch_.first.assign(1, 0);
  batch_.row.clear();
  batch_.expert.clear();
  batch_.weight.clear();
  std::size_t rows = 0;
  const auto take = [&](std::size_t r, const SlotRecord::View& slot) {
    append(slot, static_cast<std::int32_t>(rows));
    answers_to_[r] = slot.answers(plan_.kind());
    rows_from_[r] = slot.n_experts.size();
    rows += rows_from_[r];
  };
  const RankSlot& own = plan_.to()[rank_];
  take(rank_, {own.n_experts, own.expert, own.weight});
  if (records_) records_->wait();
  for (std::size_t r = 0; r < ranks_; ++r)
    if (r != rank_)
      take(r, record_.read(records_->incoming(static_cast<int>(r)), static_cast<int>(r), static_cast<int>(rank_)));

  const auto all = static_cast<std::int64_t>(rows), mine = static_cast<std::int64_t>(own.rows());
  const Rows<float> x(x_.room<float>(all * hidden_), all, hidden_), of_others = x.slice(mine, all - mine);
  std::byte* arriving = reinterpret_cast<std::byte*>(of_others.data);
  if (records_) {
    if (there_ != Wire::f32) arriving = room(received_, there_, rows - own.rows());
    divide(
        arriving, there_, [&](std::size_t r) { return rows_from_[r]; }, from_);
    traffic_.exchange(to_, from_);
  }
  if (mine > 0) keep_rows(h_, uploads_.put(own.token), there_, x.slice(0, mine), stream_);
  if (records_) {
    traffic_.precede(stream_);
    unpack_rows(arriving, there_, of_others, stream_);
  }
  batch_.x = x;
  const std::int64_t n = std::ssize(batch_.row);
  batch_.results = {results_.room<float>(n * hidden_), n, hidden_};
  return batch_;
}

void GpuTokenExchange::combine(Rows<float>) {
  if (!records_) return;
  const auto own = static_cast<std::int64_t>(answers_to_[rank_]);
  const Rows<float> to_others = batch_.results.slice(own, batch_.results.rows - own);
  std::byte* sent = reinterpret_cast<std::byte*>(to_others.data);
  if (back_ != Wire::f32) {
    sent = room(answers_sent_, back_, static_cast<std::size_t>(to_others.rows));
    pack_rows(to_others, nullptr, to_others.rows, back_, sent, stream_);
  }
  divide(
      sent, back_, [&](std::size_t r) { return answers_to_[r]; }, to_);
  const auto awaited = [&](std::size_t r) { return plan_.to()[r].answers(plan_.kind()); };
  std::size_t all = 0;
  for (std::size_t r = 0; r < ranks_; ++r) all += awaited(r);
  divide(room(answers_, back_, all), back_, awaited, from_);
  traffic_.follow(stream_);
  traffic_.exchange(to_, from_);
}

void GpuTokenExchange::combined(Rows<float> out) {
  if (records_) traffic_.precede(stream_);
  if (out.rows == 0) return;
  const std::byte* answers = answers_.room<std::byte>(0);
  list_.clear();
  for (const auto& [rank, row] : plan_.answers()) {
    const auto n = static_cast<std::int32_t>(row);
    const std::ptrdiff_t before = from_[rank].memory - answers;
    list_.push_back(rank == rank_ ? ~n : static_cast<std::int32_t>(before / wire_row_bytes(back_, hidden_)) + n);
  }
  first_.assign(plan_.first_answer().begin(), plan_.first_answer().end());
  const auto [first, place] =
      uploads_.put_all(std::span<const std::int32_t>(first_), std::span<const std::int32_t>(list_));
  add_answers(batch_.results, answers, back_, first, place, out, stream_);
}

}  // namespace shoal::cuda
