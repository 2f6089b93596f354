#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace shoal {

/// Writes the parts of a GGUF file by hand, right or wrong, for tests of the reader.
class GgufBytes {
 public:
  explicit GgufBytes(std::uint64_t tensors, std::uint64_t keys, std::uint32_t version = 3) {
    text_ = "GGUF";
    put(version);
    put(tensors);
    put(keys);
  }

  template <class T>
  GgufBytes& put(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  GgufBytes& text(std::string_view s) {
    put(std::uint64_t{s.size()});
    text_ += s;
    return *this;
  }
  template <class T>
  GgufBytes& key(std::string_view name, std::uint32_t type, T value) {
    return text(name).put(type).put(value);
  }
  GgufBytes& key(std::string_view name, std::string_view value) { return text(name).put(std::uint32_t{8}).text(value); }
  /// Dimensions in the file's order, fastest first.
  GgufBytes& tensor(std::string_view name, std::initializer_list<std::uint64_t> dimensions, std::uint32_t type,
                    std::uint64_t offset) {
    text(name).put(static_cast<std::uint32_t>(dimensions.size()));
    for (const auto n : dimensions) put(n);
    return put(type).put(offset);
  }
  GgufBytes& align(std::size_t to = 32) {
    text_.resize((text_.size() + to - 1) / to * to);
    return *this;
  }
  GgufBytes& zeros(std::size_t n) {
    text_.append(n, '\0');
    return *this;
  }
  const std::string& bytes() const { return text_; }

 private:
  std::string text_;
};

}  // namespace shoal
