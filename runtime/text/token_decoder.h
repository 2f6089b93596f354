#pragma once
#include <string>
#include <variant>
#include <vector>

#include "runtime/text/json_field.h"
#include "runtime/text/regex.h"

namespace shoal::text {

/// How tokens become text again: the "decoder" of tokenizer.json.
class TokenDecoder {
 public:
  /// Joins the tokens with spaces, as `tokenizers` does without a decoder.
  TokenDecoder() = default;
  /// Reads ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace and Sequence; throws Error naming anything else.
  static TokenDecoder from_json(const JsonField& json);

  /// True where each token stands for certain bytes, whatever its neighbours are.
  bool byte_level() const;
  /// True where `token` is one byte of a run of bytes, whose text depends on the whole run.
  bool is_byte_of_run(const std::string& token) const;
  /// The text of a list of tokens.
  std::string decode(std::vector<std::string> tokens) const;
  /// The bytes one token of the vocabulary stands for inside a text.
  std::string token_bytes(const std::string& token) const;

 private:
  struct ByteLevel {};
  struct ByteFallback {};
  struct Fuse {};
  struct Replace {
    Regex pattern;
    std::string content;
  };
  struct Strip {
    std::string content;
    int64_t start, stop;
  };
  struct Metaspace {
    std::string replacement;
    bool drop_first;  // whether encoding put one before the first word
  };
  using Step = std::variant<ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace>;

  static void run(const ByteLevel& step, std::vector<std::string>& tokens);
  static void run(const ByteFallback& step, std::vector<std::string>& tokens);
  static void run(const Fuse& step, std::vector<std::string>& tokens);
  static void run(const Replace& step, std::vector<std::string>& tokens);
  static void run(const Strip& step, std::vector<std::string>& tokens);
  static void run(const Metaspace& step, std::vector<std::string>& tokens);
  void add(const JsonField& json, int depth);

  std::vector<Step> steps_;
};

}  // namespace shoal::text
