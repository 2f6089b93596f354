// The exchange over NCCL against a stand-in with NCCL's semantics, and its arithmetic by itself.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "base/cuda/memory.h"
#include "base/cuda/wait.h"
#include "collectives/device_transport.h"
#include "collectives/nccl/nccl.h"
#include "collectives/nccl/record_layout.h"
#include "tests/unit/communicator_suite.h"
#include "tests/unit/expert_exchange_suite.h"
#include "tests/unit/nccl_stand_in.h"

namespace shoal {
namespace {

/// `body` on every rank, with a communicator over the stand-in. The in-process one carries only the id.
void over_stand_in(int ranks, std::size_t eager, const std::function<void(Communicator&)>& body) {
  const auto library = std::make_shared<test::NcclStandIn>(ranks);
  run_in_process(ranks, [&](Communicator& others) {
    const auto comm = make_nccl_communicator(library, others, {.eager = eager, .patience_s = 60});
    EXPECT_EQ(comm->rank(), others.rank());
    EXPECT_EQ(comm->description(), "nccl (stand-in)");
    body(*comm);
  });
}

class Nccl : public testing::TestWithParam<int> {};

TEST_P(Nccl, DoesWhatEveryCommunicatorDoes) { over_stand_in(GetParam(), 2048, test::check_communicator); }
TEST_P(Nccl, CarriesExpertExchanges) { over_stand_in(GetParam(), 1024, test::check_expert_exchanges); }
TEST_P(Nccl, CutsRecordsWhereverTheyEnd) {
  for (const std::size_t eager : {std::size_t{0}, std::size_t{64}, std::size_t{4096}})
    over_stand_in(GetParam(), eager, [](Communicator& comm) {
      const auto exchange = comm.make_all_to_all();
      test::check_exchanges(comm, *exchange, 5000, 12);
      test::check_overlapping_exchanges(comm, *exchange, 5000, 6);
    });
}
INSTANTIATE_TEST_SUITE_P(Ranks, Nccl, testing::Values(1, 2, 3, 5));

/// What rank 0 says when rank 1 is gone.
std::string end_of(bool heard, double patience_s, int& aborted) {
  std::string message;
  const auto library = std::make_shared<test::NcclStandIn>(2);
  run_in_process(2, [&](Communicator& others) {
    const auto comm = make_nccl_communicator(library, others, {.eager = 64, .patience_s = patience_s});
    const auto exchange = comm->make_all_to_all();
    if (comm->rank() == 1) {
      library->kill(1, heard);
      return;
    }
    const std::vector<std::size_t> nothing(2);
    exchange->post(nothing);
    try {
      exchange->wait();
    } catch (const Error& error) {
      message = error.what();
    }
    EXPECT_THROW(exchange->post(nothing), Error) << "what was given up stays so";
  });
  aborted = library->aborted();
  return message;
}

TEST(NcclFailures, ADeadRankIsNoticed) {
  int aborted = 0;
  EXPECT_EQ(end_of(true, 60, aborted), "rank 0: NCCL: remote process exited");
  EXPECT_EQ(aborted, 1);
  EXPECT_EQ(end_of(false, 0.2, aborted), "rank 0: NCCL: nothing came for 0.2 s; another rank has ended or hangs");
  EXPECT_EQ(aborted, 1);
}

/// Between GPUs: rank 0 waits for bytes that rank 1 does not send any more.
std::string end_between_gpus(bool heard, double patience_s) {
  std::string message;
  const auto library = std::make_shared<test::NcclStandIn>(2);
  run_in_process(2, [&](Communicator& others) {
    const auto comm = make_nccl_communicator(library, others, {.patience_s = patience_s});
    if (comm->rank() == 1) {
      library->kill(1, heard);
      return;
    }
    cudaStream_t stream = nullptr;
    void* memory = nullptr;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaMalloc(&memory, 64);
    const std::vector<DeviceTransport::Piece> nothing(2), awaited{{}, {static_cast<std::byte*>(memory), 64}};
    comm->device_transport()->exchange(nothing, awaited, stream);
    try {
      cuda::wait_for(stream, "the exchange");
    } catch (const Error& error) {
      message = error.what();
    }
    EXPECT_THROW(comm->device_transport()->exchange(nothing, awaited, stream), Error) << "what was given up stays so";
    cudaStreamSynchronize(stream);
    cudaFree(memory);
    cudaStreamDestroy(stream);
  });
  return message;
}

TEST(NcclFailures, ADeadRankIsNoticedBetweenGpus) {
  EXPECT_EQ(end_between_gpus(true, 60), "rank 0: NCCL: remote process exited");
  EXPECT_EQ(end_between_gpus(false, 0.2), "rank 0: NCCL: nothing came for 0.2 s; another rank has ended or hangs");
}

/// Of a group that may be left behind.
class Outlived final : public Communicator {
 public:
  explicit Outlived(Communicator& inner) : inner_(inner) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  std::string description() const override { return inner_.description(); }
  std::unique_ptr<AllToAll> make_all_to_all(std::size_t usual, std::span<const int> among) override {
    return inner_.make_all_to_all(usual, among);
  }
  int ranks_per_host() const override { return inner_.ranks_per_host(); }
  void all_reduce_sum(std::span<float> data) override { inner_.all_reduce_sum(data); }
  void all_gather_v(std::span<const float> mine, std::span<const std::size_t> counts, std::span<float> all) override {
    inner_.all_gather_v(mine, counts, all);
  }
  void broadcast(std::span<std::byte> data, int root) override { inner_.broadcast(data, root); }
  void barrier() override { inner_.barrier(); }
  void check_current() const override {
    if (left_behind) throw LeftBehind("ranks were lost");
  }
  std::atomic<bool> left_behind = false;

