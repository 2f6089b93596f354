#include "runtime/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/error.h"

namespace shoal {
namespace {

using nlohmann::json;

/// No tensor of a model has more; a shape of millions of ones is an attack on memory.
constexpr std::size_t max_rank = 64;

/// The element types of the format, with the bits that one takes.
struct ElementType {
  std::string_view name;
  unsigned bits;
};
constexpr std::array<ElementType, 22> element_types = {{
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
}};

std::optional<DType> computable(std::string_view type) {
  for (const DType t : {DType::f32, DType::f16, DType::bf16, DType::f8_e4m3}) {
    if (name_of(t) == type) return t;
  }
  return std::nullopt;
}

/// Takes the header's JSON as it is parsed, so that a hostile one never grows into a document in memory: anything that
/// is not of the header's fixed form (objects two deep, two short lists of numbers) ends the parse at once.
class HeaderReader final : public nlohmann::json_sax<json> {
 public:
  explicit HeaderReader(const std::string& file) : file_(file) {}
  std::vector<TensorInfo> take() { return std::move(tensors_); }

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool number_integer(number_integer_t value) override { unexpected(fmt::format("the negative number {}", value)); }
  bool number_float(number_float_t, const string_t& text) override { unexpected("the number " + text); }
  bool binary(binary_t&) override { unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::shape) {
      if (shape_.size() == max_rank) fail("{}: tensor {} has more than {} dimensions", file_, name_, max_rank);
      if (value > std::uint64_t{INT64_MAX}) fail("{}: tensor {}: a dimension of {} is absurd", file_, name_, value);
      shape_.push_back(static_cast<std::int64_t>(value));
    } else if (state_ == State::offsets) {
      if (offset_count_ == 2) fail("{}: tensor {}: data_offsets must be two numbers", file_, name_);
      offsets_[offset_count_++] = value;
    } else {
      unexpected("a number");
    }
    return true;
  }

  bool string(string_t& value) override {
    if (state_ == State::tensor && field_ == "dtype") {
      type_ = value;
    } else if (state_ != State::metadata) {
      unexpected("a string");
    }
    return true;
  }

