#pragma once
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "runtime/step.h"

namespace shoal {

/// A stretch of text and what a model says of it.
struct ScoredWindow {
  std::vector<std::int32_t> tokens;
  std::size_t context = 1;           // tokens at its beginning that are not scored, at least one
  std::vector<TokenLogprob> scores;  // of tokens[context] and all after it
};

/// Writes windows to a file, for later runs to compare with: a line of text that says what it is, then for each window
/// its tokens, how many of them are context and, a position after the other, log-probability and likeliest tokens.
/// Little endian.
class ScoredRunWriter {
 public:
  ScoredRunWriter(const std::filesystem::path& path, int vocab_size);
  void add(const ScoredWindow& window);
  /// Error where anything could not be written.
  void finish();

 private:
  std::filesystem::path path_;
  std::ofstream out_;
};

class ScoredRunReader {
 public:
  /// Error where it is no such file, or of a model with another vocabulary.
  ScoredRunReader(const std::filesystem::path& path, int vocab_size);
  /// The next window; none at the end. Error naming the file where it is cut off.
  std::optional<ScoredWindow> next();

 private:
  template <class T>
  T take();
  std::filesystem::path path_;
  std::ifstream in_;
  int vocab_size_;
};

}  // namespace shoal
