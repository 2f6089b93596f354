#include "runtime/gguf_tokenizer.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string_view>
#include <unordered_map>

#include "base/error.h"
#include "planner/json_fields.h"

namespace shoal {
namespace {

using nlohmann::json;

/// What tokenizer.ggml.token_type says of a token.
enum TokenType { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

/// How a family cuts text before merging: patterns, each applied to what the one before left, as in its tokenizer.json.
struct SplittingRule {
  std::vector<std::string_view> names;  // values of tokenizer.ggml.pre
  std::vector<std::string_view> patterns;
  bool nfc = false;            // text is normalized first
  bool ignore_merges = false;  // a piece that is a token is not merged anew
  bool digits = false;         // digits are cut apart first, and the pattern is ByteLevel's own
};

constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDeepseekV3Words =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
// clang-format off
constexpr std::string_view kDeepseekLetters =
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-"
    "ἕἘ-"
    "Ἕἠ-"
    "ὅὈ-"
    "Ὅὐ-"
    "ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-"
    "ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-"
    "Ｚａ-"
    "ｚ𐐀-"
    "𐑏𐒰-"
    "𐓓𐓘-"
    "𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟"
    "𞤀-𞥃]+";
// clang-format on

const std::vector<SplittingRule>& splitting_rules() {
  static const std::vector<SplittingRule> rules = {
      {.names = {"llama-bpe", "llama3", "llama-v3", "smaug-bpe"}, .patterns = {kLlama3}, .ignore_merges = true},
      {.names = {"qwen2", "deepseek-r1-qwen"}, .patterns = {kQwen2}, .nfc = true},
      {.names = {"deepseek-v3"}, .patterns = {"\\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", kDeepseekV3Words}},
      {.names = {"deepseek-llm"},
       .patterns = {"[\r\n]", kDeepseekLetters, "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$", "[一-龥ࠀ-一가-퟿]+"},
       .digits = true},
      {.names = {"deepseek-coder"},
       .patterns = {"[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+"},
       .digits = true},
      {.names = {"gpt-2", "default"}, .patterns = {}},
  };
  return rules;
}

json split(std::string_view pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

json byte_level(bool own_pattern) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", own_pattern}};
}

json pre_tokenizer(const SplittingRule& rule) {
  json steps = json::array();
  for (const auto pattern : rule.patterns) steps.push_back(split(pattern));
  if (rule.digits) steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
  steps.push_back(byte_level(rule.patterns.empty()));
  return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

class Builder {
 public:
  Builder(const json& metadata, const std::string& place) : fields_(metadata, place) {
    tokens_ = strings("tokenizer.ggml.tokens");
    if (tokens_.empty()) fields_.reject("tokenizer.ggml.tokens", "is missing");
    for (const auto type : fields_.integers("tokenizer.ggml.token_type")) types_.push_back(static_cast<int>(type));
    if (types_.empty()) types_.assign(tokens_.size(), normal);
    if (types_.size() != tokens_.size()) {
      fields_.reject("tokenizer.ggml.token_type",
                     fmt::format("has {} entries for {} tokens", types_.size(), tokens_.size()));
    }
  }

  json build() {
    const std::string model = fields_.string_or("tokenizer.ggml.model", "");
    json result = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
    result["normalizer"] = nullptr;
    result["pre_tokenizer"] = nullptr;
    if (model == "gpt2") {
      byte_level_bpe(result);
    } else if (model == "llama") {
      sentence_piece(result);
    } else {
      fields_.reject("tokenizer.ggml.model", fmt::format("\"{}\" is not supported (gpt2 and llama are)", model));
    }
    result["added_tokens"] = added_tokens();
    result["post_processor"] = post_processor(model == "llama");
    return result;
  }

 private:
  void byte_level_bpe(json& result) {
    const std::string pre = fields_.string_or("tokenizer.ggml.pre", "default");
    const auto& rules = splitting_rules();
    const auto rule = std::find_if(rules.begin(), rules.end(), [&](const SplittingRule& r) {
      return std::find(r.names.begin(), r.names.end(), pre) != r.names.end();
    });
    if (rule == rules.end()) {
      std::vector<std::string_view> known;
      for (const auto& r : rules) known.insert(known.end(), r.names.begin(), r.names.end());
      fields_.reject("tokenizer.ggml.pre", fmt::format("\"{}\" is not known ({} are)", pre, fmt::join(known, ", ")));
    }
    if (rule->nfc) result["normalizer"] = {{"type", "NFC"}};
    result["pre_tokenizer"] = pre_tokenizer(*rule);
    result["decoder"] = byte_level(true);
    json& model = result["model"] = bpe();
    model["ignore_merges"] = rule->ignore_merges;
    const json* merges = fields_.find("tokenizer.ggml.merges");
    if (!merges) fields_.reject("tokenizer.ggml.merges", "is missing");
    model["merges"] = usable_merges(model["vocab"]);
  }

  /// Without merges of or into what is no token: llama.cpp takes no notice of them, so files may have some.
  json usable_merges(const json& vocab) const {
    json usable = json::array();
    for (const std::string& merge : strings("tokenizer.ggml.merges")) {
      const auto space = merge.find(' ', 1);
      if (space == merge.npos) fields_.reject("tokenizer.ggml.merges", fmt::format("has the entry \"{}\"", merge));
      const std::string left = merge.substr(0, space), right = merge.substr(space + 1);
      if (vocab.contains(left) && vocab.contains(right) && vocab.contains(left + right)) usable.push_back(merge);
    }
    return usable;
  }

  /// Pieces with scores: the pair whose union has the highest score is merged first. As tokenizer.json has it, that is
  /// a list of merges, best first.
  void sentence_piece(json& result) {
    json steps = json::array();
    if (fields_.boolean_or("tokenizer.ggml.add_space_prefix", true))
      steps.push_back({{"type", "Prepend"}, {"prepend", "▁"}});
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}});
    result["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::move(steps)}};
    result["decoder"] = {
        {"type", "Sequence"},
        {"decoders", json::array({{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
                                  {{"type", "ByteFallback"}},
                                  {{"type", "Fuse"}},
                                  {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}})}};
    json& model = result["model"] = bpe();
    model["byte_fallback"] = true;
    model["fuse_unk"] = true;
    const auto it = std::find(types_.begin(), types_.end(), static_cast<int>(unknown));
    if (it != types_.end()) model["unk_token"] = tokens_[static_cast<std::size_t>(it - types_.begin())];
    model["merges"] = merges_by_score();
  }

  json merges_by_score() const {
    const json* scores = fields_.find("tokenizer.ggml.scores");
    if (!scores || !scores->is_array() || scores->size() != tokens_.size()) {
      fields_.reject("tokenizer.ggml.scores", "must be a list with a number for each token");
    }
    std::unordered_map<std::string_view, std::size_t> id;
    for (std::size_t i = 0; i < tokens_.size(); ++i) id.emplace(tokens_[i], i);
    struct Merge {
      double score;
      std::size_t left, right;
    };
    std::vector<Merge> merges;
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      if (types_[i] != normal) continue;
      if (!(*scores)[i].is_number()) fields_.reject("tokenizer.ggml.scores", "must be a list of numbers");
      const std::string_view token = tokens_[i];
      const std::size_t first = merges.size();
      for (std::size_t cut = 1; cut < token.size(); ++cut) {
        const auto left = id.find(token.substr(0, cut)), right = id.find(token.substr(cut));
        if (left != id.end() && right != id.end())
          merges.push_back({(*scores)[i].get<double>(), left->second, right->second});
      }
      std::sort(merges.begin() + static_cast<std::ptrdiff_t>(first), merges.end(),
                [](const Merge& a, const Merge& b) { return std::pair(a.left, a.right) < std::pair(b.left, b.right); });
    }
    std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) { return a.score > b.score; });
    json list = json::array();
    for (const Merge& m : merges) list.push_back(json::array({tokens_[m.left], tokens_[m.right]}));
    return list;
  }

