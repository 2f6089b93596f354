#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "collectives/bf16_rows.h"
#include "collectives/communicator.h"
#include "collectives/expert_exchange.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"
#include "tests/unit/communicator_suite.h"

/// The exchange against plain loops, on any form of Communicator. Called by all ranks, nothing returns early.
namespace shoal::test {

/// Expert e of these tests: y = (e + 1) x + e.
inline float expert_of_test(std::int32_t e, float x) { return static_cast<float>(e + 1) * x + static_cast<float>(e); }

struct ExchangeCase {
  int n_experts = 16;
  int top_k = 4;
  int hidden = 24;
  bool bf16_wire = false;
  std::vector<std::int32_t> rank_of;  // of each expert, before "modulo ranks"
  bool reversed_ids = false;          // a rank numbers its experts downwards
  int most_tokens = 20;               // a rank has 0 .. most_tokens
  Answers answers = Answers::summed;
  bool replicas = false;
  bool f8_rows = false;  // tokens travel in E4M3
};

/// Some experts have replicas on further ranks, with unequal shares, where the case wants them.
inline ExpertMap make_map(const ExchangeCase& c, int ranks) {
  std::vector<std::vector<ExpertReplica>> replicas(static_cast<std::size_t>(c.n_experts));
  std::vector<std::int32_t> held(static_cast<std::size_t>(ranks));
  for (int e = 0; e < c.n_experts; ++e) {
    const int copies = c.replicas ? std::min(ranks, 1 + e % 3) : 1;
    for (int i = 0; i < copies; ++i) {
      const std::int32_t rank = (c.rank_of[static_cast<std::size_t>(e)] + i) % ranks;
      const float share = static_cast<float>(i + 1) / static_cast<float>(copies * (copies + 1) / 2);
      replicas[static_cast<std::size_t>(e)].push_back({rank, held[static_cast<std::size_t>(rank)]++, share});
    }
  }
  for (auto& of_expert : replicas) {
    if (c.reversed_ids)
      for (ExpertReplica& r : of_expert) r.local = held[static_cast<std::size_t>(r.rank)] - 1 - r.local;
    std::sort(of_expert.begin(), of_expert.end(), [](const auto& a, const auto& b) { return a.rank < b.rank; });
  }
  return ExpertMap(std::move(replicas));
}

/// One rank's part of one layer: its tokens and where they are to go.
struct Tokens {
  std::int64_t count = 0, stride = 0;
  std::vector<float> x, rounded;  // rounded: as E4M3 brings them, where they travel so
  std::vector<std::int32_t> expert;
  std::vector<float> weight;
};

/// Of 128 columns the largest becomes 448.
inline std::vector<float> rounded_to_f8(const Tokens& t, int hidden) {
  std::vector<float> rounded = t.x;
  for (std::int64_t token = 0; token < t.count; ++token)
    for (int first = 0; first < hidden; first += 128) {
      const std::span<float> group(rounded.data() + token * t.stride + first,
                                   static_cast<std::size_t>(std::min(128, hidden - first)));
      float largest = 0;
      for (const float f : group) largest = std::max(largest, std::abs(f));
      const float scale = largest / 448.0f;
      for (float& f : group) f = scale > 0 ? f8_e4m3_to_f32(f32_to_f8_e4m3(f / scale)) * scale : 0.0f;
    }
  return rounded;
}

inline Tokens make_tokens(const ExchangeCase& c, int rank, std::uint64_t layer) {
  Tokens t;
  const auto r = static_cast<std::uint64_t>(rank);
  t.count = static_cast<std::int64_t>(mix(layer, r) % static_cast<std::uint64_t>(c.most_tokens + 1));
  if (mix(layer, r, 1) % 4 == 0) t.count = 0;
  t.stride = c.hidden + 3;
  for (std::int64_t i = 0; i < t.count * t.stride; ++i)
    t.x.push_back(some_float(static_cast<std::uint64_t>(i), r, layer) * 1e-4f);
  if (c.f8_rows) t.rounded = rounded_to_f8(t, c.hidden);
  for (std::int64_t i = 0; i < t.count; ++i) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(c.n_experts));
    for (std::size_t e = 0; e < ids.size(); ++e) ids[e] = static_cast<std::int32_t>(e);
    for (std::size_t e = 0; e < ids.size(); ++e)
      std::swap(ids[e], ids[e + mix(layer, static_cast<std::uint64_t>(i), r * 1000 + e) % (ids.size() - e)]);
    ids.resize(static_cast<std::size_t>(c.top_k));
    std::sort(ids.begin(), ids.end());
    for (std::size_t k = 0; k < ids.size(); ++k) {
      const std::uint64_t z = mix(layer * 100 + r, static_cast<std::uint64_t>(i), k);
      t.expert.push_back(z % 5 == 0 ? -1 : ids[k]);
      t.weight.push_back(0.25f + static_cast<float>(z % 97) / 97.0f);
    }
  }
  return t;
}

