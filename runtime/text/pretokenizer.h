#pragma once
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/json_field.h"

namespace shoal::text {

/// One part of a text that the model's merges may not cross.
struct Piece {
  std::string_view text;
  bool starts_text = false;  // whether it lies at the very beginning of the encoded text
};

/// A text cut into pieces, and the storage of those that a step rewrote.
struct Pieces {
  std::vector<Piece> pieces;
  std::deque<std::string> rewritten;
};

/// How a tokenizer cuts a text into pieces: the "pre_tokenizer" of tokenizer.json.
class PreTokenizer {
 public:
  /// Leaves a text in one piece.
  PreTokenizer() = default;
  /// Reads Sequence, Split, ByteLevel, Digits, Punctuation, Whitespace, WhitespaceSplit, CharDelimiterSplit and
  /// Metaspace; throws Error naming anything else, and where a ByteLevel is not the last step.
  static PreTokenizer from_json(const JsonField& json);

  /// True where pieces are to be tokenized byte by byte.
  bool byte_level() const { return byte_level_; }
  /// Cuts pieces.pieces further.
  void apply(Pieces& pieces) const;

  /// One step: replaces the pieces by smaller ones.
  class Step {
   public:
    virtual ~Step() = default;
    virtual void apply(Pieces& pieces) const = 0;
  };

 private:
  void add(const JsonField& json, int depth);
  std::vector<std::shared_ptr<const Step>> steps_;
  bool byte_level_ = false;
};

}  // namespace shoal::text
