#include "planner/flat_bound.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "base/index.h"
#include "planner/balance.h"
#include "planner/spare_slots.h"

namespace shoal {
namespace {

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

/// The least level from `bound` on that is not excluded, to a ten-thousandth.
double raised(double bound, const auto& excludes) {
  double low = bound, high = 2 * low;
  if (!excludes(low)) return bound;
  while (high - low > 1e-4 * low) {
    const double middle = (low + high) / 2;
    (excludes(middle) ? low : high) = middle;
  }
  return low;
}

}  // namespace

std::optional<SpareSlots> spare_slots(std::span<const double> loads, std::span<const int> slots,
                                      std::span<const double> speed) {
  if (slots[0] < 2 || !equal_ranks(slots, speed) || std::cmp_less(loads.size(), slots[0])) return {};
  std::vector<double> ascending(loads.begin(), loads.end());
  std::ranges::sort(ascending);
  const int spare = std::accumulate(slots.begin(), slots.end(), 0) - static_cast<int>(loads.size());
  return SpareSlots(std::move(ascending), slots[0], spare);
}

double flat_bound(std::span<const double> loads, std::span<const int> slots, std::span<const double> speed) {
  const double bound = sums_bound(loads, slots, speed);
  const auto spare = spare_slots(loads, slots, speed);
  if (!spare) return bound;
  return raised(bound * speed[0], [&](double level) { return spare->excludes(level); }) / speed[0];
}

double pieces_bound(std::span<const double> loads, std::span<const int> slots, std::span<const double> speed,
                    double flat) {
  const auto spare = spare_slots(loads, slots, speed);
  if (!spare || !spare->few()) return flat;
  double bound = flat * speed[0];
  for (const double large : {0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.96})
    bound = raised(bound, [&](double level) { return spare->excludes(level, large); });
  return bound / speed[0];
}

}  // namespace shoal
