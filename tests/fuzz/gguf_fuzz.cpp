// libFuzzer target: any bytes taken as a GGUF file either give tensors that lie within the file and do not overlap, or
// an Error; and what is there of a model gives a configuration, names and a tokenizer, or an Error.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "runtime/gguf.h"
#include "runtime/gguf_config.h"
#include "runtime/gguf_names.h"
#include "runtime/gguf_tokenizer.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void check(const std::vector<shoal::TensorInfo>& tensors, std::size_t file_bytes) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (const auto& tensor : tensors) {
    require(tensor.offset <= file_bytes && tensor.bytes <= file_bytes - tensor.offset);
    ranges.emplace_back(tensor.offset, tensor.offset + tensor.bytes);
    std::uint64_t elements = 1;
    for (const auto n : tensor.shape) {
      require(n >= 0 && !__builtin_mul_overflow(elements, static_cast<std::uint64_t>(n), &elements));
    }
    if (tensor.format)
      require(tensor.format->bytes(static_cast<std::int64_t>(elements)) == static_cast<std::int64_t>(tensor.bytes));
  }
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i) require(ranges[i - 1].second <= ranges[i].first);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto read = [&](std::uint64_t offset, std::span<std::byte> out) {
    require(offset <= size && out.size() <= size - offset);
    std::memcpy(out.data(), data + offset, out.size());
  };
  try {
    shoal::GgufHeader header = shoal::read_gguf_header(read, size, "fuzz");
    check(header.tensors, size);
    for (const auto& tensor : header.tensors) {
      if (!tensor.format || tensor.bytes == 0) continue;
      std::vector<float> block(static_cast<std::size_t>(tensor.format->block_elements));
      tensor.format->dequantize(reinterpret_cast<const std::byte*>(data + tensor.offset), tensor.format->block_elements,
                                block.data());
    }
    shoal::Gguf gguf{{"fuzz"}, std::move(header.metadata), std::move(header.tensors)};
    try {
      check(shoal::under_hugging_face_names(gguf), size);
    } catch (const shoal::Error&) {
    }
    try {
      shoal::gguf_model_config(gguf);
    } catch (const shoal::Error&) {
    }
    shoal::gguf_tokenizer_json(gguf.metadata, "fuzz");
  } catch (const shoal::Error&) {
  }
  return 0;
}
