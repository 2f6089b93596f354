#include "runtime/integer_weight.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>
#include <random>

#include "runtime/tensor_loader.h"
#include "tests/unit/safetensors_bytes.h"
#include "tests/unit/scratch_folder.h"

/// Integers stay integers in memory and keep every bit of what they are worth. That IntegerWeight::read() reads each
/// form as its inventors meant it is tested in tests/formats/integer_folders_test.py.
namespace shoal {
namespace {

constexpr int kGroup = 64;

/// A weight "w.weight" of random bytes in one of the forms.
class StoredWeight {
 public:
  StoredWeight(const std::string& form, const std::string& scale_type, std::int64_t rows, std::int64_t cols,
               bool shuffled = false)
      : rows_(rows), cols_(cols), scale_type_(scale_type) {
    const std::int64_t groups = (cols + kGroup - 1) / kGroup;
    quantization_.bits = 4;
    quantization_.group_size = kGroup;
    quantization_.method = form;
    if (form == "awq") {
      add("qweight", "I32", {cols, rows / 8});
      add("qzeros", "I32", {groups, rows / 8});
      add_scales("scales", {groups, rows});
    } else if (form == "gptq") {
      quantization_.zero_offset = 1;
      add("qweight", "I32", {cols / 8, rows});
      add("qzeros", "I32", {groups, rows / 8});
      add_scales("scales", {groups, rows});
      if (shuffled) add_order();
    } else if (form == "compressed" || form == "compressed-zeros") {
      quantization_.method = "compressed-tensors";
      add("weight_packed", "I32", {rows, cols / 8});
      add_scales("weight_scale", {rows, groups});
      if (form == "compressed-zeros") add("weight_zero_point", "I32", {(rows + 7) / 8, groups});
    } else {
      quantization_ = {.method = "int8"};
      add("weight", "I8", {rows, cols});
      if (form == "int8-block") {
        quantization_.block_rows = quantization_.block_cols = kGroup;
        add_scales("weight_scale_inv", {(rows + kGroup - 1) / kGroup, groups});
      } else {
        add_scales("weight_scale", {rows, 1});
      }
    }
    std::string header;
    for (const auto& [name, text] : entries_) header += (header.empty() ? "{" : ",") + text;
    folder_.write("model.safetensors", safetensors_file(header + "}", 0) + data_);
    checkpoint_.emplace(Checkpoint::open(folder_.path()));
  }

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const WeightQuantization& quantization() const { return quantization_; }

  std::vector<float> worth() const {
    std::vector<float> all;
    IntegerWeight::find(*checkpoint_, "w.weight", rows_, cols_, quantization_)->read(0, rows_, all);
    return all;
  }
  Matrix load(std::optional<Slice> rows = {}, std::optional<Slice> columns = {}) const {
    TensorLoader loader(*checkpoint_, quantization_);
    Matrix m;
    loader.matrix(m, "w.weight", rows_, cols_, rows, columns);
    loader.run(2, [](std::uint64_t) {});
    return m;
  }

 private:
  void put(const std::string& name, const std::string& type, const std::vector<std::int64_t>& shape,
           const std::string& bytes) {
    std::string dims;
    for (const std::int64_t n : shape) dims += (dims.empty() ? "" : ",") + std::to_string(n);
    entries_[name] = entry("w." + name, type, dims, data_.size(), data_.size() + bytes.size());
    data_ += bytes;
  }
  void add(const std::string& name, const std::string& type, const std::vector<std::int64_t>& shape) {
    std::int64_t n = type == "I8" ? 1 : 4;
    for (const std::int64_t d : shape) n *= d;
    std::string bytes(static_cast<std::size_t>(n), '\0');
    for (char& c : bytes) c = static_cast<char>(random_());
    put(name, type, shape, bytes);
  }
  void add_scales(const std::string& name, const std::vector<std::int64_t>& shape) {
    std::string bytes;
    for (std::int64_t i = 0; i < shape[0] * shape[1]; ++i) {
      const float scale = std::uniform_real_distribution<float>(1e-4f, 3e-2f)(random_);
      std::uint32_t bits = std::bit_cast<std::uint32_t>(scale);
      std::size_t size = 4;
      if (scale_type_ != "F32") {
        bits = scale_type_ == "F16" ? f32_to_f16(scale) : f32_to_bf16(scale);
        size = 2;
      }
      bytes.append(reinterpret_cast<const char*>(&bits), size);
    }
    put(name, scale_type_, shape, bytes);
  }
  void add_order() {
    std::vector<std::int32_t> group(static_cast<std::size_t>(cols_));
    for (std::size_t c = 0; c < group.size(); ++c) group[c] = static_cast<std::int32_t>(c) / kGroup;
    std::shuffle(group.begin(), group.end(), random_);
    put("g_idx", "I32", {cols_}, std::string(reinterpret_cast<const char*>(group.data()), group.size() * 4));
  }

