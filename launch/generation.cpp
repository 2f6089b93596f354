#include "launch/generation.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "launch/log.h"

namespace shoal {

Generator generator_of(Coordinator& coordinator) {
  return {[&coordinator](GenerationRequest request, EventSink sink) {
            return coordinator.submit(std::move(request), std::move(sink));
          },
          [&coordinator](std::uint64_t request) { coordinator.cancel(request); }};
}

namespace {

struct Running : Generation {
  AnswerStream stream;  // these two are used by the service's thread only
  AnswerSink sink;
  RequestMetrics::Request times;
  std::function<void(std::uint64_t)> cancel_request;

  std::mutex mutex;
  std::uint64_t number = 0;  // 0: not known yet
  bool cancelled = false;

  Running(AnswerStream answer, AnswerSink answer_sink, std::function<void(std::uint64_t)> canceller)
      : stream(std::move(answer)), sink(std::move(answer_sink)), cancel_request(std::move(canceller)) {}

  void cancel() override {
    std::uint64_t known;
    {
      const std::lock_guard lock(mutex);
      cancelled = true;
      known = number;
    }
    if (known != 0) cancel_request(known);
  }

  /// The first events may come before submit has returned the number.
  void started(std::uint64_t submitted) {
    {
      const std::lock_guard lock(mutex);
      number = submitted;
      if (!cancelled) return;
    }
    cancel_request(submitted);
  }
};

}  // namespace

struct GenerationService::Impl {
  Generator generator;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<RequestMetrics> metrics;

  /// Shared with the sinks that the coordinator keeps, which may outlive the service.
  struct Inbox {
    std::mutex mutex;
    std::condition_variable filled;
    std::vector<std::pair<std::shared_ptr<Running>, GenerationEvent>> events;
    bool closed = false;

    void push(const std::shared_ptr<Running>& running, const GenerationEvent& event) {
      const std::lock_guard lock(mutex);
      if (closed) return;
      events.emplace_back(running, event);
      if (events.size() == 1) filled.notify_one();
    }
    auto take() {
      std::unique_lock lock(mutex);
      filled.wait(lock, [this] { return closed || !events.empty(); });
      return std::exchange(events, {});
    }
    void close() {
      const std::lock_guard lock(mutex);
      closed = true;
      events.clear();
      filled.notify_one();
    }
  };
  std::shared_ptr<Inbox> inbox = std::make_shared<Inbox>();
  std::thread thread{[this] { run(); }};

  Impl(Generator wanted, std::shared_ptr<const Tokenizer> wanted_tokenizer,
       std::shared_ptr<RequestMetrics> wanted_metrics)
      : generator(std::move(wanted)), tokenizer(std::move(wanted_tokenizer)), metrics(std::move(wanted_metrics)) {}
  ~Impl() {
    inbox->close();
    thread.join();
  }

  void run() {
    for (;;) {
      const auto events = inbox->take();
      if (events.empty()) return;
      for (const auto& [running, event] : events) tell(*running, event);
    }
  }

  void observe(Running& running, const GenerationEvent& event) const {
    if (!metrics) return;
    running.times.queue_s = event.queue_s;
    if (event.token >= 0) metrics->token(running.times);
    if (event.finish == FinishReason::none) return;
    // A stop string ends a request by cancelling it.
    const bool stopped = event.finish == FinishReason::cancelled && running.stream.met_stop_string();
    metrics->finished(running.times, stopped ? FinishReason::stop : event.finish);
  }

  void tell(Running& running, const GenerationEvent& event) const {
    observe(running, event);
    if (!running.sink) return;
    try {
      const AnswerDelta delta = running.stream.push(event);
      if (running.stream.met_stop_string()) running.cancel();
      if (!delta.empty()) running.sink(delta, running.stream);
      if (!running.stream.finished()) return;
    } catch (const std::exception& error) {  // one broken listener must not end the others
      log::warning("an answer was given up", {{"error", error.what()}});
      running.cancel();
    }
    running.sink = nullptr;
  }
};

GenerationService::GenerationService(Generator generator, std::shared_ptr<const Tokenizer> tokenizer,
                                     std::shared_ptr<RequestMetrics> metrics)
    : impl_(std::make_shared<Impl>(std::move(generator), std::move(tokenizer), std::move(metrics))) {}

GenerationService::~GenerationService() = default;

std::shared_ptr<Generation> GenerationService::start(GenerationRequest request, AnswerOptions options,
                                                     AnswerSink sink) {
  if (TokenRules& rules = request.sampling.rules; rules.repetition_penalty != 1) {
    rules.prompt_tokens = request.prompt;
    std::sort(rules.prompt_tokens.begin(), rules.prompt_tokens.end());
    const auto end = std::unique(rules.prompt_tokens.begin(), rules.prompt_tokens.end());
    rules.prompt_tokens.erase(end, rules.prompt_tokens.end());
  }
  AnswerStream stream(impl_->tokenizer.get(), std::move(options), request.prompt);
  auto running = std::make_shared<Running>(std::move(stream), std::move(sink), impl_->generator.cancel);
  running->times.prompt_tokens = static_cast<int>(request.prompt.size());
  running->started(impl_->generator.submit(
      std::move(request),
      [inbox = impl_->inbox, running](const GenerationEvent& event) { inbox->push(running, event); }));
  return running;
}

}  // namespace shoal
