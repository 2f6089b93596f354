#include "runtime/grammar/automaton.h"

#include <algorithm>
#include <unordered_set>

#include "base/error.h"
#include "runtime/grammar/gbnf.h"

namespace shoal::grammar {
namespace {

constexpr Automaton::State unknown = -2;
constexpr std::uint64_t accepted = ~std::uint64_t{0};  // among a state's places: the text may end
constexpr std::size_t bytes_of_entry = 64;             // of a hash table
/// A choice of as many words as fit into a grammar's text takes two thirds of it. Without a limit each rule that may
/// match nothing and is called twice by the one before doubles the work.
constexpr std::uint64_t max_work_per_state = 100000;

std::int32_t node_of(std::uint64_t place) { return static_cast<std::int32_t>(place >> 32); }
std::int32_t frame_of(std::uint64_t place) { return static_cast<std::int32_t>(place & 0xFFFFFFFF); }
std::uint64_t place_of(std::int32_t node, std::int32_t frame) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(node)) << 32 | static_cast<std::uint32_t>(frame);
}

}  // namespace

std::size_t Automaton::PlacesHash::operator()(const std::vector<Place>& places) const {
  std::uint64_t hash = places.size();
  for (const Place place : places) {
    hash = (hash ^ place) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
  }
  return hash;
}

Automaton::Automaton(std::shared_ptr<const Network> network) : network_(std::move(network)) {
  frames_.push_back({Network::end_node, 0});
  start_ = settle({place_of(network_->start, 0)});
  if (work_ > max_work_per_state)
    fail("the grammar is too large: a text could begin at more than {} places of it", max_work_per_state);
}

std::int32_t Automaton::frame(std::int32_t node, std::int32_t outer) {
  // The last thing that a rule does needs no way back to it: lists may be as long as they like.
  if (node == Network::end_node) return outer;
  const auto [at, is_new] =
      frame_numbers_.try_emplace(place_of(node, outer), static_cast<std::int32_t>(frames_.size()));
  if (is_new) {
    frames_.push_back({node, outer});
    bytes_ += sizeof(Frame) + bytes_of_entry;
  }
  return at->second;
}

Automaton::State Automaton::settle(std::vector<Place> open) {
  using Kind = Network::Node::Kind;
  std::vector<Place> places;
  std::unordered_set<Place> seen;
  const std::uint64_t limit = std::min(work_limit_, work_ + max_work_per_state);
  work_ += open.size();
  while (!open.empty()) {
    if (work_ > limit) return dead;
    const Place place = open.back();
    open.pop_back();
    if (!seen.insert(place).second) continue;
    const std::int32_t at_frame = frame_of(place);
    const Network::Node& node = network_->nodes[static_cast<std::size_t>(node_of(place))];
    switch (node.kind) {
      case Kind::bytes:
        places.push_back(place);
        break;
      case Kind::split:
        work_ += static_cast<std::uint64_t>(node.target);
        for (std::int32_t i = 0; i < node.target; ++i) {
          open.push_back(place_of(network_->ways[static_cast<std::size_t>(node.next + i)], at_frame));
        }
        break;
      case Kind::call:
        ++work_;
        open.push_back(place_of(node.target, frame(node.next, at_frame)));
        break;
      case Kind::end:
        if (at_frame == 0) {
          places.push_back(accepted);
        } else {
          ++work_;
          const Frame& back = frames_[static_cast<std::size_t>(at_frame)];
          open.push_back(place_of(back.node, back.outer));
        }
        break;
    }
  }
  return places.empty() ? dead : state_of(std::move(places));
}

Automaton::State Automaton::state_of(std::vector<Place> places) {
  std::sort(places.begin(), places.end());
  const auto [at, is_new] = state_numbers_.try_emplace(places, static_cast<State>(states_.size()));
  if (is_new) {
    StateData state;
    state.accepts = places.back() == accepted;
    if (state.accepts) places.pop_back();
    state.places = std::move(places);
    bytes_ += sizeof(StateData) + 2 * at->first.size() * sizeof(Place) + bytes_of_entry;
    states_.push_back(std::move(state));
  }
  return at->second;
}

std::int32_t Automaton::adopt_frame(const Automaton& other, std::int32_t number, FrameNumbers& adopted) {
  std::vector<std::int32_t> chain;  // from the innermost outwards
  for (; !adopted.contains(number); number = other.frames_[static_cast<std::size_t>(number)].outer)
    chain.push_back(number);
  std::int32_t own = adopted.at(number);
  for (auto at = chain.rbegin(); at != chain.rend(); ++at) {
    own = frame(other.frames_[static_cast<std::size_t>(*at)].node, own);
    adopted[*at] = own;
  }
  return own;
}

Automaton::State Automaton::adopt(const Automaton& other, State state) {
  if (state == dead) return dead;
  const StateData& data = other.states_[static_cast<std::size_t>(state)];
  std::vector<Place> places;
  FrameNumbers adopted = {{0, 0}};  // places have most of their frames in common
  for (const Place place : data.places)
    places.push_back(place_of(node_of(place), adopt_frame(other, frame_of(place), adopted)));
  if (data.accepts) places.push_back(accepted);
  return state_of(std::move(places));
}

Automaton::State Automaton::after(State state, std::uint8_t byte) {
  if (state == dead) return dead;
  StateData& data = states_[static_cast<std::size_t>(state)];
  if (!data.next) {
    data.next = std::make_unique<std::array<State, 256>>();
    bytes_ += sizeof *data.next;
    data.next->fill(unknown);
  }
  const State known = (*data.next)[byte];
  if (known != unknown) return known;
  work_ += data.places.size() / 64;  // to see which of them go on is that much quicker than to follow a way
  std::vector<Place> open;
  for (const Place place : data.places) {
    const Network::Node& node = network_->nodes[static_cast<std::size_t>(node_of(place))];
    if (byte >= node.low && byte <= node.high) open.push_back(place_of(node.next, frame_of(place)));
  }
  const bool ends = open.empty();
  const State next = settle(std::move(open));
  // Out of work is not the same as known to be dead.
  if (next != dead || ends || work_ <= work_limit_) (*states_[static_cast<std::size_t>(state)].next)[byte] = next;
  return next;
}

void check_grammar(std::string_view gbnf) { Automaton(std::make_shared<const Network>(parse_gbnf(gbnf))); }

}  // namespace shoal::grammar
