#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace shoal {

/// A number format of stored weights: how the elements of a row are grouped into blocks, and what a block is worth.
/// Names, numbers and layouts are GGUF's (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); the layouts are
/// the structs in this folder, little endian. A row holds whole blocks.
struct QuantFormat {
  std::string_view name;        // "Q4_K"
  std::uint32_t gguf_type = 0;  // its number in GGUF files
  int block_elements = 1;
  int block_bytes = 0;

  /// Writes what `elements` (a multiple of block_elements) are worth, to the bit as the `gguf` package's
  /// quants.dequantize computes it. `blocks` need not be aligned.
  void (*dequantize)(const std::byte* blocks, std::int64_t elements, float* out) = nullptr;

  /// The inverse, with the error sum(importance * (value - stored)^2) made small within each block; importance
  /// [elements] >= 0, or null: all count alike. The caller keeps out values that are not finite: a block with one would
  /// say nothing of the others.
  void (*quantize)(const float* values, std::int64_t elements, const float* importance, std::byte* blocks) = nullptr;

  constexpr std::int64_t bytes(std::int64_t elements) const { return elements / block_elements * block_bytes; }
  constexpr double bits_per_element() const { return 8.0 * block_bytes / block_elements; }
};

/// All formats, in the order of their numbers.
std::span<const QuantFormat> quant_formats();
/// Null where there is none.
const QuantFormat* find_format(std::string_view name);
const QuantFormat* find_format(std::uint32_t gguf_type);

}  // namespace shoal
