#include "launch/scored_run.h"

#include "base/error.h"

namespace shoal {
namespace {

constexpr std::uint32_t kMaxTokens = 1u << 24;

std::string title(int vocab_size) { return fmt::format("shoal scored run 2, vocabulary {}\n", vocab_size); }

template <class T>
void put(std::ofstream& out, T value) {
  out.write(reinterpret_cast<const char*>(&value), sizeof value);
}

}  // namespace

ScoredRunWriter::ScoredRunWriter(const std::filesystem::path& path, int vocab_size)
    : path_(path), out_(path, std::ios::binary) {
  if (!out_) fail("{}: cannot be written", path.string());
  out_ << title(vocab_size);
}

void ScoredRunWriter::add(const ScoredWindow& window) {
  put(out_, static_cast<std::uint32_t>(window.tokens.size()));
  for (const auto token : window.tokens) put(out_, token);
  put(out_, static_cast<std::uint32_t>(window.context));
  for (const TokenLogprob& score : window.scores) {
    put(out_, score.logprob);
    put(out_, static_cast<std::uint32_t>(score.top.size()));
    for (const auto& [token, logprob] : score.top) {
      put(out_, token);
      put(out_, logprob);
    }
  }
}

void ScoredRunWriter::finish() {
  out_.close();
  if (!out_) fail("{}: could not be written whole", path_.string());
}

ScoredRunReader::ScoredRunReader(const std::filesystem::path& path, int vocab_size)
    : path_(path), in_(path, std::ios::binary), vocab_size_(vocab_size) {
  if (!in_) fail("{}: cannot be opened", path.string());
  std::string line;
  std::getline(in_, line);
  if (line + "\n" == title(vocab_size)) return;
  if (line.starts_with("shoal scored run 2,")) {
    fail("{}: is of a model with another vocabulary than this one's {} tokens", path.string(), vocab_size);
  }
  fail("{}: is no file that `shoal eval --save` wrote", path.string());
}

template <class T>
T ScoredRunReader::take() {
  T value{};
  if (!in_.read(reinterpret_cast<char*>(&value), sizeof value)) fail("{}: is cut off", path_.string());
  return value;
}

std::optional<ScoredWindow> ScoredRunReader::next() {
  if (in_.peek() == std::ifstream::traits_type::eof()) return std::nullopt;
  const auto in_vocabulary = [&](std::int32_t token) {
    if (token < 0 || token >= vocab_size_) fail("{}: holds the token {}, beyond the vocabulary", path_.string(), token);
    return token;
  };
  ScoredWindow window;
  const auto count = take<std::uint32_t>();
  if (count == 0 || count > kMaxTokens) fail("{}: holds a window of {} tokens", path_.string(), count);
  for (std::uint32_t i = 0; i < count; ++i) window.tokens.push_back(in_vocabulary(take<std::int32_t>()));
  const auto context = take<std::uint32_t>();
  if (context == 0 || context > count) fail("{}: holds a window with {} tokens of context", path_.string(), context);
  window.context = context;
  for (std::uint32_t i = context; i < count; ++i) {
    TokenLogprob score;
    score.token = window.tokens[i];
    score.logprob = take<float>();
    const auto top = take<std::uint32_t>();
    if (top > static_cast<std::uint32_t>(vocab_size_)) fail("{}: lists {} alternatives", path_.string(), top);
    for (std::uint32_t k = 0; k < top; ++k) {
      const auto token = in_vocabulary(take<std::int32_t>());
      score.top.emplace_back(token, take<float>());
    }
    window.scores.push_back(std::move(score));
  }
  return window;
}

}  // namespace shoal
