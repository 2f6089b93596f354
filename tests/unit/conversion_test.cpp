#include "launch/conversion.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "base/error.h"
#include "tests/unit/scratch_folder.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

/// Conversions of four tensors of three bytes each into one file.
class ConversionTest : public testing::Test {
 protected:
  static constexpr int kTensors = 4;
  static constexpr int kNever = kTensors;

  /// Fills all tensors with `letter`, but for the one that fails. Returns how many were made.
  int run(const std::string& job, char letter, int failing = kNever) {
    int made = 0;
    Conversion work = conversion(job, [&](int tensor, std::vector<std::byte>& out) {
      if (tensor == failing) fail("interrupted");
      ++made;
      std::ranges::fill(out, static_cast<std::byte>(letter));
      return StorageError{1, 4};
    });
    EXPECT_EQ(error_of([&] {
                const auto errors = work.run(1, false);
                EXPECT_EQ(errors.at("part").squared_error, kTensors);
                EXPECT_EQ(errors.at("part").squared_values, 4 * kTensors);
              }),
              failing == kNever ? "" : "interrupted");
    return made;
  }

  template <class Make>
  Conversion conversion(const std::string& job, const Make& make) {
    Conversion work(file_, "head", 4 + 3 * kTensors, job);
    for (int i = 0; i < kTensors; ++i) {
      const auto at = 4 + 3 * static_cast<std::uint64_t>(i);
      work.add_tensor("tensor " + std::to_string(i), "part");
      work.add_piece({{at, 1}, {at + 1, 2}}, 1, [make, i](std::vector<std::byte>& out) { return make(i, out); });
    }
    return work;
  }

  std::string written() const {
    std::ifstream in(file_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void forget() { Conversion(file_, "", 0, "").forget(); }
  bool left(const char* suffix) const { return fs::exists(file_.string() + suffix); }

  const ScratchFolder folder_;
  const fs::path file_ = folder_.path() / "file";
};

TEST_F(ConversionTest, GoesOnWhereItStopped) {
  EXPECT_EQ(run("job", 'a', 2), 2);
  EXPECT_TRUE(left(".partial") && !left(""));
  // What was written stays; that the letter is another one shows which.
  EXPECT_EQ(run("job", 'b'), 2);
  EXPECT_EQ(written(), "headaaaaaabbbbbb");
  forget();
  EXPECT_FALSE(left(".partial") || left(".journal"));
}

TEST_F(ConversionTest, DoesNotGoOnWithAnotherJob) {
  run("job", 'a', 2);
  EXPECT_EQ(run("other", 'b'), kTensors);
  EXPECT_EQ(written(), "headbbbbbbbbbbbb");
}

TEST_F(ConversionTest, DoesNotTakeAnEarlierFileForItsOwn) {
  run("job", 'a');
  forget();
  EXPECT_EQ(run("other", 'b', 2), 2);
  EXPECT_EQ(written(), "headaaaaaaaaaaaa");
  EXPECT_EQ(run("other", 'b'), 2);
  EXPECT_EQ(written(), "headbbbbbbbbbbbb");
}

TEST_F(ConversionTest, DoesNotMakeAFileAgainThatWaitsForOthersOfItsJob) {
  EXPECT_EQ(run("job", 'a'), kTensors);
  EXPECT_EQ(run("job", 'b'), 0);
  EXPECT_EQ(written(), "headaaaaaaaaaaaa");
  EXPECT_EQ(run("other", 'b'), kTensors);
  EXPECT_EQ(written(), "headbbbbbbbbbbbb");
}

TEST_F(ConversionTest, GoesOnFromTheStepsOfTheEnd) {
  run("job", 'a');
  fs::rename(file_, file_.string() + ".partial");  // as where it ended before the file got its name
  EXPECT_EQ(run("job", 'b'), 0);
  EXPECT_EQ(written(), "headaaaaaaaaaaaa");
  fs::remove(file_);  // a journal alone proves nothing
  EXPECT_EQ(run("job", 'b'), kTensors);
  EXPECT_EQ(written(), "headbbbbbbbbbbbb");
}

TEST_F(ConversionTest, KeepsOthersAwayUntilItsEnd) {
  const auto fill = [](int, std::vector<std::byte>&) { return StorageError{}; };
  std::string second;
  {
    Conversion work = conversion("job", [&](int, std::vector<std::byte>&) {
      second = error_of([&] { conversion("other", fill).run(1, false); });
      return StorageError{};
    });
    work.run(1, false);
    EXPECT_PRED2(contains, second, "another process");
    second = error_of([&] { conversion("job", fill).run(1, false); });  // files of the same job may be left
    EXPECT_PRED2(contains, second, "another process");
    work.forget();
  }
  EXPECT_EQ(run("other", 'b'), kTensors);
  EXPECT_EQ(written(), "headbbbbbbbbbbbb");
}

TEST_F(ConversionTest, DropsWhatAPieceHoldsWhenItIsWritten) {
  auto held = std::make_shared<int>();
  const std::weak_ptr<int> seen = held;
  Conversion work(file_, "", 2, "job");
  for (int i = 0; i < 2; ++i) {
    work.add_tensor(std::to_string(i), "part");
    work.add_piece({{static_cast<std::uint64_t>(i), 1}}, 1,
                   [seen, held = i == 0 ? held : nullptr](std::vector<std::byte>&) {
                     EXPECT_EQ(seen.expired(), held == nullptr);
                     return StorageError{};
                   });
  }
  held.reset();
  work.run(1, false);
}

}  // namespace
}  // namespace shoal
