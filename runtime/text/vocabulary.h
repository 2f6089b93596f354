#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace shoal::text {

/// The largest id a token may have. The largest real vocabularies have about 260 000 tokens.
constexpr int32_t kMaxTokenId = (1 << 24) - 1;

/// Tokens by id and ids by token. Ids may have gaps.
class Vocabulary {
 public:
  Vocabulary() = default;
  Vocabulary(const Vocabulary& other);
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary other) noexcept;

  /// Adds a token; throws Error beginning with `place` where the id is out of range or either is taken already.
  void add(std::string token, int64_t id, std::string_view place);

  std::optional<int32_t> find(std::string_view token) const;
  /// The token with this id; null where there is none.
  const std::string* token(int32_t id) const;
  /// One more than the largest id.
  int32_t id_end() const { return static_cast<int32_t>(tokens_.size()); }
  size_t size() const { return ids_.size(); }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  // A node's key stays where it is when the map grows, so tokens_ points at the keys.
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
  std::vector<const std::string*> tokens_;
};

}  // namespace shoal::text
