#include "collectives/mpi_all_to_all.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"

namespace shoal {
namespace {

constexpr std::size_t kLength = sizeof(std::uint64_t);      // goes ahead of a payload, and lies just before it
constexpr std::size_t kBefore = AlignedBuffer::kAlignment;  // room for that which keeps payloads aligned

}  // namespace

MpiAllToAll::MpiAllToAll(std::shared_ptr<MpiGroup> group, MpiMessageSizes sizes)
    : MpiAllToAll(group, sizes, group->crowded()) {}

MpiAllToAll::MpiAllToAll(std::shared_ptr<MpiGroup> group, MpiMessageSizes sizes, bool crowded)
    : group_(std::move(group)),
      sizes_(sizes),
      rank_(group_->rank()),
      ranks_(group_->size()),
      tags_(group_->take_tags()),
      patience_(crowded) {
  if (sizes.slot > 0 && ranks_ > 1) slots_ = std::make_unique<HostSlots>(*group_, sizes.slot);
  if (slots_ && !slots_->any()) slots_.reset();
  const auto n = static_cast<std::size_t>(ranks_);
  for (Round& r : rounds_) {
    r.to.resize(n);
    r.from.resize(n);
    r.asked.resize(n);
    r.lengths.resize(n);
    r.received.resize(n);
    r.requests.reserve(4 * n);
    r.first.reserve(n * (kBefore + align_up(sizes_.eager)));  // untouched, and no memory, where slots are used
  }
}

MpiAllToAll::~MpiAllToAll() {
  // An exchange that nobody waited for happens only when something was thrown: its buffers may not be freed under MPI.
  for (; waits_ < posts_; ++waits_) {
    for (MPI_Request& request : round(waits_).requests) {
      if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
    }
    static_cast<void>(new Round(std::move(round(waits_))));  // kept for good
  }
  group_->give_back(tags_);
}

void MpiAllToAll::check_room() const {
  if (posts_ - waits_ >= 2) fail("all-to-all: rank {} starts a third exchange before it waited for the first", rank_);
}

std::byte* MpiAllToAll::first_payload(Round& r, int src) const {
  return r.first.data() + static_cast<std::size_t>(src) * (kBefore + align_up(sizes_.eager)) + kBefore;
}

std::span<std::byte> MpiAllToAll::outgoing(int dest, std::size_t bytes) {
  check_room();
  Round& r = round(posts_);
  const auto d = static_cast<std::size_t>(dest);
  r.asked[d] = bytes;
  if (dest == rank_) {
    own(posts_).reserve(bytes);
    return {own(posts_).data(), bytes};
  }
  if (on_host(dest) && in_first(dest, bytes)) return {slots_->outgoing(posts_, dest, bytes), bytes};
  r.to[d] = r.send.take(kBefore + bytes) + kBefore;
  return {r.to[d], bytes};
}

void MpiAllToAll::post(std::span<const std::size_t> bytes) {
  check_room();
  Round& r = round(posts_);
  for (int dest = 0; dest < ranks_; ++dest) {
    const auto d = static_cast<std::size_t>(dest);
    if (bytes[d] > r.asked[d])
      fail("all-to-all: rank {} sends {} bytes to rank {} and asked for less", rank_, bytes[d], dest);
  }
  r.requests.assign(2 * static_cast<std::size_t>(ranks_), MPI_REQUEST_NULL);
  r.first_messages = r.pending = 0;
  r.from_host.clear();
  r.receive.clear();
  // Each rank starts with its successor, so that not all talk to rank 0 first.
  for (int i = 1; i < ranks_; ++i) {
    const int src = (rank_ + ranks_ - i) % ranks_;
    if (on_host(src)) {
      r.from_host.push_back(src);
      continue;
    }
    check_mpi(
        MPI_Irecv(first_payload(r, src) - kLength, static_cast<int>(kLength + sizes_.eager), MPI_BYTE,
                  group_->in_comm(src), first_tag(posts_), group_->comm(), &r.requests[static_cast<std::size_t>(src)]),
        "MPI_Irecv");
    ++r.first_messages;
    ++r.pending;
  }
  for (int i = 1; i < ranks_; ++i) {
    const int dest = (rank_ + i) % ranks_;
    send(posts_, dest, bytes[static_cast<std::size_t>(dest)]);
  }
  own_bytes_[posts_ % 3] = bytes[static_cast<std::size_t>(rank_)];
  std::ranges::fill(r.asked, 0);
  std::ranges::fill(r.to, nullptr);
  ++posts_;
}

void MpiAllToAll::send(std::uint64_t exchange, int dest, std::size_t bytes) {
  const auto d = static_cast<std::size_t>(dest);
  Round& r = round(exchange);
  const bool whole = in_first(dest, bytes);
  if (on_host(dest)) {
    // What was asked for as a long record lies elsewhere, short as it may have become.
    if (whole && r.to[d]) std::memcpy(slots_->outgoing(exchange, dest, bytes), r.to[d], bytes);
    slots_->post(exchange, dest, bytes);
  } else {
    r.lengths[d] = bytes;
    std::byte* first = reinterpret_cast<std::byte*>(&r.lengths[d]);
    if (whole && bytes > 0) {
      first = r.to[d] - kLength;
      std::memcpy(first, &r.lengths[d], kLength);
    }
    check_mpi(MPI_Isend(first, static_cast<int>(kLength + (whole ? bytes : 0)), MPI_BYTE, group_->in_comm(dest),
                        first_tag(exchange), group_->comm(), &r.requests[static_cast<std::size_t>(ranks_) + d]),
              "MPI_Isend");
    ++r.pending;
  }
  for (std::size_t at = 0; !whole && at < bytes; at += sizes_.chunk) {
    const std::size_t n = std::min(bytes - at, sizes_.chunk);
    r.requests.push_back(MPI_REQUEST_NULL);
    check_mpi(MPI_Isend(r.to[d] + at, static_cast<int>(n), MPI_BYTE, group_->in_comm(dest), rest_tag(exchange),
                        group_->comm(), &r.requests.back()),
              "MPI_Isend");
    ++r.pending;
  }
}

/// The first message of a record of `bytes` is here; where the record is not in it, it is asked for.
void MpiAllToAll::first_arrived(std::uint64_t exchange, int src, std::size_t bytes) {
  const auto s = static_cast<std::size_t>(src);
  Round& r = round(exchange);
  r.received[s] = bytes;
  if (in_first(src, bytes)) {
    r.from[s] = on_host(src) ? slots_->incoming(exchange, src) : first_payload(r, src);
    return;
  }
  std::byte* const to = r.receive.take(bytes);
  r.from[s] = to;
  for (std::size_t at = 0; at < bytes; at += sizes_.chunk) {
    const std::size_t n = std::min(bytes - at, sizes_.chunk);
    r.requests.push_back(MPI_REQUEST_NULL);
    check_mpi(MPI_Irecv(to + at, static_cast<int>(n), MPI_BYTE, group_->in_comm(src), rest_tag(exchange),
                        group_->comm(), &r.requests.back()),
              "MPI_Irecv");
    ++r.pending;
  }
}

/// Completes what can be completed of an exchange; asks for long records.
void MpiAllToAll::progress(std::uint64_t exchange) {
  Round& r = round(exchange);
  std::erase_if(r.from_host, [&](int src) {
    const auto bytes = slots_->arrived(exchange, src);
    if (bytes) first_arrived(exchange, src, *bytes);
    return bytes.has_value();
  });
  if (r.pending == 0) return;
  completed_.resize(std::max(completed_.size(), r.requests.size()));
  int n = 0;
  check_mpi(
      MPI_Testsome(static_cast<int>(r.requests.size()), r.requests.data(), &n, completed_.data(), MPI_STATUSES_IGNORE),
      "MPI_Testsome");
  if (n == MPI_UNDEFINED) n = 0;
  r.pending -= static_cast<std::size_t>(n);
  for (int i = 0; i < n; ++i) {
    const int index = completed_[static_cast<std::size_t>(i)];
    if (index >= ranks_) continue;
    --r.first_messages;
    std::uint64_t length = 0;
    std::memcpy(&length, first_payload(r, index) - kLength, kLength);
    first_arrived(exchange, index, length);
  }
}

void MpiAllToAll::progress_all() {
  for (std::uint64_t exchange = waits_; exchange < posts_; ++exchange) progress(exchange);
}

void MpiAllToAll::wait() {
  if (waits_ == posts_) fail("all-to-all: rank {} waits for an exchange that it did not post", rank_);
  Round& r = round(waits_);
  patience_.begin();
  // Own sends are waited for, too: MPI moves long messages only while both sides are inside it.
  for (;;) {
    const std::uint32_t seen = slots_ ? slots_->posts() : 0;
    progress_all();
    if (r.complete()) break;
    group_->check_current();
    const bool only_slots = std::ranges::all_of(rounds_, [](const Round& x) { return x.pending == 0; });
    if (only_slots && patience_.at_end()) {
      slots_->sleep(seen);
    } else {
      patience_.pause(only_slots ||
                      (r.first_messages > 0 && r.requests.size() == 2 * static_cast<std::size_t>(ranks_)));
    }
  }
  r.send.clear();
  ++waits_;
}

std::span<const std::byte> MpiAllToAll::incoming(int src) const {
  const std::uint64_t exchange = waits_ - 1;
  if (src == rank_) return {own_[exchange % 3].data(), own_bytes_[exchange % 3]};
  const Round& r = round(exchange);
  return {r.from[static_cast<std::size_t>(src)], r.received[static_cast<std::size_t>(src)]};
}

}  // namespace shoal
