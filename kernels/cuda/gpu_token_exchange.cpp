#include "kernels/cuda/gpu_token_exchange.h"

#include <algorithm>

#include "kernels/cuda/operations.h"

namespace shoal::cuda {
namespace {

constexpr std::size_t kUsualRecord = 4 << 10;  // bytes: of some 200 rows with two experts each

cudaStream_t new_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  return stream;
}
cudaEvent_t new_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  return event;
}

}  // namespace

GpuTokenExchange::GpuTokenExchange(cudaStream_t stream, Uploads& uploads, Communicator& comm, int hidden,
                                   bool bf16_wire, Answers answers)
    : stream_(stream),
      traffic_(new_stream()),
      ready_(new_event()),
      arrived_(new_event()),
      uploads_(uploads),
      ranks_(static_cast<std::size_t>(comm.size())),
      rank_(static_cast<std::size_t>(comm.rank())),
      hidden_(hidden),
      bf16_(bf16_wire),
      row_bytes_(static_cast<std::size_t>(hidden) * (bf16_wire ? 2 : 4)),
      transport_(comm.device_transport()),
      records_(ranks_ > 1 ? comm.make_all_to_all(kUsualRecord) : nullptr),
      record_(row_bytes_, 0),
      plan_(comm.size(), comm.rank(), answers),
      answers_to_(ranks_),
      to_(ranks_),
      from_(ranks_),
      x_(stream),
      results_(stream),
      sent_(stream),
      received_(stream),
      answers_sent_(stream),
      answers_(stream) {}

GpuTokenExchange::~GpuTokenExchange() {
  static_cast<void>(cudaEventDestroy(ready_));
  static_cast<void>(cudaEventDestroy(arrived_));
  static_cast<void>(cudaStreamDestroy(traffic_));
}

template <class RowsOf>
void GpuTokenExchange::divide(std::byte* memory, const RowsOf& rows_of, std::vector<Piece>& pieces) const {
  for (std::size_t r = 0; r < ranks_; ++r) {
    pieces[r] = {memory, r == rank_ ? 0 : rows_of(r) * row_bytes_};
    memory += pieces[r].bytes;
  }
}

void GpuTokenExchange::exchange() {
  check(cudaEventRecord(ready_, stream_), "cudaEventRecord");
  check(cudaStreamWaitEvent(traffic_, ready_), "cudaStreamWaitEvent");
  transport_->exchange(to_, from_, traffic_);
  check(cudaEventRecord(arrived_, traffic_), "cudaEventRecord");
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
  std::byte* sent = wire_room(sent_, list_.size());
  if (!list_.empty()) pack_rows(h, uploads_.put(list_), std::ssize(list_), bf16_, sent, stream_);
  divide(sent, [&](std::size_t r) { return plan_.to()[r].rows(); }, to_);
}

void GpuTokenExchange::append(const SlotRecord::View& slot, std::int32_t row) {
  for (const std::uint32_t n : slot.n_experts) {
    const bool summed = plan_.kind() == Answers::summed;
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
  const RankSlot& own = plan_.to()[rank_];
  own_rows_ = own.rows();
  append({own.n_experts, own.expert, own.weight}, 0);
  answers_to_[rank_] = own.answers(plan_.kind());

  if (records_) records_->wait();
  std::size_t rows = own_rows_;
  for (std::size_t r = 0; r < ranks_; ++r) {
    if (r == rank_) continue;
    const auto slot = record_.read(records_->incoming(static_cast<int>(r)), static_cast<int>(r), static_cast<int>(rank_));
    append(slot, static_cast<std::int32_t>(rows));
    answers_to_[r] = slot.answers(plan_.kind());
    from_[r].bytes = slot.n_experts.size() * row_bytes_;
    rows += slot.n_experts.size();
  }

  const auto all = static_cast<std::int64_t>(rows), mine = static_cast<std::int64_t>(own_rows_);
  const Rows<float> x(x_.room<float>(all * hidden_), all, hidden_);
  const Rows<float> from_others = x.slice(mine, all - mine);
  if (records_) {
    std::byte* arriving = bf16_ ? wire_room(received_, rows - own_rows_) : reinterpret_cast<std::byte*>(from_others.data);
    divide(arriving, [&](std::size_t r) { return from_[r].bytes / row_bytes_; }, from_);
    exchange();
  }
  if (mine > 0) {
    const std::int32_t* tokens = uploads_.put(own.token);
    if (bf16_)
      round_own_rows(h_, tokens, x.slice(0, mine), stream_);
    else
      pack_rows(h_, tokens, mine, false, reinterpret_cast<std::byte*>(x.data), stream_);
  }
  if (records_) {
    check(cudaStreamWaitEvent(stream_, arrived_), "cudaStreamWaitEvent");
    if (bf16_ && all > mine) unpack_rows(reinterpret_cast<const std::uint16_t*>(received_.room<std::byte>(0)), from_others, stream_);
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
  auto* sent = reinterpret_cast<std::byte*>(to_others.data);
  if (bf16_) {
    sent = wire_room(answers_sent_, static_cast<std::size_t>(to_others.rows));
    if (to_others.rows > 0) pack_rows(to_others, nullptr, to_others.rows, true, sent, stream_);
  }
  divide(sent, [&](std::size_t r) { return answers_to_[r]; }, to_);
  std::size_t awaited = 0;
  for (std::size_t r = 0; r < ranks_; ++r)
    if (r != rank_) awaited += plan_.to()[r].answers(plan_.kind());
  divide(wire_room(answers_, awaited), [&](std::size_t r) { return plan_.to()[r].answers(plan_.kind()); }, from_);
  exchange();
}

void GpuTokenExchange::combined(Rows<float> out) {
  if (records_) check(cudaStreamWaitEvent(stream_, arrived_), "cudaStreamWaitEvent");
  if (out.rows == 0) return;
  const std::byte* answers = answers_.room<std::byte>(0);
  list_.clear();
  for (const auto [rank, row] : plan_.answers()) {
    const auto n = static_cast<std::int32_t>(row);
    list_.push_back(rank == rank_ ? ~n : static_cast<std::int32_t>((from_[rank].memory - answers) / static_cast<std::ptrdiff_t>(row_bytes_)) + n);
  }
  first_.assign(plan_.first_answer().begin(), plan_.first_answer().end());
  const auto [first, place] = uploads_.put_all(std::span<const std::int32_t>(first_), std::span<const std::int32_t>(list_));
  add_answers(batch_.results, answers, bf16_, first, place, out, stream_);
}

}  // namespace shoal::cuda