/// What the experts of this rank make of what arrived; counts the (token, expert) pairs.
inline float work(const ExchangeCase& c, const ExpertMap& map, int rank, const ExpertBatch& arrived) {
  std::vector<std::int32_t> global;  // of a local id
  for (std::size_t e = 0; e < map.replicas.size(); ++e)
    for (const ExpertReplica& r : map.replicas[e]) {
      if (r.rank != rank) continue;
      global.resize(std::max(global.size(), static_cast<std::size_t>(r.local) + 1));
      global[static_cast<std::size_t>(r.local)] = static_cast<std::int32_t>(e);
    }
  EXPECT_EQ(arrived.rows.size(), arrived.out.size());
  EXPECT_EQ(arrived.rows.size() + 1, arrived.first.size());
  EXPECT_EQ(arrived.expert.size(), arrived.weight.size());
  for (std::size_t row = 0; row < arrived.rows.size(); ++row) {
    const auto* x = arrived.rows[row];
    auto* result = arrived.out[row];
    EXPECT_LT(arrived.first[row], arrived.first[row + 1]) << "a row came for no expert";
    std::fill_n(result, c.hidden, 0.0f);
    for (auto j = static_cast<std::size_t>(arrived.first[row]); j < static_cast<std::size_t>(arrived.first[row + 1]);
         ++j) {
      if (j > static_cast<std::size_t>(arrived.first[row])) {
        EXPECT_GT(arrived.expert[j], arrived.expert[j - 1]);
      }
      const std::int32_t e = global.at(static_cast<std::size_t>(arrived.expert[j]));
      for (int i = 0; i < c.hidden; ++i) result[i] += arrived.weight[j] * expert_of_test(e, x[i]);
    }
  }
  return static_cast<float>(arrived.expert.size());
}

/// What the wire makes of a value.
inline float travelled(const ExchangeCase& c, float value) {
  if (!c.bf16_wire) return value;
  std::uint16_t bits = 0;
  pack_bf16({&value, 1}, &bits);
  unpack_bf16({&bits, 1}, &value);
  return value;
}

/// What a rank gets of element `at` of the tokens.
inline float arriving(const ExchangeCase& c, const Tokens& t, std::int64_t at) {
  const auto i = static_cast<std::size_t>(at);
  return c.f8_rows ? t.rounded[i] : travelled(c, t.x[i]);
}

/// The same by plain loops where each expert is added by itself, wherever it is.
inline void reference_by_expert(const ExchangeCase& c, const Tokens& t, std::vector<float>& out,
                                std::int64_t out_stride) {
  for (std::int64_t token = 0; token < t.count; ++token)
    for (int k = 0; k < c.top_k; ++k) {
      const auto entry = static_cast<std::size_t>(token * c.top_k + k);
      if (t.expert[entry] < 0) continue;
      for (int i = 0; i < c.hidden; ++i) {
        const float x = arriving(c, t, token * t.stride + i);
        const float y = 0.0f + t.weight[entry] * expert_of_test(t.expert[entry], x);
        out[static_cast<std::size_t>(token * out_stride + i)] += travelled(c, y);
      }
    }
}

/// The same by plain loops, without replicas: for each rank its experts in the order of its own ids, ranks in ascending
/// order; `together` of them, where rows go by hosts, have a sum of their own that travels.
inline void reference(const ExchangeCase& c, const ExpertMap& map, int ranks, int together, const Tokens& t,
                      std::vector<float>& out, std::int64_t out_stride) {
  std::vector<float> of_host(static_cast<std::size_t>(c.hidden));
  for (std::int64_t token = 0; token < t.count; ++token)
    for (int rank = 0; rank < ranks; ++rank) {
      if (rank % together == 0) std::fill(of_host.begin(), of_host.end(), 0.0f);
      std::vector<std::pair<std::int32_t, std::size_t>> there;  // local id, entry
      for (int k = 0; k < c.top_k; ++k) {
        const auto entry = static_cast<std::size_t>(token * c.top_k + k);
        if (t.expert[entry] < 0) continue;
        const ExpertReplica& place = map.replicas[static_cast<std::size_t>(t.expert[entry])][0];
        if (place.rank == rank) there.emplace_back(place.local, entry);
      }
      std::sort(there.begin(), there.end());
      for (int i = 0; i < c.hidden; ++i) {
        float sum = 0;
        const float x = arriving(c, t, token * t.stride + i);
        for (const auto& [local, entry] : there) sum += t.weight[entry] * expert_of_test(t.expert[entry], x);
        float& so_far = of_host[static_cast<std::size_t>(i)];
        so_far += travelled(c, sum);
        if (rank % together == together - 1)
          out[static_cast<std::size_t>(token * out_stride + i)] += travelled(c, so_far);
      }
    }
}

