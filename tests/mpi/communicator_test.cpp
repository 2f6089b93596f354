#include "tests/unit/communicator_suite.h"

#include "collectives/mpi.h"
#include "collectives/mpi_all_to_all.h"
#include "tests/unit/expert_exchange_suite.h"

namespace shoal {
namespace {

Communicator* world = nullptr;

TEST(Mpi, DoesWhatEveryCommunicatorDoes) { test::check_communicator(*world); }
TEST(Mpi, CarriesLongData) { test::check_long_data(*world); }
TEST(Mpi, CarriesExpertExchanges) { test::check_expert_exchanges(*world); }

/// Records of many messages, as those beyond 1 GiB are.
TEST(Mpi, CutsRecordsIntoMessages) {
  for (const MpiMessageSizes sizes : {MpiMessageSizes{16, 1000}, MpiMessageSizes{1, 77}, MpiMessageSizes{4096, 64}}) {
    MpiAllToAll exchange(MPI_COMM_WORLD, true, sizes);
    test::check_exchanges(*world, exchange, 5000, 20);
    test::check_overlapping_exchanges(*world, exchange, 5000, 10);
  }
}

TEST(Mpi, IsWhatTheLauncherSaid) {
  const LaunchEnvironment launch = read_launch_environment();
  EXPECT_EQ(world->rank(), launch.rank);
  EXPECT_EQ(world->size(), launch.size);
  EXPECT_LT(launch.local_rank, launch.local_size);
  EXPECT_EQ(world->description().find("mpi ("), 0u);
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  shoal::MpiJob job(&argc, &argv);
  const auto world = job.world();
  shoal::world = world.get();
  if (world->rank() > 0) {  // rank 0 prints for all; failures are printed by whoever has them
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    class Failures : public testing::EmptyTestEventListener {
      void OnTestPartResult(const testing::TestPartResult& result) override {
        if (result.failed())
          std::fprintf(stderr, "rank %d: %s:%d: %s\n", shoal::world->rank(), result.file_name(), result.line_number(),
                       result.message());
      }
    };
    listeners.Append(new Failures);
  }
  return RUN_ALL_TESTS();
}
