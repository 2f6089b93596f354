#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace shoal::nccl {

/// How records of any length travel in messages whose sizes both sides know (NCCL has no all-to-all with counts). Every
/// pair of ranks exchanges one message of slot_bytes(): a header that says how long the record is, and its first
/// `eager` bytes. What is longer follows in a second message, which those pairs exchange that have one. Pure
/// arithmetic.
struct RecordLayout {
  std::size_t eager;  // a multiple of 64

  static constexpr std::size_t kHeader = 64;  // so that payloads are aligned
  static constexpr std::size_t kUnit = 256;   // of the places of the rests in their buffer

  std::size_t slot_bytes() const { return kHeader + eager; }
  std::size_t slot(int peer) const { return static_cast<std::size_t>(peer) * slot_bytes(); }
  std::size_t first(std::uint64_t length) const { return std::min<std::size_t>(length, eager); }
  std::size_t rest(std::uint64_t length) const { return length - first(length); }

  /// Where each peer's rest lies in a buffer that holds them all; the last number is the buffer's size.
  std::vector<std::size_t> rest_places(const std::vector<std::uint64_t>& lengths) const {
    std::vector<std::size_t> places{0};
    for (const std::uint64_t length : lengths)
      places.push_back(places.back() + (rest(length) + kUnit - 1) / kUnit * kUnit);
    return places;
  }
};

}  // namespace shoal::nccl
