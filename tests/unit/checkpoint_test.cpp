#include "runtime/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <thread>

#include "runtime/safetensors.h"
#include "tests/unit/safetensors_bytes.h"
#include "tests/unit/scratch_folder.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

std::string index_of(std::string_view weight_map) {
  return fmt::format(R"({{"metadata":{{}},"weight_map":{}}})", weight_map);
}

/// What opening a folder says whose only file holds these bytes.
std::string refusal(std::string_view bytes) {
  const ScratchFolder folder;
  folder.write("model.safetensors", bytes);
  return error_of([&] { Checkpoint::open(folder.path()); });
}

std::string refusal_of_header(std::string_view header, std::size_t data_bytes = 8) {
  return refusal(safetensors_file(header, data_bytes));
}

TEST(Checkpoint, ReadsWhatAFileHolds) {
  const ScratchFolder folder;
  folder.write("model.safetensors",
               safetensors_file("{" + entry("second", "U8", "4", 8, 12) + "," + entry("first", "BF16", "2, 2", 0, 8) +
                                    R"(,"__metadata__":{"format":"pt"}})" + "   ",
                                12));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  ASSERT_EQ(checkpoint.tensors().size(), 2u);
  const TensorInfo* first = checkpoint.find("first");
  ASSERT_TRUE(first);
  EXPECT_EQ(first->type, "BF16");
  EXPECT_EQ(first->dtype, DType::bf16);
  EXPECT_EQ(first->shape, (std::vector<std::int64_t>{2, 2}));
  EXPECT_EQ(first->bytes, 8u);
  EXPECT_EQ(checkpoint.find("third"), nullptr);

  std::array<std::byte, 2> bytes;
  checkpoint.read(*first, 3, bytes);
  EXPECT_EQ(bytes, (std::array{std::byte{3}, std::byte{4}}));
  const TensorInfo* second = checkpoint.find("second");
  EXPECT_EQ(second->dtype, std::nullopt) << "a type that nothing computes with is still listed";
  checkpoint.read(*second, 2, bytes);
  EXPECT_EQ(bytes, (std::array{std::byte{10}, std::byte{11}}));
  checkpoint.read(*second, 4, {});
}

TEST(Checkpoint, RefusesToReadPastATensor) {
  const ScratchFolder folder;
  folder.write("model.safetensors", safetensors_file("{" + entry("a", "U8", "8", 0, 8) + "}", 8));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  std::array<std::byte, 4> bytes;
  EXPECT_PRED2(contains, error_of([&] { checkpoint.read(*checkpoint.find("a"), 5, bytes); }), "tensor a: bytes [5, 9)");
  EXPECT_NE(error_of([&] { checkpoint.read(*checkpoint.find("a"), ~std::uint64_t{0}, bytes); }), "");
}

TEST(Checkpoint, ReadsFloatsOfThreeTypes) {
  const ScratchFolder folder;
  std::string data;
  const auto put = [&](auto v) { data.append(reinterpret_cast<const char*>(&v), sizeof(v)); };
  put(1.5f), put(-2.0f), put(std::uint16_t{0x3fc0}), put(std::uint16_t{0xc000}), put(std::uint16_t{0x3e00}),
      put(std::uint16_t{0xc000});
  folder.write("model.safetensors",
               safetensors_file("{" + entry("f32", "F32", "2", 0, 8) + "," + entry("bf16", "BF16", "2", 8, 12) + "," +
                                    entry("f16", "F16", "2", 12, 16) + "," + entry("f8", "F8_E4M3", "0", 16, 16) + "}",
                                0) +
                   data);
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  for (const char* name : {"f32", "bf16", "f16"}) {
    EXPECT_EQ(checkpoint.read_floats(*checkpoint.find(name)), (std::vector<float>{1.5f, -2.0f})) << name;
  }
  EXPECT_PRED2(contains, error_of([&] { checkpoint.read_floats(*checkpoint.find("f8")); }),
               "tensor f8 has the type F8");
}

