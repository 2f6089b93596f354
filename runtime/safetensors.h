#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/checkpoint.h"

namespace shoal {

/// A safetensors file is 8 bytes of header length (little endian), the header in JSON, then the tensors without gaps
/// (https://huggingface.co/docs/safetensors). The format allows headers up to this size.
constexpr std::uint64_t max_safetensors_header_bytes = 100'000'000;

/// Checks the first 8 bytes of a file of `file_bytes` bytes, and returns how long its header is. Error names `file`.
std::uint64_t safetensors_header_bytes(std::string_view first_8_bytes, std::uint64_t file_bytes,
                                       const std::string& file);

/// Whether a name would do harm where it is printed, to a terminal or through C strings.
bool has_control_character(std::string_view name);

/// Reads a header and checks it whole: every tensor has a type, a shape and a range of bytes that agree; the ranges
/// cover the rest of the file without overlap or gap; no name comes twice. Types the format may gain later are kept by
/// name, their size unchecked. Offsets in the result count from the start of the file; `file` is 0. Error names `file`
/// and the tensor.
std::vector<TensorInfo> parse_safetensors_header(std::string_view header, std::uint64_t file_bytes,
                                                 const std::string& file);

}  // namespace shoal
