#include "launch/this_machine.h"

#include <gtest/gtest.h>

#include "planner/cards.h"
#include "tests/unit/scratch_folder.h"

namespace shoal {
namespace {

/// As `mpirun --map-by node` deals ranks out: 0 and 2 on one host, 1 and 3 on the other.
TEST(ThisMachine, RanksThatAreDealtOutToHostsInTurnAreRefused) {
  const auto measure = [](Communicator& comm) {
    const LaunchEnvironment launch{
        .rank = comm.rank(), .size = 4, .local_rank = comm.rank() / 2, .local_size = 2, .launched = true};
    measure_cluster(comm, launch, Compute::bf16, find_model("deepseek-v2-lite"), Precision::from_name("bf16"));
  };
  EXPECT_NE(error_of([&] { run_in_process(4, measure); }).find("numbered host by host"), std::string::npos);
}

}  // namespace
}  // namespace shoal