TEST(Checkpoint, ReadsFloatsInManyPieces) {
  const ScratchFolder folder;
  constexpr std::size_t n = (1 << 19) * 2 + 5;
  folder.write("model.safetensors",
               safetensors_file("{" + entry("a", "BF16", std::to_string(n), 0, 2 * n) + "}", 2 * n));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const auto values = checkpoint.read_floats(*checkpoint.find("a"));
  ASSERT_EQ(values.size(), n);
  for (const std::size_t i : {std::size_t{0}, n / 2, n - 5, n - 1}) {
    const auto low = static_cast<std::uint8_t>(2 * i), high = static_cast<std::uint8_t>(2 * i + 1);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(values[i]), std::uint32_t{high} << 24 | std::uint32_t{low} << 16) << i;
  }
}

TEST(Checkpoint, RequireChecksTheShape) {
  const ScratchFolder folder;
  folder.write("model.safetensors", safetensors_file("{" + entry("a", "F32", "1, 2", 0, 8) + "}", 8));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  EXPECT_EQ(&checkpoint.require("a", std::array<std::int64_t, 2>{1, 2}), checkpoint.find("a"));
  EXPECT_PRED2(contains, error_of([&] {
                 checkpoint.require("a", std::array<std::int64_t, 2>{2, 1});
               }),
               folder.path().string());
  EXPECT_PRED2(contains, error_of([&] {
                 checkpoint.require("a", std::array<std::int64_t, 2>{2, 1});
               }),
               "tensor a has the shape [1, 2], and must have [2, 1]");
  EXPECT_PRED2(contains, error_of([&] { checkpoint.require("b", std::array<std::int64_t, 1>{2}); }),
               "tensor b is missing");
}

TEST(Checkpoint, OpensEveryLayoutOfAFolder) {
  const std::string one = safetensors_file("{" + entry("a", "U8", "8", 0, 8) + "}", 8);
  const std::string two = safetensors_file("{" + entry("b", "U8", "8", 0, 8) + "}", 8);
  {
    const ScratchFolder folder;  // one file of any name, and the file itself
    const auto file = folder.write("weights.safetensors", one);
    EXPECT_EQ(Checkpoint::open(folder.path()).tensors().size(), 1u);
    EXPECT_EQ(Checkpoint::open(file).tensors().size(), 1u);
    folder.write("more.safetensors", two);
    EXPECT_PRED2(contains, error_of([&] { Checkpoint::open(folder.path()); }), "holds 2 .safetensors files and no");
    folder.write("model.safetensors.index.json", index_of(R"({"a":"weights.safetensors","b":"more.safetensors"})"));
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    EXPECT_EQ(checkpoint.tensors().size(), 2u);
    std::array<std::byte, 1> byte;
    const TensorInfo& b = *checkpoint.find("b");
    EXPECT_EQ(checkpoint.files()[static_cast<std::size_t>(b.file)].filename(), "more.safetensors");
    checkpoint.read(b, 7, byte);
    EXPECT_EQ(byte[0], std::byte{7});
  }
  {
    const ScratchFolder folder;  // as in Hugging Face's cache
    const auto blob = folder.write("blob", one);
    fs::create_symlink(blob, folder.path() / "model.safetensors");
    EXPECT_EQ(Checkpoint::open(folder.path()).tensors().size(), 1u);
  }
}

TEST(Checkpoint, AllowsWhatTheFormatAllows) {
  EXPECT_EQ(refusal_of_header("{}", 0), "");
  EXPECT_EQ(refusal_of_header("{" + entry("scalar", "F32", "", 0, 4) + "}", 4), "");
  EXPECT_EQ(refusal_of_header("{" + entry("empty", "F32", "0", 0, 0) + "," + entry("a", "F64", "1", 0, 8) + "," +
                              entry("none", "I64", "3, 0", 8, 8) + "}"),
            "");
  EXPECT_EQ(refusal_of_header("{" + entry("packed", "F4", "16", 0, 8) + "}"), "");
  EXPECT_EQ(refusal_of_header("{" + entry("from the future", "F3_X", "7", 0, 8) + "}"), "");
}

