#include "runtime/gguf.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "base/error.h"
#include "runtime/checkpoint.h"
#include "runtime/gguf_names.h"
#include "tests/unit/gguf_bytes.h"
#include "tests/unit/scratch_folder.h"

namespace shoal {
namespace {

constexpr std::uint32_t kF32 = 0, kQ8_0 = 8, kQ4_K = 12, kI32 = 26;
using Shape = std::vector<std::int64_t>;

GgufHeader parsed(const std::string& bytes) {
  return read_gguf_header([&](std::uint64_t offset,
                              std::span<std::byte> out) { std::memcpy(out.data(), bytes.data() + offset, out.size()); },
                          bytes.size(), "model.gguf");
}

std::string refusal_of(const GgufBytes& file) {
  return error_of([&] { parsed(file.bytes()); });
}

TEST(Gguf, ReadsEveryMetadataTypeAndTensors) {
  GgufBytes file(2, 14, 2);
  file.key("u8", 0, std::uint8_t{200}).key("i8", 1, std::int8_t{-3}).key("u16", 2, std::uint16_t{65535});
  file.key("i16", 3, std::int16_t{-300}).key("u32", 4, std::uint32_t{4000000000u}).key("i32", 5, std::int32_t{-7});
  file.key("f32", 6, 1.5f).key("yes", 7, std::uint8_t{1}).key("text", "words").key("u64", 10, ~std::uint64_t{0});
  file.key("i64", 11, -(std::int64_t{1} << 60)).key("f64", 12, 0.1);
  file.text("list").put(std::uint32_t{9}).put(std::uint32_t{8}).put(std::uint64_t{2}).text("a").text("b");
  file.text("nested").put(std::uint32_t{9}).put(std::uint32_t{9}).put(std::uint64_t{1});
  file.put(std::uint32_t{0}).put(std::uint64_t{2}).put(std::uint8_t{1}).put(std::uint8_t{2});
  file.tensor("later", {64, 3}, kQ8_0, 64).tensor("first", {3}, kF32, 0).align().zeros(64 + 6 * 34);

  const GgufHeader header = parsed(file.bytes());
  const auto& m = header.metadata;
  EXPECT_EQ(m["u8"], 200);
  EXPECT_EQ(m["i8"], -3);
  EXPECT_EQ(m["u16"], 65535);
  EXPECT_EQ(m["i16"], -300);
  EXPECT_EQ(m["u32"], 4000000000u);
  EXPECT_EQ(m["i32"], -7);
  EXPECT_EQ(m["f32"], 1.5);
  EXPECT_EQ(m["yes"], true);
  EXPECT_EQ(m["text"], "words");
  EXPECT_EQ(m["u64"], ~std::uint64_t{0});
  EXPECT_EQ(m["i64"], -(std::int64_t{1} << 60));
  EXPECT_EQ(m["f64"], 0.1);
  EXPECT_EQ(m["list"], (nlohmann::json{"a", "b"}));
  EXPECT_EQ(m["nested"][0], (nlohmann::json{1, 2}));
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_EQ(header.tensors[0].name, "later");
  EXPECT_EQ(header.tensors[0].type, "Q8_0");
  EXPECT_FALSE(header.tensors[0].dtype);
  EXPECT_EQ(header.tensors[0].shape, (Shape{3, 64}));
  EXPECT_EQ(header.tensors[0].bytes, 6u * 34);
  EXPECT_EQ(header.tensors[0].offset, file.bytes().size() - 6 * 34);
  EXPECT_EQ(header.tensors[1].dtype, DType::f32);
  EXPECT_EQ(header.tensors[1].offset, file.bytes().size() - 6 * 34 - 64);
}

TEST(Gguf, NamesWhatIsWrong) {
  const auto rejects = [](const GgufBytes& file, const std::string& why) {
    EXPECT_PRED2(contains, refusal_of(file), "model.gguf");
    EXPECT_PRED2(contains, refusal_of(file), why);
  };
  rejects(GgufBytes(0, 0, 1), "version 1");
  rejects(GgufBytes(0, 0, 4), "version 4");
  rejects(GgufBytes(0, 0, 0x03000000u), "big-endian");
  rejects(GgufBytes(1u << 20, 0), "tensors, more than it has room for");
  rejects(GgufBytes(0, ~std::uint64_t{0}), "metadata keys, more than it has room for");
  rejects(GgufBytes(0, 2).key("a", 4, 1u).key("a", 4, 1u), "the metadata key a comes twice");
  rejects(GgufBytes(0, 1).key("a", 99, 1u), "a: has the unknown type 99");
  rejects(GgufBytes(0, 1).key("a", 7, std::uint8_t{2}).zeros(8), "neither 0 nor 1");
  rejects(GgufBytes(0, 1).text("a").put(std::uint32_t{8}).put(std::uint64_t{1} << 40).zeros(8), "absurd");
  rejects(GgufBytes(0, 1).text("a").put(std::uint32_t{8}).put(std::uint64_t{100}).zeros(8), "is cut off");
  rejects(GgufBytes(0, 1).text("a").put(9u).put(0u).put(std::uint64_t{1} << 50).zeros(8), "is cut off");
  rejects(GgufBytes(0, 1).key("general.alignment", 4, 24u), "power of two");

  const auto tensor = [](auto change) {
    GgufBytes file(1, 0);
    change(file);
    return file.align().zeros(256);
  };
  rejects(tensor([](GgufBytes& f) { f.tensor("t", {32}, 5, 0); }), "tensor t has the unknown type 5");
  rejects(tensor([](GgufBytes& f) { f.tensor("t", {48}, kQ8_0, 0); }),
          "rows of 48 elements do not fill Q8_0's blocks of 32");
  rejects(tensor([](GgufBytes& f) { f.tensor("t", {16, 2}, kQ8_0, 0); }), "do not fill");
  rejects(tensor([](GgufBytes& f) { f.tensor("t", {1u << 31, 1u << 31, 16}, kF32, 0); }), "absurd");
  rejects(tensor([](GgufBytes& f) { f.tensor("t", {1u << 31, 1u << 30}, kF32, 0); }), "past the end");
  rejects(tensor([](GgufBytes& f) { f.tensor("t", {1, 1, 1, 1, 1}, kF32, 0); }), "5 dimensions");
  rejects(tensor([](GgufBytes& f) { f.tensor("t", {8}, kF32, 8); }), "not a multiple of 32");
  rejects(tensor([](GgufBytes& f) { f.tensor("t", {8}, kF32, ~std::uint64_t{31}); }), "past the end");
  rejects(tensor([](GgufBytes& f) { f.tensor("t", {256}, kF32, 0); }), "past the end");
  rejects(tensor([](GgufBytes& f) { f.tensor("a\nb", {8}, kF32, 0); }), "control character");
  rejects(GgufBytes(2, 0).tensor("t", {8}, kF32, 0).tensor("t", {8}, kF32, 32).align().zeros(64),
          "tensor t comes twice");
  rejects(GgufBytes(2, 0).tensor("a", {16}, kF32, 0).tensor("b", {8}, kF32, 32).align().zeros(64), "tensor b overlaps");
}

TEST(Gguf, EveryTruncationOfAFileIsAnError) {
  GgufBytes file(1, 2);
  file.key("text", "words").text("list").put(9u).put(4u).put(std::uint64_t{2}).put(7u).put(8u);
  file.tensor("t", {256}, kQ4_K, 0).align().zeros(144);
  EXPECT_EQ(parsed(file.bytes()).tensors.size(), 1u);
  for (std::size_t n = 0; n < file.bytes().size(); ++n) {
    EXPECT_NE(error_of([&] { parsed(file.bytes().substr(0, n)); }), "") << n;
  }
}

TEST(Gguf, TypesOfNoWeightAreKeptByName) {
  GgufBytes file(1, 0);
  file.tensor("t", {4}, kI32, 0).align().zeros(16);
  const auto tensor = parsed(file.bytes()).tensors.at(0);
  EXPECT_EQ(tensor.type, "I32");
  EXPECT_FALSE(tensor.readable());
}

TEST(GgufNames, MapBothWays) {
  const auto both = [](const std::string& gguf, const std::string& hugging_face) {
    EXPECT_EQ(hugging_face_name(gguf), hugging_face);
    EXPECT_EQ(gguf_tensor_name(hugging_face), gguf);
  };
  both("token_embd.weight", "model.embed_tokens.weight");
  both("output.weight", "lm_head.weight");
  both("output_norm.weight", "model.norm.weight");
  both("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias");
  both("blk.60.attn_kv_a_mqa.weight", "model.layers.60.self_attn.kv_a_proj_with_mqa.weight");
  both("blk.12.exp_probs_b.bias", "model.layers.12.mlp.gate.e_score_correction_bias");
  both("blk.61.nextn.shared_head_norm.weight", "model.layers.61.shared_head.norm.weight");
  both("blk.3.ffn_down_exps.weight", "model.layers.3.mlp.experts.{}.down_proj.weight");
  EXPECT_EQ(gguf_tensor_name("model.layers.3.mlp.experts.17.down_proj.weight"), "blk.3.ffn_down_exps.weight");
  EXPECT_EQ(hugging_face_name("rope_freqs.weight"), "rope_freqs.weight");
  EXPECT_EQ(hugging_face_name("blk.x.attn_q.weight"), "blk.x.attn_q.weight");
  EXPECT_EQ(gguf_tensor_name("model.layers.0.self_attn.rotary_emb.inv_freq"), "");
}

TEST(GgufCheckpoint, ReadsExpertsFromTheirStack) {
  const ScratchFolder folder;
  GgufBytes file(1, 0);
  file.tensor("blk.1.ffn_up_exps.weight", {2, 3, 4}, kF32, 0).align();
  for (int i = 0; i < 24; ++i) file.put(static_cast<float>(i));
  folder.write("m.gguf", file.bytes());
  const Checkpoint checkpoint = Checkpoint::open(folder.path() / "m.gguf");
  EXPECT_EQ(checkpoint.tensors().size(), 4u);
  const Shape shape{3, 2};
  const auto& expert = checkpoint.require("model.layers.1.mlp.experts.2.up_proj.weight", shape);
  EXPECT_EQ(checkpoint.read_floats(expert), (std::vector<float>{12, 13, 14, 15, 16, 17}));
}

TEST(GgufCheckpoint, SplitFilesAreOneModel) {
  const ScratchFolder folder;
  const auto part = [&](int number, std::uint16_t claimed, const std::string& tensor, std::uint16_t count = 2) {
    GgufBytes file(1, 3);
    file.key("split.no", 2, claimed).key("split.count", 2, count).key("split.tensors.count", 5, std::int32_t{2});
    file.tensor(tensor, {8}, kF32, 0).align().zeros(32);
    folder.write(fmt::format("m-0000{}-of-00002.gguf", number), file.bytes());
  };
  const auto open = [&](int number) {
    return Gguf::open(folder.path() / fmt::format("m-0000{}-of-00002.gguf", number));
  };
  part(1, 0, "a");
  EXPECT_PRED2(contains, error_of([&] { open(1); }), "m-00002-of-00002.gguf: is missing");
  part(2, 1, "b");
  EXPECT_EQ(open(1).tensors.size(), 2u);
  EXPECT_EQ(open(2).find("b")->file, 1);
  EXPECT_EQ(gguf_name(open(2).files[0]), "m");
  part(2, 1, "a");
  EXPECT_PRED2(contains, error_of([&] { open(1); }), "tensor a is in an earlier file too");
  part(2, 0, "b");
  EXPECT_PRED2(contains, error_of([&] { open(1); }), "is part 1 by its metadata");
  part(2, 1, "b", 3);
  EXPECT_PRED2(contains, error_of([&] { open(1); }), "is one of 3 files");
}

}  // namespace
}  // namespace shoal
