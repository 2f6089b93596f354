// Layers with experts whose host learns nothing before the step has ended: the kernels against plain loops, and whole
// models against what they compute with the host in between, to the bit, over ranks whose NCCL is a stand-in.
#include "kernels/device_moe.h"

#include <random>
#include <set>

#include "collectives/device_transport.h"
#include "kernels/cuda/expert_plan.h"
#include "kernels/cuda/peer_windows.h"
#include "tests/unit/device_stream_test_support.h"
#include "tests/unit/expert_exchange_suite.h"
#include "tests/unit/gpu_ranks.h"
#include "tests/unit/station.h"

namespace shoal::cuda {
namespace {

using test::ExchangeCase, test::Tokens;

class SlotPlans : public OnStream {};

/// Random entries, and memory that held other things before.
TEST_F(SlotPlans, EveryEntryForThisRankHasAPlaceAmongItsExpertsPairs) {
  std::mt19937 random(4);
  Uploads uploads(stream);
  for (int round = 0; round < 60; ++round) {
    const int experts = static_cast<int>(random() % 40) + (round % 8 == 0 ? kMaxExperts - 39 : 0);
    const auto of_rank = static_cast<int>(1 + random() % 40);
    const Slots slots{.ranks = 1 + static_cast<int>(random() % 5),
                      .rank = 0,
                      .of_rank = of_rank,
                      .apart = of_rank + static_cast<int>(random() % 3),
                      .entries = 1 + static_cast<int>(random() % 9),
                      .hidden = 5,
                      .there = Wire::f32,
                      .back = Wire::f32,
                      .by_expert = false};
    const auto all = static_cast<std::size_t>(slots.all() * slots.entries);
    std::vector<std::byte> in(static_cast<std::size_t>(slots.ranks * slots.apart * slots.slot_bytes()));
    std::vector<std::int32_t> expert_of(all, -1);
    for (std::size_t i = 0; i < all; ++i) {
      SlotEntry entry{-1, 1};
      if (experts > 0 && random() % 4 > 0) {
        const auto rank = static_cast<std::int32_t>(random() % 2),
                   local = static_cast<std::int32_t>(random() % static_cast<unsigned>(experts));
        entry.place = place_of(rank, local);
        if (rank == slots.rank) expert_of[i] = local;
      }
      const auto slot = static_cast<std::int64_t>(i) / slots.entries;
      std::memcpy(in.data() + slots.part_at(static_cast<int>(slot / of_rank)) + slots.entries_at(slot % of_rank) +
                      static_cast<std::int64_t>(i) % slots.entries * std::int64_t{sizeof entry},
                  &entry, sizeof entry);
    }
    Scratch begin(stream), row(stream), place(stream), work(stream);
    const SlotPlan plan{begin.room<std::int32_t>(experts + 1), row.room<std::int32_t>(static_cast<std::int64_t>(all)),
                        place.room<std::int32_t>(static_cast<std::int64_t>(all)), work.room<std::int32_t>(1)};
    plan_slots(uploads.put(in), slots, experts, plan, stream);
    const auto begins = read(plan.begin, static_cast<std::size_t>(experts) + 1);
    const auto pairs = static_cast<std::size_t>(begins.back());
    const auto rows = read(plan.row, pairs), places = read(plan.place, all);
    EXPECT_EQ(read(plan.work, 1)[0], begins.back());
    std::set<std::int32_t> taken;
    for (std::size_t i = 0; i < all; ++i) {
      if (expert_of[i] < 0) {
        EXPECT_EQ(places[i], -1);
        continue;
      }
      EXPECT_TRUE(taken.insert(places[i]).second);
      EXPECT_EQ(rows.at(static_cast<std::size_t>(places[i])), static_cast<std::int32_t>(i) / slots.entries);
      EXPECT_GE(places[i], begins[static_cast<std::size_t>(expert_of[i])]);
      EXPECT_LT(places[i], begins[static_cast<std::size_t>(expert_of[i]) + 1]);
    }
    EXPECT_EQ(taken.size(), pairs);

    // Tiles as the host cuts them, of all experts or of every third.
    for (const int tile_rows : {8, 16, 64})
      for (const bool some : {false, true}) {
        std::vector<std::int32_t> wanted;
        std::vector<Tile> ranges;
        for (int e = 0; e < experts; ++e) {
          wanted.push_back(!some || e % 3 == 0 ? 1 : 0);
          const std::int32_t first = begins[static_cast<std::size_t>(e)], end = begins[static_cast<std::size_t>(e) + 1];
          if (wanted.back() != 0 && first < end) ranges.push_back({e, first, end - first});
        }
        std::vector<Tile> expected = cut_into_tiles(ranges, tile_rows);
        expected.resize(static_cast<std::size_t>(experts) + pairs / static_cast<std::size_t>(tile_rows) + 3);
        Scratch memory(stream);
        Tile* tiles = memory.room<Tile>(std::ssize(expected));
        cut_ranges(plan.begin, experts, some ? uploads.put(wanted) : nullptr, tile_rows,
                   static_cast<int>(expected.size()), tiles, stream);
        const auto cut = read(tiles, expected.size());
        for (std::size_t i = 0; i < cut.size(); ++i) {
          EXPECT_EQ(cut[i].group, expected[i].group);
          EXPECT_EQ(cut[i].first, expected[i].first);
          EXPECT_EQ(cut[i].count, expected[i].count);
        }
      }
  }
}

/// What the answers add up to by plain loops. Without copies of experts where they are summed.
std::vector<float> reference(const ExchangeCase& c, const ExpertMap& map, const Tokens& t) {
  std::vector<float> out(static_cast<std::size_t>(t.count * c.hidden), 0.5f);
  for (std::int64_t token = 0; token < t.count; ++token) {
    std::vector<std::tuple<std::int32_t, std::int32_t, std::size_t>> order;  // rank, local id, entry
    for (int k = 0; k < c.top_k; ++k) {
      const auto entry = static_cast<std::size_t>(token * c.top_k + k);
      if (t.expert[entry] < 0) continue;
      const ExpertReplica& at = map.replicas[static_cast<std::size_t>(t.expert[entry])][0];
      order.emplace_back(at.rank, at.local, entry);
    }
    const bool summed = c.answers == Answers::summed;
    if (summed) std::sort(order.begin(), order.end());
    for (int i = 0; i < c.hidden; ++i) {
      const float x = test::arriving(c, t, token * t.stride + i);
      float& to = out[static_cast<std::size_t>(token * c.hidden + i)];
      float sum = 0;
      for (std::size_t n = 0; n < order.size(); ++n) {
        const auto [rank, local, entry] = order[n];
        sum = std::fma(t.weight[entry], test::expert_of_test(t.expert[entry], x), sum);
        if (summed && n + 1 < order.size() && std::get<0>(order[n + 1]) == rank) continue;
        to += test::travelled(c, sum);
        sum = 0;
      }
    }
  }
  return out;
}

/// How slots travel: by NCCL, or written into other GPUs' windows, by stores, puts, or both.
enum class Travel { exchanged, stored, put, both };

/// A layer through the kernels, the experts' work being the host's. Returns what came for this rank's experts.
std::int64_t run_by_slots(Communicator& comm, Travel travel, const ExchangeCase& c, const ExpertMap& map,
                          const Tokens& t, std::uint32_t turn, std::vector<float>& out) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  Uploads uploads(stream);
  const auto read = [&]<class T>(const T* from, std::int64_t n) {
    std::vector<T> host(static_cast<std::size_t>(n));
    check(cudaMemcpyAsync(host.data(), from, host.size() * sizeof(T), cudaMemcpyDeviceToHost, stream), "copy");
    wait_for(stream, "copy");
    return host;
  };
  std::vector<std::int32_t> first{0}, place, global;
  std::vector<std::uint32_t> edge;
  for (std::size_t e = 0; e < map.replicas.size(); ++e) {
    double below = 0;
    for (const ExpertReplica& r : map.replicas[e]) {
      below += static_cast<double>(r.share);
      place.push_back(place_of(r.rank, r.local));
      edge.push_back(static_cast<std::uint32_t>(std::min(below * 4294967296.0, 4294967295.0)));
      if (r.rank != comm.rank()) continue;
      global.resize(std::max(global.size(), static_cast<std::size_t>(r.local) + 1));
      global[static_cast<std::size_t>(r.local)] = static_cast<std::int32_t>(e);
    }
    first.push_back(static_cast<std::int32_t>(place.size()));
  }
  const Wire there = c.f8_rows ? Wire::f8 : c.bf16_wire ? Wire::bf16 : Wire::f32;
  const int of_rank = std::max(1, c.most_tokens);
  const Slots slots{comm.size(),
                    comm.rank(),
                    of_rank,
                    of_rank + (travel != Travel::exchanged ? 2 : 0),
                    c.top_k,
                    c.hidden,
                    there,
                    c.bf16_wire ? Wire::bf16 : Wire::f32,
                    c.answers == Answers::by_expert};
  Scratch in(stream), x(stream), begin(stream), rows(stream), places(stream), work(stream), results(stream),
      sent(stream), answers(stream), chosen(stream), sums(stream);
  const std::int64_t room = slots.ranks * slots.apart;
  const std::int64_t slots_bytes = room * slots.slot_bytes(), answers_bytes = room * slots.answer_bytes();
  std::vector<DeviceBlock> retired;
  std::string why_not;
  std::unique_ptr<PeerWindows> windows;
  const PeerWindows::Room window_room{static_cast<std::size_t>(slots_bytes), static_cast<std::size_t>(answers_bytes)};
  if (travel == Travel::stored) windows = PeerWindows::open(comm, 0, false, window_room, retired, stream);
  if (travel > Travel::stored) windows = PeerWindows::open_over_network(comm, window_room, stream, why_not);
  EXPECT_EQ(windows != nullptr, travel != Travel::exchanged && comm.size() > 1);
  const Peers peers = windows ? windows->peers() : Peers{};
  std::byte* slot = windows ? windows->own() : in.room<std::byte>(slots_bytes);
  std::byte* own = slot + slots.part_at(slots.rank);
  const bool put = peers.network.communicator != nullptr;
  EXPECT_EQ(put, (travel == Travel::put && comm.size() > 1) || (travel == Travel::both && comm.size() > 2));
  const auto n = static_cast<std::size_t>(comm.size());
  const auto exchange = [&](const std::byte* from, std::byte* to, std::int64_t bytes, bool own_to_all) {
    std::vector<DeviceTransport::Piece> outgoing(n), incoming(n);
    for (std::size_t r = 0; r < n; ++r) {
      const auto of = static_cast<std::size_t>(bytes);
      outgoing[r] = {const_cast<std::byte*>(from) + (own_to_all ? static_cast<std::size_t>(comm.rank()) : r) * of, of};
      incoming[r] = {to + r * of, of};
    }
    const Written what = own_to_all ? Written::slots : Written::answers;
    if (put) wait_for_puts(peers, comm.size(), comm.rank(), what, stream);
    if (windows) return wait_for_peers(peers, comm.size(), comm.rank(), what, stream);
    if (n > 1) comm.device_transport()->exchange(outgoing, incoming, stream);
  };
  pack_slots({uploads.put(t.x), t.count, c.hidden, t.stride}, uploads.put(t.expert), uploads.put(t.weight), c.top_k, 1,
             {uploads.put(first), uploads.put(place), uploads.put(edge)}, uploads.put(std::vector<std::uint32_t>{turn}),
             slots, own, peers, chosen.room<std::int32_t>(slots.of_rank * c.top_k), stream);
  auto ids = t.expert;
  ids.resize(static_cast<std::size_t>(slots.of_rank * c.top_k), -1);
  EXPECT_EQ(read(chosen.room<std::int32_t>(0), slots.of_rank * c.top_k), ids);
  if (put) put_slots(slots, peers, stream);
  exchange(slot, slot, slots.of_rank * slots.slot_bytes(), true);
  const std::int64_t most = slots.all() * slots.entries;
  const auto experts = static_cast<int>(global.size());
  const SlotPlan plan{begin.room<std::int32_t>(experts + 1), rows.room<std::int32_t>(most),
                      places.room<std::int32_t>(most), work.room<std::int32_t>(1)};
  plan_slots(slot, slots, experts, plan, stream);
  unpack_slots(slot, slots, x.room<float>(slots.all() * c.hidden), stream);

