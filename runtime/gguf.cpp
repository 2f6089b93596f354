#include "runtime/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <fstream>
#include <optional>
#include <regex>
#include <unordered_set>

#include "base/error.h"
#include "planner/json_fields.h"
#include "runtime/input_file.h"
#include "runtime/safetensors.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::string_view kMagic = "GGUF";
// Far above what any model has; they bound the memory that a hostile header can ask for.
constexpr std::uint64_t kMaxElements = 1u << 24;  // of metadata, all arrays together: R1's vocabulary has 400,000
constexpr std::uint64_t kMaxStringBytes = 64u << 20;
constexpr std::uint64_t kMaxNameBytes = 1024;
constexpr std::uint32_t kMaxDimensions = 4;
constexpr int kMaxDepth = 4;

enum ValueType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

/// Types that may stand in a file and that no model's weights have: kept by name.
struct OtherType {
  std::uint32_t number;
  std::string_view name;
  std::uint64_t block_elements, block_bytes;
};
constexpr std::array kOtherTypes = {
    OtherType{9, "Q8_1", 32, 36}, OtherType{15, "Q8_K", 256, 292}, OtherType{24, "I8", 1, 1},
    OtherType{25, "I16", 1, 2},   OtherType{26, "I32", 1, 4},      OtherType{27, "I64", 1, 8},
    OtherType{28, "F64", 1, 8},   OtherType{40, "NVFP4", 64, 36},  OtherType{41, "Q1_0", 128, 18},
};

/// Takes values from a file in order, through a buffer, and never past its end.
class Reader {
 public:
  Reader(const std::function<void(std::uint64_t, std::span<std::byte>)>& read, std::uint64_t file_bytes,
         const std::string& file)
      : read_(read), file_bytes_(file_bytes), file_(file) {}

  template <class T>
  T number() {
    static_assert(std::endian::native == std::endian::little);
    T value;
    take({reinterpret_cast<std::byte*>(&value), sizeof value});
    return value;
  }

  std::string text(std::uint64_t most, std::string_view what) {
    const auto length = number<std::uint64_t>();
    if (length > most) fail("{}: {} of {} bytes is absurd", file_, what, length);
    need(length);
    std::string value(static_cast<std::size_t>(length), '\0');
    take(std::as_writable_bytes(std::span(value)));
    return value;
  }

  /// Checks that `bytes` more are there.
  void need(std::uint64_t bytes) const {
    if (bytes > left()) fail("{}: is cut off: its header ends at byte {}", file_, file_bytes_);
  }
  std::uint64_t position() const { return position_; }
  std::uint64_t left() const { return file_bytes_ - position_; }

 private:
  void take(std::span<std::byte> out) {
    need(out.size());
    while (!out.empty()) {
      if (used_ == buffer_.size()) refill();
      const std::size_t n = std::min(out.size(), buffer_.size() - used_);
      std::memcpy(out.data(), buffer_.data() + used_, n);
      used_ += n;
      position_ += n;
      out = out.subspan(n);
    }
  }
  void refill() {
    buffer_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(1u << 20, left())));
    read_(position_, buffer_);
    used_ = 0;
  }

  const std::function<void(std::uint64_t, std::span<std::byte>)>& read_;
  const std::uint64_t file_bytes_;
  const std::string& file_;
  std::uint64_t position_ = 0;
  std::vector<std::byte> buffer_;
  std::size_t used_ = 0;
};

class HeaderParser {
 public:
  HeaderParser(Reader& in, std::uint64_t file_bytes, const std::string& file)
      : in_(in), file_bytes_(file_bytes), file_(file) {}

