#include "runtime/text/bpe.h"

#include <string>
#include <utility>

#include "base/error.h"
#include "runtime/text/byte_level.h"
#include "runtime/text/utf8.h"

namespace shoal::text {
namespace {

constexpr size_t kMaxTokenBytes = 64u << 10;
/// Positions inside a piece are 32-bit numbers.
constexpr size_t kMaxPieceBytes = 1u << 30;

void reject_if_set(const JsonField& model, const char* key) {
  const auto member = model.find(key);
  if (!member) return;
  const auto& value = member->value();
  if (value == 0 || value == "" || value == false) return;
  member->reject("not supported");
}

}  // namespace

Bpe Bpe::from_json(const JsonField& model, bool byte_level) {
  // Files from before the type was written are BPE when they have merges.
  const std::string type = model.string_or("type", model.find("merges") ? "BPE" : "unknown");
  if (type != "BPE") model.reject("model type " + type + " is not supported");
  reject_if_set(model, "dropout");
  reject_if_set(model, "continuing_subword_prefix");
  reject_if_set(model, "end_of_word_suffix");
  Bpe bpe;
  bpe.byte_level_ = byte_level;
  bpe.ignore_merges_ = model.bool_or("ignore_merges", false);
  bpe.byte_fallback_ = model.bool_or("byte_fallback", false);
  bpe.fuse_unknown_ = model.bool_or("fuse_unk", false);
  bpe.read_vocabulary(model.at("vocab"));
  bpe.read_merges(model.at("merges"));
  if (const auto unknown = model.find("unk_token")) {
    bpe.unknown_ = bpe.vocabulary_.find(unknown->as_string());
    if (!bpe.unknown_) unknown->reject("token `" + unknown->as_string() + "` is not in the vocabulary");
  }
  bpe.find_byte_tokens(model);
  return bpe;
}

void Bpe::read_vocabulary(const JsonField& vocab) {
  if (!vocab.value().is_object()) vocab.reject("expected an object");
  if (vocab.value().empty()) vocab.reject("is empty");
  for (const auto& [token, id] : vocab.value().items()) {
    if (!id.is_number_integer()) fail("{}.{}: expected an integer", vocab.place(), token);
    if (token.size() > kMaxTokenBytes) fail("{}: a token of {} bytes is too long", vocab.place(), token.size());
    const int64_t number = id.is_number_unsigned() && id.get<uint64_t>() > INT64_MAX ? INT64_MAX : id.get<int64_t>();
    vocabulary_.add(token, number, vocab.place());
  }
}

void Bpe::read_merges(const JsonField& merges) {
  if (!merges.value().is_array()) merges.reject("expected an array");
  merges_.reserve(merges.value().size());
  uint32_t rank = 0;
  for (const auto& merge : merges.value()) {
    if (merge.is_string()) {
      const std::string_view text = merge.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
        fail("{}[{}]: expected two tokens with one space between them", merges.place(), rank);
      add_merge(text.substr(0, space), text.substr(space + 1), rank, merges.place());
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      add_merge(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>(), rank, merges.place());
    } else {
      fail("{}[{}]: expected \"a b\" or [\"a\", \"b\"]", merges.place(), rank);
    }
    ++rank;
  }
}

void Bpe::add_merge(std::string_view left, std::string_view right, uint32_t rank, std::string_view place) {
  const auto id_of = [&](std::string_view token) {
    const auto id = vocabulary_.find(token);
    if (!id) fail("{}[{}]: token `{}` is not in the vocabulary", place, rank, token);
    return *id;
  };
  std::string joined(left);
  joined += right;
  merges_.set(id_of(left), id_of(right), {rank, id_of(joined)});
}

void Bpe::find_byte_tokens(const JsonField& model) {
  byte_tokens_.fill(-1);
  if (!byte_level_ && !byte_fallback_) return;
  size_t missing = 0;
  for (size_t byte = 0; byte < 256; ++byte) {
    const auto id = vocabulary_.find(byte_level_ ? byte_level_characters()[byte] : fmt::format("<0x{:02X}>", byte));
    if (id)
      byte_tokens_[byte] = *id;
    else
      ++missing;
  }
  if (byte_level_ && missing == 256) model.at("vocab").reject("has no token of a single byte");
}

std::string Bpe::vocabulary_form(std::string_view piece) const {
  if (!byte_level_) return std::string(piece);
  std::string out;
  for (const char byte : piece) out += byte_level_characters()[static_cast<uint8_t>(byte)];
  return out;
}

void Bpe::append_symbols(std::string_view piece, std::vector<int32_t>& symbols) const {
  bool after_unknown = false;
  const auto unknown = [&] {
    // Without an unknown token, what the vocabulary cannot express is dropped, as `tokenizers` does.
    if (unknown_ && !(after_unknown && fuse_unknown_)) symbols.push_back(*unknown_);
    after_unknown = true;
  };
  if (byte_level_) {
    for (const char byte : piece) {
      const int32_t token = byte_tokens_[static_cast<uint8_t>(byte)];
      if (token < 0) {
        unknown();
      } else {
        symbols.push_back(token);
        after_unknown = false;
      }
    }
    return;
  }
  for (size_t at = 0; at < piece.size();) {
    const std::string_view character = piece.substr(at, decode_utf8(piece, at).size);
    at += character.size();
    if (const auto id = vocabulary_.find(character)) {
      symbols.push_back(*id);
      after_unknown = false;
      continue;
    }
    bool bytes_known = byte_fallback_;
    for (const char byte : character) bytes_known = bytes_known && byte_tokens_[static_cast<uint8_t>(byte)] >= 0;
    if (!bytes_known) {
      unknown();
      continue;
    }
    for (const char byte : character) symbols.push_back(byte_tokens_[static_cast<uint8_t>(byte)]);
  }
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (piece.size() > kMaxPieceBytes) fail("a text of {} bytes is too long to be tokenized", piece.size());
  if (ignore_merges_) {
    if (const auto whole = vocabulary_.find(vocabulary_form(piece))) {
      ids.push_back(*whole);
      return;
    }
  }
  std::vector<int32_t> symbols;
  symbols.reserve(piece.size());
  append_symbols(piece, symbols);
  merges_.apply(symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

}  // namespace shoal::text
