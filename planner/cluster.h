#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "planner/json_fields.h"

namespace shoal {

/// What products are computed in; FP4 where a device has it, and others where it has not.
enum class Arithmetic { bf16, fp8, int8 };

/// What products with weights of one type reach on a device that was measured: a weight is read and unpacked once for
/// all tokens of a step, and multiplied once for each. On a CPU both take a core's time, one after the other. How much
/// tokens add where they are few depends on the kernel (how many fit into its registers at once), so some numbers of
/// them between one and many can be measured too.
struct ProductRate {
  double weights_per_s = 0;        // with one token, from memory
  double flops = 0;                // with many
  std::map<int, double> few = {};  // weights_per_s with so many tokens, ascending
  /// How many times as fast a rank is with one token where the others of its node wait: types that take a core's time
  /// to unpack gain less than those that wait for memory. 0: as the device's alone_memory.
  double alone = 0;

  /// Of products of `weights` weights with `tokens` tokens each, one at least.
  double seconds(double weights, double tokens) const;
};
using ProductRates = std::map<std::string, ProductRate, std::less<>>;  // by WeightType's name

/// What a rank computes with: a GPU, or a socket of a CPU server. Figures are the datasheet's, dense, unless
/// they were measured.
struct Device {
  enum class Kind { cpu, gpu };
  Kind kind = Kind::cpu;
  std::string name;
  double memory_bytes = 0;
  double memory_bytes_per_s = 0;
  double bf16_flops = 0;
  double fp8_flops = 0;   // 0: computes FP8 weights in BF16
  double int8_flops = 0;  // 0: computes INT8 weights in BF16
  /// Of a CPU: whether it has products of BF16, or packs activations for those of FP32, which takes more memory.
  bool bf16_products = true;
  bool measured = false;  // bandwidth and FLOP/s are what programs achieve, not a datasheet's
  // Of a measured one, with all ranks of its node at work:
  ProductRates linear, experts;
  // How many times as fast a rank is where the others of its node wait: ranks share bandwidth, and may share cores.
  double alone_memory = 1, alone_products = 1;
  /// A GPU beside a CPU rank that holds everything but the routed experts. Null: there is none.
  std::shared_ptr<const Device> companion;

  double flops(Arithmetic arithmetic) const;
};

/// One direction of one rank's connection.
struct Link {
  double bytes_per_s = 0;
  double latency_us = 0;
};

/// Equal nodes. A cluster of several groups is a mixed one.
struct NodeGroup {
  int nodes = 1;
  int ranks_per_node = 1;
  Device device;
  Link intra_node;  // between ranks of a node
};

/// The machines a plan is for. Ranks are numbered node by node, group by group.
struct Cluster {
  std::string name;
  std::vector<NodeGroup> groups;
  Link inter_node;            // one rank's share of its node's network
  double price_per_hour = 0;  // of all of it; 0: not given

  int ranks() const;
  int nodes() const;
  int largest_node() const;  // ranks of it
  /// Whether tokens take two hops to their experts (collectives/hops.h): nodes have several ranks, and as many each.
  bool two_hops() const;
  const NodeGroup& group_of(int rank) const;
  const Device& device_of(int rank) const { return group_of(rank).device; }
  int node_of(int rank) const;

  /// The form of planner/cards/clusters/: `nodes`, `ranks_per_node`, `device`, `intra_node`, or a list `groups` of such
  /// objects, and `inter_node`. Error names the field that is missing, or that makes no sense (no memory, no ranks).
  static Cluster from_json(const nlohmann::json& document, const std::string& name);
  nlohmann::ordered_json to_json() const;
};

}  // namespace shoal