/// A layer's exchange as it is tested: the rank's tokens go out, work() is done with what arrives, and `out` [tokens,
/// out_stride] gets the answers. Returns what work() does.
using RunLayer = std::function<float(const ExchangeCase& c, ExpertMap& map, const Tokens& t, std::vector<float>& out,
                                     std::int64_t out_stride)>;
/// One for a number of layers of a case.
using MakeExchange = std::function<RunLayer(const ExchangeCase& c)>;

inline MakeExchange by_host_memory(Communicator& comm) {
  return [&comm](const ExchangeCase& of) -> RunLayer {
    const auto pool = std::make_shared<ThreadPool>(2);
    const auto for_rows = [pool](std::size_t rows, double, const auto& body) {
      pool->parallel_for(rows, 1, [&](std::size_t begin, std::size_t end, int) { body(begin, end); });
    };
    return
        [&comm, exchange = std::make_shared<ExpertExchange>(comm, of.hidden, of.bf16_wire, of.answers, 0, for_rows)](
            const ExchangeCase& c, ExpertMap& map, const Tokens& t, std::vector<float>& out, std::int64_t out_stride) {
          exchange->dispatch(t.x.data(), t.stride, t.count, t.expert.data(), t.weight.data(), c.top_k, map);
          const float pairs = work(c, map, comm.rank(), exchange->dispatched());
          exchange->combine();
          exchange->combined(out.data(), out_stride);
          return pairs;
        };
  };
}

inline void check_expert_exchange(Communicator& comm, const MakeExchange& make, const ExchangeCase& c,
                                  int layers = 12) {
  const RunLayer run = make(c);
  ExpertMap map = make_map(c, comm.size());
  const int together = comm.ranks_per_host() < comm.size() ? comm.ranks_per_host() : 1;
  for (int layer = 0; layer < layers; ++layer) {
    const Tokens t = make_tokens(c, comm.rank(), static_cast<std::uint64_t>(layer));
    const std::int64_t out_stride = c.hidden + 5;
    std::vector<float> out(static_cast<std::size_t>(t.count * out_stride), 0.5f), expected = out;
    const float pairs = run(c, map, t, out, out_stride);

    if (c.answers == Answers::summed)
      reference(c, map, comm.size(), together, t, expected, out_stride);
    else
      reference_by_expert(c, t, expected, out_stride);
    for (std::size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(out[i], expected[i]) << i;
    }
    float wanted = 0;
    for (const std::int32_t e : t.expert) wanted += e >= 0 ? 1.0f : 0.0f;
    std::vector<float> sums = {pairs, wanted};
    comm.all_reduce_sum(sums);
    EXPECT_EQ(sums[0], sums[1]) << "(token, expert) pairs that arrived, and that were sent";
  }
}

inline void check_expert_exchanges_by(const MakeExchange& make, Communicator& comm) {
  for (const bool bf16 : {false, true}) {
    ExchangeCase c{.bf16_wire = bf16};
    for (int e = 0; e < c.n_experts; ++e) c.rank_of.push_back(e * comm.size() / c.n_experts);
    check_expert_exchange(comm, make, c);  // even, contiguous
    for (int e = 0; e < c.n_experts; ++e) c.rank_of[static_cast<std::size_t>(e)] = static_cast<int>(mix(5, e) % 64);
    c.reversed_ids = true;
    check_expert_exchange(comm, make, c);  // anywhere
    c.reversed_ids = false;
    std::fill(c.rank_of.begin(), c.rank_of.end(), comm.size() - 1);
    check_expert_exchange(comm, make, c, 4);  // the others hold none
    c = {.n_experts = 3, .top_k = 2, .hidden = 7, .bf16_wire = bf16, .rank_of = {0, 1, 2}, .most_tokens = 1};
    check_expert_exchange(comm, make, c);  // fewer experts than ranks, odd rows
    c = {.n_experts = 9, .top_k = 9, .hidden = 1000, .bf16_wire = bf16, .rank_of = {3, 1, 4, 1, 5, 9, 2, 6, 5}};
    c.most_tokens = 70;
    check_expert_exchange(comm, make, c, 3);  // long records
    c.answers = Answers::by_expert;
    check_expert_exchange(comm, make, c, 2);
    c.most_tokens = 0;
    check_expert_exchange(comm, make, c, 2);  // no tokens anywhere
    c = {.bf16_wire = bf16, .answers = Answers::by_expert};
    for (int e = 0; e < c.n_experts; ++e) c.rank_of.push_back(static_cast<int>(mix(6, e) % 64));
    for (const bool replicas : {false, true})
      for (const bool reversed : {false, true}) {
        c.replicas = replicas;
        c.reversed_ids = reversed;
        check_expert_exchange(comm, make, c);
      }
  }
}

inline void check_expert_exchanges(Communicator& comm) { check_expert_exchanges_by(by_host_memory(comm), comm); }

}  // namespace shoal::test
