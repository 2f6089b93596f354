#include "launch/bench_round.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <random>

#include "base/error.h"

namespace shoal {
namespace {

using Clock = std::chrono::steady_clock;

/// One token of one request, or several where guesses were right.
struct TokenArrival {
  double at = 0;  // seconds since the round began
  std::uint64_t steps = 0, experts_read = 0;
};

class Recorder {
 public:
  Recorder(const StepCounters& counters, int requests) : counters_(counters), arrivals_(std::size_t(requests)) {}

  void add(std::size_t request, const GenerationEvent& event) {
    const std::lock_guard lock(mutex_);
    if (event.token >= 0) {
      const StepCounters::Totals totals = counters_.totals();
      arrivals_[request].push_back({seconds(), totals.steps, totals.experts_read});
    }
    if (event.finish == FinishReason::none) return;
    if (event.finish == FinishReason::failed && problem_.empty()) problem_ = event.error;
    ++finished_;
    changed_.notify_all();
  }

  /// [requests][tokens]
  std::vector<std::vector<TokenArrival>> wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return finished_ == arrivals_.size(); });
    if (!problem_.empty()) throw Error(problem_);
    return std::move(arrivals_);
  }

 private:
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  const Clock::time_point start_ = Clock::now();
  const StepCounters& counters_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::vector<TokenArrival>> arrivals_;
  std::size_t finished_ = 0;
  std::string problem_;
};

std::vector<std::int32_t> random_prompt(int vocab, int tokens, std::mt19937_64& random) {
  std::vector<std::int32_t> prompt;
  for (int i = 0; i < tokens; ++i)
    prompt.push_back(static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(vocab)));
  return prompt;
}

/// Hands requests over while no step runs. A step begins with what is there, so of requests that come one after the
/// other the first would be computed alone.
void between_steps(Coordinator& coordinator, std::function<void()> submit_all) {
  const auto done = std::make_shared<std::promise<void>>();
  GenerationRequest first;  // sinks run between steps
  first.prompt = {0};
  first.max_tokens = 1;
  first.sampling.temperature = 0;
  coordinator.submit(std::move(first), [done, submit_all = std::move(submit_all)](const GenerationEvent& event) {
    if (event.finish == FinishReason::none) return;
    try {
      if (event.finish == FinishReason::failed) throw Error(event.error);
      submit_all();
      done->set_value();
    } catch (...) {
      done->set_exception(std::current_exception());
    }
  });
  done->get_future().get();
}

}  // namespace

Round run_round(const Engine& engine, const RoundShape& shape, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  // Those whose prompts were read first generate while the other prompts are read, a token a step.
  const int reading = shape.requests == 1 ? 0 : shape.requests * shape.prompt_tokens / engine.max_prefill_tokens + 2;
  std::vector<GenerationRequest> requests(static_cast<std::size_t>(shape.requests));
  for (GenerationRequest& request : requests) {
    request.prompt = random_prompt(engine.config.vocab_size, shape.prompt_tokens, random);
    request.max_tokens = shape.output_tokens + reading;
    request.sampling.temperature = 0;
  }
  std::shared_ptr<Recorder> recorder;  // its sinks may outlive this call, where one of the requests is refused
  between_steps(*engine.coordinator, [&] {
    recorder = std::make_shared<Recorder>(*engine.counters, shape.requests);
    for (std::size_t i = 0; i < requests.size(); ++i)
      engine.coordinator->submit(std::move(requests[i]),
                                 [recorder, i](const GenerationEvent& event) { recorder->add(i, event); });
  });
  const auto arrivals = recorder->wait();

  Round round;
  TokenArrival begin, end;
  end.at = 1e300;
  for (const auto& tokens : arrivals) {
    round.ttft_ms += 1e3 * tokens.front().at / shape.requests;
    if (tokens.front().at > begin.at) begin = tokens.front();
    if (tokens.back().at < end.at) end = tokens.back();
  }
  round.prefill_tokens_per_s = static_cast<double>(shape.requests) * shape.prompt_tokens / begin.at;
  std::size_t generated = 0;
  for (const auto& tokens : arrivals)
    generated += static_cast<std::size_t>(std::count_if(tokens.begin(), tokens.end(), [&](const TokenArrival& token) {
      return token.steps > begin.steps && token.steps <= end.steps;
    }));
  const double steps = static_cast<double>(end.steps - begin.steps);
  if (generated == 0 || end.at <= begin.at) return round;
  round.decode_tokens_per_s = static_cast<double>(generated) / (end.at - begin.at);
  round.tpot_ms = 1e3 * (end.at - begin.at) / steps;
  round.experts_read_per_step = static_cast<double>(end.experts_read - begin.experts_read) / steps;
  return round;
}

}  // namespace shoal
