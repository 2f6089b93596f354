#include "collectives/nccl/window.h"

#include <chrono>
#include <thread>

#include "base/cuda/memory.h"
#if __has_include(<nccl_device.h>) && NCCL_VERSION_CODE >= 22807
#include <nccl_device.h>
#define SHOAL_NCCL_WINDOWS 1
#endif

namespace shoal::nccl {

#ifdef SHOAL_NCCL_WINDOWS
namespace {

/// NCCL's functions for windows; null where it has none.
struct WindowFunctions {
  explicit WindowFunctions(const Functions& f)
      : allocate(f.optional<decltype(ncclMemAlloc)>("ncclMemAlloc")),
        free(f.optional<decltype(ncclMemFree)>("ncclMemFree")),
        add(f.optional<decltype(ncclCommWindowRegister)>("ncclCommWindowRegister")),
        remove(f.optional<decltype(ncclCommWindowDeregister)>("ncclCommWindowDeregister")),
        create(f.optional<decltype(ncclDevCommCreate)>("ncclDevCommCreate")),
        destroy(f.optional<decltype(ncclDevCommDestroy)>("ncclDevCommDestroy")),
        neighbours(f.optional<ncclTeam_t(ncclComm_t)>("ncclTeamLsa")) {}
  bool all() const { return allocate && free && add && remove && create && destroy && neighbours; }

  decltype(&ncclMemAlloc) allocate;
  decltype(&ncclMemFree) free;
  decltype(&ncclCommWindowRegister) add;
  decltype(&ncclCommWindowDeregister) remove;
  decltype(&ncclDevCommCreate) create;
  decltype(&ncclDevCommDestroy) destroy;
  ncclTeam_t (*neighbours)(ncclComm_t);
};

/// What kernels want of the network: that it connects all ranks, with some queues, long enough for the puts of two
/// layers. Versions name it differently.
void want_network(auto& wanted, int signals) {
  constexpr int kContexts = 4, kQueue = 1024;
  wanted.ginContextCount = kContexts;
  wanted.ginSignalCount = signals;
  if constexpr (requires { wanted.ginQueueDepth; }) wanted.ginQueueDepth = kQueue;
  if constexpr (requires { wanted.ginVaSignalsRequired; }) wanted.ginVaSignalsRequired = false;
#if NCCL_VERSION_CODE >= 22907
  wanted.ginConnectionType = NCCL_GIN_CONNECTION_FULL;
#else
  wanted.ginForceEnable = true;
#endif
}

class Window final : public DeviceWindow {
 public:
  explicit Window(const Functions& f) : f_(f), w_(f), made_(std::make_unique<Made>()) {}
  ~Window() override {
    on_device_ = {};  // waits for kernels that use it
    if (!settled_) {
      abandon();
      return;
    }
    if (made_->created) static_cast<void>(w_.destroy(made_->communicator, &made_->of_device));
    if (made_->window) static_cast<void>(w_.remove(made_->communicator, made_->window));
    if (made_->communicator) static_cast<void>(f_.abort(made_->communicator));  // an orderly end would wait for all
    if (made_->memory) static_cast<void>(w_.free(made_->memory));
  }
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;

  void open(int ranks, const ncclUniqueId& id, int rank, std::size_t bytes, int signals) {
    Made& m = *made_;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.minCTAs = config.maxCTAs = 1;  // no kernels of NCCL's own
    settle(f_.init_rank(&m.communicator, ranks, id, rank, &config), "ncclCommInitRankConfig");
    f_.check(w_.allocate(&m.memory, bytes), "ncclMemAlloc");
    settle(w_.add(m.communicator, m.memory, bytes, &m.window, NCCL_WIN_COLL_SYMMETRIC), "ncclCommWindowRegister");
    if (!m.window) fail("NCCL makes no windows here");
#ifdef NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER
    m.wanted = NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER;
#endif
    if (w_.neighbours(m.communicator).nRanks < ranks) want_network(m.wanted, signals);
    settle(w_.create(m.communicator, &m.wanted, &m.of_device), "ncclDevCommCreate");
    m.created = true;
    on_device_ = cuda::DeviceBlock(sizeof m.of_device);
    cuda::check(cudaMemcpy(on_device_.data(), &m.of_device, sizeof m.of_device, cudaMemcpyHostToDevice),
                "copying to the GPU");
  }

  const void* device_communicator() const override { return on_device_.data(); }
  const void* handle() const override { return made_->window; }
  std::string error() override { return f_.error_of(made_->communicator); }

 private:
  /// What NCCL's own thread writes to while something is under way.
  struct Made {
    ncclComm_t communicator = nullptr;
    void* memory = nullptr;
    ncclWindow_t window = nullptr;
    ncclDevCommRequirements wanted{};
    ncclDevComm of_device{};
    bool created = false;
  };

  void settle(ncclResult_t code, const char* what) {
    f_.check(code, what);
    settled_ = false;
    bool late = false;
    ncclResult_t state = ncclInProgress;
    cuda::Watch::wait_until([&] {
      const ncclResult_t asked = f_.async_error(made_->communicator, &state);
      if (asked != ncclSuccess) state = asked;
      late = std::chrono::steady_clock::now() > deadline_;
      return state != ncclInProgress || late;
    });
    if (state == ncclInProgress) fail("{}: other ranks did not come within {} s", what, kLimit.count());
    settled_ = true;
    f_.check(state, what);
  }
  /// NCCL's thread may wait for ranks that never come, and to end it waits for that thread.
  void abandon() {
    if (!made_->communicator) return;
    std::thread([abort = f_.abort, free = w_.free, left = std::move(made_)] {
      static_cast<void>(abort(left->communicator));
      if (left->memory) static_cast<void>(free(left->memory));
    }).detach();
  }

  static constexpr std::chrono::seconds kLimit{120};
  const std::chrono::steady_clock::time_point deadline_ = std::chrono::steady_clock::now() + kLimit;
  const Functions& f_;
  const WindowFunctions w_;
  std::unique_ptr<Made> made_;
  bool settled_ = true;
  cuda::DeviceBlock on_device_;
};

}  // namespace

std::string why_no_windows(const Functions& f) {
  int version = 0;
  f.check(f.get_version(&version), "ncclGetVersion");
  // Its device code, which we were compiled with, must know the library's structures.
  if (version != NCCL_VERSION_CODE)
    return fmt::format("NCCL is version {}, kernels were compiled with {}", version_text(version),
                       version_text(NCCL_VERSION_CODE));
  return WindowFunctions(f).all() ? "" : "NCCL has no device interface";
}

std::shared_ptr<DeviceWindow> open_window(const Functions& f, int ranks, const ncclUniqueId& id, int rank,
                                          std::size_t bytes, int signals) {
  const auto window = std::make_shared<Window>(f);
  window->open(ranks, id, rank, bytes, signals);
  return window;
}
#else
std::string why_no_windows(const Functions&) { return "built without NCCL's device interface"; }
std::shared_ptr<DeviceWindow> open_window(const Functions&, int, const ncclUniqueId&, int, std::size_t, int) {
  fail("built without NCCL's device interface");
}
#endif

}  // namespace shoal::nccl