  json bpe() const {
    json vocab = json::object();
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      // Converters fill gaps of the vocabulary with placeholders; where a text comes twice, the first id is its
      // token's.
      if (!vocab.contains(tokens_[i])) vocab[tokens_[i]] = i;
    }
    return {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"vocab", std::move(vocab)}};
  }

  json added_tokens() const {
    json list = json::array();
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      const bool special = types_[i] == control || (types_[i] == unknown);
      if ((!special && types_[i] != user_defined) || tokens_[i].empty()) continue;
      list.push_back({{"id", i},
                      {"content", tokens_[i]},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", false},
                      {"special", special}});
    }
    return list;
  }

  json post_processor(bool bos_by_default) const {
    json around = json::array({{{"Sequence", {{"id", "A"}, {"type_id", 0}}}}});
    json specials = json::object();
    const auto put = [&](const char* flag, bool standard, const char* key, bool before) {
      const auto ids = fields_.integers(key);
      if (!fields_.boolean_or(flag, standard) || ids.empty()) return;
      const auto id = ids.front();
      if (id < 0 || static_cast<std::size_t>(id) >= tokens_.size())
        fields_.reject(key, fmt::format("is {}, which is no token", id));
      const std::string& token = tokens_[static_cast<std::size_t>(id)];
      around.insert(before ? around.begin() : around.end(), json{{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
      specials[token] = {{"id", token}, {"ids", json::array({id})}, {"tokens", json::array({token})}};
    };
    put("tokenizer.ggml.add_bos_token", bos_by_default || begins_texts(), "tokenizer.ggml.bos_token_id", true);
    put("tokenizer.ggml.add_eos_token", false, "tokenizer.ggml.eos_token_id", false);
    if (specials.empty()) return nullptr;
    return {{"type", "TemplateProcessing"}, {"single", around}, {"pair", around}, {"special_tokens", specials}};
  }

  /// Older files of Llama 3 do not say that texts begin with BOS.
  bool begins_texts() const {
    const std::string pre = fields_.string_or("tokenizer.ggml.pre", "");
    return pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3";
  }

  std::vector<std::string> strings(const char* key) const {
    const json* list = fields_.find(key);
    std::vector<std::string> values;
    if (!list) return values;
    if (!list->is_array()) fields_.reject(key, "must be a list of strings");
    for (const json& entry : *list) {
      if (!entry.is_string()) fields_.reject(key, "must be a list of strings");
      values.push_back(entry.get<std::string>());
    }
    return values;
  }

  JsonFields fields_;
  std::vector<std::string> tokens_;
  std::vector<int> types_;
};

}  // namespace

json gguf_tokenizer_json(const json& metadata, const std::string& place) { return Builder(metadata, place).build(); }

namespace {

/// A pattern with its line ends written out as characters: files differ in whether they escape them.
std::string with_plain_line_ends(std::string_view pattern) {
  std::string plain;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char next = pattern[i] == '\\' && i + 1 < pattern.size() ? pattern[i + 1] : '\0';
    if (next == 'r' || next == 'n') {
      plain += next == 'r' ? '\r' : '\n';
      ++i;
      continue;
    }
    plain += pattern[i];
    if (next != '\0') plain += pattern[++i];
  }
  return plain;
}

}  // namespace

