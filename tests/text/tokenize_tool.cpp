// Tokenizes texts for comparison with another tokenizer, or measures how fast it does.
// TOKENIZER.json may be a GGUF file instead.
//   tokenize_tool TOKENIZER.json            reads "<flags> <bytes>\n<text>" records, writes one line of ids for each
//   tokenize_tool TOKENIZER.json time FILE  writes the seconds and ids of encoding FILE
// flags: s add special tokens, t take special tokens as text, d write the decoded text of the ids as JSON instead,
// k the same without special tokens, - none.
#include <chrono>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "runtime/gguf.h"
#include "runtime/model_source.h"
#include "runtime/text/tokenizer.h"

namespace {

int measure(const shoal::Tokenizer& tokenizer, const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream buffer;
  buffer << file.rdbuf();
  const std::string text = buffer.str();
  const auto start = std::chrono::steady_clock::now();
  const auto ids = tokenizer.encode(text, false);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::cout << seconds.count() << " " << ids.size() << "\n";
  return 0;
}

std::string decoded(const shoal::Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip_special) {
  const std::string whole = tokenizer.decode(ids, skip_special);
  shoal::StreamDecoder stream(tokenizer, skip_special);
  std::string streamed;
  for (const int32_t id : ids) streamed += stream.push(id);
  streamed += stream.finish();
  if (streamed != whole) return "streamed differently: " + streamed;
  return whole;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) return 2;
  const auto tokenizer =
      shoal::is_gguf(argv[1]) ? *shoal::read_tokenizer(argv[1]) : shoal::Tokenizer::from_file(argv[1]);
  if (argc == 4) return measure(tokenizer, argv[3]);
  std::string flags, text;
  size_t bytes = 0;
  while (std::cin >> flags >> bytes) {
    std::cin.get();
    text.resize(bytes);
    std::cin.read(text.data(), static_cast<std::streamsize>(bytes));
    const auto has = [&](char flag) { return flags.find(flag) != std::string::npos; };
    const auto ids = tokenizer.encode(text, has('s'), !has('t'));
    if (has('d') || has('k')) {
      std::cout << nlohmann::json(decoded(tokenizer, ids, has('k'))).dump() << "\n";
      continue;
    }
    for (size_t i = 0; i < ids.size(); ++i) std::cout << (i ? " " : "") << ids[i];
    std::cout << "\n";
  }
  return 0;
} catch (const std::exception& e) {
  std::cerr << e.what() << "\n";
  return 1;
}
