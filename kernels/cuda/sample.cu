#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/cuda/operations.h"

// Drawing tokens where the logits are, by the arithmetic of runtime/sampler.cpp, which says why it is what it is: the
// same token comes out. What the host adds up in an order is added up in this order here; where sums are exact (weights
// that share their upper 16 bits, in FP64) the order is free.
namespace shoal::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kBlock = 64;              // the sampler's
constexpr int kBuckets = (0x3f80 + 1);  // of weights up to 1, by their upper 16 bits

/// What a row works with in device memory.
struct Room {
  std::int32_t* token;  // [vocab] of candidates
  float* weight;        // [vocab]
  double* bucket;       // [kBuckets]
};

struct Shared {
  double mass[kMostVocabulary / kBlock];
  double staged[kThreads];
  std::int32_t staged_token[kThreads];
  double total;
  float most[kWarps];
  unsigned count[kWarps], also[kWarps];
  unsigned histogram[256];
  unsigned selected, left;
  int chosen;
};

/// exp(x) for x <= 0, operation by operation the host's.
__device__ __forceinline__ float fast_exp(float x) {
  const int bits = static_cast<int>(__float_as_uint(x) | 0x80000000u);
  x = __uint_as_float(static_cast<unsigned>(min(bits, static_cast<int>(__float_as_uint(-88.0f)))));
  constexpr float kBias = 12582912.0f;
  const float biased = __fadd_rn(__fmul_rn(x, 1.44269504f), kBias);
  const float n = __fadd_rn(biased, -kBias);
  const float r = __fadd_rn(__fadd_rn(x, -__fmul_rn(n, 0.693359375f)), __fmul_rn(n, 2.12194440e-4f));
  float p = 1.0f / 5040;
  p = __fadd_rn(__fmul_rn(p, r), 1.0f / 720);
  p = __fadd_rn(__fmul_rn(p, r), 1.0f / 120);
  p = __fadd_rn(__fmul_rn(p, r), 1.0f / 24);
  p = __fadd_rn(__fmul_rn(p, r), 1.0f / 6);
  p = __fadd_rn(__fmul_rn(p, r), 0.5f);
  p = __fadd_rn(__fmul_rn(p, r), 1.0f);
  p = __fadd_rn(__fmul_rn(p, r), 1.0f);
  const unsigned exponent = __float_as_uint(biased) + (127u - 0x4b400000u);
  return __fmul_rn(p, __uint_as_float(exponent << 23));
}

/// Numbers in an order that unsigned comparison knows; both zeros are one. NaN and -infinity, which are never drawn: 0.
__device__ __forceinline__ unsigned key_of(float f) {
  if (!(f > -INFINITY)) return 0;
  const unsigned bits = __float_as_uint(f + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// A row of logits; where some are +infinity these are equally likely and the others impossible.
struct Row {
  const float* logits;
  int vocab;
  bool infinite;
  float max, scale;
  __device__ __forceinline__ float at(int i) const {
    const float x = logits[i];
    return !infinite ? x : x == INFINITY ? 0.0f : -INFINITY;
  }
  __device__ __forceinline__ float weight(float logit) const {
    return fast_exp(__fmul_rn(__fadd_rn(logit, -max), scale));
  }
};

/// Calls body(value, token) for n weights in order, by thread 0, while it returns true; all threads stage them.
template <class Body>
__device__ __forceinline__ void in_order(Shared& s, const std::int32_t* token, const float* weight, int n,
                                         const Body& body) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) s.selected = 1;
  for (int first = 0; first < n; first += kThreads) {
    __syncthreads();
    if (s.selected == 0) return;  // all threads see the same
    if (first + thread < n) {
      s.staged[thread] = static_cast<double>(weight[first + thread]);
      s.staged_token[thread] = token[first + thread];
    }
    __syncthreads();
    if (thread != 0) continue;
    for (int i = 0; i < kThreads && first + i < n; ++i)
      if (!body(s.staged[i], s.staged_token[i])) {
        s.selected = 0;
        break;
      }
  }
  __syncthreads();
}

__device__ __forceinline__ double sum_in_order(Shared& s, const std::int32_t* token, const float* weight, int n) {
  if (threadIdx.x == 0) s.total = 0;
  in_order(s, token, weight, n, [&](double w, std::int32_t) {
    s.total += w;
    return true;
  });
  return s.total;
}