  GgufHeader parse() {
    const auto [tensors, keys] = counts();
    GgufHeader header;
    for (std::uint64_t i = 0; i < keys; ++i) {
      std::string key = in_.text(kMaxNameBytes, "a metadata key");
      if (has_control_character(key)) fail("{}: a metadata key has a control character", file_);
      if (header.metadata.contains(key)) fail("{}: the metadata key {} comes twice", file_, key);
      const auto type = in_.number<std::uint32_t>();
      header.metadata[key] = value(type, key, 0);
    }
    const std::uint64_t alignment = alignment_of(header.metadata);
    std::unordered_set<std::string> names;
    for (std::uint64_t i = 0; i < tensors; ++i) {
      header.tensors.push_back(tensor(alignment));
      const auto& name = header.tensors.back().name;
      if (!names.insert(name).second) fail("{}: tensor {} comes twice", file_, name);
    }
    const std::uint64_t data = (in_.position() + alignment - 1) / alignment * alignment;
    place(header.tensors, data);
    return header;
  }

 private:
  struct Counts {
    std::uint64_t tensors, keys;
  };

  Counts counts() {
    if (file_bytes_ < 24) fail("{}: {} bytes are too few for a GGUF file", file_, file_bytes_);
    std::array<char, 4> magic;
    for (char& c : magic) c = in_.number<char>();
    const std::string_view found(magic.data(), magic.size());
    if (found == "vers")
      fail("{}: holds a Git LFS pointer where the weights should be; fetch them with `git lfs pull`", file_);
    if (found != kMagic) fail("{}: is no GGUF file: it does not begin with the letters GGUF", file_);
    const auto version = in_.number<std::uint32_t>();
    if (version == 1)
      fail("{}: is GGUF version 1, of August 2023, which is not supported; convert the model anew", file_);
    if ((version & 0xffffu) == 0) fail("{}: is written for big-endian machines, which is not supported", file_);
    if (version != 2 && version != 3)
      fail("{}: is GGUF version {}, which is not supported (2 and 3 are)", file_, version);
    const auto tensors = in_.number<std::uint64_t>(), keys = in_.number<std::uint64_t>();
    // An entry takes at least: a key 8 + 4 + 1 bytes, a tensor 8 + 4 + 4 + 8.
    if (keys > in_.left() / 13) fail("{}: claims {} metadata keys, more than it has room for", file_, keys);
    if (tensors > in_.left() / 24) fail("{}: claims {} tensors, more than it has room for", file_, tensors);
    return {tensors, keys};
  }

  json value(std::uint32_t type, const std::string& key, int depth) {
    switch (type) {
      case u8:
        return in_.number<std::uint8_t>();
      case i8:
        return in_.number<std::int8_t>();
      case u16:
        return in_.number<std::uint16_t>();
      case i16:
        return in_.number<std::int16_t>();
      case u32:
        return in_.number<std::uint32_t>();
      case i32:
        return in_.number<std::int32_t>();
      case f32:
        return in_.number<float>();
      case boolean: {
        const auto byte = in_.number<std::uint8_t>();
        if (byte > 1) fail("{}: {}: a boolean of {} is neither 0 nor 1", file_, key, byte);
        return byte == 1;
      }
      case string:
        return in_.text(kMaxStringBytes, key);
      case array:
        return list(key, depth + 1);
      case u64:
        return in_.number<std::uint64_t>();
      case i64:
        return in_.number<std::int64_t>();
      case f64:
        return in_.number<double>();
    }
    fail("{}: {}: has the unknown type {}", file_, key, type);
  }

  json list(const std::string& key, int depth) {
    if (depth > kMaxDepth) fail("{}: {}: lists nested deeper than {} levels", file_, key, kMaxDepth);
    const auto type = in_.number<std::uint32_t>();
    const auto count = in_.number<std::uint64_t>();
    in_.need(count);  // an element takes at least a byte
    elements_ += count;
    if (count > kMaxElements || elements_ > kMaxElements)
      fail("{}: {}: a list of {} elements is absurd", file_, key, count);
    json values = json::array();
    for (std::uint64_t i = 0; i < count; ++i) values.push_back(value(type, key, depth));
    return values;
  }

