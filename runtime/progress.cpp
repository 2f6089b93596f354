#include "runtime/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <mutex>

#include "base/units.h"

namespace shoal {
namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

/// "1:02:03", "0:07".
std::string clock_time(double seconds) {
  const auto s = static_cast<std::int64_t>(std::min(seconds, 359'999.0));
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

std::size_t terminal_columns() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

struct Progress::Impl {
  Impl(std::string w, std::uint64_t t, bool e) : what(std::move(w)), total(t), enabled(e) {}

  std::string what;
  std::uint64_t total;
  bool enabled;
  bool terminal = ::isatty(STDERR_FILENO) == 1;
  steady_clock::time_point start = steady_clock::now();

  std::atomic<std::uint64_t> done = 0;
  std::atomic<std::int64_t> next_draw_ms = 500;
  std::mutex drawing;
  std::size_t drawn_columns = 0;  // of the line on the terminal

  std::int64_t elapsed_ms() const { return duration_cast<milliseconds>(steady_clock::now() - start).count(); }

  std::string line() const {
    const std::uint64_t bytes = std::min(done.load(), total);
    const double seconds = static_cast<double>(elapsed_ms()) / 1000;
    const double rate = static_cast<double>(bytes) / std::max(seconds, 0.001);
    const double share = total ? static_cast<double>(bytes) / static_cast<double>(total) : 1;
    const std::string numbers =
        fmt::format(" {:3.0f} %  {} of {}  {}/s  {}", std::floor(share * 100), human_bytes(bytes), human_bytes(total),
                    human_bytes(rate),
                    bytes >= total ? clock_time(seconds)
                    : bytes == 0   ? std::string("waiting")
                                   : clock_time(static_cast<double>(total - bytes) / rate) + " left");
    if (!terminal) return what + numbers;
    // The bar takes what the numbers leave, and nothing where that is little. The last column stays free, since some
    // terminals wrap when it is written.
    const std::size_t used = what.size() + numbers.size() + 4, columns = terminal_columns();
    if (used + 8 > columns) return (what + numbers).substr(0, columns - 1);
    const std::size_t width = std::min<std::size_t>(columns - used, 40);
    const auto filled = static_cast<std::size_t>(share * static_cast<double>(width));
    return fmt::format("{} [{}{}]{}", what, std::string(filled, '#'), std::string(width - filled, '-'), numbers);
  }

  void draw(bool last) {
    std::string text = line();
    if (terminal) {
      const std::size_t columns = text.size();
      text.resize(std::max(columns, drawn_columns), ' ');  // wipes the rest of a longer line
      drawn_columns = columns;
      text = "\r" + text + (last ? "\n" : "");
    } else {
      text += '\n';
    }
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
  }
};

Progress::Progress(std::string what, std::uint64_t total_bytes, bool enabled)
    : impl_(std::make_unique<Impl>(std::move(what), total_bytes, enabled)) {
  if (!impl_->terminal) impl_->next_draw_ms = 10'000;
}

Progress::~Progress() {
  if (impl_->enabled && impl_->elapsed_ms() >= 500) impl_->draw(true);
}

void Progress::add(std::uint64_t bytes) {
  impl_->done += bytes;
  if (!impl_->enabled || impl_->elapsed_ms() < impl_->next_draw_ms) return;
  // Whoever comes while another thread draws has nothing to add to the picture.
  const std::unique_lock lock(impl_->drawing, std::try_to_lock);
  if (!lock || impl_->elapsed_ms() < impl_->next_draw_ms) return;
  impl_->draw(false);
  impl_->next_draw_ms = impl_->elapsed_ms() + (impl_->terminal ? 200 : 10'000);
}

}  // namespace shoal
