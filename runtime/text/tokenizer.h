#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace shoal {

/// A byte-level (or SentencePiece-like) BPE tokenizer, read from a tokenizer.json. It gives the ids and texts that the
/// `tokenizers` package gives for the same file. Immutable, cheap to copy, and safe to use from many threads.
class Tokenizer {
 public:
  /// Reads a tokenizer.json. Throws Error naming the file and the field that is malformed or not supported.
  static Tokenizer from_file(const std::filesystem::path& tokenizer_json);
  /// Reads DIR/tokenizer.json; where DIR/tokenizer_config.json has add_bos_token or add_eos_token, those decide whether
  /// encode() adds its bos_token and eos_token, as they do for transformers' Llama tokenizers (DeepSeek's among them).
  static Tokenizer from_model_dir(const std::filesystem::path& dir);
  /// The contents of a tokenizer.json that came from elsewhere; errors begin with `place`.
  static Tokenizer from_json(const nlohmann::json& json, const std::string& place);

  /// The ids of `text`; what is not UTF-8 in it counts as U+FFFD. add_special_tokens puts the tokenizer's special
  /// tokens around it (BOS). With parse_special false, special tokens written in the text are plain text: use that for
  /// text from users.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens, bool parse_special = true) const;
  /// The text of `ids`; bytes that are not UTF-8 become U+FFFD. Ids without a token stand for nothing.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  /// The bytes that one token stands for inside a text (an added token: its text); empty where there is no such token.
  std::string token_bytes(int32_t id) const;
  /// The id of a token as it is written in the vocabulary ("Ġhello") or among the added tokens.
  std::optional<int32_t> token_to_id(std::string_view token) const;
  /// A token as it is written in the vocabulary; empty where there is no such token.
  std::string id_to_token(int32_t id) const;
  bool is_special(int32_t id) const;
  /// One more than the largest id. Ids below it may have no token.
  int32_t vocab_size() const;

 private:
  friend class StreamDecoder;
  struct Parts;
  explicit Tokenizer(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}
  std::shared_ptr<const Parts> parts_;
};

/// Decodes tokens as they come, without ever giving out part of a UTF-8 character. What all calls give out, joined, is
/// what Tokenizer::decode gives for all ids.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special) : tokenizer_(tokenizer), skip_special_(skip_special) {}

  /// The text that has become certain with this token; may be empty.
  std::string push(int32_t id);
  /// The text that was held back; bytes of an unfinished character become U+FFFD.
  std::string finish();

 private:
  std::string push_bytes(std::string_view bytes);
  std::string push_in_context(int32_t id);
  std::string flush_window();

  Tokenizer tokenizer_;
  bool skip_special_;
  std::string pending_;  // bytes of a character that is not complete
  // For decoders that look at neighbours: tokens given out, which only lend context, then tokens held back (a run of
  // bytes is worth nothing until it ends).
  std::vector<int32_t> window_;
  size_t window_done_ = 0;
};

}  // namespace shoal
