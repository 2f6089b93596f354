#include "collectives/mpi_all_to_all.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"
#include "collectives/patience.h"

namespace shoal {
namespace {

constexpr std::size_t kPayload = AlignedBuffer::kAlignment;         // where the payload starts in a buffer
constexpr std::size_t kMessage = kPayload - sizeof(std::uint64_t);  // where the first message starts: with the length
constexpr std::size_t kLength = sizeof(std::uint64_t);

/// Consecutive exchanges differ in tag; messages of one tag arrive in the order in which they were sent.
int first_tag(std::uint64_t exchange) { return static_cast<int>(exchange % 2); }
int rest_tag(std::uint64_t exchange) { return 2 + static_cast<int>(exchange % 2); }

}  // namespace

void check_mpi(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail("{}: {}", what, std::string(text, static_cast<std::size_t>(length)));
}

MpiAllToAll::MpiAllToAll(MPI_Comm parent, bool crowded, MpiMessageSizes sizes) : crowded_(crowded), sizes_(sizes) {
  check_mpi(MPI_Comm_dup(parent, &comm_), "MPI_Comm_dup");
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &ranks_);
  const auto n = static_cast<std::size_t>(ranks_);
  for (Round& r : rounds_) {
    r.send.resize(n);
    r.receive.resize(n);
    r.received.resize(n);
    r.requests.reserve(4 * n);
    for (std::size_t peer = 0; peer < n; ++peer)
      if (static_cast<int>(peer) != rank_) r.receive[peer].reserve(kPayload + sizes_.eager);
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
  MPI_Comm_free(&comm_);
}

void MpiAllToAll::check_room() const {
  if (posts_ - waits_ >= 2) fail("all-to-all: rank {} starts a third exchange before it waited for the first", rank_);
}

std::span<std::byte> MpiAllToAll::outgoing(int dest, std::size_t bytes) {
  check_room();
  AlignedBuffer& buffer = dest == rank_ ? own(posts_) : round(posts_).send[static_cast<std::size_t>(dest)];
  const std::size_t before = dest == rank_ ? 0 : kPayload;
  buffer.reserve(before + bytes);
  return {buffer.data() + before, bytes};
}

void MpiAllToAll::post(std::span<const std::size_t> bytes) {
  check_room();
  Round& r = round(posts_);
  r.requests.assign(2 * static_cast<std::size_t>(ranks_), MPI_REQUEST_NULL);
  r.first_messages = r.pending = static_cast<std::size_t>(ranks_ - 1);
  // Each rank starts with its successor, so that not all talk to rank 0 first.
  for (int i = 1; i < ranks_; ++i) {
    const int src = (rank_ + ranks_ - i) % ranks_;
    const auto s = static_cast<std::size_t>(src);
    check_mpi(MPI_Irecv(r.receive[s].data() + kMessage, static_cast<int>(kLength + sizes_.eager), MPI_BYTE, src,
                        first_tag(posts_), comm_, &r.requests[s]),
              "MPI_Irecv");
  }
  for (int i = 1; i < ranks_; ++i) {
    const int dest = (rank_ + i) % ranks_;
    send(r, rest_tag(posts_), dest, bytes[static_cast<std::size_t>(dest)]);
  }
  own_bytes_[posts_ % 3] = bytes[static_cast<std::size_t>(rank_)];
  if (own_bytes_[posts_ % 3] > own(posts_).capacity())
    fail("all-to-all: rank {} sends {} bytes to itself and asked for less", rank_, own_bytes_[posts_ % 3]);
  ++posts_;
}

void MpiAllToAll::send(Round& r, int tag, int dest, std::size_t bytes) {
  const auto d = static_cast<std::size_t>(dest);
  AlignedBuffer& buffer = r.send[d];
  buffer.reserve(kPayload);
  if (kPayload + bytes > buffer.capacity())
    fail("all-to-all: rank {} sends {} bytes to rank {} and asked for less", rank_, bytes, dest);
  const std::uint64_t length = bytes;
  std::memcpy(buffer.data() + kMessage, &length, kLength);
  const std::size_t first = std::min(bytes, sizes_.eager);
  check_mpi(MPI_Isend(buffer.data() + kMessage, static_cast<int>(kLength + first), MPI_BYTE, dest, first_tag(posts_),
                      comm_, &r.requests[static_cast<std::size_t>(ranks_) + d]),
            "MPI_Isend");
  ++r.pending;
  for (std::size_t at = first; at < bytes; at += sizes_.chunk) {
    const std::size_t n = std::min(bytes - at, sizes_.chunk);
    r.requests.push_back(MPI_REQUEST_NULL);
    check_mpi(
        MPI_Isend(buffer.data() + kPayload + at, static_cast<int>(n), MPI_BYTE, dest, tag, comm_, &r.requests.back()),
        "MPI_Isend");
    ++r.pending;
  }
}

void MpiAllToAll::receive_rest(Round& r, int tag, int src) {
  const auto s = static_cast<std::size_t>(src);
  std::uint64_t length = 0;
  std::memcpy(&length, r.receive[s].data() + kMessage, kLength);
  r.received[s] = length;
  r.receive[s].reserve(kPayload + length, kPayload + sizes_.eager);
  for (std::size_t at = std::min<std::size_t>(length, sizes_.eager); at < length; at += sizes_.chunk) {
    const std::size_t n = std::min(length - at, sizes_.chunk);
    r.requests.push_back(MPI_REQUEST_NULL);
    check_mpi(MPI_Irecv(r.receive[s].data() + kPayload + at, static_cast<int>(n), MPI_BYTE, src, tag, comm_,
                        &r.requests.back()),
              "MPI_Irecv");
    ++r.pending;
  }
}

/// Completes what can be completed of an exchange; asks for the rest of long records.
void MpiAllToAll::progress(std::uint64_t exchange) {
  Round& r = round(exchange);
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
    receive_rest(r, rest_tag(exchange), index);
  }
}

void MpiAllToAll::wait() {
  if (waits_ == posts_) fail("all-to-all: rank {} waits for an exchange that it did not post", rank_);
  const Round& r = round(waits_);
  Patience patience(crowded_);
  // Own sends are waited for, too: MPI moves long messages only while both sides are inside it.
  for (;;) {
    for (std::uint64_t exchange = waits_; exchange < posts_; ++exchange) progress(exchange);
    if (r.pending == 0) break;
    patience.pause(r.first_messages > 0 && r.requests.size() == 2 * static_cast<std::size_t>(ranks_));
  }
  ++waits_;
}

std::span<const std::byte> MpiAllToAll::incoming(int src) const {
  const std::uint64_t exchange = waits_ - 1;
  if (src == rank_) return {own_[exchange % 3].data(), own_bytes_[exchange % 3]};
  const auto s = static_cast<std::size_t>(src);
  const Round& r = round(exchange);
  return {r.receive[s].data() + kPayload, r.received[s]};
}

}  // namespace shoal
