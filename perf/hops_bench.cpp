// What the exchange of a layer with experts takes, rows of R1 going out to experts and answers back, by one hop and by
// two (collectives/hops.h), in turn. For ranks on several hosts, each with as many:
//   mpirun --hostfile hosts -n N build/perf/hops_bench
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <random>
#include <vector>

#include <fmt/format.h>

#include "collectives/expert_exchange.h"
#include "collectives/mpi.h"

namespace {

using namespace shoal;
using Clock = std::chrono::steady_clock;

constexpr int turns = 7, hidden = 7168, n_experts = 256, n_group = 8, topk_group = 4, top_k = 8;
constexpr double seconds_of_turn = 0.3;

/// Groups in a row on as many ranks in a row, or experts anywhere, as balancing their loads would have them.
ExpertMap place(int ranks, bool anywhere) {
  std::vector<std::vector<ExpertReplica>> replicas(n_experts);
  std::vector<std::int32_t> held(static_cast<std::size_t>(ranks));
  std::vector<int> order(n_experts);
  for (int e = 0; e < n_experts; ++e) order[static_cast<std::size_t>(e)] = e;
  std::mt19937 random(1);
  if (anywhere) std::ranges::shuffle(order, random);
  for (int i = 0; i < n_experts; ++i) {
    const int rank = i * ranks / n_experts;
    replicas[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])] = {
        {rank, held[static_cast<std::size_t>(rank)]++, 1}};
  }
  return ExpertMap(std::move(replicas));
}

/// Of each token 8 experts in 4 of the 8 groups.
std::vector<std::int32_t> choose(int tokens, int rank) {
  std::mt19937 random(static_cast<unsigned>(rank) + 7);
  std::vector<std::int32_t> chosen;
  for (int t = 0; t < tokens; ++t) {
    std::vector<int> groups(n_group), experts;
    for (int g = 0; g < n_group; ++g) groups[static_cast<std::size_t>(g)] = g;
    std::ranges::shuffle(groups, random);
    for (int g = 0; g < topk_group; ++g)
      for (int i = 0; i < n_experts / n_group; ++i)
        experts.push_back(groups[static_cast<std::size_t>(g)] * (n_experts / n_group) + i);
    std::ranges::shuffle(experts, random);
    experts.resize(top_k);
    std::ranges::sort(experts);
    chosen.insert(chosen.end(), experts.begin(), experts.end());
  }
  return chosen;
}

}  // namespace

int main(int argc, char** argv) {
  MpiJob job(&argc, &argv);
  const auto world = job.world();
  const int per_host = world->ranks_per_host();
  if (per_host == 1 || per_host == world->size()) {
    if (world->rank() == 0) fmt::print("needs several hosts of several ranks each\n");
    return 1;
  }
  ExpertExchange one(*world, hidden, true, Answers::summed, 1), two(*world, hidden, true, Answers::summed, per_host);
  if (world->rank() == 0)
    fmt::print(
        "{} hosts of {} ranks, µs of a layer's exchange, the middle of {} turns\n\n"
        "| experts | tokens of each rank | one hop | two | ratio |\n| --- | --- | --- | --- | --- |\n",
        world->size() / per_host, per_host, turns);
  for (const bool anywhere : {false, true})
    for (const int tokens : {1, 4, 16, 64, 256}) {
      ExpertMap map = place(world->size(), anywhere);
      const std::vector<std::int32_t> experts = choose(tokens, world->rank());
      const std::vector<float> x(static_cast<std::size_t>(tokens) * hidden, 1.0f), weight(experts.size(), 1.0f);
      std::vector<float> out(x.size());
      const auto run = [&](ExpertExchange& exchange) {
        exchange.dispatch(x.data(), hidden, tokens, experts.data(), weight.data(), top_k, map);
        exchange.dispatched();
        exchange.combine();
        exchange.combined(out.data(), hidden);
      };
      std::vector<double> micros[2];
      for (int turn = 0; turn < turns; ++turn)
        for (const int way : {0, 1}) {
          ExpertExchange& exchange = way == 0 ? one : two;
          run(exchange);
          // As many as rank 0 does in the time of a turn: all have to do the same number.
          auto start = Clock::now();
          const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
          for (int i = 0; i < 3; ++i) run(exchange);
          std::int64_t rounds = std::max<std::int64_t>(3, static_cast<std::int64_t>(seconds_of_turn * 3 / seconds()));
          world->broadcast(std::as_writable_bytes(std::span(&rounds, 1)), 0);
          start = Clock::now();
          for (std::int64_t i = 0; i < rounds; ++i) run(exchange);
          micros[way].push_back(seconds() / static_cast<double>(rounds) * 1e6);
        }
      if (world->rank() != 0) continue;
      for (auto& m : micros) std::ranges::sort(m);
      const double a = micros[0][turns / 2], b = micros[1][turns / 2];
      fmt::print("| {} | {} | {:.0f} | {:.0f} | {:.2f} |\n", anywhere ? "anywhere" : "groups in a row", tokens, a, b,
                 a / b);
      std::fflush(stdout);
    }
}
