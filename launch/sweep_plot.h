#pragma once
#include <string>
#include <vector>

#include "planner/sweep.h"

namespace shoal {

/// An SVG drawing of a sweep: milliseconds a token across (logarithmic), tokens a second and node up (logarithmic); a
/// dot for each layout, coloured by precision, and a line through the front.
std::string sweep_plot(const std::vector<Operating>& all, const std::vector<Operating>& front, const std::string& title,
                       double target_tpot_ms = 0);

}  // namespace shoal
