// libFuzzer target: any bytes taken as a safetensors file either give tensors that lie within the file and do not
// overlap, or an Error.
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "runtime/safetensors.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  try {
    const auto header_bytes = shoal::safetensors_header_bytes(file.substr(0, 8), size, "fuzz");
    require(header_bytes <= size - 8);
    std::uint64_t end = 8 + header_bytes;
    for (const auto& tensor : shoal::parse_safetensors_header(file.substr(8, header_bytes), size, "fuzz")) {
      require(tensor.offset == end && tensor.bytes <= size - end);
      end += tensor.bytes;
      std::uint64_t elements = 1;
      for (const auto n : tensor.shape) {
        require(n >= 0 && !__builtin_mul_overflow(elements, static_cast<std::uint64_t>(n), &elements));
      }
      if (tensor.dtype) require(elements * shoal::size_of(*tensor.dtype) == tensor.bytes);
    }
    require(end == size);
  } catch (const shoal::Error&) {
  }
  return 0;
}
