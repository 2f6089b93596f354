#include "collectives/dispatch_plan.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "collectives/aligned_buffer.h"

namespace shoal {
namespace {

struct SlotHeader {
  std::uint32_t rows = 0;
  std::uint32_t experts = 0;
  std::uint32_t row_bytes = 0;  // both sides must agree on hidden size and wire type
  std::uint32_t reserved = 0;
};

template <class T>
std::byte* put(std::byte* to, const std::vector<T>& values) {
  std::memcpy(to, values.data(), values.size() * sizeof(T));
  return to + values.size() * sizeof(T);
}
template <class T>
std::span<const T> take(const std::byte*& from, std::size_t n) {
  const std::span<const T> values(reinterpret_cast<const T*>(from), n);
  from += n * sizeof(T);
  return values;
}

}  // namespace

void RankSlot::clear() {
  token.clear();
  n_experts.clear();
  expert.clear();
  weight.clear();
}

void DispatchPlan::clear() {
  for (RankSlot& slot : to_) slot.clear();
  answers_.clear();
  first_answer_.assign(1, 0);
}

void DispatchPlan::add(std::span<const Destination> to, std::span<const float> weight) {
  const auto token = static_cast<std::int32_t>(first_answer_.size() - 1);
  token_ranks_.clear();
  for (std::size_t i = 0; i < to.size(); ++i) {
    if (to[i].rank < 0) continue;
    const auto rank = static_cast<std::uint32_t>(to[i].rank);
    RankSlot& slot = to_[rank];
    if (slot.token.empty() || slot.token.back() != token) {
      slot.token.push_back(token);
      slot.n_experts.push_back(0);
      token_ranks_.push_back(rank);
    }
    std::size_t at = slot.expert.size();
    if (kind_ == Answers::by_expert) answers_.push_back({rank, static_cast<std::uint32_t>(at)});
    slot.expert.push_back(to[i].id);
    slot.weight.push_back(weight[i]);
    // Insertion keeps ids ascending, since a plan may number a rank's experts in any order.
    if (kind_ == Answers::summed)
      for (const std::size_t first = at - slot.n_experts.back(); at > first && slot.expert[at - 1] > to[i].id; --at) {
        std::swap(slot.expert[at], slot.expert[at - 1]);
        std::swap(slot.weight[at], slot.weight[at - 1]);
      }
    ++slot.n_experts.back();
  }
  if (kind_ == Answers::summed) {
    std::sort(token_ranks_.begin(), token_ranks_.end());
    for (const std::uint32_t rank : token_ranks_)
      answers_.push_back({rank, static_cast<std::uint32_t>(to_[rank].rows() - 1)});
  }
  first_answer_.push_back(static_cast<std::uint32_t>(answers_.size()));
}

void DispatchPlan::make(std::span<const std::int32_t> expert, std::span<const float> weight, int top_k, ExpertMap& map,
                        const Hops& hops) {
  clear();
  const auto k = static_cast<std::size_t>(top_k);
  for (std::size_t begin = 0; begin < expert.size(); begin += k) {
    token_to_.clear();
    for (const std::int32_t e : expert.subspan(begin, k)) token_to_.push_back(hops.destination(e, map));
    add(token_to_, weight.subspan(begin, k));
  }
}

void ArrivedRows::clear() {
  n_experts.clear();
  expert.clear();
  weight.clear();
}

void ArrivedRows::add(std::span<const std::uint32_t> of_rows, std::span<const std::int32_t> experts,
                      std::span<const float> weights) {
  n_experts.insert(n_experts.end(), of_rows.begin(), of_rows.end());
  expert.insert(expert.end(), experts.begin(), experts.end());
  weight.insert(weight.end(), weights.begin(), weights.end());
}

void DispatchPlan::forward(const ArrivedRows& came) {
  clear();
  std::size_t at = 0;
  for (const std::uint32_t n : came.n_experts) {
    token_to_.clear();
    for (const std::int32_t i : std::span(came.expert).subspan(at, n)) {
      token_to_.push_back(Hops::forward(i));
      if (i < 0 || static_cast<std::size_t>(token_to_.back().rank) >= to_.size())
        fail("expert exchange: a row came for rank {} of {} of this host", i >> Hops::kLocalBits, to_.size());
    }
    add(token_to_, std::span(came.weight).subspan(at, n));
    at += n;
  }
}

std::size_t SlotRecord::rows_at(std::size_t rows, std::size_t experts) {
  return align_up(sizeof(SlotHeader) + rows * 4 + experts * 8);
}

std::byte* SlotRecord::write(const RankSlot& slot, std::span<std::byte> record) const {
  const SlotHeader header{static_cast<std::uint32_t>(slot.rows()), static_cast<std::uint32_t>(slot.expert.size()),
                          static_cast<std::uint32_t>(row_bytes_), 0};
  std::memcpy(record.data(), &header, sizeof header);
  put(put(put(record.data() + sizeof header, slot.n_experts), slot.expert), slot.weight);
  return record.data() + rows_at(slot);
}

SlotRecord::View SlotRecord::read(std::span<const std::byte> record, int src, int rank) const {
  if (record.empty()) return {};
  SlotHeader header;
  if (record.size() >= sizeof header) std::memcpy(&header, record.data(), sizeof header);
  const std::size_t rows = rows_at(header.rows, header.experts);
  if (record.size() != rows + header.rows * row_stride_ || header.row_bytes != row_bytes_)
    fail(
        "expert exchange: rank {} sent {} bytes with {} rows of {} bytes to rank {}, which expects rows of {} bytes; "
        "all ranks must have the same hidden size and wire type",
        src, record.size(), header.rows, header.row_bytes, rank, row_bytes_);
  const std::byte* at = record.data() + sizeof header;
  View view;
  view.n_experts = take<std::uint32_t>(at, header.rows);
  view.expert = take<std::int32_t>(at, header.experts);
  view.weight = take<float>(at, header.experts);
  view.rows = record.data() + rows;
  std::uint64_t entries = 0;
  for (const std::uint32_t n : view.n_experts) entries += n;
  if (entries != header.experts)
    fail("expert exchange: rank {} sent rows whose experts do not add up to {}", src, header.experts);
  return view;
}

}  // namespace shoal
