#include "runtime/coordinator.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <set>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>

#include "runtime/control_plane.h"
#include "runtime/scheduler.h"

namespace shoal {
namespace {

using Clock = std::chrono::steady_clock;

/// Tokens of one rank in one step that get answer_limit once more. Each counts once more for so many that it attends
/// to, which take R1's attention over latents as long as its weights a token: 1.7e7 FLOP each, and 7.4e10.
constexpr double kTokensPerLimit = 256, kAttendedPerToken = 4096;

/// A request that has not had its last event.
struct OpenRequest {
  std::shared_ptr<const EventSink> sink;
  Clock::time_point submitted = Clock::now();
  double queue_s = -1;  // as GenerationEvent::queue_s
};

}  // namespace

/// The thread around the scheduler. The mutex guards everything below it; it is never held while sinks run, frames are
/// sent or answers awaited.
struct Coordinator::Impl {
  ControlServer& control;
  const CoordinatorOptions options;

  mutable std::mutex mutex;
  std::condition_variable wake;
  Scheduler scheduler;
  std::unordered_map<std::uint64_t, OpenRequest> open;
  Scheduler::Events events;  // to be told
  std::uint64_t last_request = 0;
  std::string failure;  // why nothing works any more
  bool stopping = false;
  bool losses = false;                           // ranks were lost that are not left out yet
  std::optional<ExpertLayer> move;               // what was found to be moved before the next step; the loop's own
  std::optional<Clock::time_point> failed_last;  // a rank, by itself

  std::mutex join_mutex;
  std::thread thread;  // last: it uses all of the above

  Impl(ControlServer& server, CoordinatorOptions wanted)
      : control(server), options(std::move(wanted)), scheduler(options), thread([this] { run(); }) {}

  void run() {
    for (bool ended = false; !ended;) {
      try {
        ended = turn();
      } catch (const std::exception& error) {  // whose memory is short, or who is wrong about the state of things
        fail_job(Error(error.what()));
      }
    }
  }

  /// One step, or what else there is to do. True at the end.
  bool turn() {
    std::vector<StepPlan> plans;
    Scheduler::Events told;
    {
      std::unique_lock lock(mutex);
      wake.wait(lock, [this] {
        return stopping || losses || !events.empty() || (!open.empty() && !failure.empty()) || scheduler.has_work();
      });
      if (std::exchange(losses, false) && !stopping && failure.empty()) {
        move.reset();
        lock.unlock();
        regroup();
        lock.lock();
      }
      told.swap(events);
      if (!stopping && failure.empty() && scheduler.has_work()) plans = scheduler.plan();
      note_first_steps(plans);
    }
    if (move)
      for (StepPlan& plan : plans) plan.experts.push_back(*move);
    // The workers compute while the sinks of the previous step are told and while it is looked for experts to move,
    // which may take tenths of a second where ranks are many.
    send(plans);
    deliver(told);
    if (plans.empty()) return close_open_requests();
    move = options.move_experts ? options.move_experts() : std::nullopt;
    collect(plans);
    return false;
  }

  /// Leaves out the ranks that were lost. Meanwhile requests wait, and may come and go.
  void regroup() {
    const auto ending = [this] {
      const std::lock_guard lock(mutex);
      return stopping;
    };
    std::vector<RankState> states;
    try {
      states = options.regroup(ending);
    } catch (const std::exception& error) {
      if (ending()) return;
      const auto* known = dynamic_cast<const Error*>(&error);
      return fail_job(known ? *known : Error(error.what()));
    }
    if (states.empty()) return;
    const std::lock_guard lock(mutex);
    for (auto& event : scheduler.regroup(states)) events.push_back(std::move(event));
  }

  bool is_left(int rank) const {
    const std::lock_guard lock(mutex);
    return scheduler.is_left(rank);
  }

  void note_first_steps(const std::vector<StepPlan>& plans) {
    const auto now = Clock::now();
    for (const StepPlan& plan : plans) {
      for (const SequenceStart& start : plan.start) {
        const auto at = open.find(start.sequence);
        if (at == open.end() || at->second.queue_s >= 0) continue;  // it comes back after a preemption
        at->second.queue_s = std::chrono::duration<double>(now - at->second.submitted).count();
      }
    }
  }

