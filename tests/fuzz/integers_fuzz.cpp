// libFuzzer target: any bytes as the tensors of an integer weight give the same values row by row and packed, or an
// Error. The first four bytes say which form, how many bits and how wide groups are; the rest fills the tensors.
#include <stdlib.h>  // mkdtemp

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "base/error.h"
#include "runtime/integer_weight.h"

namespace {

using namespace shoal;

void require(bool holds) {
  if (!holds) std::abort();
}

constexpr std::int64_t kRows = 40, kCols = 192;

class File {
 public:
  explicit File(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  void add(const char* name, const char* type, std::int64_t rows, std::int64_t cols) {
    const std::int64_t size = std::strcmp(type, "I8") == 0 ? 1 : type[1] == '3' ? 4 : 2;
    const auto n = static_cast<std::size_t>(rows * cols * size);
    header_ += fmt::format(R"({}"w.{}":{{"dtype":"{}","shape":[{},{}],"data_offsets":[{},{}]}})",
                           header_.empty() ? "{" : ",", name, type, rows, cols, data_.size(), data_.size() + n);
    for (std::size_t i = 0; i < n; ++i, ++at_) data_ += at_ < bytes_.size() ? static_cast<char>(bytes_[at_]) : '\3';
  }
  void add_order(std::int64_t cols) {
    const std::size_t n = static_cast<std::size_t>(cols) * 4;
    header_ += fmt::format(R"(,"w.g_idx":{{"dtype":"I32","shape":[{}],"data_offsets":[{},{}]}})", cols, data_.size(),
                           data_.size() + n);
    for (std::size_t i = 0; i < n; ++i) {
      const bool low = i % 4 == 0 || (at_ < bytes_.size() && bytes_[at_] == 255);
      data_ += low && at_ < bytes_.size() ? static_cast<char>(bytes_[at_++]) : '\0';
    }
  }
  /// It stays open when its folder goes.
  Checkpoint checkpoint() const {
    std::string folder = (std::filesystem::temp_directory_path() / "shoal-fuzz-XXXXXX").string();
    require(::mkdtemp(folder.data()) != nullptr);
    const std::string header = header_ + "}";
    const std::uint64_t length = header.size();
    std::ofstream(folder + "/model.safetensors", std::ios::binary)
            .write(reinterpret_cast<const char*>(&length), sizeof length)
        << header << data_;
    Checkpoint checkpoint = Checkpoint::open(folder);
    std::filesystem::remove_all(folder);
    return checkpoint;
  }

 private:
  std::span<const std::uint8_t> bytes_;
  std::size_t at_ = 0;
  std::string header_, data_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 4) return 0;
  WeightQuantization q;
  const int bits[] = {2, 4, 8};
  const char* scales[] = {"F16", "BF16", "F32"};
  q.bits = bits[data[1] % 3];
  q.group_size = data[2] % 8 * 32;
  const std::int64_t per_word = 32 / q.bits;
  const std::int64_t groups = q.group_size > 0 ? (kCols + q.group_size - 1) / q.group_size : 1;
  const char* scale = scales[data[3] % 3];
  File file({data + 4, size - 4});
  switch (data[0] % 5) {
    case 0:
      q.method = "awq";
      q.bits = 4;
      file.add("qweight", "I32", kCols, kRows / 8);
      file.add("qzeros", "I32", groups, kRows / 8);
      file.add("scales", scale, groups, kRows);
      break;
    case 1:
      q.method = "gptq";
      q.zero_offset = data[3] / 4 % 2;
      if (kRows % per_word != 0) return 0;
      file.add("qweight", "I32", kCols / per_word, kRows);
      file.add("qzeros", "I32", groups, kRows / per_word);
      file.add("scales", scale, groups, kRows);
      if (data[3] & 8) file.add_order(kCols);
      break;
    case 2:
      q.method = "compressed-tensors";
      file.add("weight_packed", "I32", kRows, kCols / per_word);
      file.add("weight_scale", scale, kRows, groups);
      if (data[3] & 8) file.add("weight_zero_point", "I32", (kRows + per_word - 1) / per_word, groups);
      break;
    case 3:
      q = {.method = "int8"};
      file.add("weight", "I8", kRows, kCols);
      file.add("weight_scale", scale, kRows, 1);
      break;
    default:
      q = {.method = "int8", .block_rows = 16 * (1 + data[1] % 4), .block_cols = 16 * (1 + data[2] % 8)};
      file.add("weight", "I8", kRows, kCols);
      file.add("weight_scale_inv", scale, (kRows + q.block_rows - 1) / q.block_rows,
               (kCols + q.block_cols - 1) / q.block_cols);
  }
  try {
    const Checkpoint checkpoint = file.checkpoint();
    const auto weight = IntegerWeight::find(checkpoint, "w.weight", kRows, kCols, q);
    require(weight != nullptr);
    std::vector<float> worth, row(kCols);
    weight->read(0, kRows, worth);
    const PackedFormat* packed = weight->packed({0, kCols});
    if (!packed) return 0;
    Matrix m(*packed, kRows, kCols);
    m.set_order(weight->order());
    weight->pack(0, kRows, {0, kCols}, 0, m);
    for (std::int64_t r = 0; r < kRows; ++r) {
      m.unpack_row(r, row.data());
      for (std::int64_t c = 0; c < kCols; ++c) {
        const float a = row[static_cast<std::size_t>(c)], b = worth[static_cast<std::size_t>(r * kCols + c)];
        require(a == b || (std::isnan(a) && std::isnan(b)));
      }
    }
  } catch (const Error&) {
  }
  return 0;
}
