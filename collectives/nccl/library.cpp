#include "collectives/nccl/library.h"

#include <dlfcn.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>

#include "base/cuda/wait.h"
#include "base/error.h"
#include "collectives/nccl/nccl.h"

namespace shoal {
namespace {

/// NCCL's functions by name. It is opened when asked for, so that the program starts where there is no GPU.
class Functions {
 public:
  Functions() {
    for (const char* path : {"libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2"})
      if ((library_ = dlopen(path, RTLD_NOW | RTLD_LOCAL))) break;
    if (!library_)
      throw Error("--collectives nccl: libnccl.so.2 was not found; install NCCL or add its folder to LD_LIBRARY_PATH",
                  ExitCode::usage);
    find(get_version, "ncclGetVersion");
    find(get_unique_id, "ncclGetUniqueId");
    find(init_rank, "ncclCommInitRankConfig");
    find(group_start, "ncclGroupStart");
    find(group_end, "ncclGroupEnd");
    find(send, "ncclSend");
    find(receive, "ncclRecv");
    find(async_error, "ncclCommGetAsyncError");
    find(last_error, "ncclGetLastError");
    find(abort, "ncclCommAbort");
    find(finalize, "ncclCommFinalize");
    find(destroy, "ncclCommDestroy");
    find(error_string, "ncclGetErrorString");
  }

  decltype(&ncclGetVersion) get_version;
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclCommInitRankConfig) init_rank;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;
  decltype(&ncclSend) send;
  decltype(&ncclRecv) receive;
  decltype(&ncclCommGetAsyncError) async_error;
  decltype(&ncclGetLastError) last_error;
  decltype(&ncclCommAbort) abort;
  decltype(&ncclCommFinalize) finalize;
  decltype(&ncclCommDestroy) destroy;
  decltype(&ncclGetErrorString) error_string;

  /// Calls on a communicator that does not block may still be "in progress".
  void check(ncclResult_t code, const char* what) const {
    if (code != ncclSuccess && code != ncclInProgress)
      fail("{}: {} ({})", what, error_string(code), last_error(nullptr));
  }
  /// Waits until what was begun on the communicator is done, or the Watch ends it: a group's launch takes NCCL some 20
  /// us, on a thread of its own from 2.28 on.
  void settle(ncclComm_t comm, const char* what) const {
    ncclResult_t state = ncclInProgress;
    cuda::Watch::wait_until([&] {
      check(async_error(comm, &state), what);
      return state != ncclInProgress;
    });
    check(state, what);
  }

 private:
  template <class Function>
  void find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    if (!function) fail("libnccl.so.2 has no {}; version 2.18 or later is needed", name);
  }
  void* library_ = nullptr;
};

class Group final : public NcclGroup {
 public:
  Group(const Functions& f, int ranks, const ncclUniqueId& id, int rank) : f_(f) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;  // so that a rank that never comes can be given up
    f_.check(f_.init_rank(&comm_, ranks, id, rank, &config), "ncclCommInitRankConfig");
    try {
      f_.settle(comm_, "joining NCCL");
    } catch (...) {
      abort();
      throw;
    }
  }
  ~Group() override {
    if (!comm_) return;
    static_cast<void>(f_.finalize(comm_));
    // It ends when all have called it; one that is gone will not.
    const auto begin = std::chrono::steady_clock::now();
    ncclResult_t state = ncclInProgress;
    while (f_.async_error(comm_, &state) == ncclSuccess && state == ncclInProgress &&
           std::chrono::steady_clock::now() - begin < kPartingLimit) {
    }
    static_cast<void>(state == ncclInProgress ? f_.abort(comm_) : f_.destroy(comm_));
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  void start() override { f_.check(f_.group_start(), "ncclGroupStart"); }
  void send(const void* memory, std::size_t bytes, int peer, cudaStream_t stream) override {
    f_.check(f_.send(memory, bytes, ncclUint8, peer, comm_, stream), "ncclSend");
  }
  void receive(void* memory, std::size_t bytes, int peer, cudaStream_t stream) override {
    f_.check(f_.receive(memory, bytes, ncclUint8, peer, comm_, stream), "ncclRecv");
  }
  void end() override {
    f_.check(f_.group_end(), "ncclGroupEnd");
    f_.settle(comm_, "ncclGroupEnd");
  }
  std::string error() override {
    ncclResult_t state = ncclSuccess;
    if (const ncclResult_t code = f_.async_error(comm_, &state); code != ncclSuccess) state = code;
    if (state == ncclSuccess || state == ncclInProgress) return "";
    return fmt::format("{} ({})", f_.error_string(state), f_.last_error(nullptr));
  }
  void abort() override {
    if (comm_) static_cast<void>(f_.abort(comm_));
    comm_ = nullptr;
  }

 private:
  static constexpr std::chrono::seconds kPartingLimit{10};
  const Functions& f_;
  ncclComm_t comm_ = nullptr;
};

class Library final : public NcclLibrary {
 public:
  std::string version() override {
    int v = 0;
    f_.check(f_.get_version(&v), "ncclGetVersion");
    return fmt::format("{}.{}.{}", v / 10000, v / 100 % 100, v % 100);
  }
  Id make_id() override {
    ncclUniqueId id{};
    f_.check(f_.get_unique_id(&id), "ncclGetUniqueId");
    Id bytes;
    static_assert(sizeof id.internal == sizeof bytes);
    std::copy_n(id.internal, bytes.size(), bytes.begin());
    return bytes;
  }
  std::unique_ptr<NcclGroup> join(int ranks, const Id& bytes, int rank) override {
    ncclUniqueId id{};
    std::copy_n(bytes.begin(), bytes.size(), id.internal);
    return std::make_unique<Group>(f_, ranks, id, rank);
  }

 private:
  const Functions f_;
};

}  // namespace

std::shared_ptr<NcclLibrary> load_nccl() { return std::make_shared<Library>(); }

}  // namespace shoal