 private:
  Communicator& inner_;
};

/// Rank 1 is gone, NCCL says so or not, and then the control plane does: waits for records and waits for any work on
/// the GPU end, and NCCL's own with them.
TEST(NcclFailures, WhoIsLeftGoesOn) {
  using namespace std::chrono_literals;
  for (const bool heard : {true, false}) {
    for (const bool records : {true, false}) {
      const auto library = std::make_shared<test::NcclStandIn>(2);
      run_in_process(2, [&](Communicator& inner) {
        Outlived others(inner);
        const auto comm = make_nccl_communicator(library, others, {.eager = 64, .patience_s = 60, .news_s = 60});
        if (comm->rank() == 1) {
          library->kill(1, heard);
          return;
        }
        std::thread control([&] {
          std::this_thread::sleep_for(50ms);
          others.left_behind = true;
        });
        if (records) {
          const auto exchange = comm->make_all_to_all();
          exchange->post(std::vector<std::size_t>(2));
          EXPECT_THROW(exchange->wait(), LeftBehind);
        } else {
          cudaStream_t stream = nullptr;
          cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
          cuda::DeviceBlock memory(64);
          const std::vector<DeviceTransport::Piece> nothing(2), awaited{{}, {memory.data(), 64}};
          comm->device_transport()->exchange(nothing, awaited, stream);
          cuda::Uploads uploads(stream, 1 << 10);
          const std::vector<std::byte> data(300);
          const auto put_more_than_fits = [&] {
            for (int i = 0; i < 10; ++i) uploads.put(data);
          };
          EXPECT_THROW(put_more_than_fits(), LeftBehind) << "what was put last is still on its way";
          cudaStreamSynchronize(stream);
          cudaStreamDestroy(stream);
        }
        control.join();
        EXPECT_EQ(library->aborted(), 1);
        EXPECT_THROW(comm->check_current(), LeftBehind);
      });
    }
  }
}

/// Of which a thread's waits in memory of the host end when it is left behind.
thread_local const Outlived* of_this_thread = nullptr;

/// Records among ranks of a host do not pass by NCCL: who is left behind waiting for them gives NCCL's work up as well.
TEST(NcclFailures, WaitsForRecordsOfAHostGiveUpNccl) {
  const auto library = std::make_shared<test::NcclStandIn>(2);
  const auto body = [&](Communicator& inner) {
    Outlived others(inner);
    const auto comm = make_nccl_communicator(library, others, {.eager = 64, .patience_s = 60, .news_s = 60});
    if (comm->rank() == 1) return;
    const std::vector<int> of_host{0, 1};
    const auto exchange = comm->make_all_to_all(0, of_host);
    exchange->post(std::vector<std::size_t>(2));
    others.left_behind = true;
    of_this_thread = &others;
    EXPECT_THROW(exchange->wait(), LeftBehind);
    of_this_thread = nullptr;
    EXPECT_EQ(library->aborted(), 1);
  };
  run_in_process(2, body, 2, [] {
    if (of_this_thread) of_this_thread->check_current();
  });
}

TEST(NcclRecords, PiecesMakeUpTheRecord) {
  std::mt19937 random(1);
  for (int round = 0; round < 1000; ++round) {
    const nccl::RecordLayout layout{64 * (random() % 20)};
    std::vector<std::uint64_t> lengths;
    for (std::size_t i = random() % 9 + 1; i > 0; --i) lengths.push_back(random() % 3000);
    const auto places = layout.rest_places(lengths);
    ASSERT_EQ(places.size(), lengths.size() + 1);
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      EXPECT_EQ(layout.first(lengths[i]) + layout.rest(lengths[i]), lengths[i]);
      EXPECT_LE(layout.first(lengths[i]) + nccl::RecordLayout::kHeader, layout.slot_bytes());
      EXPECT_LE(places[i] + layout.rest(lengths[i]), places[i + 1]) << "rests overlap";
      EXPECT_EQ(places[i] % nccl::RecordLayout::kUnit, 0u);
    }
    EXPECT_GE(layout.slot(3), layout.slot(2) + layout.slot_bytes());
  }
}

}  // namespace
}  // namespace shoal
