#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "runtime/text/json_field.h"
#include "runtime/text/merge_table.h"
#include "runtime/text/vocabulary.h"

namespace shoal::text {

/// Byte-pair encoding: a piece of text begins as its characters (or bytes), and the neighbours whose merge was learned
/// first are joined until no learned merge applies.
class Bpe {
 public:
  /// Reads a "model" of type BPE; throws Error naming what is malformed or not supported. `byte_level` says that
  /// pieces are bytes, written in the vocabulary as byte-level characters.
  static Bpe from_json(const JsonField& model, bool byte_level);

  const Vocabulary& vocabulary() const { return vocabulary_; }
  /// Appends the ids of one piece (valid UTF-8).
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

 private:
  void read_vocabulary(const JsonField& vocab);
  void read_merges(const JsonField& merges);
  void add_merge(std::string_view left, std::string_view right, uint32_t rank, std::string_view place);
  void find_byte_tokens(const JsonField& model);
  std::string vocabulary_form(std::string_view piece) const;
  void append_symbols(std::string_view piece, std::vector<int32_t>& symbols) const;

  Vocabulary vocabulary_;
  MergeTable merges_;
  bool byte_level_ = false;
  bool ignore_merges_ = false;  // a piece that is a token as a whole becomes that token
  bool byte_fallback_ = false;  // a character outside the vocabulary becomes its bytes' tokens <0xHH>
  bool fuse_unknown_ = false;   // neighbouring unknown characters become one unknown token
  std::optional<int32_t> unknown_;
  std::array<int32_t, 256> byte_tokens_{};  // the token of each byte (or <0xHH> token); -1 where there is none
};

}  // namespace shoal::text
