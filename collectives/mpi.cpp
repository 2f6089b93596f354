#include "collectives/mpi.h"

#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "base/error.h"
#include "collectives/mpi_all_to_all.h"
#include "collectives/over_all_to_all.h"

namespace shoal {
namespace {

/// Those that this rank may run on; one where the system does not say.
cpu_set_t usable_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) {
    CPU_ZERO(&cores);
    CPU_SET(0, &cores);
  }
  return cores;
}

/// Whether the ranks of `host` are more than the cores that they have together: each may be bound to some of its own.
bool share_cores(MPI_Comm host) {
  cpu_set_t cores = usable_cores();
  check_mpi(MPI_Allreduce(MPI_IN_PLACE, &cores, sizeof cores, MPI_BYTE, MPI_BOR, host), "MPI_Allreduce");
  int ranks = 1;
  MPI_Comm_size(host, &ranks);
  return ranks > CPU_COUNT(&cores);
}

/// "Open MPI v4.1.4, package: ..." -> "Open MPI 4.1.4"
std::string library_name() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  std::string name(text, static_cast<std::size_t>(length));
  name = name.substr(0, name.find_first_of(",\n"));
  if (const auto v = name.find(" v"); v != std::string::npos) name.erase(v + 1, 1);
  return name;
}

class MpiCommunicator : public CollectivesOverAllToAll {
 public:
  MpiCommunicator() {
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    MPI_Comm host = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host), "MPI_Comm_split_type");
    crowded_ = share_cores(host);
    MPI_Comm_free(&host);
  }
  ~MpiCommunicator() override {
    release_exchange();
    MPI_Comm_free(&comm_);
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string description() const override { return "mpi (" + library_name() + ")"; }
  std::unique_ptr<AllToAll> make_all_to_all(std::size_t) override {
    return std::make_unique<MpiAllToAll>(comm_, crowded_);
  }

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  bool crowded_ = false;
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
  if (level < MPI_THREAD_FUNNELED) fail("this MPI library ({}) allows no threads beside it", library_name());
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (launch.launched && size != launch.size)
    throw Error(fmt::format("{} started {} ranks, but this program's MPI ({}) sees {}; start it with the launcher of "
                            "the MPI that it was built with",
                            launch.launcher, launch.size, library_name(), size),
                ExitCode::usage);
}

MpiJob::~MpiJob() {
  // Finalize waits for all ranks. One that leaves because of an error must not: the launcher then ends the others.
  if (std::uncaught_exceptions() == 0) MPI_Finalize();
}

std::unique_ptr<Communicator> MpiJob::world() { return std::make_unique<MpiCommunicator>(); }

void MpiJob::abort(int exit_code) {
  // Not MPI_Abort: the main thread may be inside MPI at this moment, which allows one thread at a time. mpirun (and
  // srun with --kill-on-bad-exit) ends the other ranks when one ends like this, and returns its exit code.
  std::fflush(nullptr);
  _exit(exit_code == 0 ? static_cast<int>(ExitCode::failure) : exit_code);
}

}  // namespace shoal
