#pragma once
#include <cstdint>
#include <string_view>

namespace shoal {

/// How the elements of a KV cache are stored. FP8 (E4M3) and INT8 have a scale for every group of elements.
enum class KvType : std::uint8_t { f32, bf16, fp8, int8 };

constexpr std::string_view name_of(KvType type) {
  switch (type) {
    case KvType::f32:
      return "f32";
    case KvType::bf16:
      return "bf16";
    case KvType::fp8:
      return "fp8";
    case KvType::int8:
      return "int8";
  }
  return "?";
}

constexpr bool has_scales(KvType type) { return type == KvType::fp8 || type == KvType::int8; }

/// Elements that share a scale. What is written or read at once must begin at a multiple of it.
constexpr int kKvGroup = 32;
constexpr std::int64_t kv_groups(std::int64_t width) { return (width + kKvGroup - 1) / kKvGroup; }

/// A row of `width` elements: those of F32 and BF16 side by side; else first the BF16 scales of all groups, then a byte
/// an element, the last group filled up. 34 bytes for 32 elements.
constexpr std::int64_t kv_row_bytes(KvType type, std::int64_t width) {
  if (has_scales(type)) return kv_groups(width) * (2 + kKvGroup);
  return width * (type == KvType::f32 ? 4 : 2);
}

}  // namespace shoal
