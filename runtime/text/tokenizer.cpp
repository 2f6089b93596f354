#include "runtime/text/tokenizer.h"

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "runtime/text/added_tokens.h"
#include "runtime/text/bpe.h"
#include "runtime/text/byte_level.h"
#include "runtime/text/json_field.h"
#include "runtime/text/normalizer.h"
#include "runtime/text/post_processor.h"
#include "runtime/text/pretokenizer.h"
#include "runtime/text/token_decoder.h"
#include "runtime/text/utf8.h"

namespace shoal {

using namespace text;  // the parts this file puts together

namespace {

/// Remembers, during one encode() call, where in the output the ids of recent pieces lie: words repeat, and copying ids
/// is cheaper than merging again.
class PieceCache {
 public:
  explicit PieceCache(size_t text_bytes) : slots_(std::bit_ceil(std::clamp<size_t>(text_bytes / 8, 16, 8192))) {}

  void encode(const Bpe& bpe, std::string_view piece, std::vector<int32_t>& ids) {
    if (piece.size() > kMaxPieceBytes) return bpe.encode(piece, ids);
    Slot& slot = slots_[std::hash<std::string_view>{}(piece) & (slots_.size() - 1)];
    if (slot.piece == piece) {
      for (size_t i = 0; i < slot.count; ++i) ids.push_back(ids[slot.begin + i]);
      return;
    }
    const size_t begin = ids.size();
    bpe.encode(piece, ids);
    slot = {piece, begin, ids.size() - begin};
  }

 private:
  static constexpr size_t kMaxPieceBytes = 64;
  struct Slot {
    std::string_view piece;  // never empty once filled, and pieces are never empty
    size_t begin = 0, count = 0;
  };
  std::vector<Slot> slots_;
};

}  // namespace

struct Tokenizer::Parts {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Bpe bpe;
  AddedTokens added;
  PostProcessor post_processor;
  TokenDecoder decoder;

  void encode(std::string_view text, bool parse_special, std::vector<int32_t>& ids) const;
  void encode_plain(std::string_view text, bool starts_text, Pieces& pieces, PieceCache& cache,
                    std::vector<int32_t>& ids) const;
};

Tokenizer Tokenizer::from_file(const std::filesystem::path& tokenizer_json) {
  return from_json(read_json_file(tokenizer_json.string()), tokenizer_json.string());
}

Tokenizer Tokenizer::from_model_dir(const std::filesystem::path& dir) {
  const Tokenizer plain = from_file(dir / "tokenizer.json");
  const auto config_path = dir / "tokenizer_config.json";
  if (!std::filesystem::exists(config_path)) return plain;
  const nlohmann::json config = read_json_file(config_path.string());
  const JsonField root(config, config_path.string());
  auto parts = std::make_shared<Parts>(*plain.parts_);
  const auto apply = [&](const char* flag, const char* name, std::vector<int32_t>& place) {
    if (!root.find(flag)) return;
    const bool wanted = root.at(flag).as_bool();
    const auto field = root.find(name);
    if (!wanted) return place.clear();
    if (!field) return;
    // Either the text or an AddedToken written out.
    const std::string& token = field->value().is_object() ? field->at("content").as_string() : field->as_string();
    const auto id = plain.token_to_id(token);
    if (!id) field->reject("token `" + token + "` is not in tokenizer.json");
    place = {*id};
  };
  apply("add_bos_token", "bos_token", parts->post_processor.before);
  apply("add_eos_token", "eos_token", parts->post_processor.after);
  return Tokenizer(std::move(parts));
}

Tokenizer Tokenizer::from_json(const nlohmann::json& json, const std::string& place) {
  // Fields are named as "tokenizer.json: model.vocab"; a leading dot would only be noise.
  const JsonField root(json, place + ":");
  if (!json.is_object()) fail("{}: expected a JSON object", place);
  auto parts = std::make_shared<Parts>();
  if (const auto field = root.find("normalizer")) parts->normalizer = Normalizer::from_json(*field);
  if (const auto field = root.find("pre_tokenizer")) parts->pre_tokenizer = PreTokenizer::from_json(*field);
  if (const auto field = root.find("post_processor")) parts->post_processor = PostProcessor::from_json(*field);
  if (const auto field = root.find("decoder")) parts->decoder = TokenDecoder::from_json(*field);
  parts->bpe = Bpe::from_json(root.at("model"), parts->pre_tokenizer.byte_level());
  if (const auto field = root.find("added_tokens"))
    parts->added = AddedTokens::from_json(*field, parts->bpe.vocabulary(), parts->normalizer);
  return Tokenizer(std::move(parts));
}

void Tokenizer::Parts::encode_plain(std::string_view text, bool starts_text, Pieces& pieces, PieceCache& cache,
                                    std::vector<int32_t>& ids) const {
  pieces.pieces.assign(1, {text, starts_text});
  pre_tokenizer.apply(pieces);
  for (const Piece& piece : pieces.pieces) cache.encode(bpe, piece.text, ids);
}

void Tokenizer::Parts::encode(std::string_view text, bool parse_special, std::vector<int32_t>& ids) const {
  Pieces pieces;
  PieceCache cache(text.size());
  std::deque<std::string> normalized;  // the cache refers to pieces of these until the end
  for (const Segment& outer : added.split(text, false, parse_special)) {
    if (outer.id) {
      ids.push_back(*outer.id);
      continue;
    }
    std::string_view part = text.substr(outer.range.begin, outer.range.end - outer.range.begin);
    if (!normalizer.empty()) part = normalized.emplace_back(normalizer.apply(part));
    for (const Segment& inner : added.split(part, true, parse_special)) {
      if (inner.id)
        ids.push_back(*inner.id);
      else
        encode_plain(part.substr(inner.range.begin, inner.range.end - inner.range.begin),
                     outer.range.begin == 0 && inner.range.begin == 0, pieces, cache, ids);
    }
  }
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens, bool parse_special) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  if (add_special_tokens) ids = parts_->post_processor.before;
  if (is_valid_utf8(text))
    parts_->encode(text, parse_special, ids);
  else
    parts_->encode(replace_invalid_utf8(text), parse_special, ids);
  if (add_special_tokens)
    ids.insert(ids.end(), parts_->post_processor.after.begin(), parts_->post_processor.after.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const int32_t id : ids) {
    if (skip_special_tokens && is_special(id)) continue;
    std::string token = id_to_token(id);
    if (!token.empty()) tokens.push_back(std::move(token));
  }
  return parts_->decoder.decode(std::move(tokens));
}

