#pragma once
#include <optional>
#include <span>

#include "planner/spare_slots.h"

namespace shoal {

/// A number that the largest rank load of no placement can be below, without regard to groups: the largest of
/// - the mean;
/// - parts: the smallest level at which all experts' whole numbers of replicas fit into the slots;
/// - sums: the j largest experts lie on some k ranks, whose slots hold them, at most the spare slots' replicas (which
///   may carry nothing), and else other experts whole, at least the smallest ones;
/// - neighbours, where ranks are equal: see spare_slots.h.
double flat_bound(std::span<const double> loads, std::span<const int> slots, std::span<const double> speed);

/// Of equal ranks with two slots and more; nothing where they are not.
std::optional<SpareSlots> spare_slots(std::span<const double> loads, std::span<const int> slots,
                                      std::span<const double> speed);

/// The same with the sizes of pieces that share ranks taken into account (spare_slots.h), from `flat` = flat_bound()
/// on: larger where few slots are spare, but it takes a hundred times as long.
double pieces_bound(std::span<const double> loads, std::span<const int> slots, std::span<const double> speed,
                    double flat);

}  // namespace shoal
