// libFuzzer target. An input that begins with '{' is taken as a tokenizer.json: it gives a tokenizer or an Error. Any
// other is a text for the demo model's tokenizer: its ids are those of a vocabulary, and they say the text again, whole
// and as a stream. Run it in the repository.
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/error.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/utf8.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void use(const shoal::Tokenizer& tokenizer, std::string_view text, bool says_it_again) {
  const auto ids = tokenizer.encode(text, false, false);
  for (const auto id : ids) require(id >= 0 && id < tokenizer.vocab_size());
  const std::string whole = tokenizer.decode(ids, false);
  shoal::StreamDecoder decoder(tokenizer, false);
  std::string streamed;
  for (const auto id : ids) streamed += decoder.push(id);
  require(streamed + decoder.finish() == whole);
  if (says_it_again && shoal::text::is_valid_utf8(text)) require(whole == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto demo = shoal::Tokenizer::from_file("launch/demo-model/tokenizer.json");
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  if (input.empty() || input[0] != '{') {
    use(demo, input, true);
    return 0;
  }
  const auto json = nlohmann::json::parse(input, nullptr, false);
  if (json.is_discarded()) return 0;
  try {
    use(shoal::Tokenizer::from_json(json, "fuzz"), "Hé 12 \xF0\x9F\x98\x80\n<s>ab", false);
  } catch (const shoal::Error&) {
  }
  return 0;
}