TEST(Checkpoint, RefusesAFileThatIsNoSafetensors) {
  EXPECT_PRED2(contains, refusal(""), "0 bytes are too few");
  EXPECT_PRED2(contains, refusal("1234567"), "7 bytes are too few");
  EXPECT_PRED2(contains, refusal("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull");
  EXPECT_PRED2(contains, refusal("GGUF and some more bytes"), "damaged");
}

TEST(Checkpoint, RefusesALengthThatLies) {
  const auto with_length = [](std::uint64_t length) {
    std::string file = safetensors_file("{}", 0);
    std::memcpy(file.data(), &length, sizeof(length));
    return refusal(file);
  };
  EXPECT_PRED2(contains, with_length(3), "cut off: it claims a header of 3 bytes");
  EXPECT_PRED2(contains, with_length(99'999'999), "cut off");
  EXPECT_PRED2(contains, with_length(100'000'001), "damaged");
  EXPECT_PRED2(contains, with_length(~std::uint64_t{0}), "damaged");
  EXPECT_PRED2(contains, with_length(1), "is not valid JSON");
  EXPECT_PRED2(contains, with_length(0), "is not valid JSON");
}

TEST(Checkpoint, NamesFileAndTensorOfAHeaderThatLies) {
  const std::string a = entry("a", "F32", "2", 0, 8);
  struct Lie {
    std::string header;
    const char* says;
  };
  const Lie lies[] = {
      {"[]", "must be an object, not a list"},
      {"{\"\\u001b[2J\":{}}", "control character"},
      {"7", "must be an object"},
      {"{" + a + "} {}", "is not valid JSON"},
      {"{" + a, "is not valid JSON"},
      {"{\"a\xff\":{}}", "is not valid JSON"},
      {"{\"a\":3}", "a cannot be a number"},
      {"{\"a\":{}}", "tensor a lacks dtype, shape or data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[2]}})", "tensor a lacks"},
      {R"({"a":{"dtype":7,"shape":[2],"data_offsets":[0,8]}})", "tensor a: dtype cannot be a number"},
      {R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", "tensor a: shape cannot be a number"},
      {R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", "tensor a: shape cannot be a list"},
      {R"({"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}})", "tensor a: shape cannot be a string"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "shape cannot be the negative number -2"},
      {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", "shape cannot be the number 2.0"},
      {R"({"a":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}})", "shape cannot be the number 2e0"},
      {R"({"a":{"dtype":"F32","shape":[null],"data_offsets":[0,8]}})", "shape cannot be null"},
      {R"({"a":{"dtype":"F32","shape":[true],"data_offsets":[0,8]}})", "shape cannot be a boolean"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", "data_offsets must be two numbers"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4,8]}})", "data_offsets must be two numbers"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})", "data_offsets cannot be the negative number"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":{"from":0}}})", "data_offsets cannot be an object"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"file":"/etc/passwd"}})", "unknown field \"file\""},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "dtype comes twice"},
      {"{" + a + "," + a + "}", "tensor a comes twice"},
      {"{" + a + R"(,"__metadata__":{"x":1}})", "__metadata__ cannot be a number"},
      {"{" + a + R"(,"__metadata__":{"x":{}}})", "__metadata__ cannot be an object"},
      {"{" + a + R"(,"__metadata__":{"x":"1","x":"2"}})", "__metadata__: x comes twice"},
      {"{" + entry("a", "F32", "2", 8, 0) + "}", "tensor a ends before it begins"},
      {"{" + entry("a", "F32", "3", 0, 8) + "}", "tensor a has 8 bytes, which are not the bytes of F32 [3]"},
      {"{" + entry("a", "F4", "15", 0, 8) + "}", "are not the bytes of F4 [15]"},
      {"{" + entry("a", "F32", "4", 0, 16) + "}", "cut off: tensor a ends 8 bytes past the end"},
      {"{" + entry("a", "F32", "1", 4, 8) + "}", "4 bytes before tensor a belong to none"},
      {"{" + entry("a", "F32", "1", 0, 4) + "}", "the last 4 bytes belong to no tensor"},
      {"{" + a + "," + entry("b", "F32", "1", 4, 8) + "}", "tensor b overlaps"},
      {"{" + a + "," + entry("b", "F32", "2", 0, 8) + "}", "overlaps"},
      {"{" + a + "," + entry("b", "F32", "0", 4, 4) + "}", "tensor b overlaps"},
      // 2^63 * 2 elements wrap around to none, 2^62 elements of 4 bytes to 0 bytes.
      {"{" + entry("a", "U8", "9223372036854775807, 9223372036854775807, 8", 0, 8) + "}", "is absurd"},
      {"{" + entry("a", "F32", "4611686018427387904, 4", 0, 0) + "}", "is absurd"},
      {"{" + entry("a", "F32", "4611686018427387904", 0, 0) + "}", "are not the bytes"},
      {"{" + entry("a", "U8", "18446744073709551615", 0, 8) + "}", "is absurd"},
      {"{" + entry("a", "U8", "18446744073709551624", 0, 8) + "}", "shape cannot be the number"},
      {"{" + entry("a", "F_UNKNOWN", "8", 0, ~std::uint64_t{0}) + "}", "past the end of the file"},
  };
  for (const auto& [header, says] : lies) {
    EXPECT_PRED2(contains, refusal_of_header(header), "model.safetensors: ") << header;
    EXPECT_PRED2(contains, refusal_of_header(header), says) << header;
  }
  std::string ones = "1";
  for (int i = 0; i < 100; ++i) ones += ",1";
  EXPECT_PRED2(contains, refusal_of_header("{" + entry("a", "U8", ones, 0, 1) + "}"), "more than 64 dimensions");
  EXPECT_NE(refusal_of_header("{\"a\":" + std::string(1'000'000, '[')), "") << "depth must not cost stack";
}