  const auto begins = read(plan.begin, experts + 1), row = read(plan.row, begins[global.size()]);
  const auto arrived = read(x.room<float>(0), slots.all() * c.hidden);
  std::vector<float> made(row.size() * static_cast<std::size_t>(c.hidden));
  for (std::size_t e = 0; e < global.size(); ++e)
    for (std::int32_t p = begins[e]; p < begins[e + 1]; ++p)
      for (int i = 0; i < c.hidden; ++i)
        made[static_cast<std::size_t>(p * c.hidden + i)] = test::expert_of_test(
            global[e], arrived[static_cast<std::size_t>(row[static_cast<std::size_t>(p)] * c.hidden + i)]);
  const std::int64_t pairs = std::ssize(row);
  const Rows<const float> results_there(uploads.keep(std::span<const float>(made), results), pairs, c.hidden);
  std::byte* to = windows ? windows->own() + peers.answers_at : answers.room<std::byte>(answers_bytes);
  std::byte* outgoing = put ? windows->own() + peers.sent_at : sent.room<std::byte>(answers_bytes);
  combine_slots(results_there, slot, plan.place, slots, outgoing, to, peers, stream);
  if (put) put_answers(plan.place, slots, peers, stream);
  exchange(outgoing, to, slots.of_rank * slots.answer_bytes(), false);
  out.assign(static_cast<std::size_t>(t.count * c.hidden), 0.5f);
  float* sum = sums.room<float>(t.count * c.hidden);
  check(cudaMemcpyAsync(sum, uploads.put(out), out.size() * sizeof(float), cudaMemcpyDeviceToDevice, stream), "copy");
  add_slot_answers(own, to, slots, {sum, t.count, c.hidden}, stream);
  out = read(sum, t.count * c.hidden);
  wait_for(stream, "all");
  windows.reset();
  comm.barrier();  // then nobody has it open
  check(cudaStreamDestroy(stream), "destroy");
  return pairs;
}

class SlotExchanges : public testing::TestWithParam<std::tuple<int, Travel>> {};

TEST_P(SlotExchanges, DoWhatPlainLoopsDo) {
  const auto [ranks, travel] = GetParam();
  const auto body = [travel = travel](Communicator& comm) {
    const auto check_case = [&](const ExchangeCase& c, int layers = 2) {
      const ExpertMap map = make_map(c, comm.size());
      for (int layer = 0; layer < layers; ++layer) {
        const Tokens t = make_tokens(c, comm.rank(), static_cast<std::uint64_t>(layer));
        std::vector<float> out;
        const auto pairs =
            static_cast<float>(run_by_slots(comm, travel, c, map, t, static_cast<std::uint32_t>(layer), out));
        EXPECT_EQ(out, reference(c, map, t));
        float wanted = 0;
        for (const std::int32_t e : t.expert) wanted += e >= 0 ? 1.0f : 0.0f;
        std::vector<float> sums{pairs, wanted};
        comm.all_reduce_sum(sums);
        EXPECT_EQ(sums[0], sums[1]);
      }
    };
    for (const Answers answers : {Answers::summed, Answers::by_expert})
      for (const bool bf16 : {false, true})
        for (const bool f8 : {false, true}) {
          ExchangeCase c{.bf16_wire = bf16, .answers = answers, .f8_rows = f8};
          for (int e = 0; e < c.n_experts; ++e) c.rank_of.push_back(e * comm.size() / c.n_experts);
          check_case(c, 1);
          for (int e = 0; e < c.n_experts; ++e)
            c.rank_of[static_cast<std::size_t>(e)] = static_cast<int>(test::mix(5, static_cast<std::uint64_t>(e)) % 64);
          c.reversed_ids = true;
          c.replicas = answers == Answers::by_expert;
          check_case(c);
          c.hidden = 301;
          c.rank_of.assign(c.rank_of.size(), comm.size() - 1);
          check_case(c, 1);
        }
  };
  test::over_gpus(ranks, body, 1, travel == Travel::put ? 1 : travel == Travel::both ? 2 : 0);
}
INSTANTIATE_TEST_SUITE_P(OfAHost, SlotExchanges,
                         testing::Combine(testing::Values(1, 2, 5),
                                          testing::Values(Travel::exchanged, Travel::stored)));
INSTANTIATE_TEST_SUITE_P(OfHosts, SlotExchanges,
                         testing::Values(std::tuple(2, Travel::put), std::tuple(3, Travel::both)));

/// On all ranks alike: where nothing is far, where one rank has no window, where what is put arrives as something else.
TEST(PeerWindows, OverTheNetworkAreThereForAllRanksOrNone) {
  using Fault = test::NcclStandIn::WindowFault;
  const auto opened = [](int neighbours, Fault fault) {
    const auto library = std::make_shared<test::NcclStandIn>(3, neighbours);
    library->spoil_windows(fault);
    std::vector<int> found(3);
    std::vector<std::string> reasons(3);
    run_in_process(3, [&](Communicator& others) {
      const auto comm = make_nccl_communicator(library, others, {.eager = 256, .patience_s = 60});
      cudaStream_t stream = nullptr;
      check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
      const auto windows = PeerWindows::open_over_network(*comm, {3 * 48, 3 * 20}, stream,
                                                          reasons[static_cast<std::size_t>(comm->rank())]);
      found[static_cast<std::size_t>(comm->rank())] = !windows ? 0 : windows->peers().network.communicator ? 2 : 1;
      comm->barrier();
      check(cudaStreamDestroy(stream), "destroy");
    });
    for (std::size_t r = 0; r < 3; ++r) EXPECT_EQ(reasons[r].empty(), found[r] != 0) << reasons[r];
    return found;
  };
  EXPECT_EQ(opened(0, Fault::none), std::vector({0, 0, 0}));
  EXPECT_EQ(opened(3, Fault::none), std::vector({1, 1, 1}));
  EXPECT_EQ(opened(2, Fault::none), std::vector({2, 2, 2}));
  EXPECT_EQ(opened(2, Fault::missing_on_rank_1), std::vector({0, 0, 0}));
  EXPECT_EQ(opened(2, Fault::wrong_bytes_from_rank_1), std::vector({0, 0, 0}));
}

}  // namespace
}  // namespace shoal::cuda

