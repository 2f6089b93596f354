#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "planner/model_config.h"
#include "planner/placement.h"
#include "runtime/coordinator.h"
#include "runtime/rebalancer.h"
#include "runtime/step.h"

namespace shoal {

class ControlServer;

/// Rank 0's side of going on without ranks that were lost: the experts that went with them are given to those left, who
/// read them from the model's files, and begin anew among themselves. What the requests need for that, the coordinator
/// has: prompts, and the tokens so far.
///
///     rank 0                        a rank that is left
///     Regroup {epoch, members} ──▶  (control thread) ends what it waits for
///                                   new communicator, missing experts, perhaps a smaller KV cache
///     RankState            ◀──  WorkerReady {epoch}
///
/// A rank that is lost meanwhile makes it begin again, with another epoch.
class Recovery {
 public:
  /// `placement`: of the layers that are loaded, as the job was started. `rebalancer` may be null.
  Recovery(ControlServer& control, ModelConfig config, Placement placement, std::shared_ptr<Rebalancer> rebalancer);

  /// Told from the coordinator's thread when it begins and when it is over.
  struct Events {
    std::function<void(int rank, const std::string& why, int left)> lost;
    std::function<void(int left, double seconds)> over;
  };
  void on_events(Events events);

  /// A rank is gone, for the reason that the control plane gave. Thread-safe.
  void note_lost(int rank, std::string why);
  /// Whether ranks are gone that the others still wait for.
  bool is_behind() const;
  /// As CoordinatorOptions::regroup.
  std::vector<RankState> regroup(const std::function<bool()>& give_up);

  struct Totals {
    std::vector<bool> lost;                // [ranks] as the job was started with
    std::map<int, WorkerReady> regrouped;  // what ranks have since the last loss
    int recoveries = 0;
    double seconds = 0;  // of all together
  };
  Totals totals() const;

 private:
  Events events() const;
  void catch_up();
  bool take_lost();
  bool collect(std::vector<RankState>& states, const std::function<bool()>& give_up);

  ControlServer& control_;
  const ModelConfig config_;
  const std::shared_ptr<Rebalancer> rebalancer_;
  // Of the coordinator's thread.
  Placement placement_;       // over members_
  std::vector<int> members_;  // ascending
  std::uint32_t epoch_ = 0;

  mutable std::mutex mutex_;
  Events events_;
  std::map<int, std::string> noted_;  // lost, and not yet left out
  bool behind_ = false;               // some of them, or of those before, are not left out yet
  Totals totals_;
};

}  // namespace shoal
