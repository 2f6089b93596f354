#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "collectives/mpi.h"

namespace shoal {
namespace {

[[noreturn]] void refuse(const std::string& why) {
  throw Error("the launcher's environment contradicts itself: " + why +
                  "; start the job with one launcher (mpirun or srun), or unset what an outer one left behind",
              ExitCode::usage);
}

std::optional<int> number(const char* name) {
  const char* text = std::getenv(name);
  if (!text || !*text) return {};
  const std::string_view view(text);
  int value = 0;
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
  if (error != std::errc() || end != view.data() + view.size() || value < 0)
    refuse(fmt::format("{}={} is no number from 0 up", name, view));
  return value;
}

/// What one family of variables says; `rank` decides whether it is there at all.
struct Found {
  std::string launcher;
  std::string rank_name, size_name;
  int rank = 0;
  std::optional<int> size, local_rank, local_size;
};

std::optional<Found> find(const char* launcher, const char* rank, const char* size, const char* local_rank,
                          const char* local_size) {
  const auto r = number(rank);
  const auto s = number(size);
  if (!r && !s) return {};
  if (!r) refuse(fmt::format("{} is set, but {} is not", size, rank));
  return Found{launcher, rank, size, *r, s, number(local_rank), number(local_size)};
}

/// Tasks on this node out of "2(x3),1": three nodes with two tasks, then one with one.
std::optional<int> slurm_tasks_here() {
  const char* list = std::getenv("SLURM_STEP_TASKS_PER_NODE");
  if (!list) list = std::getenv("SLURM_TASKS_PER_NODE");
  const auto node = number("SLURM_NODEID");
  if (!list || !node) return {};
  int first = 0;
  for (std::string_view rest(list); !rest.empty();) {
    const std::string_view item = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), item.size() + 1));
    int tasks = 0, nodes = 1;
    const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), tasks);
    if (error != std::errc()) return {};
    if (const auto x = item.find("(x"); x != std::string_view::npos)
      std::from_chars(item.data() + x + 2, item.data() + item.size(), nodes);
    first += nodes;
    if (*node < first) return tasks;
  }
  return {};
}

/// srun's variables. A batch script or an interactive shell has them as well (as task 0 of many, though it is alone);
/// their step ids are the few highest numbers.
std::optional<Found> find_slurm() {
  const char* step = std::getenv("SLURM_STEP_ID");
  if (!step) return {};
  constexpr unsigned long kFirstSpecialStep = 0xfffffff0ul;
  if (std::strtoul(step, nullptr, 10) >= kFirstSpecialStep) return {};
  auto found = find("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "");
  if (!found) return {};
  if (!found->size) found->size = number("SLURM_NTASKS"), found->size_name = "SLURM_NTASKS";
  found->local_size = slurm_tasks_here();
  return found;
}

}  // namespace

LaunchEnvironment read_launch_environment() {
  const auto ompi = find("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
                         "OMPI_COMM_WORLD_LOCAL_SIZE");
  auto pmix = find("PMIx", "PMIX_RANK", "", "", "");
  const auto slurm = find_slurm();
  const auto pmi = find("PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS");

  // PMIx says nothing of sizes; where it comes with srun, Slurm does. mpirun inside a Slurm job starts its daemons by
  // srun, so Slurm's numbers mean nothing under it and are not compared.
  if (pmix && slurm && pmix->rank == slurm->rank) {
    pmix = slurm;
    pmix->launcher = "Slurm (PMIx)";
  }
  const Found* chosen = nullptr;
  for (const std::optional<Found>* candidate : std::initializer_list<const std::optional<Found>*>{&ompi, &pmix, &pmi}) {
    if (!*candidate) continue;
    if (!chosen) {
      chosen = &**candidate;
      continue;
    }
    const Found& other = **candidate;
    if (other.rank != chosen->rank)
      refuse(fmt::format("{}={} but {}={}", chosen->rank_name, chosen->rank, other.rank_name, other.rank));
    if (other.size && chosen->size && *other.size != *chosen->size)
      refuse(fmt::format("{}={} but {}={}", chosen->size_name, *chosen->size, other.size_name, *other.size));
  }
  if (!chosen && slurm) chosen = &*slurm;
  if (!chosen) return {};

  if (!chosen->size) refuse(fmt::format("{} is set, but no variable says how many ranks there are", chosen->rank_name));
  LaunchEnvironment launch{.rank = chosen->rank,
                           .size = *chosen->size,
                           .local_rank = chosen->local_rank.value_or(0),
                           .local_size = chosen->local_size.value_or(1),
                           .launched = true,
                           .launcher = chosen->launcher};
  // mpirun of Open MPI 4 says so; later ones do not.
  if (ompi && std::getenv("OMPI_MCA_orte_local_daemon_uri"))
    launch.ends_together = number("OMPI_MCA_orte_enable_recovery").value_or(0) == 0;
  if (launch.rank >= launch.size)
    refuse(fmt::format("{}={} but {}={}", chosen->rank_name, launch.rank, chosen->size_name, launch.size));
  launch.local_size = std::max(launch.local_size, launch.local_rank + 1);
  return launch;
}

}  // namespace shoal
