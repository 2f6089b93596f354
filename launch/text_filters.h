#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

/// What happens to an answer's text between the tokenizer and the reader, piece by piece as it is generated.
namespace shoal {

/// Cuts a text off at the first of some stop strings. What might be the beginning of one is held back until it is
/// decided. Of several stop strings, the one that is complete first counts.
class StopFinder {
 public:
  /// include_stop: the stop string is part of what is returned.
  explicit StopFinder(std::vector<std::string> stops, bool include_stop = false);

  /// Takes more text; returns what has become certain.
  std::string push(std::string_view text);
  /// No more text comes: returns what was held back.
  std::string finish();
  /// A stop string was met; nothing comes any more.
  bool found() const { return found_; }

 private:
  std::size_t possible_start() const;

  std::vector<std::string> stops_;
  const bool include_stop_;
  std::string held_;
  bool found_ = false;
};

/// Tells a model's thinking from its answer: <think> thinking </think> answer. White space around both is dropped.
class ReasoningSplitter {
 public:
  /// starts_inside: the prompt ended with <think>, as R1's does; else the answer may begin with it.
  explicit ReasoningSplitter(bool starts_inside);

  struct Piece {
    std::string reasoning, content;
  };
  Piece push(std::string_view text);
  /// No more text comes: returns what was held back.
  Piece finish();
  bool inside() const { return state_ == State::reasoning; }

 private:
  enum class State { start, reasoning, before_content, content };
  void advance(Piece& piece, bool last);

  State state_;
  bool reasoning_began_ = false;  // past its leading white space
  std::string held_;
};

}  // namespace shoal
