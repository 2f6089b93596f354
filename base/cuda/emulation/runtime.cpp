#include "base/cuda/emulation/runtime.h"

#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/cuda/emulation/faults.h"
#include "base/error.h"

struct CUgraph_st {
  std::vector<std::function<bool()>> work;
};
struct CUgraphExec_st : CUgraph_st {};
/// Work in order, none of it done before someone waits.
struct CUstream_st {
  std::deque<std::function<bool()>> work;
  std::unique_ptr<CUgraph_st> captured;  // where work goes meanwhile
  bool runs = false;
};
/// Where in a stream it stands, and whether the stream has come there.
struct CUevent_st {
  cudaStream_t stream = nullptr;
  std::uint64_t recorded = 0, happened = 0;
};

namespace shoal::emulation {
namespace {

constexpr std::size_t kPage = 4096, kAlignment = 256;
constexpr std::size_t kDeviceBytes = std::size_t{4} << 30;

std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

/// All device memory of the process. Reachable while any stream runs.
class DeviceHeap {
 public:
  void* allocate(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (used_ + bytes > kDeviceBytes) return nullptr;
    const std::size_t size = round_up(bytes, kAlignment), room = round_up(size, kPage);
    // A forbidden page on either side; the block ends where the one behind it begins.
    void* p = mmap(nullptr, room + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    auto* pages = static_cast<std::byte*>(p) + kPage;
    std::byte* begin = pages + (room - size);
    mprotect(pages, room, PROT_READ | PROT_WRITE);
    std::memset(pages, 0xff, room);  // NaN until written
    if (shut_) mprotect(pages, room, PROT_NONE);
    blocks_[begin] = {pages, room, bytes};
    used_ += bytes;
    return begin;
  }
  void free(void* begin) {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(static_cast<std::byte*>(begin));
    if (found == blocks_.end() || found->second.freed) fail("cudaFree: {} was not allocated by cudaMalloc", begin);
    found->second.freed = true;
    release(found);
  }
  /// Another rank has it too, until it gives it up.
  bool open(void* begin) {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(static_cast<std::byte*>(begin));
    if (found == blocks_.end() || found->second.freed) return false;
    ++found->second.opened;
    return true;
  }
  void close(void* begin) {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(static_cast<std::byte*>(begin));
    if (found == blocks_.end() || found->second.opened == 0) fail("cudaIpcCloseMemHandle: {} was not opened", begin);
    --found->second.opened;
    release(found);
  }
  bool holds(const void* p) {
    const std::lock_guard lock(mutex_);
    auto next = blocks_.upper_bound(static_cast<std::byte*>(const_cast<void*>(p)));
    if (next == blocks_.begin()) return false;
    const auto& [begin, block] = *std::prev(next);
    return p < begin + round_up(block.bytes, kAlignment);
  }
  std::size_t free_bytes() {
    const std::lock_guard lock(mutex_);
    return kDeviceBytes - used_;
  }
  void open_all() {
    const std::lock_guard lock(mutex_);
    ++open_;
    if (std::exchange(shut_, false)) protect(PROT_READ | PROT_WRITE);
  }
  void shut_all() {
    const std::lock_guard lock(mutex_);
    // Many blocks take long to shut: then it is done now and then, which finds what is wrong as well, only later.
    if (--open_ > 0 || (blocks_.size() > kFewBlocks && ++closed_ % 16 != 0)) return;
    shut_ = true;
    protect(PROT_NONE);
  }

 private:
  struct Block {
    std::byte* pages;
    std::size_t room, bytes;
    int opened = 0;  // by how many others
    bool freed = false;
  };
  void release(std::map<std::byte*, Block>::iterator found) {
    if (!found->second.freed || found->second.opened > 0) return;
    used_ -= found->second.bytes;
    munmap(found->second.pages - kPage, found->second.room + 2 * kPage);
    blocks_.erase(found);
  }
  void protect(int how) {
    for (const auto& [begin, block] : blocks_) mprotect(block.pages, block.room, how);
  }
  std::mutex mutex_;
  std::map<std::byte*, Block> blocks_;
  static constexpr std::size_t kFewBlocks = 64;
  std::size_t used_ = 0;
  int open_ = 0;
  unsigned closed_ = 0;
  bool shut_ = true;
};

DeviceHeap& heap() {
  static DeviceHeap instance;
  return instance;
}

/// What cudaMallocHost gave out: a copy from there reads it when the stream runs, from elsewhere at once.
class PinnedMemory {
 public:
  void add(std::byte* begin, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    ranges_[begin] = bytes;
  }
  void remove(std::byte* begin) {
    const std::lock_guard lock(mutex_);
    if (ranges_.erase(begin) == 0) fail("cudaFreeHost: this memory was not allocated by cudaMallocHost");
  }
  bool holds(const void* p) {
    const std::lock_guard lock(mutex_);
    auto next = ranges_.upper_bound(static_cast<std::byte*>(const_cast<void*>(p)));
    if (next == ranges_.begin()) return false;
    const auto& [begin, bytes] = *std::prev(next);
    return p < begin + bytes;
  }

