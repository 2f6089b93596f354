#pragma once
#include <chrono>
#include <memory>
#include <vector>

#include "base/error.h"
#include "collectives/communicator.h"
#include "collectives/mpi.h"
#include "runtime/control_plane.h"
#include "runtime/job.h"
#include "runtime/step.h"

namespace shoal {

/// What every rank of the job has before the model is read.
struct Rank {
  LaunchEnvironment launch;
  std::unique_ptr<MpiJob> mpi;
  std::unique_ptr<Communicator> start_up_comm;  // where `comm` is not the launcher's
  std::unique_ptr<Communicator> comm;
  std::unique_ptr<ControlServer> server;  // rank 0
  std::unique_ptr<ControlClient> client;

  int number = 0;  // as the job was started with
  bool leads() const { return number == 0; }
};

/// Every rank of the job calls it: they find each other, and rank 0's control plane. Error where they do not.
Rank join_job(int* argc, char*** argv, const JobOptions& options);

/// Data between ranks goes from GPU to GPU; the launcher's communicator only brings them together. Every rank of
/// `rank.comm` calls it.
void use_nccl(Rank& rank, const JobOptions& options);

inline Frame frame(Message type, std::vector<std::byte> payload) {
  return {static_cast<std::uint16_t>(type), std::move(payload)};
}

/// In which the other ranks hear why the job ends.
constexpr std::chrono::milliseconds kHearing{300};

/// Ends this rank at once, whatever its threads are doing: one of them may wait in MPI for a rank that is gone.
[[noreturn]] void end_now(ExitCode code);

}  // namespace shoal