  bool key(string_t& value) override {
    if (has_control_character(value)) fail("{}: its header has a name with a control character", file_);
    if (state_ == State::header) {
      if (!names_.insert(value).second) fail("{}: tensor {} comes twice", file_, value);
      name_ = value;
    } else if (state_ == State::tensor) {
      const unsigned bit = value == "dtype" ? 1 : value == "shape" ? 2 : value == "data_offsets" ? 4 : 0;
      if (!bit) fail("{}: tensor {} has an unknown field \"{}\"", file_, name_, value);
      if (fields_seen_ & bit) fail("{}: tensor {}: {} comes twice", file_, name_, value);
      fields_seen_ |= bit;
      field_ = value;
    } else if (!metadata_keys_.insert(value).second) {
      fail("{}: __metadata__: {} comes twice", file_, value);
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (state_ == State::before) {
      state_ = State::header;
    } else if (state_ == State::header && name_ == "__metadata__") {
      state_ = State::metadata;
    } else if (state_ == State::header) {
      state_ = State::tensor;
      fields_seen_ = 0;
      offset_count_ = 0;
      shape_.clear();
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool end_object() override {
    if (state_ == State::tensor) finish_tensor();
    state_ = state_ == State::header ? State::after : State::header;
    return true;
  }

  bool start_array(std::size_t) override {
    if (state_ == State::tensor && field_ == "shape") {
      state_ = State::shape;
    } else if (state_ == State::tensor && field_ == "data_offsets") {
      state_ = State::offsets;
    } else {
      unexpected("a list");
    }
    return true;
  }

  bool end_array() override {
    state_ = State::tensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const json::exception& e) override {
    fail("{}: its header is not valid JSON at byte {}: {}", file_, position, e.what());
  }

 private:
  enum class State { before, header, metadata, tensor, shape, offsets, after };

  [[noreturn]] void unexpected(std::string_view what) const {
    if (state_ == State::before) fail("{}: its header must be an object, not {}", file_, what);
    if (state_ == State::header || state_ == State::metadata) fail("{}: header: {} cannot be {}", file_, name_, what);
    fail("{}: tensor {}: {} cannot be {}", file_, name_, field_, what);
  }

  void finish_tensor() {
    if (fields_seen_ != 7) fail("{}: tensor {} lacks dtype, shape or data_offsets", file_, name_);
    if (offset_count_ != 2) fail("{}: tensor {}: data_offsets must be two numbers", file_, name_);
    if (offsets_[0] > offsets_[1]) fail("{}: tensor {} ends before it begins", file_, name_);
    TensorInfo tensor;
    tensor.name = name_;
    tensor.type = type_;
    tensor.dtype = computable(type_);
    tensor.shape = shape_;
    tensor.offset = offsets_[0];  // from the end of the header, for now
    tensor.bytes = offsets_[1] - offsets_[0];
    check_size(tensor);
    tensors_.push_back(std::move(tensor));
  }

  void check_size(const TensorInfo& tensor) const {
    std::uint64_t bits = 1;
    for (const auto dimension : tensor.shape) {
      if (__builtin_mul_overflow(bits, static_cast<std::uint64_t>(dimension), &bits)) {
        fail("{}: tensor {}: the shape [{}] is absurd", file_, tensor.name, fmt::join(tensor.shape, ", "));
      }
    }
    const auto* type = std::find_if(element_types.begin(), element_types.end(),
                                    [&](const ElementType& t) { return t.name == tensor.type; });
    if (type == element_types.end()) return;
    if (__builtin_mul_overflow(bits, std::uint64_t{type->bits}, &bits) || bits % 8 || bits / 8 != tensor.bytes) {
      fail("{}: tensor {} has {} bytes, which are not the bytes of {} [{}]", file_, tensor.name, tensor.bytes,
           tensor.type, fmt::join(tensor.shape, ", "));
    }
  }

  const std::string& file_;
  State state_ = State::before;
  std::unordered_set<std::string> names_, metadata_keys_;
  std::vector<TensorInfo> tensors_;

  // The tensor that is being read.
  std::string name_, field_, type_;
  unsigned fields_seen_ = 0;
  std::vector<std::int64_t> shape_;
  std::array<std::uint64_t, 2> offsets_{};
  std::size_t offset_count_ = 0;
};

}  // namespace

bool has_control_character(std::string_view name) {
  return std::any_of(name.begin(), name.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

std::uint64_t safetensors_header_bytes(std::string_view first_8_bytes, std::uint64_t file_bytes,
                                       const std::string& file) {
  if (first_8_bytes.size() < 8) fail("{}: {} bytes are too few for a safetensors file", file, first_8_bytes.size());
  if (first_8_bytes.substr(0, 8) == "version ") {
    fail("{}: holds a Git LFS pointer where the weights should be; fetch them with `git lfs pull`", file);
  }
  static_assert(std::endian::native == std::endian::little);
  std::uint64_t length = 0;
  std::memcpy(&length, first_8_bytes.data(), sizeof(length));
  if (length > max_safetensors_header_bytes) {
    fail("{}: is no safetensors file, or a damaged one: it claims a header of {} bytes", file, length);
  }
  if (length > file_bytes - 8) {
    fail("{}: is cut off: it claims a header of {} bytes and is {} bytes long", file, length, file_bytes);
  }
  return length;
}

std::vector<TensorInfo> parse_safetensors_header(std::string_view header, std::uint64_t file_bytes,
                                                 const std::string& file) {
  HeaderReader reader(file);
  json::sax_parse(header, &reader);
  std::vector<TensorInfo> tensors = reader.take();

  // In the order of their bytes, each must begin where the one before it ended.
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  const std::uint64_t data_begin = 8 + header.size(), data_bytes = file_bytes - data_begin;
  std::uint64_t end = 0;
  for (TensorInfo& tensor : tensors) {
    if (tensor.offset < end) fail("{}: tensor {} overlaps the one before it", file, tensor.name);
    if (tensor.offset > end)
      fail("{}: {} bytes before tensor {} belong to none", file, tensor.offset - end, tensor.name);
    if (tensor.bytes > data_bytes - end) {
      fail("{}: is cut off: tensor {} ends {} bytes past the end of the file", file, tensor.name,
           tensor.bytes - (data_bytes - end));
    }
    end += tensor.bytes;
    tensor.offset += data_begin;
  }
  if (end != data_bytes) fail("{}: the last {} bytes belong to no tensor", file, data_bytes - end);
  return tensors;
}

}  // namespace shoal
