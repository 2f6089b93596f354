#include "runtime/text/normalizer.h"

#include "runtime/text/split_pattern.h"
#include "runtime/text/unicode_normalize.h"
#include "runtime/text/utf8.h"

namespace shoal::text {
namespace {

std::string strip(std::string_view text, bool left, bool right) {
  size_t begin = 0, end = 0;
  bool seen = false;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text, at);
    if (!is_white_space(c.value)) {
      if (!seen) begin = at;
      end = at + c.size;
      seen = true;
    }
    at += c.size;
  }
  if (!seen) return left || right ? "" : std::string(text);
  if (!left) begin = 0;
  if (!right) end = text.size();
  return std::string(text.substr(begin, end - begin));
}

}  // namespace

Normalizer Normalizer::from_json(const JsonField& json) {
  Normalizer out;
  out.add(json, 0);
  return out;
}

void Normalizer::add(const JsonField& json, int depth) {
  if (depth > kMostNested) json.reject("nested too deeply");
  const std::string& type = json.at("type").as_string();
  const auto unicode = [&](NormalizationForm form) {
    steps_.emplace_back([form](std::string_view text) { return unicode_normalize(text, form); });
  };
  if (type == "Sequence") {
    for (const JsonField& step : json.at("normalizers").elements()) add(step, depth + 1);
  } else if (type == "NFC") {
    unicode(NormalizationForm::nfc);
  } else if (type == "NFD") {
    unicode(NormalizationForm::nfd);
  } else if (type == "NFKC") {
    unicode(NormalizationForm::nfkc);
  } else if (type == "NFKD") {
    unicode(NormalizationForm::nfkd);
  } else if (type == "Lowercase") {
    steps_.emplace_back(lowercase);
  } else if (type == "Strip") {
    const bool left = json.at("strip_left").as_bool(), right = json.at("strip_right").as_bool();
    steps_.emplace_back([=](std::string_view text) { return strip(text, left, right); });
  } else if (type == "Prepend") {
    steps_.emplace_back([prefix = json.at("prepend").as_string()](std::string_view text) {
      return text.empty() ? std::string() : prefix + std::string(text);
    });
  } else if (type == "Replace") {
    steps_.emplace_back([pattern = read_pattern(json.at("pattern")), content = json.at("content").as_string()](
                            std::string_view text) { return replace_matches(text, pattern, content); });
  } else {
    json.reject("normalizer " + type + " is not supported");
  }
}

std::string Normalizer::apply(std::string_view text) const {
  std::string out(text);
  for (const Step& step : steps_) out = step(out);
  return out;
}

}  // namespace shoal::text
