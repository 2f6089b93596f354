#include "runtime/host.h"

#include <gtest/gtest.h>

#include "tests/unit/scratch_folder.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

/// The files of a system with 1,000 KiB available.
class System {
 public:
  explicit System(std::string_view groups) {
    write("proc/meminfo",
          "MemTotal:  4000 kB\nMemFree: 5 kB\nMemAvailable:   1000 kB\nHugePages_Total:   0\nSwap: 7 kB\n");
    write("proc/self/cgroup", groups);
  }
  void write(const std::string& name, std::string_view text) const {
    fs::create_directories((folder_.path() / name).parent_path());
    folder_.write(name, text);
  }
  void group_2(const std::string& name, std::string_view limit, std::string_view usage, std::string_view stat) const {
    const std::string folder = "sys/fs/cgroup/" + name + "/";
    write(folder + "memory.max", limit);
    write(folder + "memory.current", usage);
    write(folder + "memory.stat", stat);
  }
  void group_1(const std::string& name, std::string_view limit, std::string_view usage, std::string_view stat) const {
    const std::string folder = "sys/fs/cgroup/memory/" + name + "/";
    write(folder + "memory.limit_in_bytes", limit);
    write(folder + "memory.usage_in_bytes", usage);
    write(folder + "memory.stat", stat);
  }
  std::uint64_t available() const { return available_memory_bytes(folder_.path()); }

 private:
  ScratchFolder folder_;
};

constexpr std::uint64_t kAll = 1000 * 1024;

TEST(AvailableMemory, IsTheHostsWhereNobodyLimitsIt) {
  EXPECT_EQ(System("").available(), kAll);
  EXPECT_EQ(System("0::/\n").available(), kAll);
  EXPECT_EQ(System("0::/user.slice/session\n").available(), kAll);
  EXPECT_GT(available_memory_bytes(), 1u << 20);
  EXPECT_EQ(available_memory_bytes("/nowhere"), 0u);
}

TEST(AvailableMemory, IsWhatTheGroupLeaves) {
  const System system("0::/job/step\n");
  system.group_2("job/step", "max\n", "5000\n", "anon 5000\ninactive_file 0\n");
  EXPECT_EQ(system.available(), kAll);
  system.group_2("job/step", "9000\n", "5000\n", "anon 2500\nfile 3000\ninactive_file 1500\nactive_file 500\n");
  EXPECT_EQ(system.available(), 9000u - 3000);
  system.group_2("job/step", "4000\n", "5000\n", "inactive_file 0\n");  // the limit was lowered
  EXPECT_EQ(system.available(), 0u);
  system.group_2("job/step", "9000\n", "5000\n", "inactive_file 5001\n");  // it is read a moment later
  EXPECT_EQ(system.available(), 9000u);
  system.group_2("job/step", "9999999999999\n", "5000\n", "inactive_file 0\n");
  EXPECT_EQ(system.available(), kAll);
}

TEST(AvailableMemory, IsWhatTheTightestGroupAboveLeaves) {
  const System system("0::/slurm/job/step\n");
  system.group_2("slurm/job/step", "max\n", "5000\n", "inactive_file 0\n");
  system.group_2("slurm/job", "20000\n", "6000\n", "inactive_file 1000\n");
  system.group_2("slurm", "90000\n", "60000\n", "inactive_file 0\n");
  EXPECT_EQ(system.available(), 15000u);
  system.group_2("slurm", "70000\n", "60000\n", "inactive_file 0\n");
  EXPECT_EQ(system.available(), 10000u);
}

/// A container's files lie where the system's root would have its own.
TEST(AvailableMemory, IsWhatTheContainerLeaves) {
  const System version_2("0::/\n"), version_1("3:cpuset:/docker/1234\n2:memory:/docker/1234\n0::/docker/1234\n");
  version_2.group_2("", "9000\n", "5000\n", "inactive_file 0\n");
  EXPECT_EQ(version_2.available(), 4000u);
  version_1.group_1("", "9000\n", "6000\n", "inactive_file 7\ntotal_inactive_file 0\n");
  EXPECT_EQ(version_1.available(), 3000u);
}

TEST(AvailableMemory, IsWhatGroupsOfVersion1Leave) {
  const System system("9:name=systemd:/a:b\n4:cpu,memory:/a:b\n3:cpuset:/c\n0::/\n");
  system.group_1("", "9223372036854771712\n", "900000000\n", "total_inactive_file 0\n");
  system.group_1("a:b", "9000\n", "5000\n", "inactive_file 7\ntotal_inactive_file 1500\ntotal_active_file 500\n");
  system.group_1("c", "10\n", "10\n", "total_inactive_file 0\n");  // of other processes
  EXPECT_EQ(system.available(), 6000u);
}

}  // namespace
}  // namespace shoal
