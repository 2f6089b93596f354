#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace shoal {

/// What storing values in a coarser format changed.
struct StorageError {
  double squared_error = 0, squared_values = 0;
  StorageError& operator+=(const StorageError& other);
  /// Root mean square of the error, relative to that of the values.
  double relative() const;
};

/// Writes a file whose layout is known beforehand, piece by piece on several threads: no more of it than the pieces at
/// work is ever in memory. It grows as NAME.partial, with NAME.journal beside it, which names the job and the tensors
/// that are whole on the disk; a conversion that was interrupted, or killed, goes on from there. When all is written
/// the file gets its name.
class Conversion {
 public:
  /// `job`: a line that tells what is converted, and how, from all else that would be written under this name and
  /// header. What another job left is not gone on with.
  Conversion(std::filesystem::path file, std::string header, std::uint64_t file_bytes, std::string job);

  /// A tensor, under the name that the journal and the report know it by. `kind` groups it in the report ("attention").
  void add_tensor(std::string name, std::string kind);
  /// A range of the file.
  struct Range {
    std::uint64_t offset, bytes;
  };
  using Make = std::function<StorageError(std::vector<std::byte>& out)>;
  /// A part of the tensor added last. `make` fills what goes to `ranges`, one after the other in `out`, which has that
  /// size. `source_bytes`: for the progress bar.
  void add_piece(std::vector<Range> ranges, std::uint64_t source_bytes, Make make);

  /// Does it all, once, and drops the pieces; returns the error by kind. Throws the first Error; what was done remains.
  /// Error too where another Conversion writes this file: each keeps others from it until it is destroyed.
  /// Where a job has several files, the journal of one that is whole tells a later run so.
  std::map<std::string, StorageError> run(int threads, bool progress);
  /// Removes the journal: the job is done, and would be done anew if asked for again.
  void forget();

 private:
  struct Tensor {
    std::string name, kind;
    StorageError error;
    int pieces_left = 0;
    bool done = false;
  };
  struct Piece {
    std::size_t tensor;
    std::vector<Range> ranges;
    std::uint64_t source_bytes;
    Make make;
  };
  /// Whether there is a file of this size and header at `path`.
  bool fits(const std::filesystem::path& path) const;
  /// The tensors that earlier runs of this job wrote, by name.
  std::map<std::string, StorageError> read_journal() const;
  std::map<std::string, StorageError> errors_by_kind() const;

  std::filesystem::path file_, partial_, journal_;
  std::string header_;
  std::uint64_t file_bytes_;
  std::string job_;
  class Lock;
  std::shared_ptr<const Lock> lock_;  // from run() on
  std::vector<Tensor> tensors_;
  std::vector<Piece> pieces_;
};

}  // namespace shoal
