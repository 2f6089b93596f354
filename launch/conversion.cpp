#include "launch/conversion.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/task_team.h"
#include "runtime/progress.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

std::string reason() { return std::generic_category().message(errno); }

/// A file being written at many places at once.
class OutputFile {
 public:
  OutputFile(const fs::path& path, std::uint64_t bytes, bool keep) : path_(path) {
    descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | (keep ? 0 : O_TRUNC), 0644);
    if (descriptor_ < 0) fail("{}: cannot be written: {}", path.string(), reason());
    // Reserved now, so that a full disk is noticed before hours of work.
    const int problem = ::posix_fallocate(descriptor_, 0, static_cast<off_t>(bytes));
    if (problem == ENOSPC) fail("{}: there is no room for {} bytes", path.string(), bytes);
    if (problem != 0 && ::ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0) {
      fail("{}: cannot be made {} bytes long: {}", path.string(), bytes, reason());
    }
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile() { ::close(descriptor_); }

  void write(std::uint64_t offset, const std::byte* from, std::size_t bytes) const {
    while (bytes > 0) {
      const ssize_t put = ::pwrite(descriptor_, from, bytes, static_cast<off_t>(offset));
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) fail("{}: writing at byte {} failed: {}", path_.string(), offset, reason());
      from += put;
      offset += static_cast<std::uint64_t>(put);
      bytes -= static_cast<std::size_t>(put);
    }
  }
  void sync() const {
    if (::fdatasync(descriptor_) != 0) fail("{}: writing to the disk failed: {}", path_.string(), reason());
  }

 private:
  fs::path path_;
  int descriptor_;
};

/// Names the tensors of a file that are whole. After a power cut the disk may hold a journal's line and not what was
/// written before it, so a line waits until the file has been synced; as that takes its time, lines gather for a while.
class Journal {
 public:
  Journal(const fs::path& path, const std::string& job, bool resumed, const OutputFile& file)
      : path_(path), lines_(path, resumed ? std::ios::app : std::ios::trunc), file_(file) {
    put(resumed ? "\n" : job + "\n");  // an empty line ends one that was cut off
  }

  /// From any threads. Once in a while it is this one that waits for the disk.
  void add(const std::string& line) {
    {
      const std::lock_guard lock(mutex_);
      waiting_ += line + "\n";
      if (Clock::now() < due_) return;
      due_ = Clock::time_point::max();  // one at a time
    }
    flush();
  }

  void flush() {
    std::string lines;
    {
      const std::lock_guard lock(mutex_);
      lines.swap(waiting_);
    }
    file_.sync();
    const std::lock_guard lock(mutex_);
    put(lines);
    due_ = Clock::now() + kPause;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::seconds kPause{2};  // as much work is lost when the process is killed

  void put(const std::string& text) {
    if (!(lines_ << text << std::flush)) fail("{}: cannot be written", path_.string());
  }

  const fs::path path_;
  std::ofstream lines_;
  const OutputFile& file_;
  std::mutex mutex_;  // guards what follows, and lines_
  std::string waiting_;
  Clock::time_point due_ = Clock::now() + kPause;
};

fs::path with_suffix(fs::path path, const char* suffix) { return path += suffix; }

}  // namespace