namespace shoal::test {
namespace {

struct Case {
  std::string model;
  Compute compute = Compute::f32;
  int ranks = 1;
  Answers answers = Answers::summed;
  bool mtp = false;
  bool sliced = false;
  bool moves = false;  // experts, half-way
  int ranks_per_host = 1;
  bool network = false;  // over it too
};

struct MoeOutcome {
  std::vector<float> hidden;
  std::vector<std::uint32_t> tokens, work;  // of experts
  std::uint64_t waits = 0;                  // in the layers of a step whose like there was before
  bool operator==(const MoeOutcome& o) const { return hidden == o.hidden && tokens == o.tokens && work == o.work; }
};

/// How layers go: with the host in between; slots by NCCL, or written into other GPUs; the latter without NCCL; over
/// the network.
enum class Way { host, slots, windows, windows_alone, network };

/// Some steps on each rank.
std::vector<MoeOutcome> outcomes(const Case& c, Way way) {
  const auto dir = std::filesystem::path(SHOAL_SOURCE_DIR) / "tests" / "fixtures" / "models" / c.model;
  std::vector<MoeOutcome> result(static_cast<std::size_t>(c.ranks));
  const auto body = [&](Communicator& comm) {
    StationOptions options{.compute = c.compute, .mtp = c.mtp, .answers = c.answers};
    const ModelConfig config = ModelConfig::from_file(dir);
    if (c.sliced) options.placement = place_slices(config, c.ranks);
    options.make_backend = [way](Compute compute) {
      return make_cuda_backend({.compute = compute,
                                .self_check = false,
                                .peer_memory = way == Way::slots     ? CudaOptions::PeerMemory::no
                                               : way == Way::network ? CudaOptions::PeerMemory::over_network
                                                                     : CudaOptions::PeerMemory::of_other_gpus});
    };
    Station station(dir, comm, options);
    MoeOutcome& mine = result[static_cast<std::size_t>(comm.rank())];
    // The same shape again and again, another one, no tokens but on one rank, the first again.
    const int most_of[] = {4, 4, 4, 4, 9, 9, 9, 1, 1, 1, 4, 4};
    const std::vector<std::int32_t> pages{0, 1};
    for (std::size_t step = 0; step < std::size(most_of); ++step) {
      if (c.moves && step == 6) {
        LayerPlacement everywhere = station.placement.experts.at(1);
        for (std::size_t e = 0; e < everywhere.size(); ++e)
          everywhere[e] = {{static_cast<std::int32_t>((e + 1) % static_cast<std::size_t>(c.ranks)), 1.0f}};
        station.model->place_experts(1, everywhere);
      }
      TokenBatch batch =
          tokens_of(std::max(0, most_of[step] - 2 * comm.rank()), comm.rank(), static_cast<int>(step), pages);
      if (way != Way::host) batch.most_tokens = most_of[step];
      const auto keep = [&](Rows<const float> x) {
        for (std::int64_t i = 0; i < x.rows; ++i) mine.hidden.insert(mine.hidden.end(), x[i], x[i] + x.cols);
      };
      HostRoom room;
      const std::uint64_t before = emulation::waits();
      const Rows<const float> x = station.model->forward(batch);
      if (step == 3) mine.waits = emulation::waits() - before;
      keep(station.backend->to_host({const_cast<float*>(x.data), x.rows, x.cols}, room));
      if (c.mtp) {
        std::vector<std::int64_t> rows;
        for (std::int64_t r = 0; r + 1 < batch.size(); ++r) rows.push_back(r);  // fewer than there were
        TokenBatch ahead = batch;
        for (auto* list : {&ahead.ids, &ahead.positions}) list->resize(rows.size());
        ahead.slots.resize(rows.size());
        ahead.queries.resize(rows.size());
        station.model->forward_mtp(ahead, rows);
        keep(station.model->mtp_logits(rows));
      }
      const Model::Counters& counters = station.model->counters();
      mine.tokens.insert(mine.tokens.end(), counters.expert_tokens.begin(), counters.expert_tokens.end());
      mine.work.insert(mine.work.end(), counters.expert_work.begin(), counters.expert_work.end());
    }
  };
  if (way == Way::windows_alone)
    run_in_process(c.ranks, body);
  else
    over_gpus(c.ranks, body, c.ranks_per_host, way == Way::network ? c.ranks_per_host : 0);
  return result;
}

/// To the bit, and without waiting.
void expect_same(const Case& c) {
  SCOPED_TRACE(testing::Message() << c.model << " on " << c.ranks
                                  << (c.answers == Answers::summed ? " ranks, summed" : " ranks, by expert")
                                  << (c.mtp ? ", guessing" : "") << (c.sliced ? ", sliced" : "")
                                  << (c.moves ? ", moving" : "") << ", " << c.ranks_per_host << " a host");
  const auto with_host = outcomes(c, Way::host);
  EXPECT_FALSE(with_host[0].hidden.empty());
  for (const Way way : {Way::slots, Way::windows, Way::windows_alone, Way::network}) {
    if (way == Way::windows_alone ? c.ranks != 2 : c.ranks == 1 && way != Way::slots) continue;
    if (way == Way::network && !c.network) continue;
    const auto on_device = outcomes(c, way);
    for (std::size_t r = 0; r < with_host.size(); ++r) {
      SCOPED_TRACE(testing::Message() << "rank " << r << ", way " << static_cast<int>(way));
      EXPECT_TRUE(with_host[r] == on_device[r]);
      EXPECT_EQ(with_host[r].tokens, on_device[r].tokens);
      EXPECT_EQ(with_host[r].work, on_device[r].work);
      EXPECT_GT(with_host[r].waits, 0u);
      EXPECT_EQ(on_device[r].waits, 0u);
    }
  }
}

TEST(GpuMoe, ModelsComputeWhatTheyDoWithTheHostInBetween) {
  // Two ranks add up, and three answer by expert, further down and in the next tests.
  for (const int ranks : {1, 3}) expect_same({.model = "deepseek-v3", .ranks = ranks});
  for (const int ranks : {1, 2}) expect_same({.model = "deepseek-v3", .ranks = ranks, .answers = Answers::by_expert});
  expect_same({.model = "deepseek-v3-fp8", .compute = Compute::fp8, .ranks = 2, .network = true});
  expect_same({.model = "deepseek-v3-fp8", .compute = Compute::fp8, .ranks = 3, .answers = Answers::by_expert});
  expect_same({.model = "deepseek-v2-lite", .compute = Compute::bf16, .ranks = 3});
  expect_same({.model = "deepseek-v3-mtp", .compute = Compute::bf16, .ranks = 1, .mtp = true});
  expect_same({.model = "deepseek-v3-mtp", .ranks = 2, .mtp = true});
  expect_same({.model = "deepseek-v3", .ranks = 2, .sliced = true});
}

/// Where many tokens take two hops, few are added up as those.
TEST(GpuMoe, AddsUpTheAnswersOfAHost) {
  expect_same({.model = "deepseek-v3", .compute = Compute::bf16, .ranks = 4, .ranks_per_host = 2, .network = true});
  expect_same({.model = "deepseek-v3-fp8", .compute = Compute::fp8, .ranks = 4, .ranks_per_host = 2});
}

TEST(GpuMoe, FollowsExpertsThatMove) {
  expect_same({.model = "deepseek-v3", .ranks = 3, .answers = Answers::by_expert, .moves = true, .network = true});
}

/// One rank has a GPU and one has none: then the host of neither leaves the other waiting.
TEST(GpuMoe, RanksWithoutAGpuKeepTheHostInBetween) {
  const auto dir = std::filesystem::path(SHOAL_SOURCE_DIR) / "tests" / "fixtures" / "models" / "deepseek-v3";
  const std::vector<std::int32_t> pages{0, 1};
  const auto hidden = [&](bool gpu) {
    std::vector<float> of_first;
    run_in_process(2, [&](Communicator& comm) {
      StationOptions options;
      if (gpu && comm.rank() == 0)
        options.make_backend = [](Compute how) { return make_cuda_backend({.compute = how, .self_check = false}); };
      Station station(dir, comm, options);
      TokenBatch batch = tokens_of(4, comm.rank(), 0, pages);
      batch.most_tokens = 4;
      const Rows<const float> x = station.model->forward(batch);
      if (comm.rank() > 0) return;
      HostRoom room;
      const Rows<float> host = station.backend->to_host({const_cast<float*>(x.data), x.rows, x.cols}, room);
      of_first.assign(host.data, host.data + host.rows * host.cols);
    });
    return of_first;
  };
  const auto mixed = hidden(true), cpus = hidden(false);
  ASSERT_EQ(mixed.size(), cpus.size());
  for (std::size_t i = 0; i < cpus.size(); ++i) ASSERT_NEAR(mixed[i], cpus[i], 1e-3 * (1 + std::abs(cpus[i])));
}

/// A rank is gone whose slots another one's GPU waits for.
void lose_a_rank(CudaOptions::PeerMemory peer_memory) {
  const auto dir = std::filesystem::path(SHOAL_SOURCE_DIR) / "tests" / "fixtures" / "models" / "deepseek-v3";
  const auto library = std::make_shared<NcclStandIn>(2, peer_memory == CudaOptions::PeerMemory::over_network ? 1 : 0);
  run_in_process(2, [&](Communicator& others) {
    const auto comm = make_nccl_communicator(library, others, {.eager = 256, .patience_s = 60});
    StationOptions options;
    options.make_backend = [peer_memory](Compute compute) {
      return make_cuda_backend({.compute = compute, .self_check = false, .peer_memory = peer_memory});
    };
    Station station(dir, *comm, options);
    const std::vector<std::int32_t> pages{0, 1};
    const auto step = [&] {
      TokenBatch batch = tokens_of(3, comm->rank(), 0, pages);
      batch.most_tokens = 3;
      station.model->forward(batch);
      static_cast<void>(station.model->counters());
    };
    for (int i = 0; i < 5; ++i) step();
    others.barrier();  // what rank 1 has put may have been under way until now
    if (comm->rank() == 1) return library->kill(1, true);
    try {
      step();
      ADD_FAILURE() << "rank 1 is gone";
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "rank 0: NCCL: remote process exited");
    }
    EXPECT_EQ(library->aborted(), 1);
  });
}

TEST(GpuMoe, ExchangesWithARankThatIsGoneEnd) { lose_a_rank(CudaOptions::PeerMemory::no); }
TEST(GpuMoe, KernelsDoNotWaitForARankThatIsGone) { lose_a_rank(CudaOptions::PeerMemory::of_other_gpus); }
TEST(GpuMoe, NorForWhatItWouldHavePut) { lose_a_rank(CudaOptions::PeerMemory::over_network); }

}  // namespace
}  // namespace shoal::test
