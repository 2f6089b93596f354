#include "collectives/mpi_wire.h"

#include "collectives/mpi_group.h"

namespace shoal {

/// Of "Open MPI v4.1.4, package: ...".
std::string mpi_library_name() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  std::string name(text, static_cast<std::size_t>(length));
  name = name.substr(0, name.find_first_of(",\n"));
  if (const auto v = name.find(" v"); v != std::string::npos) name.erase(v + 1, 1);
  return name;
}

namespace {

class MpiMessages final : public MessageSet {
 public:
  explicit MpiMessages(MPI_Comm comm) : comm_(comm) {}

  void receive(int src, int tag, std::span<std::byte> to) override {
    check_mpi(MPI_Irecv(to.data(), static_cast<int>(to.size()), MPI_BYTE, src, tag, comm_, next()), "MPI_Irecv");
  }
  void send(int dest, int tag, std::span<const std::byte> from) override {
    check_mpi(MPI_Isend(from.data(), static_cast<int>(from.size()), MPI_BYTE, dest, tag, comm_, next()), "MPI_Isend");
  }
  void progress(std::vector<int>& completed) override {
    const std::size_t before = completed.size();
    completed.resize(before + requests_.size());
    int n = 0;
    check_mpi(MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &n, completed.data() + before,
                           MPI_STATUSES_IGNORE),
              "MPI_Testsome");
    completed.resize(before + static_cast<std::size_t>(n == MPI_UNDEFINED ? 0 : n));
  }
  void clear() override { requests_.clear(); }

 private:
  MPI_Request* next() { return &requests_.emplace_back(MPI_REQUEST_NULL); }
  MPI_Comm comm_;
  std::vector<MPI_Request> requests_;
};

class MpiWire final : public Wire {
 public:
  explicit MpiWire(MPI_Comm comm) : comm_(comm) {}
  std::string description() const override { return "mpi (" + mpi_library_name() + ")"; }
  std::unique_ptr<MessageSet> make_set() override { return std::make_unique<MpiMessages>(comm_); }

 private:
  MPI_Comm comm_;
};

}  // namespace

std::unique_ptr<Wire> make_mpi_wire(MPI_Comm comm) { return std::make_unique<MpiWire>(comm); }

}  // namespace shoal
