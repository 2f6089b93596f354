#include "kernels/cuda/device.h"
#include "kernels/cuda/operations.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;

/// Numbers in an order that unsigned comparison knows. NaN (of a broken model) counts as the largest, so that it shows
/// instead of hiding; both zeros are one. 0 is below every number.
__device__ __forceinline__ unsigned order_of(float f) {
  if (f != f) return 0xffffffffu;
  const unsigned bits = __float_as_uint(f + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
constexpr unsigned kTaken = 0;
constexpr unsigned kExcluded = 0x007fffffu;  // order_of(-infinity)

struct Best {
  unsigned order;
  int index;
};
/// The largest of a list, of equal ones the first; the same in every lane.
__device__ __forceinline__ Best largest_of(const unsigned* order, int n, int lane) {
  Best best{kTaken, n};
  for (int i = lane; i < n; i += kWarp)
    if (order[i] > best.order) best = {order[i], i};
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const unsigned o = __shfl_xor_sync(kAllLanes, best.order, distance);
    const int i = __shfl_xor_sync(kAllLanes, best.index, distance);
    if (o > best.order || (o == best.order && i < best.index)) best = {o, i};
  }
  return best;
}

/// Each token's experts, by the rules of RouterShape.
///   shape      logits [tokens, n_experts] FP32, bias [n_experts] -> expert, weight [tokens, top_k], ascending by id
///   precision  FP32; the choice is by score + bias, the weight by score alone
///   grid       a warp for each token, blocks of four; scores in shared memory, each choice a search by the whole warp
///   traffic    1 KB of logits per token of R1
///   limit      latency: about top_k * (experts / 32 + 10) steps of a warp, some 2 us; memory would allow 128 tokens in
///              0.03 us
__global__ void __launch_bounds__(kThreads)
    route_kernel(const float* logits, std::int64_t stride, std::int64_t tokens, const float* bias, RouterShape shape,
                 std::int32_t* expert, float* weight) {
  follow_previous_kernels();
  struct Shared {
    float score[kWarps][kMaxExperts];
    unsigned order[kWarps][kMaxExperts];
    unsigned group[kWarps][kMaxExperts];
  };
  Shared& s = shared<Shared>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t token = std::int64_t{blockIdx.x} * kWarps + warp;
  if (token >= tokens) return;  // the whole warp
  float* score = s.score[warp];
  unsigned *order = s.order[warp], *group = s.group[warp];
  const float* x = logits + token * stride;
  const int n = shape.n_experts;

  if (shape.scoring == Scoring::sigmoid) {
    for (int i = lane; i < n; i += kWarp) score[i] = 1.0f / (1.0f + expf(-x[i]));
  } else {
    float most = -INFINITY, sum = 0;
    for (int i = lane; i < n; i += kWarp) most = fmaxf(most, x[i]);
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, distance));
    for (int i = lane; i < n; i += kWarp) sum += score[i] = expf(x[i] - most);
    sum = warp_sum(sum);
    for (int i = lane; i < n; i += kWarp) score[i] /= sum;
  }
  for (int i = lane; i < n; i += kWarp) order[i] = order_of(score[i] + (bias == nullptr ? 0.0f : bias[i]));
  __syncwarp();

  if (shape.group_score != GroupScore::none) {
    const int size = n / shape.n_group;
    for (int g = lane; g < shape.n_group; g += kWarp) {
      float best = -INFINITY, second = -INFINITY;
      bool nan = false;
      for (int i = g * size; i < (g + 1) * size; ++i) {
        const float choice = score[i] + (bias == nullptr ? 0.0f : bias[i]);
        nan = nan || choice != choice;
        second = fmaxf(second, fminf(best, choice));
        best = fmaxf(best, choice);
      }
      const bool two = shape.group_score == GroupScore::best_two_sum && size > 1;
      group[g] = nan ? 0xffffffffu : order_of(two ? best + second : best);
    }
    __syncwarp();
    for (int k = 0; k < shape.topk_group; ++k) {
      const Best kept = largest_of(group, shape.n_group, lane);
      __syncwarp();
      if (lane == 0) group[kept.index] = kTaken;
      __syncwarp();
    }
    for (int i = lane; i < size * shape.n_group; i += kWarp)
      if (group[i / size] != kTaken) order[i] = kExcluded;
    __syncwarp();
  }

  for (int k = 0; k < shape.top_k; ++k) {
    const Best chosen = largest_of(order, n, lane);
    __syncwarp();
    if (lane == 0) order[chosen.index] = kTaken;
    __syncwarp();
  }
  // The taken ones, in order of their ids; then their weights.
  int found = 0;
  float sum = 0;
  for (int first = 0; first < n; first += kWarp) {
    const int i = first + lane;
    const bool taken = i < n && order[i] == kTaken;
    const unsigned all = __ballot_sync(kAllLanes, taken);
    if (taken) expert[token * shape.top_k + found + __popc(all & ((1u << lane) - 1))] = i;
    for (unsigned rest = all; rest != 0; rest &= rest - 1) sum += score[first + __ffs(static_cast<int>(rest)) - 1];
    found += __popc(all);
  }
  __syncwarp();
  for (int k = lane; k < shape.top_k; k += kWarp) {
    const float mine = score[expert[token * shape.top_k + k]];
    weight[token * shape.top_k + k] =
        (shape.norm_topk_prob ? mine / (sum + 1e-20f) : mine) * shape.routed_scaling_factor;
  }
}

}  // namespace

void route(Rows<const float> logits, const float* bias, const RouterShape& shape, std::int32_t* expert, float* weight,
           cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(logits.rows, kWarps));
  launch("route", route_kernel, blocks, kThreads, stream, logits.data, logits.stride, logits.rows, bias, shape, expert,
         weight);
}

}  // namespace shoal::cuda
