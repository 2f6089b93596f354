#pragma once
#include <algorithm>
#include <numeric>
#include <vector>

namespace shoal {

/// The published expert load balancer of DeepSeek (deepseek-ai/EPLB), written anew from its description: groups are
/// packed into nodes, then the heaviest expert per copy gets the next copy, then copies are packed into GPUs; each
/// packing takes the heaviest item next and puts it into the lightest pack that is not full. The peer that placements
/// are compared with.
class Eplb {
 public:
  /// Expert of each physical slot; slots of a GPU lie side by side.
  static std::vector<int> place(const std::vector<double>& loads, int slots, int groups, int nodes, int gpus) {
    if (groups % nodes != 0) groups = nodes = 1;
    const int experts = static_cast<int>(loads.size()), group_size = experts / groups;
    const int slots_per_node = slots / nodes, gpus_per_node = gpus / nodes;

    std::vector<double> group_loads(idx(groups));
    for (int e = 0; e < experts; ++e) group_loads[idx(e / group_size)] += loads[idx(e)];
    const std::vector<std::vector<int>> node_groups = pack(group_loads, nodes);

    std::vector<int> expert_of;
    for (const auto& of_node : node_groups) {
      std::vector<int> members;
      for (const int g : of_node)
        for (int i = 0; i < group_size; ++i) members.push_back(g * group_size + i);
      std::vector<int> copies(members.size(), 1), copy_of;
      for (std::size_t i = 0; i < members.size(); ++i) copy_of.push_back(static_cast<int>(i));
      while (static_cast<int>(copy_of.size()) < slots_per_node) {
        std::size_t heaviest = 0;
        for (std::size_t i = 1; i < members.size(); ++i)
          if (loads[idx(members[i])] / copies[i] > loads[idx(members[heaviest])] / copies[heaviest]) heaviest = i;
        ++copies[heaviest];
        copy_of.push_back(static_cast<int>(heaviest));
      }
      std::vector<double> weights;
      for (const int i : copy_of) weights.push_back(loads[idx(members[idx(i)])] / copies[idx(i)]);
      for (const auto& of_gpu : pack(weights, gpus_per_node))
        for (const int slot : of_gpu) expert_of.push_back(members[idx(copy_of[idx(slot)])]);
    }
    return expert_of;
  }

  /// The largest load of a GPU when an expert's copies share its load equally.
  static double largest(const std::vector<int>& expert_of, const std::vector<double>& loads, int gpus) {
    std::vector<int> copies(loads.size());
    for (const int e : expert_of) ++copies[idx(e)];
    std::vector<double> sums(idx(gpus));
    const std::size_t per_gpu = expert_of.size() / idx(gpus);
    for (std::size_t s = 0; s < expert_of.size(); ++s)
      sums[s / per_gpu] += loads[idx(expert_of[s])] / copies[idx(expert_of[s])];
    return *std::max_element(sums.begin(), sums.end());
  }

 private:
  static std::size_t idx(int i) { return static_cast<std::size_t>(i); }

  static std::vector<std::vector<int>> pack(const std::vector<double>& weights, int packs) {
    const std::size_t per_pack = weights.size() / idx(packs);
    std::vector<int> order(weights.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return weights[idx(a)] > weights[idx(b)]; });
    std::vector<std::vector<int>> result(idx(packs));
    std::vector<double> sums(idx(packs));
    for (const int item : order) {
      std::size_t lightest = result.size();
      for (std::size_t p = 0; p < result.size(); ++p)
        if (result[p].size() < per_pack && (lightest == result.size() || sums[p] < sums[lightest])) lightest = p;
      result[lightest].push_back(item);
      sums[lightest] += weights[idx(item)];
    }
    return result;
  }
};

}  // namespace shoal