std::string gguf_splitting_rule(const json& tokenizer_json, const std::string& place) {
  const auto it = tokenizer_json.find("pre_tokenizer");
  if (it == tokenizer_json.end() || !it->is_object())
    fail("{}: pre_tokenizer is missing; such tokenizers are not supported", place);
  std::vector<std::string> patterns;
  bool digits = false;
  const json steps = it->value("pretokenizers", json::array({*it}));
  for (const json& step : steps) {
    const std::string type = step.value("type", "");
    if (type == "Split") patterns.push_back(with_plain_line_ends(step.value("/pattern/Regex"_json_pointer, "")));
    digits |= type == "Digits";
  }
  for (const SplittingRule& rule : splitting_rules()) {
    const auto same = [](const std::string& a, std::string_view b) { return a == with_plain_line_ends(b); };
    if (rule.digits == digits &&
        std::equal(patterns.begin(), patterns.end(), rule.patterns.begin(), rule.patterns.end(), same)) {
      return std::string(rule.names.front());
    }
  }
  fail("{}: pre_tokenizer cuts text by a rule that GGUF has no name for, or none that Shoal knows", place);
}

std::optional<ChatTemplate> gguf_chat_template(const json& metadata, const std::string& place) {
  const JsonFields fields(metadata, place);
  const std::string text = fields.string_or("tokenizer.chat_template", "");
  if (text.empty()) return std::nullopt;
  ChatTemplate::SpecialTokens specials;
  const json* tokens = fields.find("tokenizer.ggml.tokens");
  for (const auto& [name, key] : std::map<const char*, const char*>{{"bos_token", "tokenizer.ggml.bos_token_id"},
                                                                    {"eos_token", "tokenizer.ggml.eos_token_id"},
                                                                    {"unk_token", "tokenizer.ggml.unknown_token_id"},
                                                                    {"pad_token", "tokenizer.ggml.padding_token_id"}}) {
    const auto ids = fields.integers(key);
    if (ids.empty() || !tokens || !tokens->is_array()) continue;
    if (ids.front() < 0 || static_cast<std::size_t>(ids.front()) >= tokens->size()) continue;
    const json& token = (*tokens)[static_cast<std::size_t>(ids.front())];
    if (token.is_string()) specials[name] = token.get<std::string>();
  }
  return ChatTemplate(text, place + ": tokenizer.chat_template", std::move(specials));
}

}  // namespace shoal
