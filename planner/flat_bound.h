#pragma once
#include <span>

namespace shoal {

/// A number that the largest rank load of no placement can be below, without regard to groups: the largest of
/// - the mean;
/// - parts: the smallest level at which all experts' whole numbers of replicas fit into the slots;
/// - sums: the j largest experts lie on some k ranks, whose slots hold them, at most the spare slots' replicas (which
///   may carry nothing), and else other experts whole, at least the smallest ones;
/// - neighbours, where ranks are equal: see flat_bound.cpp.
double flat_bound(std::span<const double> loads, std::span<const int> slots, std::span<const double> speed);

}  // namespace shoal
