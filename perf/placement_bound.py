#!/usr/bin/env python3
"""What no placement of experts on equal ranks of two slots can be below, by linear programming: tighter than load_bound()
where few slots are spare, and slower. For the shapes of placement_bench (R1's 256 experts, Zipf loads).

A placement is a partition of E experts into E - R trees, of k experts on k - 1 ranks each (planner/expert_trees.h). At a
level T an expert of load w gives its tree T - w, and a tree needs T at least. So each expert gets a price, heavier ones a
lower one (or below zero), such that no tree costs less than 1: if all experts together cost less than E - R, there is no
placement of level T. Such prices are a linear program with a row for each tree, and the trees that matter are found one by
one: the cheapest at the prices so far is a knapsack problem, solved exactly on a grid onto which loads are rounded so that
the bound is lower, if anything."""

import argparse
import math
import sys

import highspy
import numpy as np

GRID = 1000  # parts of a level


def cheapest_tree(prices, gives):
    """(cost, members) of the set of experts that gives GRID at least for the lowest price. An expert that takes (gives < 0,
    price <= 0) counts as a member from the start, and leaving it out as one that gives, for its price."""
    takes = gives <= 0
    sizes, costs = np.abs(gives), np.where(takes, -prices, prices)
    need = GRID + int(sizes[takes].sum())
    cheapest = np.full(need + 1, np.inf)  # [given at least]
    cheapest[0] = 0
    chosen_at = np.zeros((len(gives), need + 1), bool)
    for e in np.nonzero(sizes)[0]:
        shifted = np.empty_like(cheapest)
        shifted[:sizes[e]] = cheapest[0]
        shifted[sizes[e]:] = cheapest[:max(0, need + 1 - sizes[e])]
        shifted += costs[e]
        chosen_at[e] = shifted < cheapest - 1e-13
        cheapest = np.where(chosen_at[e], shifted, cheapest)
    chosen, left = np.zeros(len(gives), bool), need
    for e in range(len(gives) - 1, -1, -1):
        if left > 0 and chosen_at[e, left]:
            chosen[e] = True
            left = max(0, left - sizes[e])
    return prices[takes].sum() + cheapest[need], np.where(takes, ~chosen, chosen)


def excluded(loads, trees, level):
    """Whether prices show that no placement has `level`. `loads` descending."""
    gives = np.ceil((level - loads) / level * GRID - 1e-9).astype(int)
    program = highspy.Highs()
    program.setOptionValue("output_flag", False)
    prices = [program.addVariable(0 if g > 0 else 2 * g / GRID - 2, 1 if g > 0 else 0, 1) for g in gives]
    for heavier, lighter in zip(prices, prices[1:]):
        program.addConstr(lighter - heavier >= 0)
    seen = (level - loads) / level  # prices that are known to make no tree too cheap, the best so far
    seen = seen / cheapest_tree(seen, gives)[0]
    while True:
        program.run()
        lowest, found = program.getInfo().objective_function_value, np.array(program.getSolution().col_value)
        if lowest > trees - 1e-6:
            return False
        if seen.sum() < trees - 1e-6:
            return True
        for weight in (0.7, 0.35, 0):  # between the two, where trees say more than at the edge
            between = weight * seen + (1 - weight) * found
            cost, members = cheapest_tree(between, gives)
            if cost > 0 and between.sum() / cost < seen.sum():
                seen = between / cost
            if found[members].sum() < 1 - 1e-6:
                program.addConstr(sum(prices[int(e)] for e in np.nonzero(members)[0]) >= 1)
                break
        else:
            return seen.sum() < trees - 1e-6  # no tree is too cheap at `found`


def bound(loads, ranks):
    """The largest level over the mean, to a thousandth, that is excluded."""
    loads = np.sort(np.asarray(loads, float))[::-1]
    mean = loads.sum() / ranks
    low, high = 1.0, 1.0
    while excluded(loads, len(loads) - ranks, high * mean):
        low, high = high, high * 1.25
    while high - low > 5e-4 * low:
        middle = (low + high) / 2
        if excluded(loads, len(loads) - ranks, middle * mean):
            low = middle
        else:
            high = middle
    return low


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[144, 160, 192])
    parser.add_argument("--zipf", type=float, nargs="*", default=[0.5, 1, 1.5])
    arguments = parser.parse_args()
    print("| ranks | redundant | Zipf | LP bound |\n| --- | --- | --- | --- |")
    for ranks in arguments.ranks:
        if not 128 < ranks < 256:
            sys.exit(f"--ranks {ranks}: with two slots a rank, 256 experts make trees on 129 to 255 ranks")
        for exponent in arguments.zipf:
            loads = [math.floor(1e6 / (r + 1)**exponent) + 1 for r in range(256)]
            print(f"| {ranks} | {2 * ranks - 256} | {exponent:g} | {math.floor(1e3 * bound(loads, ranks)) / 1e3:.3f} |", flush=True)


if __name__ == "__main__":
    main()
