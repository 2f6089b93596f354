#include "launch/server_status.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>

#include "launch/version.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

constexpr auto sample_interval = std::chrono::seconds(1);
constexpr std::size_t kept_samples = 600;

double share(std::int64_t used, std::int64_t all) {
  return all > 0 ? static_cast<double>(used) / static_cast<double>(all) : 0;
}

}  // namespace

ServerStatus::ServerStatus(const Engine& engine, const RequestMetrics& requests)
    : engine_(engine), requests_(requests), thread_([this] { watch(); }) {}

ServerStatus::~ServerStatus() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  thread_.join();
}

void ServerStatus::watch() {
  auto before = engine_.coordinator->load();
  auto then = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  while (!stop_.wait_for(lock, sample_interval, [this] { return stopping_; })) {
    const auto load = engine_.coordinator->load();
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - then).count();
    const auto rate = [&](std::uint64_t new_count, std::uint64_t old) {
      return static_cast<double>(new_count - old) / seconds;
    };
    history_.push_back({std::time(nullptr), rate(load.prompt_tokens, before.prompt_tokens),
                        rate(load.generated_tokens, before.generated_tokens), load.running, load.waiting,
                        share(load.kv_pages_used, load.kv_pages)});
    if (history_.size() > kept_samples) history_.pop_front();
    before = load;
    then = now;
  }
}

std::string ServerStatus::metrics() const {
  const auto load = engine_.coordinator->load();
  const auto totals = engine_.counters->totals();
  PrometheusText text({{"model_name", engine_.model_name}});
  const auto one = [&](const std::string& name, const char* type, const char* help, double value) {
    text.family("shoal:" + name, type, help);
    text.sample(value);
  };
  const auto per_rank = [&](const std::string& name, const char* help, auto value_of) {
    text.family("shoal:" + name, "counter", help);
    for (std::size_t rank = 0; rank < totals.ranks.size(); ++rank) {
      text.sample(static_cast<double>(value_of(totals.ranks[rank])), {{"rank", std::to_string(rank)}});
    }
  };
  one("num_requests_running", "gauge", "Sequences that are being computed.", load.running);
  one("num_requests_waiting", "gauge", "Requests that wait for a place.", load.waiting);
  one("kv_cache_usage_perc", "gauge", "Share of the KV pages in use, 0 to 1.",
      share(load.kv_pages_used, load.kv_pages));
  one("kv_cache_pages", "gauge", "KV pages of all ranks.", static_cast<double>(load.kv_pages));
  one("prompt_tokens_total", "counter", "Prompt tokens read: computed, or found in the prefix cache.",
      static_cast<double>(load.prompt_tokens));
  one("generation_tokens_total", "counter", "Tokens generated.", static_cast<double>(load.generated_tokens));
  one("prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.",
      static_cast<double>(load.prefix_queries));
  one("prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.",
      static_cast<double>(load.prefix_hits));
  one("num_preemptions_total", "counter", "Sequences that had to leave for want of pages.",
      static_cast<double>(load.preemptions));
  one("spec_decode_num_draft_tokens_total", "counter", "Tokens guessed ahead.", static_cast<double>(load.drafted));
  one("spec_decode_num_accepted_tokens_total", "counter", "Guesses that were right.",
      static_cast<double>(load.accepted));
  one("steps_total", "counter", "Steps of the whole job.", static_cast<double>(load.steps));
  if (engine_.recovery) {
    const Recovery::Totals recovered = engine_.recovery->totals();
    const auto lost = std::ranges::count(recovered.lost, true);
    one("ranks", "gauge", "Ranks that work.", static_cast<double>(engine_.ranks - lost));
    one("ranks_lost_total", "counter", "Ranks that were lost.", static_cast<double>(lost));
    one("recoveries_total", "counter", "How often those left took over.", recovered.recoveries);
    one("recovery_seconds_total", "counter", "Time in which those left took over.", recovered.seconds);
  } else {
    one("ranks", "gauge", "Ranks that work.", engine_.ranks);
  }
  requests_.write(text, "shoal:");
  using Rank = StepCounters::Rank;
  per_rank("rank_compute_seconds_total", "Time a rank computed.", [](const Rank& rank) { return rank.compute_s; });
  per_rank("rank_exchange_seconds_total", "Time a rank waited for tokens of other ranks.",
           [](const Rank& rank) { return rank.exchange_s; });
  if (!totals.expert_tokens.empty()) {
    per_rank("rank_expert_tokens_total",
             "Rows that the experts of a rank computed; of sliced experts (serve --plan), slices of rows.",
             [](const Rank& rank) { return rank.expert_tokens; });
  }
  if (engine_.rebalancer) {
    const auto moved = engine_.rebalancer->totals();
    one("expert_moves_total", "counter", "Experts that went to another rank.", static_cast<double>(moved.moves));
    one("expert_imbalance", "gauge", "Tokens of the most loaded rank's experts over the mean, worst layer, last look.",
        moved.imbalance);
  }
  return text.take();
}

bool ServerStatus::recovering() const { return engine_.recovery && engine_.recovery->is_behind(); }

Json ServerStatus::json() const {
  const auto load = engine_.coordinator->load();
  const auto totals = engine_.counters->totals();
  const Recovery::Totals recovered = engine_.recovery ? engine_.recovery->totals() : Recovery::Totals{};
  Json ranks = Json::array();
  for (std::size_t rank = 0; rank < totals.ranks.size(); ++rank) {
    const auto regrouped = recovered.regrouped.find(static_cast<int>(rank));
    const WorkerReady& worker = regrouped != recovered.regrouped.end() ? regrouped->second : engine_.workers.at(rank);
    ranks.push_back({{"rank", rank},
                     {"lost", engine_.recovery && recovered.lost[rank]},
                     {"host", worker.host},
                     {"device", worker.backend},
                     {"weight_bytes", worker.weight_bytes},
                     {"kv_bytes", worker.kv_bytes},
                     {"expert_tokens", totals.ranks[rank].expert_tokens},
                     {"compute_s", totals.ranks[rank].compute_s},
                     {"exchange_s", totals.ranks[rank].exchange_s}});
  }
  const auto requests = requests_.totals();
  Json history = Json::array();
  {
    const std::lock_guard lock(mutex_);
    for (const Sample& sample : history_) {
      history.push_back({sample.time, sample.prompt_tokens_per_s, sample.tokens_per_s, sample.running, sample.waiting,
                         sample.kv_usage});
    }
  }
  return {{"version", version},
          {"model", engine_.model_name},
          {"max_model_len", engine_.max_model_len},
          {"summary", engine_.summary},
          {"queue", {{"running", load.running}, {"waiting", load.waiting}, {"finished", requests.requests}}},
          {"kv_pages", {{"used", load.kv_pages_used}, {"all", load.kv_pages}}},
          {"prefix_cache", {{"queries", load.prefix_queries}, {"hits", load.prefix_hits}}},
          {"tokens", {{"prompt", load.prompt_tokens}, {"generated", load.generated_tokens}, {"steps", load.steps}}},
          {"recent", {{"ttft_s", requests.ttft_s}, {"inter_token_s", requests.inter_token_s}}},
          {"ranks", std::move(ranks)},
          {"expert_tokens", totals.expert_tokens},
          {"history",
           {{"columns", {"time", "prompt_tokens_per_s", "tokens_per_s", "running", "waiting", "kv_usage"}},
            {"rows", std::move(history)}}}};
}

}  // namespace shoal