/// Those of n for which choose(i, out token, out weight, out ties) is true, in order, of those that tie the first
/// `most_ties`. `to` may be where they come from. How many there are.
template <class Choose>
__device__ __forceinline__ int compact(Shared& s, int n, unsigned most_ties, const Room& to, const Choose& choose) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const unsigned below = (1u << lane) - 1;
  unsigned kept = 0, tied = 0;
  for (int first = 0; first < n; first += kThreads) {
    std::int32_t token = 0;
    float weight = 0;
    bool ties = false;
    bool wanted = first + thread < n && choose(first + thread, token, weight, ties);
    const unsigned all_ties = __ballot_sync(kAllLanes, wanted && ties);
    if (lane == 0) s.also[warp] = static_cast<unsigned>(__popc(all_ties));
    __syncthreads();
    unsigned before = tied;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += s.also[w];
      tied += s.also[w];
    }
    if (ties && before + static_cast<unsigned>(__popc(all_ties & below)) >= most_ties) wanted = false;
    const unsigned all = __ballot_sync(kAllLanes, wanted);
    if (lane == 0) s.count[warp] = static_cast<unsigned>(__popc(all));
    __syncthreads();
    unsigned place = kept + static_cast<unsigned>(__popc(all & below));
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) place += s.count[w];
      kept += s.count[w];
    }
    if (wanted) to.token[place] = token, to.weight[place] = weight;
    __syncthreads();
  }
  return static_cast<int>(kept);
}

/// Sum over the block, exact whatever the order, for all threads.
__device__ __forceinline__ double exact_sum(Shared& s, double mine) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  s.staged[thread] = mine;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) s.staged[thread] += s.staged[thread + half];
    __syncthreads();
  }
  return s.staged[0];
}

/// Weights of the whole row, summed by the sampler's blocks into s.mass, in the host's order; their total.
__device__ __forceinline__ double masses(Shared& s, const Row& row) {
  const int blocks = (row.vocab + kBlock - 1) / kBlock;
  for (int b = static_cast<int>(threadIdx.x); b < blocks; b += kThreads) {
    double lanes[8] = {};
#pragma unroll 1
    for (int i = 0; i < kBlock; i += 8)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int at = b * kBlock + i + j;
        lanes[j] += static_cast<double>(at < row.vocab ? row.weight(row.at(at)) : 0.0f);
      }
    double sum = 0;
#pragma unroll
    for (const double lane : lanes) sum += lane;
    s.mass[b] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0;
    for (int b = 0; b < blocks; ++b) total += s.mass[b];
    s.total = total;
  }
  __syncthreads();
  return s.total;
}

/// The n largest logits of a row, of equal ones the first, as candidates with weights; all there are, where fewer.
__device__ __forceinline__ int largest(Shared& s, const Row& row, unsigned n, const Room& room) {
  const int thread = static_cast<int>(threadIdx.x);
  unsigned prefix = 0, left = n;  // the key of the n-th, from its upper bits down
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = thread; i < 256; i += kThreads) s.histogram[i] = 0;
    __syncthreads();
    const unsigned known = shift == 24 ? 0u : ~0u << (shift + 8);
    for (int i = thread; i < row.vocab; i += kThreads) {
      const unsigned key = key_of(row.at(i));
      if (key != 0 && (key & known) == prefix) atomicAdd(&s.histogram[key >> shift & 255u], 1u);
    }
    __syncthreads();
    if (thread == 0) {
      int digit = 255;
      unsigned after = left;
      while (digit > 0 && s.histogram[digit] < after) after -= s.histogram[digit--];
      s.selected = static_cast<unsigned>(digit);
      s.left = after;
    }
    __syncthreads();
    prefix |= s.selected << shift;
    left = s.left;
    __syncthreads();
  }
  return compact(s, row.vocab, left, room, [&](int i, std::int32_t& token, float& weight, bool& ties) {
    const float logit = row.at(i);
    const unsigned key = key_of(logit);
    token = i, weight = row.weight(logit), ties = key == prefix;
    return key != 0 && key >= prefix;
  });
}

