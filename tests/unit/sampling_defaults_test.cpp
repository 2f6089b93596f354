#include "launch/sampling_defaults.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/unit/scratch_folder.h"

namespace shoal {
namespace {

class SamplingDefaultsTest : public testing::Test {
 protected:
  SamplingDefaults read(const std::string& text, const SamplingDefaults& otherwise = {}) const {
    folder_.write("generation_config.json", text);
    return SamplingDefaults::of_model(folder_.path(), otherwise);
  }
  const ScratchFolder folder_;
};

TEST_F(SamplingDefaultsTest, AreTheModelsWhereItSays) {
  const SamplingDefaults r1 = read(R"({"do_sample": true, "temperature": 0.6, "top_p": 0.95, "eos_token_id": 1})");
  EXPECT_EQ(r1.temperature, 0.6f);
  EXPECT_EQ(r1.top_p, 0.95f);
  EXPECT_EQ(r1.describe(), "temperature 0.6, top_p 0.95");
  const SamplingDefaults qwen = read(R"({"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05})");
  EXPECT_EQ(qwen.describe(), "temperature 0.7, top_p 0.8, top_k 20, repetition_penalty 1.05");
  EXPECT_EQ(read(R"({"top_k": -1, "temperature": null})").describe(), "");
}

TEST_F(SamplingDefaultsTest, AreOpenAIsWhereItSaysNothing) {
  const SamplingDefaults none = SamplingDefaults::of_model(folder_.path(), {});
  EXPECT_EQ(none.temperature, 1);
  EXPECT_EQ(none.top_p, 1);
  EXPECT_EQ(none.describe(), "");
}

TEST_F(SamplingDefaultsTest, AreOthersOnlyWhereItSaysNothingAtAll) {
  const SamplingDefaults others{.temperature = 0.6f, .top_p = 0.95f};
  EXPECT_EQ(SamplingDefaults::of_model(folder_.path(), others).describe(), "temperature 0.6, top_p 0.95");
  EXPECT_EQ(read(R"({"eos_token_id": 1, "temperature": null})", others).describe(), "temperature 0.6, top_p 0.95");
  EXPECT_EQ(read(R"({"temperature": 1.0})", others).describe(), "");
  EXPECT_EQ(read(R"({"top_k": 20})", others).describe(), "top_k 20");
}

TEST_F(SamplingDefaultsTest, AreThoseOfAGgufFile) {
  const auto of_file = [&](const SamplingDefaults& written) {
    GgufHeaderWriter header;
    written.describe(header);
    folder_.write("model.gguf", header.layout().header);
    return SamplingDefaults::of_model(folder_.path() / "model.gguf", {});
  };
  const SamplingDefaults all{
      .temperature = 0.7f, .top_p = 0.8f, .min_p = 0.05f, .repetition_penalty = 1.05f, .top_k = 20};
  EXPECT_EQ(of_file(all).describe(), "temperature 0.7, top_p 0.8, top_k 20, min_p 0.05, repetition_penalty 1.05");
  EXPECT_EQ(of_file({}).describe(), "");
  try {
    of_file({.temperature = 7});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("model.gguf: general.sampling.temp must be from 0 to 2"),
              std::string::npos)
        << error.what();
  }
}

TEST_F(SamplingDefaultsTest, ThatNoRequestCouldHaveAreRefused) {
  for (const char* text : {R"({"temperature": 7})", R"({"top_p": -0.1})", R"({"temperature": "hot"})",
                           R"({"top_k": -5})", R"([])", R"({"temperature")"}) {
    try {
      read(text);
      FAIL() << text;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("generation_config.json"), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace shoal