  std::uint64_t alignment_of(const json& metadata) const {
    const std::uint64_t alignment =
        static_cast<std::uint64_t>(JsonFields(metadata, file_).integer_or("general.alignment", 32, 1, 1 << 20));
    if (!std::has_single_bit(alignment))
      fail("{}: general.alignment is {}, and must be a power of two", file_, alignment);
    return alignment;
  }

  /// One tensor's entry; its offset still counts from where the data begin.
  TensorInfo tensor(std::uint64_t alignment) {
    TensorInfo info;
    info.name = in_.text(kMaxNameBytes, "a tensor's name");
    if (info.name.empty() || has_control_character(info.name))
      fail("{}: a tensor's name is empty or has a control character", file_);
    const auto dimensions = in_.number<std::uint32_t>();
    if (dimensions > kMaxDimensions)
      fail("{}: tensor {} has {} dimensions, more than {}", file_, info.name, dimensions, kMaxDimensions);
    std::uint64_t elements = 1;
    for (std::uint32_t i = 0; i < dimensions; ++i) {
      const auto size = in_.number<std::uint64_t>();
      if (size > std::uint64_t{INT64_MAX} || __builtin_mul_overflow(elements, size, &elements)) {
        fail("{}: tensor {}: a dimension of {} is absurd", file_, info.name, size);
      }
      info.shape.insert(info.shape.begin(), static_cast<std::int64_t>(size));
    }
    const auto type = in_.number<std::uint32_t>();
    info.offset = in_.number<std::uint64_t>();
    if (info.offset % alignment) {
      fail("{}: tensor {} begins at byte {} of the data, which is not a multiple of {}", file_, info.name, info.offset,
           alignment);
    }
    set_type(info, type, elements);
    return info;
  }

  void set_type(TensorInfo& info, std::uint32_t type, std::uint64_t elements) const {
    std::uint64_t block_elements = 0, block_bytes = 0;
    if (const QuantFormat* format = find_format(type)) {
      info.type = format->name;
      info.set_format(format);
      block_elements = static_cast<std::uint64_t>(format->block_elements);
      block_bytes = static_cast<std::uint64_t>(format->block_bytes);
    } else {
      const auto* other =
          std::find_if(kOtherTypes.begin(), kOtherTypes.end(), [&](const OtherType& t) { return t.number == type; });
      if (other == kOtherTypes.end()) fail("{}: tensor {} has the unknown type {}", file_, info.name, type);
      info.type = other->name;
      block_elements = other->block_elements;
      block_bytes = other->block_bytes;
    }
    const std::uint64_t row = info.shape.empty() ? 1 : static_cast<std::uint64_t>(info.shape.back());
    if (row % block_elements) {
      fail("{}: tensor {}: rows of {} elements do not fill {}'s blocks of {}", file_, info.name, row, info.type,
           block_elements);
    }
    if (__builtin_mul_overflow(elements / block_elements, block_bytes, &info.bytes)) {
      fail("{}: tensor {}: the shape [{}] is absurd", file_, info.name, fmt::join(info.shape, ", "));
    }
  }

  void place(std::vector<TensorInfo>& tensors, std::uint64_t data) const {
    std::vector<TensorInfo*> in_order;
    for (TensorInfo& t : tensors) in_order.push_back(&t);
    std::sort(in_order.begin(), in_order.end(), [](const TensorInfo* a, const TensorInfo* b) {
      return std::pair(a->offset, a->bytes) < std::pair(b->offset, b->bytes);
    });
    std::uint64_t end = data;
    for (TensorInfo* t : in_order) {
      std::uint64_t last = 0;
      if (__builtin_add_overflow(t->offset, data, &t->offset) || __builtin_add_overflow(t->offset, t->bytes, &last) ||
          last > file_bytes_) {
        fail("{}: is cut off: tensor {} lies past the end of the file", file_, t->name);
      }
      if (t->offset < end) fail("{}: tensor {} overlaps the one before it", file_, t->name);
      end = last;
    }
  }

