#include "collectives/mpi_group.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>

#include "base/error.h"
#include "base/patience.h"
#include "collectives/communicator.h"
#include "collectives/mpi_wire.h"

namespace shoal {
namespace {

// Tags are {epoch, set, tag of the set}: 22 bits. Open MPI over UCX has 23, others more.
constexpr int kSets = 1 << 10;
constexpr std::uint32_t kEpochs = 1 << 10;
constexpr int kSetOfGathers = 0;  // small ones, in the order of the program

std::vector<int> all_of(const MpiWorld& world) {
  std::vector<int> ranks(world.places.size());
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

}  // namespace

void check_mpi(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail("{}: {}", what, std::string(text, static_cast<std::size_t>(length)));
}

cpu_set_t usable_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) {
    CPU_ZERO(&cores);
    CPU_SET(0, &cores);
  }
  return cores;
}

std::shared_ptr<MpiWorld> make_mpi_world() {
  auto world = std::make_shared<MpiWorld>();
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &world->comm), "MPI_Comm_dup");
  MPI_Comm_set_errhandler(world->comm, MPI_ERRORS_RETURN);
  int rank = 0, ranks = 1;
  MPI_Comm_rank(world->comm, &rank);
  MPI_Comm_size(world->comm, &ranks);
  MPI_Comm host = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(world->comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &host), "MPI_Comm_split_type");
  MpiPlace mine{.host = rank, .cores = usable_cores()};
  check_mpi(MPI_Bcast(&mine.host, 1, MPI_INT, 0, host), "MPI_Bcast");
  MPI_Comm_free(&host);
  world->places.resize(static_cast<std::size_t>(ranks));
  check_mpi(MPI_Allgather(&mine, sizeof mine, MPI_BYTE, world->places.data(), sizeof mine, MPI_BYTE, world->comm),
            "MPI_Allgather");
  world->wire = make_mpi_wire(world->comm);
  return world;
}

MpiGroup::MpiGroup(std::shared_ptr<MpiWorld> world, std::vector<int> members, std::uint32_t epoch)
    : world_(std::move(world)),
      members_(std::move(members)),
      epoch_(epoch),
      taken_(std::make_shared<std::vector<bool>>(1, true)) {
  find_own_place();
  cpu_set_t cores;
  CPU_ZERO(&cores);
  for (const int rank : on_host_) CPU_OR(&cores, &cores, &world_->places[static_cast<std::size_t>(in_job(rank))].cores);
  crowded_ = std::ssize(on_host_) > CPU_COUNT(&cores);
}

void MpiGroup::find_own_place() {
  int me = 0;
  MPI_Comm_rank(world_->comm, &me);
  const auto place = std::ranges::find(members_, me);
  if (place == members_.end()) fail("rank {} is not in the group that it makes", me);
  rank_ = static_cast<int>(place - members_.begin());
  on_host_.clear();
  for (int rank = 0; rank < size(); ++rank)
    if (host_of(rank) == host_of(rank_)) on_host_.push_back(rank);
}

std::shared_ptr<MpiGroup> MpiGroup::part(std::span<const int> ranks) const {
  const auto part = std::make_shared<MpiGroup>(*this);  // as crowded, since all its ranks work at the same time
  part->members_.clear();
  for (const int rank : ranks) part->members_.push_back(in_job(rank));
  part->find_own_place();
  return part;
}

int MpiGroup::ranks_per_host() const {
  int n = 1;
  while (n < size() && host_of(n) == host_of(0)) ++n;
  std::vector<int> hosts;
  for (int rank = 0; rank < size(); ++rank) {
    if (rank % n == 0) {
      if (std::ranges::find(hosts, host_of(rank)) != hosts.end()) return 1;
      hosts.push_back(host_of(rank));
    } else if (host_of(rank) != hosts.back()) {
      return 1;
    }
  }
  return size() % n == 0 ? n : 1;
}

MpiGroup::MpiGroup(std::shared_ptr<MpiWorld> world, std::uint32_t epoch) : MpiGroup(world, all_of(*world), epoch) {}

void MpiGroup::check_current() const {
  if (world_->epoch.load(std::memory_order_relaxed) != epoch_) throw LeftBehind("ranks were lost");
}

int MpiGroup::take_tags() {
  const auto free = std::ranges::find(*taken_, false);
  const auto set = free - taken_->begin();
  if (set == kSets) fail("more than {} exchanges at a time", kSets);
  if (free == taken_->end()) taken_->push_back(false);
  (*taken_)[static_cast<std::size_t>(set)] = true;
  return (static_cast<int>(epoch_ % kEpochs) * kSets + static_cast<int>(set)) * kTags;
}

void MpiGroup::give_back(int first_tag) { (*taken_)[static_cast<std::size_t>(first_tag / kTags % kSets)] = false; }

void MpiGroup::gather_bytes(std::span<const int> ranks, std::span<const std::byte> mine, std::span<std::byte> all) {
  // Messages that are left behind may still be written to and read from: their memory is freed when all have completed,
  // or not at all.
  struct Messages {
    std::vector<std::byte> mine, all;
    std::vector<MPI_Request> requests;
  };
  auto* const messages = new Messages;
  messages->mine.assign(mine.begin(), mine.end());
  messages->all.resize(all.size());
  const int bytes = static_cast<int>(mine.size());
  const int tag = (static_cast<int>(epoch_ % kEpochs) * kSets + kSetOfGathers) * kTags;
  std::byte* to = messages->all.data();
  for (const int rank : ranks) {
    if (rank == rank_) {
      std::ranges::copy(mine, to);
    } else {
      auto& requests = messages->requests;
      requests.push_back(MPI_REQUEST_NULL);
      check_mpi(MPI_Irecv(to, bytes, MPI_BYTE, in_job(rank), tag, world_->comm, &requests.back()), "MPI_Irecv");
      requests.push_back(MPI_REQUEST_NULL);
      check_mpi(MPI_Isend(messages->mine.data(), bytes, MPI_BYTE, in_job(rank), tag, world_->comm, &requests.back()),
                "MPI_Isend");
    }
    to += bytes;
  }
  Patience patience(crowded_);
  for (;;) {
    int done = 0;
    check_mpi(
        MPI_Testall(static_cast<int>(messages->requests.size()), messages->requests.data(), &done, MPI_STATUSES_IGNORE),
        "MPI_Testall");
    if (done) break;
    check_current();
    patience.pause(true);
  }
  std::ranges::copy(messages->all, all.begin());
  delete messages;
}

}  // namespace shoal