TEST(Checkpoint, RefusesAFileThatWasCutOff) {
  const std::string whole = safetensors_file("{" + entry("a", "F32", "2", 0, 8) + "}", 8);
  for (std::size_t size = 0; size < whole.size(); ++size) EXPECT_NE(refusal(whole.substr(0, size)), "") << size;
  EXPECT_NE(refusal(whole + "x"), "");
}

TEST(Checkpoint, RefusesAnIndexThatLies) {
  const ScratchFolder folder;
  folder.write("one.safetensors", safetensors_file("{" + entry("a", "U8", "8", 0, 8) + "}", 8));
  folder.write("two.safetensors",
               safetensors_file("{" + entry("b", "U8", "4", 0, 4) + "," + entry("c", "U8", "4", 4, 8) + "}", 8));
  const auto saying = [&](std::string_view index) {
    folder.write("model.safetensors.index.json", index);
    return error_of([&] { Checkpoint::open(folder.path()); });
  };
  EXPECT_EQ(saying(index_of(R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})")), "");

  EXPECT_PRED2(contains, saying(index_of(R"({"a":"one.safetensors","b":"two.safetensors"})")),
               "two.safetensors: holds tensor c, which the index lacks");
  EXPECT_PRED2(contains, saying(index_of(R"({"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"})")),
               "two.safetensors: holds tensor b, which the index places in one.safetensors");
  EXPECT_PRED2(contains, saying(index_of(R"({"a":"one.safetensors","d":"one.safetensors"})")),
               "one.safetensors lacks tensor d");
  EXPECT_PRED2(contains, saying(index_of(R"({"a":"one.safetensors","x":"three.safetensors","y":"four.safetensors"})")),
               "2 of 3 files are missing: four.safetensors, three.safetensors");

  for (const char* path : {"../one.safetensors", "/etc/passwd", "a/../one.safetensors", "./one.safetensors", "..", ".",
                           "", "one.safetensors\\u0000.txt"}) {
    EXPECT_PRED2(contains, saying(index_of(fmt::format(R"({{"a":"{}"}})", path))), "which is not a plain file name")
        << path;
  }
  EXPECT_PRED2(contains, saying(index_of(R"({"a":7})")), "a must be a file name");
  EXPECT_PRED2(contains, saying(index_of("{}")), "weight_map is empty");
  EXPECT_PRED2(contains, saying(index_of("[]")), "weight_map: must be a JSON object");
  EXPECT_PRED2(contains, saying("{}"), "weight_map is missing");
  EXPECT_PRED2(contains, saying("{"), "is not valid JSON");
  EXPECT_PRED2(contains, saying(index_of(R"({"a":"one.safetensors","a":"two.safetensors"})")), "\"a\" comes twice");
}

TEST(Checkpoint, RefusesWhatIsNoModel) {
  const ScratchFolder folder;
  EXPECT_PRED2(contains, error_of([&] { Checkpoint::open(folder.path()); }), "holds no .safetensors files");
  EXPECT_PRED2(contains, error_of([&] { Checkpoint::open(folder.path() / "none"); }), "neither a folder nor");
  ASSERT_EQ(::mkfifo((folder.path() / "model.safetensors").c_str(), 0600), 0);
  EXPECT_PRED2(contains, error_of([&] { Checkpoint::open(folder.path()); }), "is not a regular file");
}

TEST(Checkpoint, SaysWhenAFileShrinksUnderIt) {
  const ScratchFolder folder;
  const auto file = folder.write("model.safetensors", safetensors_file("{" + entry("a", "U8", "8", 0, 8) + "}", 8));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  fs::resize_file(file, fs::file_size(file) - 3);
  std::array<std::byte, 8> bytes;
  EXPECT_PRED2(contains, error_of([&] { checkpoint.read(*checkpoint.find("a"), 0, bytes); }),
               "model.safetensors: tensor a: the file ends");
  EXPECT_PRED2(contains, error_of([&] { checkpoint.read(*checkpoint.find("a"), 0, bytes); }), "became shorter");
}

TEST(Checkpoint, OpensManyShardsAndReadsFromManyThreads) {
  const ScratchFolder folder;
  std::string map;
  constexpr int shards = 163, threads = 4;
  for (int i = 0; i < shards; ++i) {
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards);
    folder.write(
        file, safetensors_file(
                  "{" + entry(fmt::format("t{}", i), "U8", std::to_string(i), 0, static_cast<std::uint64_t>(i)) + "}",
                  static_cast<std::size_t>(i)));
    map += fmt::format(R"({}"t{}":"{}")", i ? "," : "", i, file);
  }
  folder.write("model.safetensors.index.json", index_of("{" + map + "}"));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  EXPECT_EQ(checkpoint.files().size(), 163u);
  std::array<int, threads> wrong{};
  {
    std::vector<std::jthread> readers;
    for (int t = 0; t < threads; ++t) {
      readers.emplace_back([&, t] {
        for (int i = 1; i < shards; ++i) {
          std::vector<std::byte> bytes(static_cast<std::size_t>(i));
          checkpoint.read(*checkpoint.find(fmt::format("t{}", i)), 0, bytes);
          wrong[static_cast<std::size_t>(t)] += bytes.back() != static_cast<std::byte>(i - 1);
        }
      });
    }
  }
  EXPECT_EQ(wrong, (std::array{0, 0, 0, 0}));
}

}  // namespace
}  // namespace shoal
