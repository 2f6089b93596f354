#include "runtime/rank.h"

#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>

#include "collectives/nccl/nccl.h"
#include "kernels/cuda/cuda_backend.h"
#include "runtime/host.h"
#include "runtime/rank_model.h"

namespace shoal {

void end_now(ExitCode code) {
  std::fflush(nullptr);
  _exit(static_cast<int>(code));
}

namespace {

/// Rank 0 tells all others, through MPI, where its control plane listens.
std::string share_contact(Communicator& comm, const std::string& contact) {
  std::array<char, 1024> text{};
  if (comm.rank() == 0) {
    if (contact.size() >= text.size()) fail("this host has too many network addresses ({} bytes)", contact.size());
    std::copy(contact.begin(), contact.end(), text.begin());
  }
  comm.broadcast(std::as_writable_bytes(std::span(text)), 0);
  return text.data();
}

/// After an error of NCCL, how long the control plane may take to find that a rank is gone, and say so.
constexpr double kNewsSeconds = 30;

}  // namespace

void use_nccl(Rank& rank, const JobOptions& options) {
  const CudaDevices gpus = find_cuda_devices();
  if (options.device == "cpu")
    throw Error("--collectives nccl needs GPUs; it does not go with --device cpu", ExitCode::usage);
  if (gpus.count == 0) fail("--collectives nccl: {}; check nvidia-smi on {}", gpus.reason, host_name());
  rank.start_up_comm = std::move(rank.comm);
  try {
    rank.comm = make_nccl_communicator(
        load_nccl(), *rank.start_up_comm,
        {.device = gpu_of(rank.launch), .news_s = options.recover ? kNewsSeconds : NcclOptions{}.news_s});
  } catch (const LeftBehind&) {
    throw;
  } catch (const Error& error) {
    if (options.collectives == "nccl") throw;
    throw Error(fmt::format("{}; --collectives mpi does without NCCL", error.what()), error.exit_code);
  }
}

namespace {

/// A number for the GPU that this rank computes on, the same in all processes that see it; 0: NCCL could not use it.
std::uint64_t gpu_number(const Rank& rank, const JobOptions& options) {
  if (!computes_on_gpu(options)) return 0;
  try {
    load_nccl();
  } catch (const Error&) {
    return 0;
  }
  const std::string place = cuda_device_place(gpu_of(rank.launch)), text = host_name() + " " + place;
  return place.empty() ? 0 : XXH3_64bits(text.data(), text.size()) | 1;
}

/// The same on all ranks: between GPUs where each rank has one of its own.
bool chooses_nccl(const Rank& rank, const JobOptions& options) {
  if (options.collectives != "auto") return options.collectives == "nccl";
  const auto ranks = static_cast<std::size_t>(rank.comm->size());
  if (ranks == 1) return false;
  constexpr std::size_t kParts = 4;  // of 16 bits, which floats hold
  std::array<float, kParts> mine;
  const std::uint64_t number = gpu_number(rank, options);
  for (std::size_t i = 0; i < kParts; ++i) mine[i] = static_cast<float>(number >> (16 * i) & 0xffff);
  std::vector<std::array<float, kParts>> all(ranks);
  const std::vector<std::size_t> counts(ranks, kParts);
  rank.comm->all_gather_v(mine, counts, {all.front().data(), ranks * kParts});
  std::ranges::sort(all);
  return all.front() != std::array<float, kParts>{} && std::ranges::adjacent_find(all) == all.end();
}

/// Until all ranks have a control plane nothing notices one that is gone, and its launcher was told to leave the
/// others.
class StartLimit {
 public:
  explicit StartLimit(bool set) {
    if (!set) return;
    watch_ = std::thread([this] {
      std::unique_lock lock(mutex_);
      if (changed_.wait_for(lock, kLongest, [this] { return joined_; })) return;
      std::fprintf(stderr,
                   "shoal: rank %d: not all ranks joined the job within %d s: one has ended, perhaps with a message "
                   "above, or hangs\n",
                   read_launch_environment().rank, static_cast<int>(kLongest.count()));
      end_now(ExitCode::failure);
    });
  }
  ~StartLimit() {
    if (!watch_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      joined_ = true;
    }
    changed_.notify_all();
    watch_.join();
  }
  StartLimit(const StartLimit&) = delete;
  StartLimit& operator=(const StartLimit&) = delete;

 private:
  static constexpr std::chrono::seconds kLongest{120};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool joined_ = false;
  std::thread watch_;
};

}  // namespace

Rank join_job(int* argc, char*** argv, const JobOptions& options) {
  const StartLimit limit(options.recover);
  Rank rank;
  rank.launch = read_launch_environment();
  if (rank.launch.launched) {
    rank.mpi = std::make_unique<MpiJob>(argc, argv);
    if (options.recover) rank.mpi->expect_losses();
    if (options.collectives == "ucx") rank.mpi->use_ucx();
    rank.comm = rank.mpi->world();
  } else {
    rank.comm = make_self_communicator();
  }
  if (chooses_nccl(rank, options)) use_nccl(rank, options);
  rank.number = rank.comm->rank();
  if (rank.leads()) rank.server = std::make_unique<ControlServer>(rank.comm->size(), ControlOptions{});
  const std::string contact = share_contact(*rank.comm, rank.leads() ? rank.server->contact() : "");
  rank.client = std::make_unique<ControlClient>(rank.number, contact, ControlOptions{});
  return rank;
}

}  // namespace shoal
