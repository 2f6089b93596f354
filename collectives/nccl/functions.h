#pragma once
#include <dlfcn.h>
#include <nccl.h>

#include <string>

#include "base/cuda/wait.h"
#include "base/error.h"

namespace shoal::nccl {

inline std::string version_text(int code) {
  return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

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

  /// What only newer versions have; null in others.
  template <class Function>
  Function* optional(const char* name) const {
    return reinterpret_cast<Function*>(dlsym(library_, name));
  }

  /// What went wrong with a communicator since; empty: nothing.
  std::string error_of(ncclComm_t comm) const {
    ncclResult_t state = ncclSuccess;
    if (const ncclResult_t code = async_error(comm, &state); code != ncclSuccess) state = code;
    if (state == ncclSuccess || state == ncclInProgress) return "";
    return fmt::format("{} ({})", error_string(state), last_error(nullptr));
  }

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

}  // namespace shoal::nccl
