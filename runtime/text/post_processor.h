#pragma once
#include <cstdint>
#include <vector>

#include "runtime/text/json_field.h"

namespace shoal::text {

/// The special tokens that go around an encoded text: the "post_processor" of tokenizer.json.
struct PostProcessor {
  std::vector<int32_t> before;
  std::vector<int32_t> after;

  /// Reads TemplateProcessing (its template for a single text), BertProcessing, RobertaProcessing, ByteLevel (which
  /// only trims offsets) and Sequence; throws Error naming anything else.
  static PostProcessor from_json(const JsonField& json);
};

}  // namespace shoal::text
