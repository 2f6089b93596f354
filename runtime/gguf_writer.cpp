#include "runtime/gguf_writer.h"

#include <bit>
#include <functional>
#include <numeric>

namespace shoal {
namespace {

constexpr std::uint64_t kAlignment = 32;
constexpr std::uint32_t kVersion = 3;
// Numbers of the metadata's types.
constexpr std::uint32_t kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kString = 8, kArray = 9;

std::uint64_t aligned(std::uint64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

template <class T>
void GgufHeaderWriter::put(std::string& to, T value) {
  static_assert(std::endian::native == std::endian::little);
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void GgufHeaderWriter::put_text(std::string& to, std::string_view text) {
  put(to, std::uint64_t{text.size()});
  to += text;
}

void GgufHeaderWriter::begin(std::string_view key, std::uint32_t type) {
  ++keys_;
  put_text(metadata_, key);
  put(metadata_, type);
}

void GgufHeaderWriter::add(std::string_view key, std::uint32_t value) {
  begin(key, kU32);
  put(metadata_, value);
}
void GgufHeaderWriter::add(std::string_view key, float value) {
  begin(key, kF32);
  put(metadata_, value);
}
void GgufHeaderWriter::add(std::string_view key, bool value) {
  begin(key, kBool);
  put(metadata_, static_cast<std::uint8_t>(value));
}
void GgufHeaderWriter::add(std::string_view key, std::string_view value) {
  begin(key, kString);
  put_text(metadata_, value);
}
void GgufHeaderWriter::add(std::string_view key, const std::vector<std::string>& values) {
  begin(key, kArray);
  put(metadata_, kString);
  put(metadata_, std::uint64_t{values.size()});
  for (const auto& value : values) put_text(metadata_, value);
}
void GgufHeaderWriter::add(std::string_view key, const std::vector<std::int32_t>& values) {
  begin(key, kArray);
  put(metadata_, kI32);
  put(metadata_, std::uint64_t{values.size()});
  for (const auto value : values) put(metadata_, value);
}

void GgufHeaderWriter::add(std::string_view key, const std::vector<float>& values) {
  begin(key, kArray);
  put(metadata_, kF32);
  put(metadata_, std::uint64_t{values.size()});
  for (const auto value : values) put(metadata_, value);
}

std::size_t GgufHeaderWriter::add_tensor(std::string name, std::vector<std::int64_t> shape, const QuantFormat& format) {
  tensors_.push_back({std::move(name), std::move(shape), &format});
  return tensors_.size() - 1;
}

GgufHeaderWriter::Layout GgufHeaderWriter::layout() const {
  Layout result;
  std::string& header = result.header;
  header = "GGUF";
  put(header, kVersion);
  put(header, std::uint64_t{tensors_.size()});
  put(header, keys_);
  header += metadata_;
  std::uint64_t end = 0;
  for (const Tensor& t : tensors_) {
    put_text(header, t.name);
    put(header, static_cast<std::uint32_t>(t.shape.size()));
    for (auto n = t.shape.rbegin(); n != t.shape.rend(); ++n) put(header, static_cast<std::uint64_t>(*n));
    put(header, t.format->gguf_type);
    put(header, end);
    result.offsets.push_back(end);
    const auto elements = std::accumulate(t.shape.begin(), t.shape.end(), std::int64_t{1}, std::multiplies<>());
    end = aligned(end + static_cast<std::uint64_t>(t.format->bytes(elements)));
  }
  header.resize(static_cast<std::size_t>(aligned(header.size())), '\0');
  for (auto& offset : result.offsets) offset += header.size();
  result.file_bytes = header.size() + end;
  return result;
}

}  // namespace shoal
