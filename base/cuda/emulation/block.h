#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <source_location>
#include <vector>

#include "base/cuda/emulation/vector_types.h"

/// Runs kernels on the CPU, one block at a time: each CUDA thread is a fiber, and whatever lets threads meet (barriers,
/// shuffles) is where one gives way to another. Which thread goes on, and which block comes next, is drawn at random
/// from a seed, so a missing barrier shows as a wrong result under some seed.
///
/// Not modelled: memory ordering between threads, blocks that run at the same time, time itself.
namespace shoal::emulation {

/// Where and why a kernel breaks the rules: thrown as Error out of the call that ran it.
using Where = std::source_location;

/// All later launches of this OS thread draw from this seed.
void set_seed(std::uint64_t seed);

/// The CUDA thread that is running on this OS thread.
struct Position {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  unsigned linear = 0;  // the thread's number in its block
};
const Position& position();

/// Runs `program` once for each thread of each block. Throws what a thread threw, or Error where threads wait for each
/// other in vain, or where a block that must call wait_for_previous_kernels() ends without.
void run_grid(const char* name, dim3 grid, dim3 block, std::size_t dynamic_shared_bytes, bool must_wait,
              const std::function<void()>& program);
/// Kernels follow each other here, so there is nothing to wait for (griddepcontrol.wait).
void wait_for_previous_kernels();

/// Waits until `count` threads of the block have come to barrier `id` (CUDA's bar.sync).
void barrier(int id, unsigned count, Where where);
/// Comes to it without waiting (bar.arrive).
void barrier_arrive(int id, unsigned count, Where where);
unsigned threads_in_block();

/// Threads that hand something to each other: every lane of `mask` in this warp brings `bytes` (at most kLaneBytes);
/// the result [32][kLaneBytes] stays valid until the lane's next meeting. Error where the lanes meet at different
/// places.
constexpr std::size_t kLaneBytes = 64;
const std::byte* meet_warp(unsigned mask, const void* value, std::size_t bytes, Where where);

/// CUDA's asynchronous copies into shared memory (cp.async), at the latest moment that is allowed: nothing is there
/// before the thread has waited for the group that it belongs to. Behind `from_bytes` zeros are written.
void copy_async(void* to, const void* from, std::size_t bytes, std::size_t from_bytes);
void commit_copies();
/// Until no more than the last `pending` groups of this thread are under way.
void wait_copies(unsigned pending);

/// Barriers in shared memory that count arrivals and bytes (mbarrier). A phase is complete when `count` threads have
/// arrived and all expected bytes are there; waiting for parity p means until a phase of that parity is complete.
void mbarrier_init(std::uint64_t* barrier, unsigned count);
void mbarrier_arrive(std::uint64_t* barrier, std::uint32_t expected_bytes, Where where);
void mbarrier_wait(std::uint64_t* barrier, unsigned parity, Where where);
/// A copy by the copy engine (cp.async.bulk), done at a random moment, which the barrier then counts.
void copy_bulk(void* to, const void* from, std::uint32_t bytes, std::uint64_t* barrier);

/// Work on registers that goes on while its thread does (wgmma): done when the thread waits for its group.
void defer(std::function<void()> work);
void commit_deferred();
void wait_deferred(unsigned pending);

/// Memory of the block, 0xff (NaN) when the block begins; the same for all its threads that ask with this key. What is
/// written beyond its end is found when the block ends.
std::byte* shared_memory(const void* key, std::size_t bytes);
std::byte* dynamic_shared_memory();

}  // namespace shoal::emulation
