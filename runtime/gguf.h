#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "runtime/checkpoint.h"

namespace shoal {

/// What stands before the tensors of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), version 2
/// or 3, little endian.
struct GgufHeader {
  nlohmann::json metadata = nlohmann::json::object();  // keys as in the file; floats as numbers, arrays as arrays
  /// Under GGUF's names ("blk.0.attn_q.weight"); shapes with the fastest dimension last, as elsewhere in Shoal, so a
  /// linear weight is [out, in]; offsets from the start of the file.
  std::vector<TensorInfo> tensors;
};

/// Reads and checks a header whole: counts and lengths against the file's size, types, alignment, that no key and no
/// tensor comes twice, that every tensor lies within the file, aligned, and overlaps no other. `read` fills its span
/// from an offset; memory stays in proportion to the header's true size, whatever the header claims. Error names `file`
/// and the key or tensor.
GgufHeader read_gguf_header(const std::function<void(std::uint64_t offset, std::span<std::byte>)>& read,
                            std::uint64_t file_bytes, const std::string& file);

/// A model of one GGUF file or of all files of a split one.
struct Gguf {
  std::vector<std::filesystem::path> files;
  nlohmann::json metadata;          // the first file's
  std::vector<TensorInfo> tensors;  // of all files

  /// `path` may be any part of a split model (NAME-00002-of-00005.gguf). Error names the file: one that is missing, or
  /// belongs to another model.
  static Gguf open(const std::filesystem::path& path);

  const TensorInfo* find(std::string_view name) const;
  std::string place() const { return files.front().string(); }
};

/// Whether a path is a file that begins as GGUF files do, or at least is named as one.
bool is_gguf(const std::filesystem::path& path);

/// NAME of NAME-00002-of-00005.gguf and of NAME.gguf.
std::string gguf_name(const std::filesystem::path& path);

}  // namespace shoal
