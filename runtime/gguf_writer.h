#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/formats/format.h"

namespace shoal {

/// Puts together what stands before the tensors of a GGUF file, version 3.
class GgufHeaderWriter {
 public:
  void add(std::string_view key, std::uint32_t value);
  void add(std::string_view key, float value);
  void add(std::string_view key, bool value);
  void add(std::string_view key, std::string_view value);
  void add(std::string_view key, const char* value) { add(key, std::string_view(value)); }
  void add(std::string_view key, const std::vector<std::string>& values);
  void add(std::string_view key, const std::vector<std::int32_t>& values);
  void add(std::string_view key, const std::vector<float>& values);

  /// A tensor after those before it; `shape` with the fastest dimension last. Returns its number.
  std::size_t add_tensor(std::string name, std::vector<std::int64_t> shape, const QuantFormat& format);

  /// The header with its padding, and where each tensor lies in the file.
  struct Layout {
    std::string header;
    std::vector<std::uint64_t> offsets;  // from the start of the file
    std::uint64_t file_bytes = 0;
  };
  Layout layout() const;

 private:
  template <class T>
  static void put(std::string& to, T value);
  static void put_text(std::string& to, std::string_view text);
  void begin(std::string_view key, std::uint32_t type);

  struct Tensor {
    std::string name;
    std::vector<std::int64_t> shape;
    const QuantFormat* format;
  };
  std::uint64_t keys_ = 0;
  std::string metadata_;
  std::vector<Tensor> tensors_;
};

}  // namespace shoal