  void send(const std::vector<StepPlan>& plans) {
    const auto frame = [](const StepPlan& plan) {
      return Frame{static_cast<std::uint16_t>(Message::step), encode(plan)};
    };
    if (plans.empty()) return;
    if (options.tensor_parallel) return control.send_all(frame(plans.front()));
    for (std::size_t rank = 0; rank < plans.size(); ++rank) control.send(static_cast<int>(rank), frame(plans[rank]));
  }

  void deliver(Scheduler::Events& told) {
    for (auto& [request, event] : told) {
      std::shared_ptr<const EventSink> sink;
      {
        const std::lock_guard lock(mutex);
        const auto at = open.find(request);
        if (at == open.end()) continue;
        sink = at->second.sink;
        event.queue_s = at->second.queue_s;
        if (event.finish != FinishReason::none) open.erase(at);
      }
      try {
        (*sink)(event);
      } catch (...) {  // a listener that broke must not take the others with it
        const std::lock_guard lock(mutex);
        open.erase(request);
        scheduler.cancel(request);
      }
    }
  }

  /// Takes every rank's answer to the step in flight.
  void collect(const std::vector<StepPlan>& plans) {
    const std::uint64_t step = plans.front().step;
    const std::chrono::milliseconds limit = answer_limit(plans);
    std::set<int> missing;
    for (int rank = 0; rank < options.ranks; ++rank)
      if (is_left(rank)) missing.insert(rank);
    const std::size_t asked = missing.size();
    while (!missing.empty()) {
      if (!answer_comes(limit)) return hangs(step, missing, asked, limit);
      const auto received = control.receive();
      if (!received) return lost(step);
      const auto& [rank, frame, is_lost] = *received;
      if (is_lost) {
        if (is_left(rank)) return;  // rank_lost() was called before: the step is void
        continue;
      }
      if (frame.type == static_cast<std::uint16_t>(Message::failed)) {
        const Error error = decode_failure(frame.payload);
        if (rank == 0 || !outlives_failures()) return fail_job(error);
        control.expel(rank, frame, error.what());
        continue;  // until its loss is told
      }
      missing.erase(rank);
      try {
        if (frame.type != static_cast<std::uint16_t>(Message::result)) {
          fail("rank {} sent a frame of type {} where the result of a step was expected", rank, frame.type);
        }
        StepResult result = decode_step_result(frame.payload);
        if (options.on_result) options.on_result(result, rank);
        const std::lock_guard lock(mutex);
        for (auto& event : scheduler.apply(rank, std::move(result))) events.push_back(std::move(event));
      } catch (const std::exception& error) {
        return fail_job(Error(fmt::format("rank {}: {}", rank, error.what())));
      }
    }
  }

  /// Whether to go on without a rank that has failed by itself: its GPU, perhaps. Where another one has just failed, it
  /// is what they compute that makes them.
  bool outlives_failures() {
    const auto now = Clock::now();
    const bool alone = !failed_last || now - *failed_last > std::chrono::minutes(1);
    failed_last = now;
    return options.regroup && alone;
  }

  std::chrono::milliseconds answer_limit(const std::vector<StepPlan>& plans) const {
    double most = 0;
    for (const StepPlan& plan : plans) {
      double tokens = 0;
      for (const SequenceChunk& chunk : plan.chunks) {
        const auto count = static_cast<double>(chunk.tokens.size());
        tokens += count * (1 + (chunk.position + count) / kAttendedPerToken);
      }
      most = std::max(most, tokens);
    }
    return std::chrono::duration_cast<std::chrono::milliseconds>(options.answer_limit * (1 + most / kTokensPerLimit));
  }

  bool answer_comes(std::chrono::milliseconds limit) {
    // Counted, not measured: time in which the job stood still (Ctrl-Z) is not the ranks' silence.
    constexpr int ticks = 100;
    for (int i = 0; i < ticks; ++i)
      if (control.wait(limit / ticks)) return true;
    return false;
  }

  void hangs(std::uint64_t step, const std::set<int>& missing, std::size_t asked, std::chrono::milliseconds limit) {
    const double seconds = std::chrono::duration<double>(limit).count();
    // Ranks wait for each other in every layer, so one that hangs there keeps all from answering.
    if (asked > 1 && missing.size() == asked)
      return fail_job(Error(fmt::format(
          "none of {} ranks answered step {} within {:.0f} s: one hangs, which one is not known, or the network "
          "between them",
          asked, step, seconds)));
    fail_job(Error(fmt::format(
        "{} of {} ranks did not answer step {} within {:.0f} s: rank{} {}; one hangs, or the network between them",
        missing.size(), asked, step, seconds, missing.size() > 1 ? "s" : "", fmt::join(missing, ", "))));
  }

