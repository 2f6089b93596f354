#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace shoal {

/// A regular file, open for positional reads from any number of threads. Symbolic links are followed: Hugging Face's
/// cache is made of them.
class InputFile {
 public:
  /// Error naming the file where it is missing, cannot be opened, or is something else (a folder, a pipe).
  explicit InputFile(std::filesystem::path path);
  InputFile(InputFile&& other) noexcept;
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  InputFile& operator=(InputFile&&) = delete;
  ~InputFile();

  /// Fills `out` from byte `offset` on, however few bytes the kernel hands over at a time. Errors begin with the file
  /// and `what`, where given (": tensor x").
  void read(std::uint64_t offset, std::span<std::byte> out, const std::string& what = "") const;

  std::uint64_t bytes() const { return bytes_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t bytes_ = 0;
};

}  // namespace shoal
