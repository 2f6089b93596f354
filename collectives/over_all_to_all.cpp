#include "collectives/over_all_to_all.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"

namespace shoal {
namespace {

/// Below this many bytes sent by a rank in all, latency counts: everyone sends everything, in one exchange.
constexpr std::size_t kOneExchangeBytes = 64 << 10;
/// Longer data goes in pieces, to bound the memory that exchanges keep.
constexpr std::size_t kPieceFloats = 4 << 20;
constexpr std::size_t kPieceBytes = 4 << 20;
constexpr std::size_t kBlockFloats = 1024;  // partial sums stay in the first-level cache

/// The r-th of n nearly equal slices.
std::span<float> slice(std::span<float> data, int r, int n) {
  const auto edge = [&](int i) { return data.size() * static_cast<std::size_t>(i) / static_cast<std::size_t>(n); };
  return data.subspan(edge(r), edge(r + 1) - edge(r));
}

/// memcpy may not be given null, which an empty span may hold.
void copy(std::byte* to, std::span<const std::byte> from) {
  if (!from.empty()) std::memcpy(to, from.data(), from.size());
}

}  // namespace

AllToAll& CollectivesOverAllToAll::exchange() {
  if (!exchange_) {
    exchange_ = make_all_to_all();
    bytes_.resize(static_cast<std::size_t>(size()));
    parts_.resize(static_cast<std::size_t>(size()));
  }
  return *exchange_;
}

void CollectivesOverAllToAll::exchange_same(std::span<const std::byte> bytes) {
  AllToAll& e = exchange();
  for (int d = 0; d < size(); ++d) {
    const auto n = static_cast<std::size_t>(d);
    bytes_[n] = d == rank() ? 0 : bytes.size();
    if (bytes_[n] > 0) copy(e.outgoing(d, bytes.size()).data(), bytes);
  }
  e.post(bytes_);
  e.wait();
}

void CollectivesOverAllToAll::add_parts(std::span<float> data) const {
  std::array<float, kBlockFloats> sum;
  for (std::size_t at = 0; at < data.size(); at += kBlockFloats) {
    const std::size_t n = std::min(kBlockFloats, data.size() - at);
    std::copy_n(parts_[0] + at, n, sum.data());
    for (std::size_t r = 1; r < parts_.size(); ++r) {
      const float* part = parts_[r] + at;
      for (std::size_t i = 0; i < n; ++i) sum[i] += part[i];
    }
    std::copy_n(sum.data(), n, data.data() + at);
  }
}

void CollectivesOverAllToAll::sum_pieces_from_all(std::span<float> data) {
  exchange_same(std::as_bytes(data));
  for (int r = 0; r < size(); ++r)
    parts_[static_cast<std::size_t>(r)] =
        r == rank() ? data.data() : reinterpret_cast<const float*>(exchange_->incoming(r).data());
  add_parts(data);
}

void CollectivesOverAllToAll::sum_by_slices(std::span<float> data) {
  AllToAll& e = exchange();
  const int n = size();
  const std::span<float> mine = slice(data, rank(), n);
  for (int d = 0; d < n; ++d) {
    const auto part = std::as_bytes(slice(data, d, n));
    bytes_[static_cast<std::size_t>(d)] = d == rank() ? 0 : part.size();
    if (d != rank()) copy(e.outgoing(d, part.size()).data(), part);
  }
  e.post(bytes_);
  e.wait();
  for (int r = 0; r < n; ++r)
    parts_[static_cast<std::size_t>(r)] =
        r == rank() ? mine.data() : reinterpret_cast<const float*>(e.incoming(r).data());
  add_parts(mine);
  exchange_same(std::as_bytes(mine));
  for (int r = 0; r < n; ++r)
    if (r != rank()) copy(std::as_writable_bytes(slice(data, r, n)).data(), e.incoming(r));
}

void CollectivesOverAllToAll::all_reduce_sum(std::span<float> data) {
  const auto others = static_cast<std::size_t>(size() - 1);
  if (others == 0 || data.empty()) return;
  if (data.size_bytes() * others <= kOneExchangeBytes) return sum_pieces_from_all(data);
  for (std::size_t at = 0; at < data.size(); at += kPieceFloats)
    sum_by_slices(data.subspan(at, std::min(kPieceFloats, data.size() - at)));
}

void CollectivesOverAllToAll::all_gather_v(std::span<const float> mine, std::span<const std::size_t> counts,
                                           std::span<float> all) {
  std::size_t longest = 0, total = 0;
  for (const std::size_t count : counts) longest = std::max(longest, count), total += count;
  if (counts.size() != static_cast<std::size_t>(size()) || mine.size() != counts[static_cast<std::size_t>(rank())] ||
      total != all.size())
    fail("all_gather_v: rank {} brings {} floats and wants {}, which is not what the counts say", rank(), mine.size(),
         all.size());
  const auto piece = [](std::size_t count, std::size_t at) {
    return std::min(kPieceFloats, count - std::min(count, at));
  };
  for (std::size_t at = 0; at < longest; at += kPieceFloats) {
    if (size() > 1) exchange_same(std::as_bytes(mine.subspan(std::min(at, mine.size()), piece(mine.size(), at))));
    std::size_t first = 0;
    for (int r = 0; r < size(); ++r) {
      const std::size_t count = counts[static_cast<std::size_t>(r)], n = piece(count, at);
      float* to = all.data() + first + at;
      first += count;
      if (n == 0) continue;
      if (r == rank()) {
        std::memmove(to, mine.data() + at, n * sizeof(float));  // may be where it is wanted already
        continue;
      }
      const auto arrived = exchange_->incoming(r);
      if (arrived.size() != n * sizeof(float))
        fail("all_gather_v: rank {} sent {} bytes where rank {} expects {}", r, arrived.size(), rank(),
             n * sizeof(float));
      copy(reinterpret_cast<std::byte*>(to), arrived);
    }
  }
}

void CollectivesOverAllToAll::broadcast(std::span<std::byte> data, int root) {
  if (size() == 1) return;
  for (std::size_t at = 0; at < data.size(); at += kPieceBytes) {
    const auto piece = data.subspan(at, std::min(kPieceBytes, data.size() - at));
    exchange_same(rank() == root ? piece : std::span<std::byte>());
    if (rank() == root) continue;
    const auto arrived = exchange_->incoming(root);
    if (arrived.size() != piece.size())
      fail("broadcast: rank {} sent {} bytes where rank {} expects {}", root, arrived.size(), rank(), piece.size());
    copy(piece.data(), arrived);
  }
}

void CollectivesOverAllToAll::barrier() {
  if (size() > 1) exchange_same({});
}

}  // namespace shoal
