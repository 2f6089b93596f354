#include "planner/spare_slots.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/index.h"

namespace shoal {
namespace {

constexpr double never = 1e300;

/// One way of cutting an expert.
struct Option {
  int replicas = 1;
  int balance = 0;   // large pieces less small ones, of those that share ranks
  double lacks = 0;  // room
};

}  // namespace

SpareSlots::SpareSlots(std::vector<double> ascending, int slots, int spare)
    : loads_(std::move(ascending)), slots_(slots), spare_(spare) {
  for (int k = 0; k < slots; ++k) smallest_.push_back(smallest_.back() + loads_[at(k)]);
}

bool SpareSlots::excludes(double level, double large) const {
  const double beside = level - smallest_[at(slots_ - 1)];
  if (beside <= 0) return false;  // the mean says more
  std::vector<double> room;       // of ranks where 2, 3 ... slots are shared
  for (int b = 2; b <= slots_; ++b) room.push_back(level - smallest_[at(slots_ - b)]);
  // A slot's part of the most that holds a replica of `part`.
  const auto share = [&](double part) {
    double most = -never;
    for (std::size_t b = 0; b < room.size(); ++b)
      if (part <= room[b] * (1 + 1e-12)) most = std::max(most, room[b] / static_cast<double>(b + 2));
    return most;
  };
  const double shared = share(0), small = level * (1 - large);

  // Pieces that share ranks are no more than spare slots and heavy experts.
  const auto heavy =
      static_cast<int>(std::count_if(loads_.begin(), loads_.end(), [&](double w) { return w > beside * (1 + 1e-12); }));
  const int zero = large > 0 ? spare_ + heavy : 0, balances = large > 0 ? zero + heavy + 1 : 1;
  const auto index = [&](int used, int balance) { return at(used * balances + balance); };
  std::vector<double> missing(at((spare_ + 1) * balances), never), next;  // [spare slots used, balance]
  missing[index(0, zero)] = 0;
  std::vector<Option> options;
  for (int n = 0; n < heavy; ++n) {
    const double load = loads_[loads_.size() - 1 - at(n)];
    // More replicas than the spare slots and its own there are not, and `beside` may be next to nothing.
    const int most = static_cast<int>(std::min(std::ceil(load / beside), static_cast<double>(spare_ + 1)));
    options.clear();
    for (int q = 0; q <= most; ++q) {
      const double rest = std::max(0.0, load - beside * q);
      const int fewest = static_cast<int>(std::min(std::ceil(rest / level * (1 - 1e-9)), spare_ + 2.0));
      for (int m = fewest; m <= fewest + (rest > 0); ++m) {  // one more may have more room
        if (q + m == 0) continue;
        Option o{.replicas = q + m};
        if (m > 0) o.lacks = rest - share(rest / m) - (m - 1) * shared;  // one of them is as large as their mean
        if (large > 0) {
          const int smalls = rest < m * small ? m : std::max(0, m - 1);
          o.balance = (m == 1 && rest > large * level * (1 + 1e-9)) - smalls;
        }
        options.push_back(o);
      }
    }
    next.assign(missing.size(), never);
    for (const Option& o : options)
      for (int used = o.replicas - 1; used <= spare_; ++used)
        for (int b = 0; b < balances; ++b) {
          const double before = missing[index(used + 1 - o.replicas, b)];
          const int to = b + o.balance;
          if (before >= never || to < 0 || to >= balances) continue;
          next[index(used, to)] = std::min(next[index(used, to)], before + o.lacks);
        }
    missing.swap(next);
  }

  double made = 0;  // by the slots that are left, each of which gives two small pieces at most
  for (int left = 0; left <= spare_; ++left) {
    for (int b = 0; b < balances && b - zero <= 2 * left; ++b)
      if (missing[index(spare_ - left, b)] <= made + 1e-9 * level) return false;
    made += std::max(shared, 2 * shared - loads_[std::min(at(left), loads_.size() - 1)]);
  }
  return true;
}

}  // namespace shoal
