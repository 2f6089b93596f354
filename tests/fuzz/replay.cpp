// Runs a libFuzzer target without libFuzzer: every file of the folders given, then mutations of them for so many
// seconds, the same ones at every run. An input on which the target crashes, or takes 20 seconds, is left in
// "TARGET-input" in the folder for temporary files.
//   NAME_fuzz SECONDS FOLDER...
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;

class Mutator {
 public:
  explicit Mutator(const std::vector<Bytes>& corpus) : corpus_(corpus) {}

  Bytes next() {
    Bytes bytes = corpus_[below(corpus_.size())];
    for (std::size_t i = 1 + below(6); i > 0; --i) change(bytes);
    return bytes;
  }

 private:
  std::size_t below(std::size_t n) { return n == 0 ? 0 : random_() % n; }

  void change(Bytes& bytes) {
    constexpr std::uint64_t edges[] = {0, 1, 127, 128, 255, 0x7fff, 0xffff, 0x7fffffff, 0xffffffff, ~0ull >> 1, ~0ull};
    const std::size_t at = below(bytes.size() + 1);
    const auto place = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    switch (below(6)) {
      case 0:
        if (at < bytes.size()) bytes[at] ^= static_cast<std::uint8_t>(1u << below(8));
        break;
      case 1:
        if (at < bytes.size()) bytes[at] = static_cast<std::uint8_t>(random_());
        break;
      case 2: {  // a number that is often wrong
        const std::uint64_t value = edges[below(std::size(edges))];
        const std::size_t width = std::size_t{1} << below(4);
        for (std::size_t i = 0; i < width && at + i < bytes.size(); ++i)
          bytes[at + i] = static_cast<std::uint8_t>(value >> (8 * i));
        break;
      }
      case 3:
        bytes.erase(place,
                    place + static_cast<std::ptrdiff_t>(below(std::min<std::size_t>(bytes.size() - at, 64) + 1)));
        break;
      case 4:
        bytes.insert(place, below(32), static_cast<std::uint8_t>(random_()));
        break;
      default: {  // a piece of another file
        const Bytes& other = corpus_[below(corpus_.size())];
        const std::size_t from = below(other.size()), n = below(std::min<std::size_t>(other.size() - from, 256) + 1);
        bytes.insert(place, other.begin() + static_cast<std::ptrdiff_t>(from),
                     other.begin() + static_cast<std::ptrdiff_t>(from + n));
      }
    }
  }

  const std::vector<Bytes>& corpus_;
  std::mt19937_64 random_{1};
};

Bytes current;  // what the target is given
std::string left_in;

/// Of a signal that ends the process; calls what a signal handler may.
void leave_input(int signal) {
  const int file = ::open(left_in.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0644);
  const bool whole = ::write(file, current.data(), current.size()) == static_cast<ssize_t>(current.size());
  const std::string_view said = signal == SIGALRM ? "takes too long: " : "crashes: ";
  if (!whole || ::write(2, said.data(), said.size()) < 0 || ::write(2, left_in.data(), left_in.size()) < 0) ::_exit(2);
  ::_exit(1);
}

void run(Bytes bytes) {
  current = std::move(bytes);
  ::alarm(20);
  LLVMFuzzerTestOneInput(current.data(), current.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s SECONDS FOLDER...\n", argv[0]);
    return 2;
  }
  std::vector<Bytes> corpus;
  for (int i = 2; i < argc; ++i) {
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) {
      std::ifstream file(entry.path(), std::ios::binary);
      corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
  }
  if (corpus.empty()) {
    std::fprintf(stderr, "no files to begin with\n");
    return 1;
  }
  left_in = std::filesystem::temp_directory_path() / std::filesystem::path(argv[0]).filename().concat("-input");
  for (const int signal : {SIGALRM, SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) std::signal(signal, leave_input);
  for (const Bytes& bytes : corpus) run(bytes);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[1]));
  Mutator mutator(corpus);
  long runs = 0;
  for (; std::chrono::steady_clock::now() < end; ++runs) run(mutator.next());
  ::alarm(0);
  std::printf("%zu files, %ld mutations of them\n", corpus.size(), runs);
  return 0;
}
