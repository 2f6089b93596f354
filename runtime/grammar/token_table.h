#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/tokenizer.h"

namespace shoal::grammar {

/// The tokens that may stand in a text, in the order of their bytes. Special tokens are not among them.
class TokenTable {
 public:
  /// Of a vocabulary as large as the model's row of logits, which may be larger than the tokenizer's.
  TokenTable(const Tokenizer& tokenizer, std::int32_t vocab_size);
  /// The bytes of each id; empty: no text.
  explicit TokenTable(std::vector<std::string> tokens);

  struct Entry {
    std::int32_t id;
    std::uint32_t common;  // bytes at the front that it shares with the entry before
  };
  const std::vector<Entry>& sorted() const { return sorted_; }
  /// Empty for ids that are no text.
  std::string_view bytes(std::int32_t id) const;
  std::size_t vocab_size() const { return tokens_.size(); }

 private:
  std::vector<std::string> tokens_;
  std::vector<Entry> sorted_;
};

}  // namespace shoal::grammar
