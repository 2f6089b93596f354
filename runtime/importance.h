#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace shoal {

/// How much each input column of each weight counts: the mean of its squared activations over some text. The error that
/// rounding a weight makes in the output is sum over columns of mean(x^2) * (w - stored)^2, if inputs are independent.
///
/// Files are llama.cpp's (tools/imatrix): a GGUF with, for a tensor NAME, `NAME.in_sum2` [matrices, columns], sums of
/// squares, and `NAME.counts` [matrices], how many inputs were summed. Names are GGUF's; a stack of experts, and the
/// heads of attn_k_b and attn_v_b, are many matrices under one name.
class Importance {
 public:
  struct Entry {
    std::int64_t columns = 0;
    std::vector<float> sums;    // [matrices, columns]
    std::vector<float> counts;  // [matrices], or one for all
  };

  /// Error naming the file where it is none, or broken.
  static Importance read(const std::filesystem::path& path);
  /// `texts`: what was read, for people; `window`: tokens that were read together.
  void write(const std::filesystem::path& path, const std::string& text, std::uint32_t windows,
             std::uint32_t window) const;

  void add(std::string name, Entry entry) { entries_[std::move(name)] = std::move(entry); }
  const std::map<std::string, Entry, std::less<>>& entries() const { return entries_; }
  /// The means of matrix `number` of a tensor, [columns]; empty where nothing is known. A matrix that saw no input (an
  /// expert nobody chose) counts its columns alike. Error where `columns` differs.
  std::vector<float> of(std::string_view gguf_name, std::int64_t number, std::int64_t columns) const;

 private:
  std::string place_ = "importance";
  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace shoal