 private:
  std::mutex mutex_;
  std::map<std::byte*, std::size_t> ranges_;
};

PinnedMemory& pinned() {
  static PinnedMemory instance;
  return instance;
}

/// Streams of this OS thread that have work to do.
thread_local std::vector<cudaStream_t> waiting;
thread_local std::uint64_t graphs_launched = 0, times_waited = 0;
thread_local int captures = 0;  // streams of this OS thread that are captured
thread_local cudaError_t last_error = cudaSuccess;

void forbid_in_capture(const char* what) {
  if (captures > 0) fail("{}: not while a stream is captured", what);
}

void check_side(const char* what, const void* p, bool device) {
  if (heap().holds(p) != device) fail("{}: {} is {} memory", what, p, device ? "not device" : "device");
}

}  // namespace

bool is_device_memory(const void* memory) { return heap().holds(memory); }
void set_last_error(cudaError_t error) { last_error = error; }
std::uint64_t graph_launches() { return graphs_launched; }
std::uint64_t waits() { return times_waited; }
bool is_captured(cudaStream_t stream) { return stream->captured != nullptr; }
void enqueue(cudaStream_t stream, std::function<void()> work) {
  enqueue_until(stream, [work = std::move(work)] {
    work();
    return true;
  });
}
void enqueue_until(cudaStream_t stream, std::function<bool()> work) {
  if (!stream) fail("emulation: the default stream is not used; it would wait for all others");
  if (stream->captured) return stream->captured->work.push_back(std::move(work));
  if (stream->work.empty()) waiting.push_back(stream);
  stream->work.push_back(std::move(work));
}

}  // namespace shoal::emulation

using namespace shoal;
using namespace shoal::emulation;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {"emulated GPU", 9, 0, 4, kDeviceBytes, 227 << 10};
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  *free_bytes = heap().free_bytes();
  *total_bytes = kDeviceBytes;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int) {
  static std::atomic<unsigned> threads{0};
  thread_local const unsigned mine = threads++;
  std::snprintf(id, static_cast<std::size_t>(length), "%04x:00:00.0", mine & 0xffff);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  forbid_in_capture("cudaMalloc");
  *memory = heap().allocate(bytes);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* memory) {
  forbid_in_capture("cudaFree");
  // CUDA waits here for all work, too.
  for (const auto streams = waiting; cudaStream_t stream : streams) cudaStreamSynchronize(stream);
  if (memory) heap().free(memory);
  return cudaSuccess;
}
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* memory) {
  check_side("cudaIpcGetMemHandle", memory, true);
  std::memcpy(handle->reserved, &memory, sizeof memory);
  return cudaSuccess;
}
cudaError_t cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned) {
  std::memcpy(memory, handle.reserved, sizeof *memory);
  return heap().open(*memory) ? cudaSuccess : cudaErrorInvalidResourceHandle;
}
cudaError_t cudaIpcCloseMemHandle(void* memory) {
  heap().close(memory);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
  *memory = std::aligned_alloc(kPage, round_up(bytes, kPage));
  if (!*memory) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xff, bytes);
  pinned().add(static_cast<std::byte*>(*memory), bytes);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  if (!memory) return cudaSuccess;
  pinned().remove(static_cast<std::byte*>(memory));
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::erase(waiting, stream);
  delete stream;
  return cudaSuccess;
}
/// Does what can be done; false where others must come first.
static bool advance(cudaStream_t stream) {
  struct Opened {
    Opened() { heap().open_all(); }
    ~Opened() { heap().shut_all(); }
  };
  struct Running {
    explicit Running(cudaStream_t s) : stream(s) { stream->runs = true; }
    ~Running() { stream->runs = false; }
    cudaStream_t stream;
  };
  if (stream->work.empty()) return !stream->runs;
  if (stream->runs) return false;  // further up: its work waits for another stream's, which waits for it
  const Opened opened;
  while (!stream->work.empty()) {
    const auto work = std::move(stream->work.front());
    stream->work.pop_front();
    const Running running(stream);
    if (work()) continue;
    stream->work.push_front(work);
    return false;
  }
  std::erase(waiting, stream);
  return true;
}
/// What waits for other threads may be what these wait for: all that this one has put on other streams goes on, and
/// they get time to.
static void advance_others(cudaStream_t but) {
  const auto streams = waiting;
  for (cudaStream_t stream : streams)
    if (stream != but) advance(stream);
  std::this_thread::sleep_for(std::chrono::microseconds(50));
}
void emulation::go_on() { advance_others(nullptr); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream->captured) fail("cudaStreamSynchronize: not while the stream is captured");
  times_waited += stream->work.empty() ? 0 : 1;
  while (!advance(stream)) advance_others(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (stream->captured) fail("cudaStreamQuery: not while the stream is captured");
  times_waited += stream->work.empty() ? 0 : 1;
  if (advance(stream)) return cudaSuccess;
  advance_others(stream);
  return cudaErrorNotReady;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (stream->captured) fail("cudaEventRecord: not while the stream is captured");
  event->stream = stream;
  enqueue(stream, [event, number = ++event->recorded] { event->happened = number; });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (event->happened == event->recorded) return cudaSuccess;
  ++times_waited;
  if (!advance(event->stream)) advance_others(event->stream);
  return event->happened == event->recorded ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (stream->captured) fail("cudaStreamWaitEvent: not while the stream is captured");
  // What was recorded last counts, whatever is recorded later.
  enqueue_until(stream, [event, number = event->recorded] {
    if (event->happened < number) advance(event->stream);
    return event->happened >= number;
  });
  return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width_bytes, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  if (width_bytes == 0 || height == 0) return cudaSuccess;
  if (width_bytes > to_pitch || width_bytes > from_pitch) fail("cudaMemcpy2DAsync: rows are wider than their pitch");
  check_side("copy's target", to, kind != cudaMemcpyDeviceToHost);
  check_side("copy's source", from, kind != cudaMemcpyHostToDevice);
  auto copied = std::make_shared<std::vector<std::byte>>();
  if (kind == cudaMemcpyHostToDevice && !pinned().holds(from)) {
    forbid_in_capture("a copy from memory that is not pinned");
    for (std::size_t r = 0; r < height; ++r) {
      const auto* row = static_cast<const std::byte*>(from) + r * from_pitch;
      copied->insert(copied->end(), row, row + width_bytes);
    }
    from_pitch = width_bytes;
  }
  enqueue(stream, [=] {
    const std::byte* source = copied->empty() ? static_cast<const std::byte*>(from) : copied->data();
    for (std::size_t r = 0; r < height; ++r)
      std::memmove(static_cast<std::byte*>(to) + r * to_pitch, source + r * from_pitch, width_bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  check_side("cudaMemsetAsync", memory, true);
  enqueue(stream, [=] { std::memset(memory, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream->captured) fail("cudaStreamBeginCapture: the stream is captured already");
  stream->captured = std::make_unique<CUgraph_st>();
  ++captures;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!stream->captured) fail("cudaStreamEndCapture: the stream is not captured");
  *graph = stream->captured.release();
  --captures;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{*graph};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  ++graphs_launched;
  for (const auto& work : executable->work) enqueue_until(stream, work);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : error == cudaErrorMemoryAllocation ? "out of memory" : "no device";
}