std::string Tokenizer::token_bytes(int32_t id) const {
  if (const AddedToken* added = parts_->added.find(id)) return added->text;
  const std::string* token = parts_->bpe.vocabulary().token(id);
  return token ? parts_->decoder.token_bytes(*token) : "";
}

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  if (const auto id = parts_->added.id_of(token)) return id;
  return parts_->bpe.vocabulary().find(token);
}

std::string Tokenizer::id_to_token(int32_t id) const {
  if (const AddedToken* added = parts_->added.find(id)) return added->text;
  const std::string* token = parts_->bpe.vocabulary().token(id);
  return token ? *token : "";
}

bool Tokenizer::is_special(int32_t id) const {
  const AddedToken* added = parts_->added.find(id);
  return added && added->special;
}

int32_t Tokenizer::vocab_size() const { return std::max(parts_->bpe.vocabulary().id_end(), parts_->added.id_end()); }

std::string StreamDecoder::push(int32_t id) {
  if (skip_special_ && tokenizer_.is_special(id)) return "";
  if (tokenizer_.parts_->decoder.byte_level()) return push_bytes(byte_level_decode(tokenizer_.id_to_token(id)));
  return push_in_context(id);
}

std::string StreamDecoder::push_bytes(std::string_view bytes) {
  pending_ += bytes;
  const size_t ready = pending_.size() - incomplete_utf8_tail(pending_);
  std::string out = replace_invalid_utf8(std::string_view(pending_).substr(0, ready));
  pending_.erase(0, ready);
  return out;
}

std::string StreamDecoder::push_in_context(int32_t id) {
  const std::string token = tokenizer_.id_to_token(id);
  if (token.empty()) return "";
  window_.push_back(id);
  return tokenizer_.parts_->decoder.is_byte_of_run(token) ? "" : flush_window();
}

std::string StreamDecoder::flush_window() {
  // What comes before a token decides little about its text (whether it begins the text), so a few tokens are enough.
  constexpr size_t kContext = 4;
  const std::span<const int32_t> all(window_);
  const std::string before = tokenizer_.decode(all.first(window_done_), skip_special_);
  const std::string now = tokenizer_.decode(all, skip_special_);
  if (window_.size() > kContext) window_.erase(window_.begin(), window_.end() - kContext);
  window_done_ = window_.size();
  return now.size() > before.size() ? now.substr(before.size()) : "";
}

std::string StreamDecoder::finish() {
  std::string out = replace_invalid_utf8(pending_);
  pending_.clear();
  if (window_done_ < window_.size()) out += flush_window();
  window_.clear();
  window_done_ = 0;
  return out;
}

}  // namespace shoal
