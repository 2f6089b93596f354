// The emulation that GPU kernels are tested under: what CUDA promises, and that the mistakes it exists for are found.
#include <gtest/gtest.h>

#include <array>
#include <set>
#include <string>
#include <vector>

#include "base/cuda/memory.h"
#include "base/error.h"
#include "kernels/cuda/device.h"
#include "tests/unit/device_stream_test_support.h"

namespace shoal::cuda {
namespace {

/// Device memory for the tests' kernels.
class Emulation : public OnStream {
 protected:
  template <class Kernel, class... Arguments>
  void start(const char* name, Kernel kernel, dim3 grid, dim3 threads, Arguments... arguments) {
    emulation::launch(name, kernel, grid, threads, 0, stream, false, arguments...);
  }
  /// What the kernel says it did wrong.
  template <class Kernel, class... Arguments>
  std::string fault_of(Kernel kernel, unsigned threads, Arguments... arguments) {
    start("test", kernel, 1, threads, arguments...);
    try {
      check(cudaStreamSynchronize(stream), "wait");
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  DeviceBlock block{1 << 16};
  int* ints = reinterpret_cast<int*>(block.data());
  float* floats = reinterpret_cast<float*>(block.data());
};

struct Ints {
  int value[256];
};

__global__ void reverse_block(int* out, bool with_barrier) {
  Ints& s = shared<Ints>();
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  s.value[t] = t + 1000 * static_cast<int>(blockIdx.x);
  if (with_barrier) __syncthreads();
  out[static_cast<int>(blockIdx.x) * n + t] = s.value[n - 1 - t];
}

TEST_F(Emulation, BarriersOrderSharedMemory) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    emulation::set_seed(seed);
    start("reverse", reverse_block, 3, 256, ints, true);
    const auto out = read(ints, 3 * 256);
    for (int i = 0; i < 3 * 256; ++i) EXPECT_EQ(out[std::size_t(i)], 255 - i % 256 + 1000 * (i / 256));
  }
}

TEST_F(Emulation, AKernelThatDoesNotWaitForOthersShows) {
  launch("reverse", reverse_block, 2, 256, stream, ints, true);
  EXPECT_THROW(check(cudaStreamSynchronize(stream), "wait"), Error);
}

TEST_F(Emulation, AMissingBarrierShows) {
  start("reverse", reverse_block, 1, 256, ints, false);
  const auto out = read(ints, 256);
  EXPECT_TRUE(std::any_of(out.begin(), out.end(), [](int i) { return i == -1; })) << "all read before it was written";
}

__global__ void shuffle_all(int* out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int* to = out + threadIdx.x * 6;
  to[0] = __shfl_sync(kAllLanes, lane * 3, 5);
  to[1] = __shfl_xor_sync(kAllLanes, lane, 9);
  to[2] = __shfl_up_sync(kAllLanes, lane, 3);
  to[3] = __shfl_down_sync(kAllLanes, lane, 3);
  to[4] = __shfl_sync(kAllLanes, lane, 2, 8);
  to[5] = static_cast<int>(__ballot_sync(kAllLanes, lane % 3 == 0));
}

TEST_F(Emulation, LanesExchangeAsCudaSays) {
  start("shuffle", shuffle_all, 1, 64, ints);
  const auto out = read(ints, 64 * 6);
  unsigned thirds = 0;
  for (unsigned l = 0; l < 32; l += 3) thirds |= 1u << l;
  for (int t = 0; t < 64; ++t) {
    const int lane = t % 32;
    const std::array<int, 6> expected{15,
                                      lane ^ 9,
                                      lane < 3 ? lane : lane - 3,
                                      lane > 28 ? lane : lane + 3,
                                      lane / 8 * 8 + 2,
                                      static_cast<int>(thirds)};
    for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(out[std::size_t(t) * 6 + i], expected[i]) << i << " of thread " << t;
  }
}

__global__ void sum_warp(float* out) { out[threadIdx.x] = warp_sum(static_cast<float>(threadIdx.x)); }
TEST_F(Emulation, WarpSumIsTheSameInEveryLane) {
  start("sum", sum_warp, 1, 64, floats);
  const auto out = read(floats, 64);
  for (std::size_t t = 0; t < 64; ++t) EXPECT_EQ(out[t], t < 32 ? 496.0f : 1520.0f);
}

__global__ void add_one(int* out) { atomicAdd(out, 1); }
TEST_F(Emulation, EveryThreadRunsOnce) {
  check(cudaMemsetAsync(ints, 0, 4, stream), "clear");
  start("count", add_one, dim3(3, 4, 2), dim3(8, 3, 2), ints);
  EXPECT_EQ(read(ints, 1)[0], 3 * 4 * 2 * 8 * 3 * 2);
}

__global__ void half_at_barrier() {
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void half_shuffles() {
  if (threadIdx.x % 2 == 0) static_cast<void>(__shfl_xor_sync(kAllLanes, 1, 1));
}
__global__ void beyond_shared() {
  int* value = shared<Ints>().value;
  value[256 + threadIdx.x] = 1;
}
TEST_F(Emulation, MistakesAreNamed) {
  EXPECT_NE(fault_of(half_at_barrier, 64).find("wait in vain: 32 at emulation_test.cpp"), std::string::npos);
  EXPECT_NE(fault_of(two_barriers, 64).find("different places"), std::string::npos);
  EXPECT_NE(fault_of(half_shuffles, 32).find("wait in vain: 16"), std::string::npos);
  EXPECT_NE(fault_of(beyond_shared, 8).find("beyond its 1024 bytes of shared memory"), std::string::npos);
  EXPECT_EQ(fault_of(reverse_block, 256, ints, true), "");
}

__global__ void write_far(int* out, int at) { out[at] = 1; }
using EmulationDeathTest = Emulation;
TEST_F(EmulationDeathTest, MemoryOutOfReachEndsTheProgram) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(ints[0] = 1, "");  // the host at device memory
  const auto beyond = [&] {
    start("far", write_far, 1, 1, ints, (1 << 16) / 4);
    static_cast<void>(cudaStreamSynchronize(stream));
  };
  EXPECT_DEATH(beyond(), "");
}

TEST_F(Emulation, NothingHappensBeforeSomeoneWaits) {
  PinnedBlock pinned(4);
  auto* result = reinterpret_cast<int*>(pinned.data());
  *result = 7;
  check(cudaMemsetAsync(ints, 0, 4, stream), "clear");
  start("count", add_one, 1, 5, ints);
  check(cudaMemcpyAsync(result, ints, 4, cudaMemcpyDeviceToHost, stream), "copy");
  EXPECT_EQ(*result, 7);
  check(cudaStreamSynchronize(stream), "wait");
  EXPECT_EQ(*result, 5);
  // Pinned memory is read when the copy runs, other memory when it is asked for.
  int pageable = 1;
  *result = 1;
  check(cudaMemcpyAsync(ints, result, 4, cudaMemcpyHostToDevice, stream), "copy");
  check(cudaMemcpyAsync(ints + 1, &pageable, 4, cudaMemcpyHostToDevice, stream), "copy");
  *result = pageable = 2;
  EXPECT_EQ(read(ints, 2), (std::vector<int>{2, 1}));
}

TEST_F(Emulation, CapturedWorkIsDoneAtEachLaunch) {
  PinnedBlock pinned(4);
  auto* result = reinterpret_cast<int*>(pinned.data());
  check(cudaMemsetAsync(ints, 0, 4, stream), "clear");
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin");
  start("count", add_one, 1, 5, ints);
  check(cudaMemcpyAsync(result, ints, 4, cudaMemcpyDeviceToHost, stream), "copy");
  EXPECT_THROW(static_cast<void>(cudaStreamSynchronize(stream)), Error);
  EXPECT_THROW(DeviceBlock(16), Error);
  const int pageable = 1;
  EXPECT_THROW(static_cast<void>(cudaMemcpyAsync(ints, &pageable, 4, cudaMemcpyHostToDevice, stream)), Error);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamEndCapture(stream, &graph), "end");
  check(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  check(cudaGraphDestroy(graph), "destroy");
  EXPECT_EQ(read(ints, 1), std::vector<int>{0});  // nothing was done
  for (const int expected : {5, 10}) {
    check(cudaGraphLaunch(executable, stream), "launch");
    check(cudaStreamSynchronize(stream), "wait");
    EXPECT_EQ(*result, expected);
  }
  check(cudaGraphExecDestroy(executable), "destroy");
}

__global__ void read_unset(float* out) {
  const Ints& s = shared<Ints>();
  out[threadIdx.x] = __uint_as_float(static_cast<unsigned>(s.value[threadIdx.x]));
}
TEST_F(Emulation, MemoryIsPoisonedUntilWritten) {
  start("unset", read_unset, 1, 4, floats);
  for (const float f : read(floats, 8)) EXPECT_TRUE(f != f);
}

}  // namespace
}  // namespace shoal::cuda
