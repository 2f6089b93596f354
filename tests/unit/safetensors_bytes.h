#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

namespace shoal {

/// A file with this header, true or not, and `data_bytes` bytes behind it that count up from 0.
inline std::string safetensors_file(std::string_view header, std::size_t data_bytes) {
  std::string file(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(file.data(), &length, sizeof(length));
  file += header;
  for (std::size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

/// One entry of a header: `entry("a", "F32", "2, 3", 0, 24)`.
inline std::string entry(std::string_view name, std::string_view type, std::string_view shape, std::uint64_t begin,
                         std::uint64_t end) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", name, type, shape, begin, end);
}

}  // namespace shoal
