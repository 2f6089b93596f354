#include "runtime/recovery.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <set>
#include <utility>

#include "base/error.h"
#include "runtime/control_plane.h"

namespace shoal {
namespace {

/// To read what lost ranks had; of a model that is sliced, all of it: 84 GB a rank of R1's FP8 on eight, at 30 MB/s.
constexpr std::chrono::minutes kLongest{45};

}  // namespace

Recovery::Recovery(ControlServer& control, ModelConfig config, Placement placement,
                   std::shared_ptr<Rebalancer> rebalancer)
    : control_(control),
      config_(std::move(config)),
      rebalancer_(std::move(rebalancer)),
      placement_(std::move(placement)),
      members_(static_cast<std::size_t>(placement_.ranks)) {
  std::iota(members_.begin(), members_.end(), 0);
  totals_.lost.resize(members_.size());
}

void Recovery::note_lost(int rank, std::string why) {
  const std::lock_guard lock(mutex_);
  noted_.emplace(rank, std::move(why));
  behind_ = true;
}

bool Recovery::is_behind() const {
  const std::lock_guard lock(mutex_);
  return behind_;
}

/// Unless another one was lost meanwhile.
void Recovery::catch_up() {
  const std::lock_guard lock(mutex_);
  behind_ = !noted_.empty();
}

/// Leaves out the ranks that were lost since the last time; false where there are none.
bool Recovery::take_lost() {
  std::map<int, std::string> noted;
  {
    const std::lock_guard lock(mutex_);
    noted.swap(noted_);
    for (const auto& [rank, why] : noted) totals_.lost[static_cast<std::size_t>(rank)] = true;
  }
  std::vector<int> left;  // places in members_
  std::vector<int> members;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (noted.contains(members_[i])) continue;
    left.push_back(static_cast<int>(i));
    members.push_back(members_[i]);
  }
  if (left.size() == members_.size()) return false;
  if (rebalancer_) rebalancer_->update(placement_);
  placement_ = place_among(config_, placement_, left);
  members_ = std::move(members);
  if (const auto told = events().lost)
    for (const auto& [rank, why] : noted) told(rank, why, static_cast<int>(members_.size()));
  return true;
}

std::vector<RankState> Recovery::regroup(const std::function<bool()>& give_up) {
  const auto begin = std::chrono::steady_clock::now();
  if (!take_lost()) {  // those that it was called for were left out the last time
    catch_up();
    return {};
  }
  std::vector<RankState> states;
  do {
    ++epoch_;
    const std::vector<std::byte> order = encode(Regroup{epoch_, members_, placement_});
    for (const int rank : members_) control_.send(rank, {static_cast<std::uint16_t>(Message::regroup), order});
    states.assign(totals_.lost.size(), {.left = false});
  } while (!collect(states, give_up) && take_lost());
  if (rebalancer_) rebalancer_->begin_anew(placement_);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  {
    const std::lock_guard lock(mutex_);
    ++totals_.recoveries;
    totals_.seconds += seconds;
  }
  catch_up();
  if (const auto told = events().over) told(static_cast<int>(members_.size()), seconds);
  return states;
}

/// Waits until all members are ready; false where another one was lost.
bool Recovery::collect(std::vector<RankState>& states, const std::function<bool()>& give_up) {
  std::set<int> missing(members_.begin(), members_.end());
  const auto begin = std::chrono::steady_clock::now();
  while (!missing.empty()) {
    // Who dies or stops is told of.
    while (!control_.wait(std::chrono::milliseconds(200))) {
      if (give_up()) fail("the job ends");
      if (std::chrono::steady_clock::now() - begin > kLongest)
        fail("rank{} {} did not take over what lost ranks had within {} minutes", missing.size() > 1 ? "s" : "",
             fmt::join(missing, ", "), kLongest.count());
    }
    const auto received = control_.receive();
    if (!received) fail("the control plane was closed");
    const auto& [rank, frame, lost] = *received;
    if (lost) {
      if (std::ranges::find(members_, rank) != members_.end()) return false;
      continue;
    }
    if (frame.type == static_cast<std::uint16_t>(Message::cannot_regroup)) {
      const Error error = decode_failure(frame.payload);
      throw Error(
          fmt::format("the {} ranks left cannot go on without those that were lost: {}", members_.size(), error.what()),
          error.exit_code);
    }
    if (frame.type != static_cast<std::uint16_t>(Message::ready)) continue;  // of the step that is void
    const WorkerReady ready = decode_worker_ready(frame.payload);
    if (ready.epoch != epoch_) continue;
    states[static_cast<std::size_t>(rank)] = {.left = true, .kv_pages = ready.kv_pages, .cache_kept = ready.cache_kept};
    missing.erase(rank);
    const std::lock_guard lock(mutex_);
    totals_.regrouped[rank] = ready;
  }
  return true;
}

void Recovery::on_events(Events events) {
  const std::lock_guard lock(mutex_);
  events_ = std::move(events);
}

Recovery::Events Recovery::events() const {
  const std::lock_guard lock(mutex_);
  return events_;
}

Recovery::Totals Recovery::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

}  // namespace shoal