  Reader& in_;
  const std::uint64_t file_bytes_;
  const std::string& file_;
  std::uint64_t elements_ = 0;
};

/// NAME, 2 and 5 of NAME-00002-of-00005.gguf.
struct PartName {
  std::string name;
  int number, count;
};
std::optional<PartName> part_name(const fs::path& path) {
  static const std::regex form(R"((.+)-(\d{5})-of-(\d{5})\.gguf)");
  std::smatch match;
  const std::string file = path.filename().string();
  if (!std::regex_match(file, match, form)) return std::nullopt;
  return PartName{match[1], std::stoi(match[2]), std::stoi(match[3])};
}

GgufHeader header_of(const fs::path& path) {
  const InputFile file(path);
  return read_gguf_header([&](std::uint64_t offset, std::span<std::byte> out) { file.read(offset, out); }, file.bytes(),
                          path.string());
}

}  // namespace

GgufHeader read_gguf_header(const std::function<void(std::uint64_t, std::span<std::byte>)>& read,
                            std::uint64_t file_bytes, const std::string& file) {
  Reader reader(read, file_bytes, file);
  return HeaderParser(reader, file_bytes, file).parse();
}

Gguf Gguf::open(const fs::path& path) {
  Gguf model;
  model.files = {path};
  if (const auto part = part_name(path)) {
    model.files.clear();
    for (int i = 1; i <= part->count; ++i) {
      model.files.push_back(path.parent_path() / fmt::format("{}-{:05}-of-{:05}.gguf", part->name, i, part->count));
    }
    if (model.files.empty()) fail("{}: is named as a part of a model of none", path.string());
  }
  std::unordered_set<std::string> names;
  for (std::size_t i = 0; i < model.files.size(); ++i) {
    const std::string file = model.files[i].string();
    GgufHeader header = header_of(model.files[i]);
    const JsonFields fields(header.metadata, file);
    const int parts = fields.integer_or("split.count", 1, 0, 65535),
              number = fields.integer_or("split.no", 0, 0, 65535);
    if (static_cast<std::size_t>(std::max(parts, 1)) != model.files.size()) {
      fail(
          "{}: is one of {} files by its metadata and of {} by its name; a split model's files keep the names they "
          "were "
          "written with, NAME-00001-of-00005.gguf",
          file, parts, model.files.size());
    }
    if (parts > 1 && static_cast<std::size_t>(number) != i) fail("{}: is part {} by its metadata", file, number + 1);
    for (TensorInfo& tensor : header.tensors) {
      if (!names.insert(tensor.name).second) fail("{}: tensor {} is in an earlier file too", file, tensor.name);
      tensor.file = static_cast<int>(i);
      model.tensors.push_back(std::move(tensor));
    }
    if (i == 0) model.metadata = std::move(header.metadata);
  }
  const JsonFields first(model.metadata, model.place());
  const auto most = static_cast<std::int64_t>(INT32_MAX);
  if (const int total = first.integer_or("split.tensors.count", -1, 0, most);
      model.files.size() > 1 && total >= 0 && static_cast<std::size_t>(total) != model.tensors.size()) {
    fail("{}: its files hold {} tensors, and should hold {}", model.place(), model.tensors.size(), total);
  }
  return model;
}

const TensorInfo* Gguf::find(std::string_view name) const {
  const auto it = std::find_if(tensors.begin(), tensors.end(), [&](const TensorInfo& t) { return t.name == name; });
  return it == tensors.end() ? nullptr : &*it;
}

bool is_gguf(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) return false;
  if (path.extension() == ".gguf") return true;
  std::ifstream in(path, std::ios::binary);
  std::array<char, 4> magic{};
  return in.read(magic.data(), magic.size()) && std::string_view(magic.data(), magic.size()) == kMagic;
}

std::string gguf_name(const fs::path& path) {
  const auto part = part_name(path);
  return part ? part->name : path.stem().string();
}

}  // namespace shoal
