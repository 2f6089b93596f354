#include "collectives/nccl/library.h"

#include <algorithm>
#include <chrono>

#include "collectives/nccl/functions.h"
#include "collectives/nccl/nccl.h"
#include "collectives/nccl/window.h"

namespace shoal {
namespace {

using nccl::Functions;

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
  std::string error() override { return f_.error_of(comm_); }
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
    return nccl::version_text(v);
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
    return std::make_unique<Group>(f_, ranks, to_nccl(bytes), rank);
  }
  std::string why_no_windows() override { return nccl::why_no_windows(f_); }
  std::shared_ptr<DeviceWindow> open_window(int ranks, const Id& bytes, int rank, std::size_t of_window,
                                            int signals) override {
    return nccl::open_window(f_, ranks, to_nccl(bytes), rank, of_window, signals);
  }

 private:
  static ncclUniqueId to_nccl(const Id& bytes) {
    ncclUniqueId id{};
    std::copy_n(bytes.begin(), bytes.size(), id.internal);
    return id;
  }
  const Functions f_;
};

}  // namespace

std::shared_ptr<NcclLibrary> load_nccl() { return std::make_shared<Library>(); }

}  // namespace shoal