  std::int64_t rows_, cols_;
  std::string scale_type_;
  std::mt19937 random_{7};
  WeightQuantization quantization_;
  std::map<std::string, std::string> entries_;
  std::string data_;
  ScratchFolder folder_;
  std::optional<Checkpoint> checkpoint_;
};

void expect_same(const Matrix& m, const std::vector<float>& worth, std::int64_t cols, Slice rows, Slice columns) {
  ASSERT_EQ(m.rows(), rows.count);
  ASSERT_EQ(m.cols(), columns.count);
  std::vector<float> row(static_cast<std::size_t>(columns.count));
  for (std::int64_t r = 0; r < rows.count; ++r) {
    m.unpack_row(r, row.data());
    for (std::int64_t c = 0; c < columns.count; ++c) {
      const float expected = worth[static_cast<std::size_t>((rows.first + r) * cols + columns.first + c)];
      ASSERT_EQ(row[static_cast<std::size_t>(c)], expected) << r << ", " << c;
    }
  }
  ASSERT_EQ(m.at(rows.count - 1, columns.count - 1), row.back());
}

class IntegerForms : public testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  static const char* form() { return std::get<0>(GetParam()); }
  static const char* scale_type() { return std::get<1>(GetParam()); }
};

TEST_P(IntegerForms, StayIntegersAndKeepEveryBit) {
  constexpr std::int64_t kRows = 80, kCols = 192;
  const StoredWeight stored(form(), scale_type(), kRows, kCols);
  const auto worth = stored.worth();
  const Matrix whole = stored.load();
  ASSERT_TRUE(whole.format());
  expect_same(whole, worth, kCols, {0, kRows}, {0, kCols});
  const int bits = std::string(form()).starts_with("int8") ? 8 : 4;
  const double allowed = bits + 32.0 / kGroup + (bits == 4 ? 8.0 / kGroup : 0);  // a scale and a zero for each group
  EXPECT_LE(8.0 * static_cast<double>(whole.bytes()) / (kRows * kCols), allowed);

  const Matrix part = stored.load(Slice{16, 48}, Slice{64, 128});
  ASSERT_TRUE(part.format());
  expect_same(part, worth, kCols, {16, 48}, {64, 128});
  const Matrix half_a_group = stored.load(Slice{0, 32}, Slice{32, 96});
  ASSERT_TRUE(half_a_group.format());
  expect_same(half_a_group, worth, kCols, {0, 32}, {32, 96});
  // No record is as narrow as that: expanded, and still the same.
  const Matrix odd = stored.load(Slice{0, 32}, Slice{16, 80});
  EXPECT_FALSE(odd.format());
  expect_same(odd, worth, kCols, {0, 32}, {16, 80});
}

INSTANTIATE_TEST_SUITE_P(All, IntegerForms,
                         testing::Combine(testing::Values("awq", "gptq", "compressed", "compressed-zeros",
                                                          "int8-channel", "int8-block"),
                                          testing::Values("F16", "BF16", "F32")),
                         [](const auto& i) {
                           std::string name = std::string(std::get<0>(i.param)) + "_" + std::get<1>(i.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(IntegerWeight, ActOrderIsKeptAsAnOrderOfColumns) {
  const StoredWeight stored("gptq", "F16", 48, 256, true);
  const Matrix m = stored.load();
  ASSERT_TRUE(m.format());
  EXPECT_EQ(m.order().size(), 256u);
  expect_same(m, stored.worth(), 256, {0, 48}, {0, 256});
  const Matrix part = stored.load({}, Slice{64, 64});  // its groups lie anywhere
  EXPECT_FALSE(part.format());
  expect_same(part, stored.worth(), 256, {0, 48}, {64, 64});
}

TEST(IntegerWeight, KeyHeadsOfBlocksAreTurnedAsIntegers) {
  constexpr int kHeads = 3, kKeys = 64, kValues = 64, kRank = 96;
  const StoredWeight stored("int8-block", "F32", kHeads * (kKeys + kValues), kRank);
  TensorLoader loader(stored.checkpoint(), stored.quantization());
  std::vector<Matrix> keys, values;
  loader.kv_b(keys, values, "w.weight", kHeads, kKeys, kValues, kRank);
  loader.run(2, [](std::uint64_t) {});
  const auto worth = stored.worth();
  for (int h = 0; h < kHeads; ++h) {
    const Matrix &k = keys[static_cast<std::size_t>(h)], &v = values[static_cast<std::size_t>(h)];
    ASSERT_TRUE(k.format() && v.format());
    const std::int64_t first = h * (kKeys + kValues);
    expect_same(v, worth, kRank, {first + kKeys, kValues}, {0, kRank});
    std::vector<float> turned(kRank * kKeys);
    for (std::int64_t i = 0; i < kKeys; ++i)
      for (std::int64_t c = 0; c < kRank; ++c)
        turned[static_cast<std::size_t>(c * kKeys + i)] = worth[static_cast<std::size_t>((first + i) * kRank + c)];
    expect_same(k, turned, kKeys, {0, kRank}, {0, kKeys});
  }
}

}  // namespace
}  // namespace shoal
