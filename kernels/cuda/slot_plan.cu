#include "kernels/cuda/slot_entries.h"

// What expert_plan.h works out on the host, for layers whose host learns nothing of what was chosen.
namespace shoal::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;
static_assert(kMaxExperts <= kThreads);

/// The sum of the values of all threads before this one, and in `all` that of all. `of_warp` [kWarps] is shared memory.
__device__ __forceinline__ int sum_before(int value, int* of_warp, int& all) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  int sum = value;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int other = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(distance));
    if (lane >= distance) sum += other;
  }
  if (lane == kWarp - 1) of_warp[warp] = sum;
  __syncthreads();
  int before = 0;
  all = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    before += w < warp ? of_warp[w] : 0;
    all += of_warp[w];
  }
  return before + sum - value;
}

/// Counts, then places: the pairs of one expert lie side by side, in any order, on which no result depends.
///   shape      slots [all] of `entries` experts -> begin [experts + 1], row [pairs], place [all, entries]
///   grid       one block, a thread for every 512th entry, twice
///   traffic    64 bytes of each slot, twice (then from L2), 8 for each pair
///   limit      latency: two rounds of loads and of atomics in shared memory, some 3 us for 8 ranks of 64 R1 tokens
__global__ void __launch_bounds__(kThreads)
    plan_slots_kernel(const std::byte* in, Slots s, int experts, SlotPlan plan) {
  follow_previous_kernels();
  struct Shared {
    int next[kMaxExperts];  // first how many, then where the next pair goes
    int of_warp[kWarps];
  };
  Shared& shared_ = shared<Shared>();
  const int thread = static_cast<int>(threadIdx.x);
  const auto all = static_cast<int>(s.all()) * s.entries;
  const auto here = [&](int i) {
    const SlotEntry entry = entries_of(in, s, i / s.entries)[i % s.entries];
    return is_here(s, entry) ? index_of(entry.place) : -1;
  };
  shared_.next[thread] = 0;
  __syncthreads();
#pragma unroll 4
  for (int i = thread; i < all; i += kThreads)
    if (const int expert = here(i); expert >= 0) atomicAdd(&shared_.next[expert], 1);
  __syncthreads();
  int pairs;
  const int before = sum_before(shared_.next[thread], shared_.of_warp, pairs);
  __syncthreads();  // all have read
  shared_.next[thread] = before;
  if (thread < experts) plan.begin[thread] = before;
  if (thread == 0) {
    plan.begin[experts] = pairs;
    *plan.work = pairs;
  }
  __syncthreads();
#pragma unroll 4
  for (int i = thread; i < all; i += kThreads) {
    const int expert = here(i);
    const int pair = expert < 0 ? -1 : atomicAdd(&shared_.next[expert], 1);
    plan.place[i] = pair;
    if (pair >= 0) plan.row[pair] = i / s.entries;
  }
}

/// Ranges of pairs cut into tiles.
///   grid       one block, a thread for each range
///   limit      latency, some 2 us
__global__ void __launch_bounds__(kThreads)
    cut_ranges_kernel(const std::int32_t* begin, int groups, const std::int32_t* wanted, int rows, int count,
                      Tile* tiles) {
  follow_previous_kernels();
  struct Shared {
    int of_warp[kWarps];
  };
  const int group = static_cast<int>(threadIdx.x);
  const bool there = group < groups && (wanted == nullptr || wanted[group] != 0);
  const std::int32_t first = there ? begin[group] : 0, end = there ? begin[group + 1] : 0;
  int all;
  int at = sum_before(ceil_div(end - first, rows), shared<Shared>().of_warp, all);
  for (std::int32_t i = first; i < end; i += rows, ++at) tiles[at] = {group, i, min(rows, end - i)};
  for (int i = all + group; i < count; i += kThreads) tiles[i] = {0, 0, 0};
}

}  // namespace

void plan_slots(const std::byte* in, const Slots& slots, int experts, const SlotPlan& plan, cudaStream_t stream) {
  launch("plan_slots", plan_slots_kernel, 1, kThreads, stream, in, slots, experts, plan);
}

void cut_ranges(const std::int32_t* begin, int groups, const std::int32_t* wanted, int rows, int count, Tile* tiles,
                cudaStream_t stream) {
  launch("cut_ranges", cut_ranges_kernel, 1, kThreads, stream, begin, groups, wanted, rows, count, tiles);
}

}  // namespace shoal::cuda
