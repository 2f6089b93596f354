#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/grammar/grammar.h"

namespace shoal::grammar {

/// Walks a grammar byte by byte. All places in the network where a text may have led (each with the rules to return to)
/// are one state; states and the ways between them are kept as they are found, so that what was seen once costs one
/// look-up: a deterministic automaton, made lazily. Not thread-safe.
class Automaton {
 public:
  /// Throws Error where a text may begin in too many ways to look at.
  explicit Automaton(std::shared_ptr<const Network> network);

  using State = std::int32_t;
  static constexpr State dead = -1;  // nothing can follow

  State start() const { return start_; }
  State after(State state, std::uint8_t byte);
  /// The text that led here is a whole one.
  bool accepts(State state) const { return states_[static_cast<std::size_t>(state)].accepts; }

  /// A state of another automaton of the same network, as a state of this one.
  State adopt(const Automaton& other, State state);

  /// Memory of the states and frames found so far, in bytes, as good as.
  std::size_t bytes() const { return bytes_; }
  /// Ways followed for new states, those to a place that was seen before as well: the measure of work.
  std::uint64_t work() const { return work_; }
  /// New states are `dead` from when work() has reached this: a grammar made to explode is not followed for ever. A
  /// state that takes too much work by itself is dead in any case.
  void stop_at(std::uint64_t work) { work_limit_ = work; }

 private:
  /// A place: node << 32 | frame. A frame is where to return to: (node, outer frame).
  using Place = std::uint64_t;
  struct Frame {
    std::int32_t node, outer;
  };
  struct StateData {
    std::vector<Place> places;  // at nodes of bytes, sorted
    bool accepts = false;
    std::unique_ptr<std::array<State, 256>> next;  // unknown where not looked at
  };
  struct PlacesHash {
    std::size_t operator()(const std::vector<Place>& places) const;
  };

  using FrameNumbers = std::unordered_map<std::int32_t, std::int32_t>;  // another automaton's → own

  std::int32_t frame(std::int32_t node, std::int32_t outer);
  std::int32_t adopt_frame(const Automaton& other, std::int32_t number, FrameNumbers& adopted);
  State settle(std::vector<Place> open);
  State state_of(std::vector<Place> places);

  const std::shared_ptr<const Network> network_;
  std::vector<Frame> frames_;  // frames_[0]: there is nothing to return to
  std::unordered_map<std::uint64_t, std::int32_t> frame_numbers_;
  std::vector<StateData> states_;
  std::unordered_map<std::vector<Place>, State, PlacesHash> state_numbers_;
  std::size_t bytes_ = 0;
  std::uint64_t work_ = 0, work_limit_ = ~std::uint64_t{0};
  State start_ = dead;
};

/// Throws Error where `gbnf` is no grammar, or none that an answer can be held to in bounded time and memory.
void check_grammar(std::string_view gbnf);

}  // namespace shoal::grammar
