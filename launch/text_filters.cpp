#include "launch/text_filters.h"

#include <algorithm>
#include <utility>

namespace shoal {
namespace {

constexpr std::string_view white_space = " \t\r\n";
constexpr std::string_view open_tag = "<think>";
constexpr std::string_view close_tag = "</think>";

/// Length of the longest end of `text` that is a beginning of `word`, but not all of it.
std::size_t partial_match(std::string_view text, std::string_view word) {
  if (word.empty()) return 0;
  for (std::size_t n = std::min(text.size(), word.size() - 1); n > 0; --n) {
    if (text.substr(text.size() - n) == word.substr(0, n)) return n;
  }
  return 0;
}

void drop_leading_space(std::string& text) {
  text.erase(0, std::min(text.find_first_not_of(white_space), text.size()));
}

}  // namespace

StopFinder::StopFinder(std::vector<std::string> stops, bool include_stop)
    : stops_(std::move(stops)), include_stop_(include_stop) {
  std::erase(stops_, std::string());
}

std::string StopFinder::push(std::string_view text) {
  if (found_) return {};
  if (stops_.empty()) return std::string(text);
  held_ += text;
  // The match that is complete first counts, so that it does not matter in what pieces the text came.
  std::size_t first = held_.npos, first_end = held_.npos;
  for (const std::string& stop : stops_) {
    const std::size_t at = held_.find(stop);
    if (at == held_.npos) continue;
    const std::size_t end = at + stop.size();
    if (end < first_end || (end == first_end && at < first)) first = at, first_end = end;
  }
  found_ = first != held_.npos;
  const std::size_t certain = !found_ ? possible_start() : include_stop_ ? first_end : first;
  std::string out = held_.substr(0, certain);
  held_ = found_ ? std::string() : held_.substr(certain);
  return out;
}

std::size_t StopFinder::possible_start() const {
  std::size_t longest = 0;
  for (const std::string& stop : stops_) longest = std::max(longest, partial_match(held_, stop));
  return held_.size() - longest;
}

std::string StopFinder::finish() { return std::exchange(held_, {}); }

ReasoningSplitter::ReasoningSplitter(bool starts_inside) : state_(starts_inside ? State::reasoning : State::start) {}

ReasoningSplitter::Piece ReasoningSplitter::push(std::string_view text) {
  Piece piece;
  held_ += text;
  advance(piece, false);
  return piece;
}

ReasoningSplitter::Piece ReasoningSplitter::finish() {
  Piece piece;
  advance(piece, true);
  return piece;
}

void ReasoningSplitter::advance(Piece& piece, bool last) {
  if (state_ == State::start) {
    // Only a <think> in front of everything else opens the thinking; elsewhere it is text about it.
    const std::size_t begin = std::min(held_.find_first_not_of(white_space), held_.size());
    const std::string_view rest = std::string_view(held_).substr(begin);
    if (rest.substr(0, open_tag.size()) == open_tag) {
      held_.erase(0, begin + open_tag.size());
      state_ = State::reasoning;
    } else if (!last && open_tag.substr(0, rest.size()) == rest) {
      return;
    } else {
      state_ = State::content;
    }
  }
  if (state_ == State::reasoning) {
    if (!reasoning_began_) drop_leading_space(held_);
    const std::size_t end = held_.find(close_tag);
    // White space is held back too: at the end of the thinking it is dropped.
    const std::size_t sure = end != held_.npos ? end : held_.size() - (last ? 0 : partial_match(held_, close_tag));
    const std::size_t text_end = held_.find_last_not_of(white_space, sure == 0 ? held_.npos : sure - 1);
    const std::size_t take = sure == 0 || text_end == held_.npos ? 0 : text_end + 1;
    piece.reasoning += held_.substr(0, take);
    reasoning_began_ |= take > 0;
    if (end == held_.npos) {
      held_.erase(0, last ? held_.size() : take);
      return;
    }
    held_.erase(0, end + close_tag.size());
    state_ = State::before_content;
  }
  if (state_ == State::before_content) {
    drop_leading_space(held_);
    if (held_.empty()) return;
    state_ = State::content;
  }
  piece.content += held_;
  held_.clear();
}

}  // namespace shoal