/// Of n candidates, the fewest that hold `mass`, heaviest first, and of these those that weigh `least`.
__device__ __forceinline__ int keep_heaviest(Shared& s, const Room& room, int n, double mass, float least) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kBuckets; i += kThreads) room.bucket[i] = 0;
  __syncthreads();
  for (int i = thread; i < n; i += kThreads)
    atomicAdd(&room.bucket[__float_as_uint(room.weight[i]) >> 16], static_cast<double>(room.weight[i]));
  // From the heaviest bucket down to the one in which the mass is reached.
  if (thread == 0) s.chosen = -1;
  for (int first = kBuckets - 1; first >= 0; first -= kThreads) {
    __syncthreads();
    if (s.chosen >= 0) break;
    if (first - thread >= 0) s.staged[thread] = room.bucket[first - thread];
    __syncthreads();
    if (thread != 0) continue;
    for (int i = 0; i < kThreads && first - i >= 0; ++i) {
      if (first - i == 0 || s.staged[i] >= mass) {
        s.chosen = first - i;
        break;
      }
      mass -= s.staged[i];
    }
    s.total = mass;
  }
  __syncthreads();
  mass = s.total;
  const auto edge = static_cast<unsigned>(s.chosen);

  // Within it, the lower 16 bits of the lightest that is kept: the largest such that those at or above hold the mass.
  const auto sum_from = [&](unsigned low) {
    double mine = 0;
    for (int i = thread; i < n; i += kThreads) {
      const unsigned bits = __float_as_uint(room.weight[i]);
      if (bits >> 16 == edge && (bits & 0xffffu) >= low) mine += static_cast<double>(room.weight[i]);
    }
    return exact_sum(s, mine);
  };
  const auto holds = [&](double sum) { return sum > 0 && sum >= mass; };  // of a mass of 0, the heaviest
  unsigned low = 0, ties = 0xffffffffu;
  if (holds(sum_from(0))) {
    for (unsigned bit = 0x8000u; bit > 0; bit /= 2)
      if (holds(sum_from(low | bit))) low |= bit;
    const double unit = static_cast<double>(__uint_as_float(edge << 16 | low));
    const double rest = mass - sum_from(low + 1);
    ties = 1;
    if (unit > 0 && rest > unit) {
      ties = static_cast<unsigned>(ceil(rest / unit));
      while (ties > 1 && (ties - 1) * unit >= rest) --ties;
      while (ties * unit < rest) ++ties;
    }
  }  // else, of rounding's making, all
  const unsigned lightest = edge << 16 | low;
  return compact(s, n, ties, room, [&](int i, std::int32_t& token, float& weight, bool& tie) {
    token = room.token[i], weight = room.weight[i];
    const unsigned bits = __float_as_uint(weight);
    tie = bits == lightest;
    return bits >= lightest && weight >= least;
  });
}

