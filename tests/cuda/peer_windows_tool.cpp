// Ranks that share one GPU and write into each other's memory on it: layers with experts compute, to the bit, what they
// do with the host in between. Run by tests/gpu:   mpirun -n 2 build/peer_windows_tool
#include <algorithm>
#include <cstdio>

#include "collectives/mpi.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/unit/station.h"

namespace shoal {
namespace {

std::vector<float> hidden_states(Communicator& comm, Compute compute, Answers answers, bool windows) {
  const auto dir = std::filesystem::path(SHOAL_SOURCE_DIR) / "tests" / "fixtures" / "models" / "deepseek-v3";
  test::StationOptions options{.compute = compute, .answers = answers};
  options.make_backend = [](Compute how) {
    return make_cuda_backend({.compute = how, .peer_memory = CudaOptions::PeerMemory::even_of_this_one});
  };
  test::Station station(dir, comm, options);
  std::vector<float> all;
  const std::vector<std::int32_t> pages{0, 1};
  for (const int most : {4, 4, 4, 4, 9, 9, 9, 1, 1, 1, 4, 4}) {
    TokenBatch batch = test::tokens_of(std::max(0, most - 2 * comm.rank()), comm.rank(), most, pages);
    if (windows) batch.most_tokens = most;
    const Rows<const float> x = station.model->forward(batch);
    HostRoom room;
    const Rows<float> host = station.backend->to_host({const_cast<float*>(x.data), x.rows, x.cols}, room);
    all.insert(all.end(), host.data, host.data + host.rows * host.cols);
    static_cast<void>(station.model->counters());
  }
  comm.barrier();
  return all;
}

int run(MpiJob& job) {
  const auto comm = job.world();
  bool same = true;
  for (const Compute compute : {Compute::f32, Compute::bf16})
    for (const Answers answers : {Answers::summed, Answers::by_expert}) {
      const auto with_host = hidden_states(*comm, compute, answers, false),
                 by_windows = hidden_states(*comm, compute, answers, true);
      const bool equal = !with_host.empty() && with_host == by_windows;
      if (!equal) std::printf("rank %d: other numbers\n", comm->rank());
      same = same && equal;
    }
  return same ? 0 : 1;
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  try {
    shoal::MpiJob job(&argc, &argv);
    return shoal::run(job);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "peer_windows_tool: %s\n", error.what());
    return 1;
  }
}