  /// No more frames come: a rank was lost or the control plane was closed. Whoever knows why is about to say so.
  void lost(std::uint64_t step) {
    {
      std::unique_lock lock(mutex);
      const auto known = [this] { return stopping || !failure.empty(); };
      if (wake.wait_for(lock, std::chrono::seconds(1), known)) return;
    }
    fail_job(Error(fmt::format("the control plane was closed during step {}", step)));
  }

  /// After a failure or at the end: whatever is still open gets its last event. True at the end.
  bool close_open_requests() {
    Scheduler::Events last;
    bool end = false;
    {
      const std::lock_guard lock(mutex);
      end = stopping;
      if (!end && failure.empty()) return false;
      for (const auto& [request, unfinished] : open) {
        last.push_back({request, {}});
        last.back().event.finish = failure.empty() ? FinishReason::cancelled : FinishReason::failed;
        last.back().event.error = failure;
      }
      scheduler.clear();
    }
    deliver(last);
    return end;
  }

  /// Nothing can be computed any more: whatever is open fails, and the job ends.
  void fail_job(const Error& why) {
    fail_all(why.what());
    close_open_requests();  // before the job ends, so that users hear why
    if (options.on_failed) options.on_failed(why);
  }

  void fail_all(const std::string& why) {
    const std::lock_guard lock(mutex);
    if (failure.empty()) failure = why.empty() ? "the job failed" : why;
    wake.notify_all();
  }
};

Coordinator::Coordinator(ControlServer& control, CoordinatorOptions options)
    : impl_(std::make_unique<Impl>(control, std::move(options))) {}

Coordinator::~Coordinator() { stop(); }

std::uint64_t Coordinator::submit(GenerationRequest request, EventSink sink) {
  const std::lock_guard lock(impl_->mutex);
  if (!impl_->failure.empty()) throw Error(impl_->failure);
  if (impl_->stopping) fail("no request is taken any more: the server is shutting down");
  impl_->scheduler.check(request);
  const int waiting = impl_->scheduler.waiting(), own = impl_->scheduler.waiting(request.client);
  if (own >= impl_->options.max_waiting - waiting) {
    throw Overloaded(fmt::format("{} requests are waiting already{}; try again later", waiting,
                                 own < waiting ? fmt::format(", {} of them yours", own) : ""));
  }
  const std::uint64_t number = ++impl_->last_request;
  impl_->open.emplace(number, OpenRequest{std::make_shared<const EventSink>(std::move(sink))});
  impl_->scheduler.submit(number, std::move(request));
  impl_->wake.notify_all();
  return number;
}

void Coordinator::cancel(std::uint64_t request) {
  const std::lock_guard lock(impl_->mutex);
  for (auto& event : impl_->scheduler.cancel(request)) impl_->events.push_back(std::move(event));
  impl_->wake.notify_all();
}

Coordinator::Load Coordinator::load() const {
  const std::lock_guard lock(impl_->mutex);
  const Scheduler& scheduler = impl_->scheduler;
  const Scheduler::Totals& totals = scheduler.totals();
  return {.running = scheduler.running(),
          .waiting = scheduler.waiting(),
          .kv_pages_used = scheduler.kv_pages_used(),
          .kv_pages = scheduler.kv_pages(),
          .steps = totals.steps,
          .prompt_tokens = totals.prompt_tokens,
          .generated_tokens = totals.generated_tokens,
          .prefix_queries = totals.prefix_queries,
          .prefix_hits = totals.prefix_hits,
          .preemptions = totals.preemptions,
          .drafted = totals.drafted,
          .accepted = totals.accepted};
}

void Coordinator::rank_lost() {
  const std::lock_guard lock(impl_->mutex);
  impl_->losses = true;
  impl_->wake.notify_all();
}

void Coordinator::fail_all(const std::string& why) { impl_->fail_all(why); }

void Coordinator::stop() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
    impl_->wake.notify_all();
  }
  const std::lock_guard lock(impl_->join_mutex);
  if (impl_->thread.joinable()) impl_->thread.join();
}

}  // namespace shoal
