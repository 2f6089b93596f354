#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "collectives/mpi.h"

namespace shoal {
namespace {

/// The launcher's variables are set for one test alone, also when the tests themselves were started by a launcher.
class LaunchEnvironmentTest : public testing::Test {
 protected:
  LaunchEnvironmentTest() {
    for (const char* name : kNames) {
      if (const char* value = std::getenv(name)) before_[name] = value;
      unsetenv(name);
    }
  }
  ~LaunchEnvironmentTest() override {
    for (const char* name : kNames) unsetenv(name);
    for (const auto& [name, value] : before_) setenv(name.c_str(), value.c_str(), 1);
  }
  static void set(const std::map<std::string, std::string>& values) {
    for (const auto& [name, value] : values) setenv(name.c_str(), value.c_str(), 1);
  }
  static void expect_refused(const std::string& named) {
    try {
      read_launch_environment();
      ADD_FAILURE() << "was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code, ExitCode::usage);
      EXPECT_NE(std::string(error.what()).find(named), std::string::npos) << error.what();
    }
  }

 private:
  static constexpr const char* kNames[] = {"OMPI_COMM_WORLD_RANK",
                                           "OMPI_COMM_WORLD_SIZE",
                                           "OMPI_COMM_WORLD_LOCAL_RANK",
                                           "OMPI_COMM_WORLD_LOCAL_SIZE",
                                           "PMIX_RANK",
                                           "PMI_RANK",
                                           "PMI_SIZE",
                                           "MPI_LOCALRANKID",
                                           "MPI_LOCALNRANKS",
                                           "SLURM_PROCID",
                                           "SLURM_NTASKS",
                                           "SLURM_STEP_NUM_TASKS",
                                           "SLURM_LOCALID",
                                           "SLURM_NODEID",
                                           "SLURM_STEP_ID",
                                           "SLURM_STEP_TASKS_PER_NODE",
                                           "SLURM_TASKS_PER_NODE"};
  std::map<std::string, std::string> before_;
};

const std::map<std::string, std::string> kMpirun = {{"OMPI_COMM_WORLD_RANK", "5"},
                                                    {"OMPI_COMM_WORLD_SIZE", "8"},
                                                    {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                                    {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                                                    {"PMIX_RANK", "5"}};
const std::map<std::string, std::string> kSrun = {{"SLURM_PROCID", "2"},
                                                  {"SLURM_STEP_NUM_TASKS", "5"},
                                                  {"SLURM_NTASKS", "5"},
                                                  {"SLURM_LOCALID", "0"},
                                                  {"SLURM_NODEID", "1"},
                                                  {"SLURM_STEP_ID", "0"},
                                                  {"SLURM_STEP_TASKS_PER_NODE", "2(x2),1"}};

TEST_F(LaunchEnvironmentTest, StartedByHand) {
  const LaunchEnvironment launch = read_launch_environment();
  EXPECT_FALSE(launch.launched);
  EXPECT_EQ(launch.rank, 0);
  EXPECT_EQ(launch.size, 1);
}

TEST_F(LaunchEnvironmentTest, OpenMpi) {
  set(kMpirun);
  const LaunchEnvironment launch = read_launch_environment();
  EXPECT_TRUE(launch.launched);
  EXPECT_EQ(launch.launcher, "Open MPI");
  EXPECT_EQ(launch.rank, 5);
  EXPECT_EQ(launch.size, 8);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_size, 4);
}

TEST_F(LaunchEnvironmentTest, OpenMpiInsideASlurmJobIsOpenMpi) {
  set(kMpirun);
  set(kSrun);
  EXPECT_EQ(read_launch_environment().launcher, "Open MPI");
  EXPECT_EQ(read_launch_environment().rank, 5);
}

TEST_F(LaunchEnvironmentTest, Slurm) {
  set(kSrun);
  LaunchEnvironment launch = read_launch_environment();
  EXPECT_EQ(launch.launcher, "Slurm");
  EXPECT_EQ(launch.rank, 2);
  EXPECT_EQ(launch.size, 5);
  EXPECT_EQ(launch.local_rank, 0);
  EXPECT_EQ(launch.local_size, 2);
  set({{"SLURM_NODEID", "2"}, {"SLURM_PROCID", "4"}, {"PMIX_RANK", "4"}});
  launch = read_launch_environment();
  EXPECT_EQ(launch.launcher, "Slurm (PMIx)");
  EXPECT_EQ(launch.rank, 4);
  EXPECT_EQ(launch.local_size, 1);
}

TEST_F(LaunchEnvironmentTest, SlurmBatchScriptIsAJobOfOne) {
  set(kSrun);
  set({{"SLURM_STEP_ID", "4294967291"}});
  EXPECT_FALSE(read_launch_environment().launched);
  unsetenv("SLURM_STEP_ID");
  EXPECT_FALSE(read_launch_environment().launched);
}

TEST_F(LaunchEnvironmentTest, Mpich) {
  set({{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}});
  const LaunchEnvironment launch = read_launch_environment();
  EXPECT_EQ(launch.launcher, "PMI");
  EXPECT_EQ(launch.rank, 3);
  EXPECT_EQ(launch.size, 4);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_size, 2);
}

TEST_F(LaunchEnvironmentTest, ContradictionsAreRefused) {
  set(kMpirun);
  set({{"PMI_RANK", "4"}, {"PMI_SIZE", "8"}});
  expect_refused("PMI_RANK=4");
  set({{"PMI_RANK", "5"}, {"PMI_SIZE", "9"}});
  expect_refused("PMI_SIZE=9");
  set({{"PMI_SIZE", "8"}});
  EXPECT_EQ(read_launch_environment().rank, 5);
  set({{"PMIX_RANK", "6"}});
  expect_refused("PMIX_RANK=6");
}

TEST_F(LaunchEnvironmentTest, NonsenseIsRefused) {
  set({{"OMPI_COMM_WORLD_SIZE", "8"}});
  expect_refused("OMPI_COMM_WORLD_RANK");
  set({{"OMPI_COMM_WORLD_RANK", "8"}});
  expect_refused("OMPI_COMM_WORLD_RANK=8");
  set({{"OMPI_COMM_WORLD_RANK", "two"}});
  expect_refused("OMPI_COMM_WORLD_RANK=two");
  set({{"OMPI_COMM_WORLD_RANK", "-1"}});
  expect_refused("OMPI_COMM_WORLD_RANK=-1");
  unsetenv("OMPI_COMM_WORLD_RANK");
  unsetenv("OMPI_COMM_WORLD_SIZE");
  set({{"PMIX_RANK", "0"}});
  expect_refused("PMIX_RANK");
}

}  // namespace
}  // namespace shoal
