#include "collectives/message_all_to_all.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace shoal {
namespace {

constexpr std::size_t kLength = sizeof(std::uint64_t);      // goes ahead of a payload, and lies just before it
constexpr std::size_t kBefore = AlignedBuffer::kAlignment;  // room for that which keeps payloads aligned

}  // namespace

MessageAllToAll::MessageAllToAll(std::shared_ptr<MpiGroup> group, MessageSizes sizes)
    : MessageAllToAll(group, sizes, group->crowded()) {}

MessageAllToAll::MessageAllToAll(std::shared_ptr<MpiGroup> group, MessageSizes sizes, bool crowded)
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
    r.messages = group_->wire().make_set();
    r.first.reserve(n * (kBefore + align_up(sizes_.eager)));  // untouched, and no memory, where slots are used
  }
}

MessageAllToAll::~MessageAllToAll() {
  // An exchange that nobody waited for happens only when something was thrown: its memory may still be written to.
  for (; waits_ < posts_ + (posting_ ? 1 : 0); ++waits_)
    static_cast<void>(new Round(std::move(round(waits_))));  // kept for good
  group_->give_back(tags_);
}

void MessageAllToAll::check_room() const {
  if (posts_ - waits_ >= 2) fail("all-to-all: rank {} starts a third exchange before it waited for the first", rank_);
}

std::byte* MessageAllToAll::first_payload(Round& r, int src) const {
  return r.first.data() + static_cast<std::size_t>(src) * (kBefore + align_up(sizes_.eager)) + kBefore;
}

std::span<std::byte> MessageAllToAll::outgoing(int dest, std::size_t bytes) {
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

void MessageAllToAll::post(std::span<const std::size_t> bytes) {
  check_room();
  Round& r = round(posts_);
  for (int dest = 0; dest < ranks_; ++dest) {
    const auto d = static_cast<std::size_t>(dest);
    if (bytes[d] > r.asked[d])
      fail("all-to-all: rank {} sends {} bytes to rank {} and asked for less", rank_, bytes[d], dest);
  }
  posting_ = true;
  r.messages->clear();
  r.first_missing = r.pending = 0;
  r.only_first = true;
  r.first_from.clear();
  r.from_host.clear();
  r.receive.clear();
  // Each rank starts with its successor, so that not all talk to rank 0 first.
  for (int i = 1; i < ranks_; ++i) {
    const int src = (rank_ + ranks_ - i) % ranks_;
    if (on_host(src)) {
      r.from_host.push_back(src);
      continue;
    }
    r.messages->receive(group_->in_job(src), first_tag(posts_),
                        {first_payload(r, src) - kLength, kLength + sizes_.eager});
    r.first_from.push_back(src);
    ++r.first_missing;
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
  posting_ = false;
}

void MessageAllToAll::send(std::uint64_t exchange, int dest, std::size_t bytes) {
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
    r.messages->send(group_->in_job(dest), first_tag(exchange), {first, kLength + (whole ? bytes : 0)});
    ++r.pending;
  }
  for (std::size_t at = 0; !whole && at < bytes; at += sizes_.chunk) {
    r.messages->send(group_->in_job(dest), rest_tag(exchange), {r.to[d] + at, std::min(bytes - at, sizes_.chunk)});
    r.only_first = false;
    ++r.pending;
  }
}

/// The first message of a record of `bytes` is here; where the record is not in it, it is asked for.
void MessageAllToAll::first_arrived(std::uint64_t exchange, int src, std::size_t bytes) {
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
    r.messages->receive(group_->in_job(src), rest_tag(exchange), {to + at, std::min(bytes - at, sizes_.chunk)});
    r.only_first = false;
    ++r.pending;
  }
}

/// Completes what can be completed of an exchange; asks for long records.
void MessageAllToAll::progress(std::uint64_t exchange) {
  Round& r = round(exchange);
  std::erase_if(r.from_host, [&](int src) {
    const auto bytes = slots_->arrived(exchange, src);
    if (bytes) first_arrived(exchange, src, *bytes);
    return bytes.has_value();
  });
  if (r.pending == 0) return;
  completed_.clear();
  r.messages->progress(completed_);
  r.pending -= completed_.size();
  for (const int number : completed_) {
    if (std::cmp_greater_equal(number, r.first_from.size())) continue;
    --r.first_missing;
    const int src = r.first_from[static_cast<std::size_t>(number)];
    std::uint64_t length = 0;
    std::memcpy(&length, first_payload(r, src) - kLength, kLength);
    first_arrived(exchange, src, length);
  }
}

void MessageAllToAll::progress_all() {
  for (std::uint64_t exchange = waits_; exchange < posts_; ++exchange) progress(exchange);
}

void MessageAllToAll::wait() {
  if (waits_ == posts_) fail("all-to-all: rank {} waits for an exchange that it did not post", rank_);
  Round& r = round(waits_);
  patience_.begin();
  // Own sends are waited for, too: long messages move only while both sides look after them.
  for (;;) {
    const std::uint32_t seen = slots_ ? slots_->posts() : 0;
    progress_all();
    if (r.complete()) break;
    group_->check_current();
    const bool only_slots = std::ranges::all_of(rounds_, [](const Round& x) { return x.pending == 0; });
    if (only_slots && patience_.at_end()) {
      slots_->sleep(seen);
    } else {
      patience_.pause(only_slots || (r.first_missing > 0 && r.only_first));
    }
  }
  r.send.clear();
  ++waits_;
}

std::span<const std::byte> MessageAllToAll::incoming(int src) const {
  const std::uint64_t exchange = waits_ - 1;
  if (src == rank_) return {own_[exchange % 3].data(), own_bytes_[exchange % 3]};
  const Round& r = round(exchange);
  return {r.from[static_cast<std::size_t>(src)], r.received[static_cast<std::size_t>(src)]};
}

}  // namespace shoal
