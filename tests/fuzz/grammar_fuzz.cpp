// libFuzzer target: any text taken as a grammar (GBNF, a JSON schema or a regular expression, by its first byte) either
// gives one that can be walked, or an Error, in bounded time and memory. The rest of the input behind a zero byte is
// what the grammar reads: a token that the mask allows must be one that it takes, and the other way round.
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "runtime/grammar/gbnf.h"
#include "runtime/grammar/gbnf_text.h"
#include "runtime/grammar/json_schema.h"
#include "runtime/grammar/token_grammar.h"

namespace {

using namespace shoal::grammar;

std::string grammar_of(char kind, std::string_view text) {
  if (kind == 's') {
    const auto schema = nlohmann::ordered_json::parse(text, nullptr, false);
    if (schema.is_discarded()) throw shoal::Error("no JSON");
    return gbnf_of_json_schema(schema);
  }
  if (kind == 'r' || kind == 'j') {
    return "root ::= " + gbnf_of_regex(text, kind == 'j' ? Quoting::json : Quoting::none, kind == 'r');
  }
  return std::string(text);
}

std::shared_ptr<const TokenTable> bytes_and_words() {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  for (const char* word : {"{\"", "\":", "true", "null", "12", " \n", "é", "\\u00", "aaaa", "", "-1"})
    tokens.emplace_back(word);
  return std::make_shared<const TokenTable>(std::move(tokens));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  static const auto tokens = bytes_and_words();
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::size_t zero = input.find('\0');
  const std::string_view read = zero == input.npos ? std::string_view() : input.substr(zero + 1);
  try {
    const auto grammar =
        std::make_shared<TokenGrammar>(grammar_of(static_cast<char>(data[0]), input.substr(0, zero)), tokens);
    Matcher matcher(grammar);
    for (std::size_t i = 0; i < read.size() && i < 64; ++i) {
      const std::size_t token = static_cast<std::uint8_t>(read[i]) % tokens->vocab_size();
      const bool allowed = holds(matcher.allowed(), token);
      if (matcher.push(tokens->bytes(static_cast<std::int32_t>(token))) != allowed) std::abort();
      if (!allowed) break;
    }
    static_cast<void>(matcher.accepts());
  } catch (const shoal::Error&) {
  }
  return 0;
}
