#include "collectives/nccl/window.h"

#include <chrono>

#include "base/cuda/memory.h"
#include "collectives/communicator.h"
#if __has_include(<nccl_device.h>) && NCCL_VERSION_CODE >= 22807
#include <nccl_device.h>
#define SHOAL_NCCL_WINDOWS 1
#endif

namespace shoal::nccl {

#ifdef SHOAL_NCCL_WINDOWS
namespace {

/// NCCL's functions for windows.
struct WindowFunctions {
  explicit WindowFunctions(const Functions& f)
      : allocate(f.optional<decltype(ncclMemAlloc)>("ncclMemAlloc")),
        free(f.optional<decltype(ncclMemFree)>("ncclMemFree")),
        add(f.optional<decltype(ncclCommWindowRegister)>("ncclCommWindowRegister")),
        remove(f.optional<decltype(ncclCommWindowDeregister)>("ncclCommWindowDeregister")),
        create(f.optional<decltype(ncclDevCommCreate)>("ncclDevCommCreate")),
        destroy(f.optional<decltype(ncclDevCommDestroy)>("ncclDevCommDestroy")),
        neighbours(f.optional<ncclTeam_t(ncclComm_t)>("ncclTeamLsa")) {
    if (!allocate || !free || !add || !remove || !create || !destroy || !neighbours)
      fail("this NCCL has no device interface");
  }
  decltype(&ncclMemAlloc) allocate;
  decltype(&ncclMemFree) free;
  decltype(&ncclCommWindowRegister) add;
  decltype(&ncclCommWindowDeregister) remove;
  decltype(&ncclDevCommCreate) create;
  decltype(&ncclDevCommDestroy) destroy;
  ncclTeam_t (*neighbours)(ncclComm_t);
};

class Window final : public DeviceWindow {
 public:
  explicit Window(const Functions& f) : f_(f), w_(f) {
    int version = 0;
    f_.check(f_.get_version(&version), "ncclGetVersion");
    // Its device code, which we were compiled with, must know the library's structures.
    if (version != NCCL_VERSION_CODE) fail("NCCL is not of the version that kernels were compiled with");
  }
  ~Window() override {
    on_device_ = {};  // waits for kernels that use it
    if (created_) static_cast<void>(w_.destroy(communicator_, &of_device_));
    if (window_) static_cast<void>(w_.remove(communicator_, window_));
    if (communicator_) static_cast<void>(f_.abort(communicator_));  // an orderly end would wait for all ranks
    if (memory_) static_cast<void>(w_.free(memory_));
  }
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;

  void open(int ranks, const ncclUniqueId& id, int rank, std::size_t bytes, int signals) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    f_.check(f_.init_rank(&communicator_, ranks, id, rank, &config), "ncclCommInitRankConfig");
    settle("joining NCCL");
    f_.check(w_.allocate(&memory_, bytes), "ncclMemAlloc");
    f_.check(w_.add(communicator_, memory_, bytes, &window_, NCCL_WIN_COLL_SYMMETRIC), "ncclCommWindowRegister");
    settle("ncclCommWindowRegister");
    if (!window_) fail("NCCL makes no windows here");
#ifdef NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER
    ncclDevCommRequirements wanted = NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER;
#else
    ncclDevCommRequirements wanted{};
#endif
    if (w_.neighbours(communicator_).nRanks < ranks) {
      wanted.ginForceEnable = true;
      wanted.ginContextCount = kContexts;
      wanted.ginSignalCount = signals;
    }
    f_.check(w_.create(communicator_, &wanted, &of_device_), "ncclDevCommCreate");
    settle("ncclDevCommCreate");
    created_ = true;
    on_device_ = cuda::DeviceBlock(sizeof of_device_);
    cuda::check(cudaMemcpy(on_device_.data(), &of_device_, sizeof of_device_, cudaMemcpyHostToDevice),
                "copying to the GPU");
  }

  std::byte* memory() const override { return static_cast<std::byte*>(memory_); }
  const void* device_communicator() const override { return on_device_.data(); }
  const void* handle() const override { return window_; }

 private:
  void settle(const char* what) const {
    bool late = false;
    ncclResult_t state = ncclInProgress;
    cuda::Watch::wait_until([&] {
      f_.check(f_.async_error(communicator_, &state), what);
      late = std::chrono::steady_clock::now() > deadline_;
      return state != ncclInProgress || late;
    });
    if (state == ncclInProgress) fail("{}: other ranks did not come", what);
    f_.check(state, what);
  }

  static constexpr int kContexts = 4;
  static constexpr std::chrono::seconds kLimit{30};
  const std::chrono::steady_clock::time_point deadline_ = std::chrono::steady_clock::now() + kLimit;
  const Functions& f_;
  const WindowFunctions w_;
  ncclComm_t communicator_ = nullptr;
  void* memory_ = nullptr;
  ncclWindow_t window_ = nullptr;
  ncclDevComm of_device_{};
  bool created_ = false;
  cuda::DeviceBlock on_device_;
};

}  // namespace

std::unique_ptr<DeviceWindow> open_window(const Functions& f, int ranks, const ncclUniqueId& id, int rank,
                                          std::size_t bytes, int signals) {
  try {
    auto window = std::make_unique<Window>(f);
    window->open(ranks, id, rank, bytes, signals);
    return window;
  } catch (const LeftBehind&) {
    throw;
  } catch (const Error&) {  // what is missing here: exchanges go another way
    return nullptr;
  }
}
#else
std::unique_ptr<DeviceWindow> open_window(const Functions&, int, const ncclUniqueId&, int, std::size_t, int) {
  return nullptr;
}
#endif

}  // namespace shoal::nccl
