#include "planner/flat_bound.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "planner/balance.h"

namespace shoal {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

double sums_bound(std::span<const double> loads, std::span<const int> slots, std::span<const double> speed) {
  const double fastest = *std::max_element(speed.begin(), speed.end());
  const double total = std::accumulate(loads.begin(), loads.end(), 0.0);
  const int all = std::accumulate(slots.begin(), slots.end(), 0);
  double bound = std::max(total / std::accumulate(speed.begin(), speed.end(), 0.0),
                          count_replicas(loads, all, static_cast<int>(slots.size())).level / fastest);

  std::vector<double> ascending(loads.begin(), loads.end()), smallest{0};
  std::sort(ascending.begin(), ascending.end());
  for (const double w : ascending) smallest.push_back(smallest.back() + w);  // sums of the smallest 0, 1, 2 ...
  std::vector<int> fewest(slots.begin(), slots.end());
  std::sort(fewest.begin(), fewest.end());
  const auto experts = static_cast<std::int64_t>(loads.size());
  const std::int64_t spare = all - experts, ranks = std::ssize(slots);
  for (std::int64_t j = 1; j <= experts; ++j) {
    const double largest = smallest.back() - smallest[at(experts - j)];
    double least = 1e300;
    std::int64_t slots_of_k = 0;
    for (std::int64_t k = 1; k <= std::min(ranks, spare + j); ++k) {
      slots_of_k += fewest[at(k - 1)];
      const std::int64_t others = std::clamp<std::int64_t>(slots_of_k - spare - j, 0, experts - j);
      least = std::min(least, (largest + smallest[at(others)]) / (static_cast<double>(k) * fastest));
      if (least <= bound) break;
    }
    bound = std::max(bound, least);
  }
  return bound;
}

/// Equal ranks, each with a few slots. An expert that is not split comes whole with its load wherever it is, so what a
/// heavy expert may put onto a rank is less than the rank's level by what its neighbours there weigh; and a slot whose
/// content weighs nothing is a spare one. Counted at a level T:
/// - a replica whose neighbours are all whole experts carries at most `beside` = T less the smallest of these;
/// - on other ranks two or more slots hold replicas of split experts, or nothing; what lies in all of these is at
///   most T less the smallest whole experts in the rank's other slots, and the fewer of them, the more room a slot has;
/// - all replicas beyond one an expert, and all empty slots, are the spare slots.
/// So an expert above `beside` has q replicas of the first kind and m of the second, for q + m - 1 spare slots, and
/// what it puts into the m has to find room in these; a spare slot spent otherwise makes room as well, most where it
/// lets a small expert have two replicas of which one carries all. What room is missing at least for each number of
/// spare slots follows expert by expert.
class Neighbours {
 public:
  Neighbours(std::vector<double> ascending, int slots, int spare)
      : loads_(std::move(ascending)), slots_(slots), spare_(at(spare)) {
    for (int k = 0; k < slots; ++k) smallest_.push_back(smallest_.back() + loads_[at(k)]);
  }

  /// Whether no placement has a largest load of T.
  bool excludes(double level) const {
    const double beside = level - smallest_[at(slots_ - 1)];
    if (beside <= 0) return false;  // the mean says more
    std::vector<double> room;       // of ranks with 2, 3 ... slots of the second kind
    for (int b = 2; b <= slots_; ++b) room.push_back(level - smallest_[at(slots_ - b)]);
    // A slot's part of the most that holds a replica of `part`.
    const auto share = [&](double part) {
      double most = -1e300;
      for (std::size_t b = 0; b < room.size(); ++b)
        if (part <= room[b] * (1 + 1e-12)) most = std::max(most, room[b] / static_cast<double>(b + 2));
      return most;
    };
    const double shared = share(0);

    constexpr double never = 1e300;
    std::vector<double> missing(spare_ + 1, never), next;
    missing[0] = 0;
    for (std::size_t i = loads_.size(); i-- > 0 && loads_[i] > beside * (1 + 1e-12);) {
      next.assign(spare_ + 1, never);
      // More replicas than the spare slots and its own there are not, and `beside` may be next to nothing.
      const auto most =
          static_cast<std::size_t>(std::min(std::ceil(loads_[i] / beside), static_cast<double>(spare_ + 1)));
      for (std::size_t q = 0; q <= most; ++q) {
        const double rest = std::max(0.0, loads_[i] - beside * static_cast<double>(q));
        const auto fewest = static_cast<std::size_t>(std::ceil(rest / level * (1 - 1e-9)));
        for (std::size_t m = fewest; m <= fewest + (rest > 0); ++m) {  // one more may have more room
          const double parts = static_cast<double>(m);                 // one of them is as large as their mean
          const double lacks = m == 0 ? 0 : rest - share(rest / parts) - (parts - 1) * shared;
          for (std::size_t used = q + m - 1; used <= spare_; ++used)
            next[used] = std::min(next[used], missing[used + 1 - q - m] + lacks);
        }
      }
      missing.swap(next);
    }
    double made = 0;  // by the slots that are left
    for (std::size_t left = 0; left <= spare_; ++left) {
      if (missing[spare_ - left] <= made + 1e-9 * level) return false;
      made += std::max(shared, 2 * shared - loads_[std::min(left, loads_.size() - 1)]);
    }
    return true;
  }

 private:
  const std::vector<double> loads_;
  const int slots_;
  const std::size_t spare_;
  std::vector<double> smallest_{0};  // sums of the smallest 0, 1, 2 ...
};

bool all_equal(const auto& values) {
  return std::ranges::all_of(values, [&](const auto& v) { return v == values[0]; });
}

}  // namespace

double flat_bound(std::span<const double> loads, std::span<const int> slots, std::span<const double> speed) {
  double bound = sums_bound(loads, slots, speed);
  if (slots[0] < 2 || !all_equal(slots) || !all_equal(speed) || std::cmp_less(loads.size(), slots[0])) return bound;
  std::vector<double> ascending(loads.begin(), loads.end());
  std::ranges::sort(ascending);
  const int spare = std::accumulate(slots.begin(), slots.end(), 0) - static_cast<int>(loads.size());
  const Neighbours neighbours(std::move(ascending), slots[0], spare);
  double low = bound * speed[0], high = 2 * low;
  if (!neighbours.excludes(low)) return bound;
  while (high - low > 1e-4 * low) {
    const double middle = (low + high) / 2;
    (neighbours.excludes(middle) ? low : high) = middle;
  }
  return low / speed[0];
}

}  // namespace shoal
