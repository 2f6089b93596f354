#include "runtime/text/pretokenizer.h"

#include <utility>

#include "base/error.h"
#include "runtime/text/regex.h"
#include "runtime/text/split_pattern.h"
#include "runtime/text/utf8.h"

namespace shoal::text {
namespace {

// The pattern GPT-2 introduced, which ByteLevel applies unless use_regex is false.
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

class SplitStep final : public PreTokenizer::Step {
 public:
  SplitStep(Regex pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  void apply(Pieces& pieces) const override {
    std::vector<Piece> out;
    std::vector<ByteRange> matches, ranges;
    for (const Piece& piece : pieces.pieces) {
      pattern_.find_all(piece.text, matches);
      split_at(matches, piece.text.size(), behavior_, invert_, ranges);
      for (const ByteRange r : ranges)
        out.push_back({piece.text.substr(r.begin, r.end - r.begin), piece.starts_text && r.begin == 0});
    }
    pieces.pieces = std::move(out);
  }

 private:
  Regex pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

/// ByteLevel's add_prefix_space.
class PrefixSpaceStep final : public PreTokenizer::Step {
 public:
  void apply(Pieces& pieces) const override {
    for (Piece& piece : pieces.pieces)
      if (!piece.text.starts_with(' ')) piece.text = pieces.rewritten.emplace_back(1, ' ').append(piece.text);
  }
};

/// SentencePiece's way to make spaces part of words: each space becomes a visible character.
class MetaspaceStep final : public PreTokenizer::Step {
 public:
  enum class Prepend { always, first, never };

  MetaspaceStep(std::string replacement, Prepend prepend) : replacement_(std::move(replacement)), prepend_(prepend) {}

  void apply(Pieces& pieces) const override {
    for (Piece& piece : pieces.pieces) {
      const bool prepend = prepend_ == Prepend::always || (prepend_ == Prepend::first && piece.starts_text);
      const bool has_it = piece.text.starts_with(' ') || piece.text.starts_with(replacement_);
      std::string text = prepend && !has_it ? replacement_ : std::string();
      for (const char c : piece.text) {
        if (c == ' ')
          text += replacement_;
        else
          text += c;
      }
      piece.text = pieces.rewritten.emplace_back(std::move(text));
    }
  }

 private:
  std::string replacement_;
  Prepend prepend_;
};

MetaspaceStep::Prepend read_prepend_scheme(const JsonField& json) {
  const auto scheme = json.find("prepend_scheme");
  // Files from before prepend_scheme have a flag instead.
  if (!scheme)
    return json.bool_or("add_prefix_space", true) ? MetaspaceStep::Prepend::always : MetaspaceStep::Prepend::never;
  const std::string& name = scheme->as_string();
  if (name == "always") return MetaspaceStep::Prepend::always;
  if (name == "first") return MetaspaceStep::Prepend::first;
  if (name == "never") return MetaspaceStep::Prepend::never;
  scheme->reject("expected always, first or never");
}

std::string read_one_character(const JsonField& json) {
  const std::string& text = json.as_string();
  if (text.empty() || !decode_utf8(text, 0).valid || decode_utf8(text, 0).size != text.size())
    json.reject("expected one character");
  return text;
}

}  // namespace

PreTokenizer PreTokenizer::from_json(const JsonField& json) {
  PreTokenizer out;
  out.add(json, 0);
  return out;
}

void PreTokenizer::add(const JsonField& json, int depth) {
  if (depth > kMostNested) json.reject("nested too deeply");
  const std::string& type = json.at("type").as_string();
  const auto split = [&](Regex pattern, SplitBehavior behavior, bool invert = false) {
    steps_.push_back(std::make_shared<SplitStep>(std::move(pattern), behavior, invert));
  };
  if (type == "Sequence") {
    for (const JsonField& step : json.at("pretokenizers").elements()) add(step, depth + 1);
    return;
  }
  // A step after ByteLevel would see its stand-in characters, which are never made here.
  if (byte_level_) json.reject("pre-tokenizer " + type + " after ByteLevel is not supported");
  if (type == "Split") {
    split(read_pattern(json.at("pattern")), read_split_behavior(json.at("behavior")), json.bool_or("invert", false));
  } else if (type == "ByteLevel") {
    if (json.bool_or("add_prefix_space", true)) steps_.push_back(std::make_shared<PrefixSpaceStep>());
    if (json.bool_or("use_regex", true))
      split(Regex::compile(kByteLevelPattern, json.place()), SplitBehavior::isolated);
    byte_level_ = true;
  } else if (type == "Digits") {
    const bool individual = json.bool_or("individual_digits", false);
    split(Regex::compile("\\p{N}", json.place()), individual ? SplitBehavior::isolated : SplitBehavior::contiguous);
  } else if (type == "Punctuation") {
    const auto behavior = json.find("behavior");
    split(Regex::compile("[!-/:-@\\[-`{-~\\p{P}]", json.place()),
          behavior ? read_split_behavior(*behavior) : SplitBehavior::isolated);
  } else if (type == "Whitespace") {
    split(Regex::compile("\\w+|[^\\w\\s]+", json.place()), SplitBehavior::removed, true);
  } else if (type == "WhitespaceSplit") {
    split(Regex::compile("\\s", json.place()), SplitBehavior::removed);
  } else if (type == "CharDelimiterSplit") {
    const JsonField delimiter = json.at("delimiter");
    split(Regex::literal(read_one_character(delimiter), delimiter.place()), SplitBehavior::removed);
  } else if (type == "Metaspace") {
    const std::string replacement = read_one_character(json.at("replacement"));
    steps_.push_back(std::make_shared<MetaspaceStep>(replacement, read_prepend_scheme(json)));
    if (json.bool_or("split", true)) split(Regex::literal(replacement, json.place()), SplitBehavior::merged_with_next);
  } else {
    json.reject("pre-tokenizer " + type + " is not supported");
  }
}

void PreTokenizer::apply(Pieces& pieces) const {
  for (const auto& step : steps_) step->apply(pieces);
}

}  // namespace shoal::text
