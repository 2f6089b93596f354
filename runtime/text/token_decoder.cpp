#include "runtime/text/token_decoder.h"

#include <optional>
#include <string_view>

#include "runtime/text/byte_level.h"
#include "runtime/text/split_pattern.h"
#include "runtime/text/utf8.h"

namespace shoal::text {
namespace {

std::string join(const std::vector<std::string>& tokens, std::string_view separator) {
  std::string out;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) out += separator;
    out += tokens[i];
  }
  return out;
}

/// The byte that a token like <0x0A> stands for.
std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    if (c >= '0' && c <= '9')
      value = value * 16 + (c - '0');
    else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
      value = value * 16 + ((c | 0x20) - 'a' + 10);
    else
      return std::nullopt;
  }
  return static_cast<char>(value);
}

}  // namespace

TokenDecoder TokenDecoder::from_json(const JsonField& json) {
  TokenDecoder out;
  out.add(json, 0);
  return out;
}

void TokenDecoder::add(const JsonField& json, int depth) {
  if (depth > kMostNested) json.reject("nested too deeply");
  const std::string& type = json.at("type").as_string();
  if (type == "Sequence") {
    for (const JsonField& step : json.at("decoders").elements()) add(step, depth + 1);
  } else if (type == "ByteLevel") {
    steps_.emplace_back(ByteLevel{});
  } else if (type == "ByteFallback") {
    steps_.emplace_back(ByteFallback{});
  } else if (type == "Fuse") {
    steps_.emplace_back(Fuse{});
  } else if (type == "Replace") {
    steps_.emplace_back(Replace{read_pattern(json.at("pattern")), json.at("content").as_string()});
  } else if (type == "Strip") {
    constexpr int64_t kMany = 1 << 20;
    steps_.emplace_back(
        Strip{json.at("content").as_string(), json.at("start").as_int(0, kMany), json.at("stop").as_int(0, kMany)});
  } else if (type == "Metaspace") {
    const bool drop = json.find("prepend_scheme") ? json.at("prepend_scheme").as_string() != "never"
                                                  : json.bool_or("add_prefix_space", true);
    steps_.emplace_back(Metaspace{json.at("replacement").as_string(), drop});
  } else {
    json.reject("decoder " + type + " is not supported");
  }
}

bool TokenDecoder::byte_level() const {
  return steps_.size() == 1 && std::holds_alternative<ByteLevel>(steps_.front());
}

void TokenDecoder::run(const ByteLevel&, std::vector<std::string>& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) bytes += byte_level_decode(token);
  tokens = {replace_invalid_utf8(bytes)};
}

void TokenDecoder::run(const ByteFallback&, std::vector<std::string>& tokens) {
  std::vector<std::string> out;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (is_valid_utf8(bytes)) {
      out.push_back(bytes);
    } else {  // `tokenizers` gives up on the whole run: one U+FFFD for each of its bytes
      for (size_t i = 0; i < bytes.size(); ++i) append_utf8(out.emplace_back(), kReplacementCharacter);
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    if (const auto byte = fallback_byte(token)) {
      bytes += *byte;
    } else {
      flush();
      out.push_back(std::move(token));
    }
  }
  flush();
  tokens = std::move(out);
}

void TokenDecoder::run(const Fuse&, std::vector<std::string>& tokens) { tokens = {join(tokens, "")}; }

void TokenDecoder::run(const Replace& step, std::vector<std::string>& tokens) {
  for (std::string& token : tokens) token = replace_matches(token, step.pattern, step.content);
}

void TokenDecoder::run(const Strip& step, std::vector<std::string>& tokens) {
  if (step.content.empty()) return;
  for (std::string& token : tokens) {
    std::string_view text = token;
    for (int64_t i = 0; i < step.start && text.starts_with(step.content); ++i) text.remove_prefix(step.content.size());
    for (int64_t i = 0; i < step.stop && text.ends_with(step.content); ++i) text.remove_suffix(step.content.size());
    token = std::string(text);
  }
}

void TokenDecoder::run(const Metaspace& step, std::vector<std::string>& tokens) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::string_view rest = tokens[i];
    if (i == 0 && step.drop_first && rest.starts_with(step.replacement)) rest.remove_prefix(step.replacement.size());
    std::string out;
    for (size_t at = 0; at < rest.size();) {
      const bool space = !step.replacement.empty() && rest.substr(at).starts_with(step.replacement);
      out += space ? ' ' : rest[at];
      at += space ? step.replacement.size() : 1;
    }
    tokens[i] = std::move(out);
  }
}

std::string TokenDecoder::decode(std::vector<std::string> tokens) const {
  if (steps_.empty()) return join(tokens, " ");
  for (const Step& step : steps_) std::visit([&](const auto& s) { run(s, tokens); }, step);
  return replace_invalid_utf8(join(tokens, ""));
}

bool TokenDecoder::is_byte_of_run(const std::string& token) const {
  for (const Step& step : steps_)
    if (std::holds_alternative<ByteFallback>(step)) return fallback_byte(token).has_value();
  return false;
}

std::string TokenDecoder::token_bytes(const std::string& token) const {
  std::vector<std::string> tokens = {token};
  for (const Step& step : steps_) {
    if (std::holds_alternative<ByteLevel>(step)) return byte_level_decode(token);
    if (std::holds_alternative<ByteFallback>(step))
      if (const auto byte = fallback_byte(tokens.front())) return std::string(1, *byte);
    if (const auto* replace = std::get_if<Replace>(&step)) run(*replace, tokens);
    if (const auto* metaspace = std::get_if<Metaspace>(&step)) run(Metaspace{metaspace->replacement, false}, tokens);
  }
  return tokens.front();
}

}  // namespace shoal::text
