#include "launch/logprobs_json.h"

#include <fmt/format.h>

#include <algorithm>

#include "runtime/text/utf8.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

/// JSON has no minus infinity; OpenAI writes this instead.
double finite(float logprob) { return std::max<double>(logprob, -9999.0); }

std::string bytes_of(const Tokenizer* tokenizer, std::int32_t token) {
  return tokenizer ? tokenizer->token_bytes(token) : std::string();
}

int continuations_after(unsigned char lead) {
  if (lead < 0xC0) return 0;
  return lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
}

}  // namespace

std::string token_label(const Tokenizer* tokenizer, std::int32_t token) {
  const std::string bytes = bytes_of(tokenizer, token);
  if (bytes.empty()) return fmt::format("token_id:{}", token);
  if (text::is_valid_utf8(bytes)) return bytes;
  std::string label = "bytes:";
  for (const char c : bytes) label += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return label;
}

void LegacyLogprobs::add_token(std::int32_t token, bool in_text) {
  tokens_.push_back(token_label(tokenizer_, token));
  offsets_.push_back(characters_ - (missing_continuations_ > 0 ? 1 : 0));
  if (!in_text) return;
  for (const char c : bytes_of(tokenizer_, token)) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte & 0xC0) == 0x80 && missing_continuations_ > 0) {
      --missing_continuations_;
    } else {
      ++characters_;
      missing_continuations_ = continuations_after(byte);
    }
  }
}

void LegacyLogprobs::add_first(std::int32_t token, bool in_text) {
  add_token(token, in_text);
  logprobs_.push_back(nullptr);
  top_.push_back(nullptr);
}

void LegacyLogprobs::add(const TokenLogprob& token, bool in_text) {
  add_token(token.token, in_text);
  logprobs_.push_back(finite(token.logprob));
  Json alternatives = Json::object();
  for (const auto& [id, logprob] : token.top) alternatives.emplace(token_label(tokenizer_, id), finite(logprob));
  alternatives.emplace(token_label(tokenizer_, token.token), finite(token.logprob));  // unless it is there already
  top_.push_back(std::move(alternatives));
}

Json LegacyLogprobs::take() {
  Json object = {{"tokens", std::exchange(tokens_, Json::array())},
                 {"token_logprobs", std::exchange(logprobs_, Json::array())},
                 {"top_logprobs", std::exchange(top_, Json::array())},
                 {"text_offset", std::exchange(offsets_, Json::array())}};
  return object;
}

Json chat_logprobs(const Tokenizer* tokenizer, std::span<const TokenLogprob> tokens) {
  const auto entry = [&](std::int32_t id, float logprob) {
    const std::string bytes = bytes_of(tokenizer, id);
    Json numbers = Json::array();
    for (const char c : bytes) numbers.push_back(static_cast<unsigned char>(c));
    return Json{{"token", bytes.empty() ? token_label(tokenizer, id) : text::replace_invalid_utf8(bytes)},
                {"logprob", finite(logprob)},
                {"bytes", bytes.empty() ? Json(nullptr) : std::move(numbers)}};
  };
  Json entries = Json::array();
  for (const TokenLogprob& token : tokens) {
    Json described = entry(token.token, token.logprob);
    described["top_logprobs"] = Json::array();
    for (const auto& [id, logprob] : token.top) described["top_logprobs"].push_back(entry(id, logprob));
    entries.push_back(std::move(described));
  }
  return entries;
}

}  // namespace shoal