/// On the journal, not on what is written: a job of several files writes one after the other, and their journals last
/// until all are done.
class Conversion::Lock {
 public:
  explicit Lock(const fs::path& journal) {
    while (!take(journal)) ::close(descriptor_);
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  ~Lock() { ::close(descriptor_); }

 private:
  /// False where whoever had it removed the file meanwhile, as is done at the end of a job.
  bool take(const fs::path& journal) {
    descriptor_ = ::open(journal.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor_ < 0) fail("{}: cannot be written: {}", journal.string(), reason());
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {  // else: no locks on this file system
      ::close(descriptor_);
      fail("{}: another process is writing this model; wait for its end, or write elsewhere", journal.string());
    }
    struct stat locked, there;
    return ::fstat(descriptor_, &locked) == 0 && ::stat(journal.c_str(), &there) == 0 &&
           locked.st_dev == there.st_dev && locked.st_ino == there.st_ino;
  }
  int descriptor_ = -1;
};

StorageError& StorageError::operator+=(const StorageError& other) {
  squared_error += other.squared_error;
  squared_values += other.squared_values;
  return *this;
}

double StorageError::relative() const { return squared_values > 0 ? std::sqrt(squared_error / squared_values) : 0; }

Conversion::Conversion(fs::path file, std::string header, std::uint64_t file_bytes, std::string job)
    : file_(std::move(file)),
      partial_(with_suffix(file_, ".partial")),
      journal_(with_suffix(file_, ".journal")),
      header_(std::move(header)),
      file_bytes_(file_bytes),
      job_(std::move(job)) {}

void Conversion::add_tensor(std::string name, std::string kind) {
  tensors_.push_back({std::move(name), std::move(kind), {}, 0, false});
}

void Conversion::add_piece(std::vector<Range> ranges, std::uint64_t source_bytes, Make make) {
  ++tensors_.back().pieces_left;
  pieces_.push_back({tensors_.size() - 1, std::move(ranges), source_bytes, std::move(make)});
}

bool Conversion::fits(const fs::path& path) const {
  std::error_code ignored;
  if (!fs::exists(path, ignored) || fs::file_size(path, ignored) != file_bytes_) return false;
  std::string header(header_.size(), '\0');
  std::ifstream file(path, std::ios::binary);
  return file.read(header.data(), static_cast<std::streamsize>(header.size())) && header == header_;
}

std::map<std::string, StorageError> Conversion::read_journal() const {
  std::map<std::string, StorageError> finished;
  std::ifstream journal(journal_);
  std::string line;
  if (!std::getline(journal, line) || line != job_) return finished;
  while (std::getline(journal, line)) {
    const auto entry = nlohmann::json::parse(line, nullptr, false);
    // The last line may have been cut off.
    if (!entry.is_object() || !entry.contains("tensor")) continue;
    finished[entry["tensor"]] = {entry.value("squared_error", 0.0), entry.value("squared_values", 0.0)};
  }
  return finished;
}

std::map<std::string, StorageError> Conversion::errors_by_kind() const {
  std::map<std::string, StorageError> by_kind;
  for (const Tensor& tensor : tensors_) by_kind[tensor.kind] += tensor.error;
  return by_kind;
}

void Conversion::forget() { fs::remove(journal_); }

std::map<std::string, StorageError> Conversion::run(int threads, bool progress) {
  std::vector<Piece> pieces = std::exchange(pieces_, {});
  lock_ = std::make_shared<const Lock>(journal_);
  const std::map<std::string, StorageError> finished = read_journal();
  const bool all = std::ranges::all_of(tensors_, [&](const Tensor& t) { return finished.contains(t.name); });
  // A file under its name may be an earlier job's; it is this one's if nothing is left to do and it was renamed.
  const bool whole = all && !fs::exists(partial_) && fits(file_);
  const bool resumed = whole || (!finished.empty() && fits(partial_));
  for (Tensor& tensor : tensors_) {
    const auto it = finished.find(tensor.name);
    tensor.done = resumed && it != finished.end();
    if (tensor.done) tensor.error = it->second;
  }
  if (whole) return errors_by_kind();
  if (!resumed) fs::resize_file(journal_, 0);  // first, as it must never speak of what this run begins to write
  const OutputFile out(partial_, file_bytes_, resumed);
  out.write(0, reinterpret_cast<const std::byte*>(header_.data()), header_.size());
  Journal journal(journal_, job_, resumed, out);

  std::uint64_t total = 0;
  for (const Piece& piece : pieces) total += tensors_[piece.tensor].done ? 0 : piece.source_bytes;
  Progress bar("quantizing", total, progress);
  std::mutex mutex;  // guards the tensors
  const auto write = [&, bytes = std::vector<std::byte>()](std::size_t i) mutable {
    const Piece piece = std::move(pieces[i]);  // gone when written, with all that it holds
    Tensor& tensor = tensors_[piece.tensor];
    if (tensor.done) return;
    std::size_t size = 0, written = 0;
    for (const Range& range : piece.ranges) size += static_cast<std::size_t>(range.bytes);
    bytes.resize(size);
    const StorageError error = piece.make(bytes);
    for (const Range& range : piece.ranges) {
      out.write(range.offset, bytes.data() + written, static_cast<std::size_t>(range.bytes));
      written += static_cast<std::size_t>(range.bytes);
    }
    bar.add(piece.source_bytes);
    {
      const std::lock_guard lock(mutex);
      tensor.error += error;
      if (--tensor.pieces_left > 0) return;
    }
    journal.add(nlohmann::json({{"tensor", tensor.name},
                                {"squared_error", tensor.error.squared_error},
                                {"squared_values", tensor.error.squared_values}})
                    .dump());
  };
  try {
    run_tasks(threads, pieces.size(), write);
  } catch (...) {
    journal.flush();
    throw;
  }
  journal.flush();
  fs::rename(partial_, file_);
  return errors_by_kind();
}

}  // namespace shoal
