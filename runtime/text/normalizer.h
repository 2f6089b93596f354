#pragma once
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/json_field.h"

namespace shoal::text {

/// What a tokenizer does to a text before it cuts it: the "normalizer" of tokenizer.json.
class Normalizer {
 public:
  /// Does nothing.
  Normalizer() = default;
  /// Reads NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend, Replace and Sequence; throws Error naming anything else.
  static Normalizer from_json(const JsonField& json);

  bool empty() const { return steps_.empty(); }
  /// The normalized form of `text` (valid UTF-8).
  std::string apply(std::string_view text) const;

 private:
  using Step = std::function<std::string(std::string_view)>;
  void add(const JsonField& json, int depth);
  std::vector<Step> steps_;
};

}  // namespace shoal::text
