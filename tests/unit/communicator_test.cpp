#include "tests/unit/communicator_suite.h"

#include <chrono>
#include <stdexcept>
#include <thread>

#include "base/error.h"

namespace shoal {
namespace {

class InProcess : public testing::TestWithParam<int> {};

TEST_P(InProcess, DoesWhatEveryCommunicatorDoes) { run_in_process(GetParam(), test::check_communicator); }

INSTANTIATE_TEST_SUITE_P(Ranks, InProcess, testing::Values(1, 2, 3, 5, 8), testing::PrintToStringParamName());

TEST(InProcess, CarriesLongData) { run_in_process(2, test::check_long_data); }

TEST(InProcess, NumbersItsRanks) {
  std::vector<int> seen(4);
  run_in_process(4, [&](Communicator& comm) {
    EXPECT_EQ(comm.size(), 4);
    EXPECT_EQ(comm.description(), "in-process");
    ++seen[static_cast<std::size_t>(comm.rank())];
  });
  EXPECT_EQ(seen, std::vector<int>({1, 1, 1, 1}));
}

TEST(InProcess, RankThatThrowsWakesTheOthersAndIsRethrown) {
  std::vector<std::string> seen(3);
  const auto body = [&](Communicator& comm) {
    if (comm.rank() == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      throw std::runtime_error("rank 1 has had enough");
    }
    try {
      comm.barrier();
    } catch (const Error& error) {
      seen[static_cast<std::size_t>(comm.rank())] = error.what();
      throw;
    }
  };
  try {
    run_in_process(3, body);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "rank 1 has had enough");
  }
  EXPECT_EQ(seen[0], "rank 0 waited for rank 1, which failed");
  EXPECT_EQ(seen[2], "rank 2 waited for rank 1, which failed");
}

TEST(InProcess, RefusesMisuse) {
  const auto comm = make_self_communicator();
  const auto exchange = comm->make_all_to_all();
  const std::vector<std::size_t> nothing = {0}, ten = {10};
  EXPECT_THROW(exchange->wait(), Error);
  EXPECT_THROW(exchange->post(ten), Error);
  exchange->post(nothing);
  exchange->post(nothing);
  EXPECT_THROW(exchange->post(nothing), Error);
  EXPECT_THROW(exchange->outgoing(0, 1), Error);
  exchange->wait();
  exchange->post(nothing);
  std::vector<float> data(3), all(2);
  const std::vector<std::size_t> counts = {3};
  EXPECT_THROW(comm->all_gather_v(data, counts, all), Error);
}

TEST(SelfCommunicator, DoesWhatEveryCommunicatorDoes) {
  const auto comm = make_self_communicator();
  test::check_communicator(*comm);
  test::check_long_data(*comm);
}

TEST(SelfCommunicator, DoesNotCopyWhatIsItsOwn) {
  const auto comm = make_self_communicator();
  const auto exchange = comm->make_all_to_all();
  const std::byte* written = exchange->outgoing(0, 100).data();
  const std::vector<std::size_t> bytes = {100};
  exchange->post(bytes);
  exchange->wait();
  EXPECT_EQ(exchange->incoming(0).data(), written);
}

}  // namespace
}  // namespace shoal
