#pragma once
#include <map>

#include "planner/cluster.h"
#include "planner/memory.h"
#include "planner/precision.h"

namespace shoal {

/// How close to a device's datasheet programs come, and what a step costs besides. One set for every model, machine and
/// engine; tests/unit/plan_speed_test.cpp holds it against published throughputs. Where somebody published the figure
/// itself it stands here: a GPU's products are DeepGEMM's (FP8, 1550 of an H800's 1979 TFLOP/s), its attention
/// FlashMLA's (660 of 989 TFLOP/s; it streams the cache at 3000 of 3350 GB/s, of which weights in small batches get
/// somewhat less), links DeepEP's (low latency, 128 ranks: 7.6 MB out in 192 us and 14.7 MB back in 369 us, 39 and 40
/// of 50 GB/s). A CPU's memory is 0.8 of its datasheet (what STREAM reaches), and of that what llama.cpp does with Q8_0
/// on one token, 58 tokens/s where the read rate would give 77. The others were set while looking at those throughputs.
struct SpeedConstants {
  struct OfDevice {
    double memory;     // fraction of memory bandwidth when weights or cache are streamed
    double products;   // fraction of FLOP/s in products with weights
    double attention;  // the same in attention over the cache (BF16)
    double passes;     // times that activations between products are written and read (norms, quantization, sorting)
    double layer_us;   // of a layer besides: launches, norms, routing, synchronisation
    double step_us;    // of a step besides: scheduling, sampling
  };
  OfDevice gpu{.memory = 0.85, .products = 0.78, .attention = 0.667, .passes = 5, .layer_us = 170, .step_us = 2000};
  OfDevice cpu{.memory = 0.60, .products = 0.30, .attention = 0.30, .passes = 4, .layer_us = 100, .step_us = 200};
  /// Of what `plan --cluster auto` measured with the same kernels; products, among all else that a step does, reach
  /// nine tenths of it. perf/plan_validation.py holds them against runs.
  OfDevice measured{.memory = 1, .products = 0.93, .attention = 0.5, .passes = 4, .layer_us = 60, .step_us = 200};
  double link = 0.80;        // fraction of a link's bandwidth in an exchange
  double imbalance = 1.2;    // most loaded rank over the mean, where no loads are known; or what chance alone makes
  double overlap = 0.2;      // of the shorter of computation and exchange: what travels while others' experts compute
  double companion_us = 60;  // there and back between a CPU and its GPU, a layer
};

/// What one rank does in a step.
struct Step {
  double tokens = 1;      // the tensor-parallel group with most of them computes
  double mean = 0;        // the same on average over the groups; 0: as many
  double at_work = 1;     // the part of the groups that have any
  double context = 4096;  // tokens of the cache that each attends to, on average
  double sequences = 1;   // that tokens of prompts are of
  bool prefill = false;   // whole prompts: attention over unpacked keys and values, no logits
  double average() const { return mean > 0 ? mean : tokens; }
};

/// Times of a step in microseconds, the slowest rank's.
struct StepTime {
  double dense = 0;      // attention's projections, dense and shared FFN, head
  double attention = 0;  // over the cache
  double experts = 0;
  double activations = 0;  // moved between the products
  double exchange = 0;     // all-to-all, or all-reduces of tensor parallelism
  double fixed = 0;
  double total = 0;  // with what overlaps
};

/// The step time of a model on a cluster: bytes over bandwidth or FLOPs over FLOP/s, whichever is longer, for each
/// part, and the exchange over the slowest link (arXiv 2412.19437, sections 3.2 and 3.4: node-limited routing, FP8
/// dispatch and BF16 combine, two micro-batches).
class SpeedModel {
 public:
  SpeedModel(const ModelConfig& config, const Precision& precision, const Cluster& cluster, const Layout& layout,
             const Workload& workload, int redundant_experts, const SpeedConstants& constants = {});

  /// `imbalance`: load of the most loaded rank over the mean; 0: the constant.
  StepTime step(const Step& step, double imbalance = 0) const;

 private:
  struct Where;  // a device, its constants, and how its ranks share it
  double dense_us(const Step& step, const Where& w) const;
  double attention_us(const Step& step, const Where& w) const;
  double experts_us(const Step& step, const Where& w, double imbalance) const;
  double activations_us(const Step& step, const Where& w) const;
  double exchange_us(const Step& step) const;
  /// Products with weights of these types (numbers of them): `read` passes over them, `multiplied` tokens with each.
  /// Where ranks share cores and bandwidth: while the part `reading_part` of them reads, and all of them together
  /// multiply the part `part` of what they would if each did as much.
  struct Products {
    double reading = 0, multiplying = 0;  // seconds
  };
  using Weights = std::map<const WeightType*, double>;
  Products products(const Device& device, const Weights& weights, const ProductRates& rates, double read,
                    double multiplied, double reading_part, double part) const;
  double chance(double pairs) const;

  const ModelConfig config_;
  const Precision precision_;
  const Cluster cluster_;
  const Layout layout_;
  const Workload workload_;
  const int redundant_;
  const SpeedConstants constants_;
  double dense_bytes_ = 0, dense_parameters_ = 0, head_parameters_ = 0;
  double expert_bytes_ = 0, expert_parameters_ = 0;  // of one expert
  Weights dense_, head_, expert_;                    // by type
  int moe_layers_ = 0;
  double largest_slice_ = 1;  // over the mean, where experts are sliced
};

/// What `shoal plan` prints.
struct Prediction {
  double ttft_ms = 0;
  double tpot_ms = 0;
  double prefill_tokens_per_s = 0;  // all ranks busy with prompts
  double decode_tokens_per_s = 0;   // all sequences of the workload together
  StepTime decode, prefill;
};
/// For prompts of `prompt` tokens, read in steps of the workload's `max_batched_tokens` a rank, and the workload's
/// sequences at full context.
Prediction predict(const SpeedModel& model, const Workload& workload, const Layout& layout, int prompt,
                   double imbalance);

}  // namespace shoal
