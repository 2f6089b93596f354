#include "collectives/mpi.h"

#include <mpi.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "base/error.h"
#include "collectives/message_all_to_all.h"
#include "collectives/mpi_group.h"
#include "collectives/mpi_wire.h"
#include "collectives/over_all_to_all.h"
#include "collectives/ucx/ucx.h"

namespace shoal {
namespace {

class MpiCommunicator : public CollectivesOverAllToAll {
 public:
  explicit MpiCommunicator(std::shared_ptr<MpiGroup> group) : group_(std::move(group)) {}
  ~MpiCommunicator() override { release_exchange(); }
  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  std::string description() const override { return group_->wire().description(); }
  std::unique_ptr<AllToAll> make_all_to_all(std::size_t, std::span<const int> among) override {
    return std::make_unique<MessageAllToAll>(among.empty() ? group_ : group_->part(among));
  }
  int ranks_per_host() const override { return group_->ranks_per_host(); }
  void check_current() const override { group_->check_current(); }

 private:
  std::shared_ptr<MpiGroup> group_;
};

}  // namespace

MpiJob::MpiJob(int* argc, char*** argv) {
  const LaunchEnvironment launch = read_launch_environment();
  // Open MPI's own blocking calls (start-up, the end) spin unless told otherwise, and hold up ranks that share the
  // core.
  const cpu_set_t cores = usable_cores();
  if (launch.local_size > CPU_COUNT(&cores)) setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
  int level = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level), "MPI_Init_thread");
  if (level < MPI_THREAD_FUNNELED) fail("this MPI library ({}) allows no threads beside it", mpi_library_name());
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (launch.launched && size != launch.size)
    throw Error(fmt::format("{} started {} ranks, but this program's MPI ({}) sees {}; start it with the launcher of "
                            "the MPI that it was built with",
                            launch.launcher, launch.size, mpi_library_name(), size),
                ExitCode::usage);
  world_ = make_mpi_world();
}

MpiJob::~MpiJob() {
  // Finalize waits for all ranks. One that leaves because of an error must not: the launcher then ends the others.
  if (std::uncaught_exceptions() == 0 && finalizes_) MPI_Finalize();
}

void MpiJob::use_ucx() {
  MpiGroup everyone(world_);
  world_->wire = make_ucx_wire(everyone);
}

std::unique_ptr<Communicator> MpiJob::world() {
  return std::make_unique<MpiCommunicator>(std::make_shared<MpiGroup>(world_));
}

std::unique_ptr<Communicator> MpiJob::group(std::vector<int> members, std::uint32_t epoch) {
  return std::make_unique<MpiCommunicator>(std::make_shared<MpiGroup>(world_, std::move(members), epoch));
}

int MpiJob::on_host(const std::vector<int>& members) const {
  return static_cast<int>(MpiGroup(world_, members, 0).on_host().size());
}

void MpiJob::begin_epoch(std::uint32_t epoch) { world_->epoch = epoch; }

void MpiJob::abort(int exit_code) {
  // Not MPI_Abort: the main thread may be inside MPI at this moment, which allows one thread at a time. mpirun (and
  // srun with --kill-on-bad-exit) ends the other ranks when one ends like this, and returns its exit code.
  std::fflush(nullptr);
  _exit(exit_code == 0 ? static_cast<int>(ExitCode::failure) : exit_code);
}

}  // namespace shoal
