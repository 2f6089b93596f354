#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "collectives/communicator.h"

namespace shoal {

struct MpiWorld;

/// What a launcher (mpirun, srun) told this process about the job.
struct LaunchEnvironment {
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1;  // on this host
  bool launched = false;               // false: started by hand, a job of one rank
  std::string launcher;                // "Open MPI", "Slurm", ...
  bool ends_together = false;          // the launcher is known to end all ranks when one ends
};
/// Reads the environment only. Throws Error (usage) when what it finds contradicts itself.
LaunchEnvironment read_launch_environment();

/// MPI for the life of the process: MPI_Init_thread(FUNNELED) on construction (by the thread that will make every later
/// call), MPI_Finalize on destruction.
class MpiJob {
 public:
  MpiJob(int* argc, char*** argv);
  ~MpiJob();
  MpiJob(const MpiJob&) = delete;
  MpiJob& operator=(const MpiJob&) = delete;
  /// From now on records between hosts are carried by UCX. Every rank calls it, before it makes a communicator. Error
  /// where UCX is not there.
  void use_ucx();
  std::unique_ptr<Communicator> world();
  /// Ranks may be lost: the end does not wait for any (no MPI_Finalize).
  void expect_losses() { finalizes_ = false; }
  /// Of the ranks of the job that are left (ascending, numbered anew from 0). Makes no call that others have to make,
  /// too.
  std::unique_ptr<Communicator> group(std::vector<int> members, std::uint32_t epoch);
  /// How many of these ranks of the job are on this rank's host.
  int on_host(const std::vector<int>& members) const;
  /// Waits of communicators of other epochs than this one (world's is 0) end with LeftBehind. Callable from any thread.
  void begin_epoch(std::uint32_t epoch);
  /// Ends this process at once with this exit code, whereupon its launcher ends the other ranks. Callable from any
  /// thread.
  [[noreturn]] static void abort(int exit_code);

 private:
  std::shared_ptr<MpiWorld> world_;
  bool finalizes_ = true;
};

}  // namespace shoal
