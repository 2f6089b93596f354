#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/formats/format.h"

namespace shoal {

/// Where a tensor lies and what it is.
struct TensorInfo {
  std::string name;
  std::string type;                     // as the file spells it: "BF16", "F8_E4M3", "F32", "I32", ...
  std::optional<DType> dtype;           // empty: not a type that layers compute with
  const QuantFormat* format = nullptr;  // in which a row is written; null: elements of `dtype`, or of an unknown type
  std::vector<std::int64_t> shape;
  int file = 0;              // index into Checkpoint::files()
  std::uint64_t offset = 0;  // bytes from the start of the file
  std::uint64_t bytes = 0;

  /// Sets `format`, and `dtype` where the format is one of plain elements.
  void set_format(const QuantFormat* f);
  /// Whether Shoal can compute with it, or with what it is worth. Others do no harm while nobody asks for them.
  bool readable() const { return dtype || format; }
};

/// The tensors of a model on disk, whatever its container. Opening reads headers only and checks them whole; no tensor
/// byte is touched. Reading is thread-safe and copies into the caller's memory with large positional reads, so that the
/// page cache, not this process, holds what was read.
class Checkpoint {
 public:
  /// A Hugging Face folder: `model.safetensors`, or shards with `model.safetensors.index.json`, or one *.safetensors
  /// file; or a GGUF file, whose tensors get the names and shapes they have in such a folder (gguf_names.h). Throws
  /// Error naming file and tensor: missing shard, truncated file, a header that lies (overlaps, offsets past the end,
  /// absurd sizes, duplicate keys), a tensor of the index that its shard lacks.
  static Checkpoint open(const std::filesystem::path& model);

  /// Fills `out` with bytes [from, from + out.size()) of a tensor.
  using Source = std::function<void(const TensorInfo& tensor, std::uint64_t from, std::span<std::byte> out)>;
  /// Tensors that are in no file; `name` is what messages call them all.
  Checkpoint(const std::string& name, std::vector<TensorInfo> tensors, Source source);

  const std::map<std::string, TensorInfo, std::less<>>& tensors() const { return tensors_; }
  const std::vector<std::filesystem::path>& files() const { return files_; }
  const TensorInfo* find(std::string_view name) const;
  /// Error naming the folder and the tensor when there is none, or when its shape differs from `shape`.
  const TensorInfo& require(std::string_view name, std::span<const std::int64_t> shape) const;

  /// Reads bytes [from, from + out.size()) of a tensor. Error names file and tensor.
  void read(const TensorInfo& tensor, std::uint64_t from, std::span<std::byte> out) const;
  /// Reads a whole tensor as floats (F32, F16, BF16, and the formats of kernels/formats).
  std::vector<float> read_floats(const TensorInfo& tensor) const;

 private:
  Checkpoint() = default;
  static Checkpoint open_gguf(const std::filesystem::path& model);

  struct Files;
  std::shared_ptr<Files> handles_;
  std::vector<std::filesystem::path> files_;
  std::map<std::string, TensorInfo, std::less<>> tensors_;
};

}  // namespace shoal