/// A token of each row.
///   shape      logits [rows, vocab] FP32 -> token [rows]; -1 where no logit is a finite number
///   precision  the host sampler's, to the bit: FP32 weights, FP64 sums in its order
///   grid       a block of 256 threads for each row
///   traffic    the row 2 times (greedy), 3 to 7 times from L2: 0.5 MB for R1's vocabulary, which no longer goes to the
///              host
///   limit      latency of what is added up in order; by count some 20 thousand clocks for R1's 2,020 blocks of logits,
///              and as many again with top-p
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const float* logits, std::int64_t stride, int vocab, const Draw* draws, std::int32_t* tokens,
                  double* buckets, std::int32_t* candidates, float* weights) {
  follow_previous_kernels();
  Shared& s = shared<Shared>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const std::int64_t r = blockIdx.x;
  const Draw draw = draws[r];
  const Room room{candidates + r * vocab, weights + r * vocab, buckets + r * kBuckets};
  Row row{logits + r * stride, vocab, false, -INFINITY, draw.scale};

  for (int i = thread; i < vocab; i += kThreads) row.max = fmaxf(row.max, row.logits[i]);  // NaN never is
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    row.max = fmaxf(row.max, __shfl_xor_sync(kAllLanes, row.max, distance));
  if (lane == 0) s.most[warp] = row.max;
  if (thread == 0) s.chosen = vocab;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) row.max = fmaxf(row.max, s.most[w]);
  if (row.max == -INFINITY) {
    if (thread == 0) tokens[r] = -1;
    return;  // the whole block
  }
  if (!(draw.scale > 0) || draw.top_k == 1) {
    for (int i = thread; i < vocab; i += kThreads)
      if (row.logits[i] == row.max) {
        atomicMin(&s.chosen, i);
        break;
      }
    __syncthreads();
    if (thread == 0) tokens[r] = s.chosen;
    return;
  }
  if (row.max == INFINITY) row.infinite = true, row.max = 0;

  const bool top_k = draw.top_k > 0 && draw.top_k < vocab, top_p = draw.top_p < 1;
  const double top_p_share = static_cast<double>(fmaxf(draw.top_p, 0.0f));
  const float least = draw.min_p > 0 ? fminf(draw.min_p, 1.0f) : 0.0f;
  int n = 0;
  double share = draw.share;
  if (!top_k && !top_p && least == 0) {
    // The block of logits in which the running sum passes the share; of it, all.
    const double total = masses(s, row);
    if (thread == 0) {
      const int blocks = (vocab + kBlock - 1) / kBlock;
      double left = __dmul_rn(share, total);
      int b = 0;
      for (; b + 1 < blocks && left >= s.mass[b]; ++b) left -= s.mass[b];
      while (s.mass[b] <= 0) --b;
      s.chosen = b;
      s.total = left / s.mass[b];
    }
    __syncthreads();
    share = s.total;
    const int first = s.chosen * kBlock;
    n = min(kBlock, vocab - first);
    if (thread < n) room.token[thread] = first + thread, room.weight[thread] = row.weight(row.at(first + thread));
    __syncthreads();
  } else {
    double mass = 0;
    if (top_k) {
      n = largest(s, row, static_cast<unsigned>(draw.top_k), room);
      mass = sum_in_order(s, room.token, room.weight, n);
    } else {
      double bound = static_cast<double>(least);
      if (top_p) {
        mass = masses(s, row);
        bound = fmax(bound, (1 - top_p_share) * mass / static_cast<double>(vocab));
      }
      // A little more than can stay; what is too light goes below.
      const double from = fmax(static_cast<double>(row.max) + (log(bound) - 0.01) / static_cast<double>(draw.scale),
                               -3.4028234663852886e38);
      n = compact(s, vocab, 0xffffffffu, room, [&](int i, std::int32_t& token, float& weight, bool&) {
        const float logit = row.at(i);
        token = i, weight = row.weight(logit);
        return static_cast<double>(logit) >= from;
      });
    }
    if (top_p)
      n = keep_heaviest(s, room, n, __dmul_rn(top_p_share, mass), least);
    else
      n = compact(s, n, 0xffffffffu, room, [&](int i, std::int32_t& token, float& weight, bool&) {
        token = room.token[i], weight = room.weight[i];
        return weight >= least;
      });
  }

  // The candidate at which the running sum passes the share of the whole.
  double left = __dmul_rn(share, sum_in_order(s, room.token, room.weight, n));
  std::int32_t picked = room.token[0];
  in_order(s, room.token, room.weight, n, [&](double weight, std::int32_t token) {
    if (weight <= 0) return true;
    picked = token;
    left -= weight;
    return left >= 0;
  });
  if (thread == 0) tokens[r] = picked;
}

}  // namespace

std::size_t sample_room_bytes(int vocab) {
  return kBuckets * sizeof(double) + static_cast<std::size_t>(vocab) * (sizeof(std::int32_t) + sizeof(float));
}

void sample(Rows<const float> logits, const Draw* draws, std::int32_t* tokens, std::byte* room, cudaStream_t stream) {
  const auto vocab = static_cast<int>(logits.cols);
  auto* buckets = reinterpret_cast<double*>(room);
  auto* candidates = reinterpret_cast<std::int32_t*>(buckets + logits.rows * kBuckets);
  auto* weights = reinterpret_cast<float*>(candidates + logits.rows * vocab);
  launch("sample", sample_kernel, static_cast<unsigned>(logits.rows), kThreads, stream, logits.data, logits.stride,
         vocab, draws, tokens, buckets, candidates, weights);
}

}  // namespace shoal::cuda
