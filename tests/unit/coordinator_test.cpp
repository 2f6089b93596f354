#include "runtime/coordinator.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <future>
#include <mutex>
#include <optional>
#include <random>
#include <thread>

#include "runtime/control_plane.h"
#include "runtime/recovery.h"
#include "runtime/step_counters.h"
#include "tests/unit/fake_worker.h"

namespace shoal {
namespace {

using namespace std::chrono_literals;
using test::FakeWorker;

/// Where the sink of one request puts what it is told.
class Answer {
 public:
  EventSink sink() {
    return [this](const GenerationEvent& event) {
      const std::lock_guard lock(mutex_);
      EXPECT_EQ(finish_, FinishReason::none) << "an event after the last";
      if (!event.prompt.empty()) prompt_ = event.prompt;
      if (event.token >= 0) tokens_.push_back(event.token);
      finish_ = event.finish;
      error_ = event.error;
      changed_.notify_all();
    };
  }
  FinishReason wait() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, 60s, [&] { return finish_ != FinishReason::none; })) << "no end in a minute";
    return finish_;
  }
  void wait_for_tokens(std::size_t n) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, 60s, [&] { return tokens_.size() >= n; })) << "no token in a minute";
  }
  std::vector<std::int32_t> tokens() const {
    const std::lock_guard lock(mutex_);
    return tokens_;
  }
  std::vector<TokenLogprob> prompt() const {
    const std::lock_guard lock(mutex_);
    return prompt_;
  }
  std::string error() const {
    const std::lock_guard lock(mutex_);
    return error_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::int32_t> tokens_;
  std::vector<TokenLogprob> prompt_;
  FinishReason finish_ = FinishReason::none;
  std::string error_;
};

/// A coordinator with its control plane and fake workers, each on a thread of its own.
class Job {
 public:
  /// What rank `rank` answers to a step; by default, what its FakeWorker computes. Nothing: the rank vanishes.
  using Reply = std::function<std::optional<Frame>(int rank, FakeWorker&, const StepPlan&)>;

  explicit Job(CoordinatorOptions options, Reply reply = compute)
      : control_(options.ranks, ControlOptions{}), options_(options) {
    for (int rank = 0; rank < options_.ranks; ++rank) {
      threads_.emplace_back([this, rank, reply] {
        FakeWorker worker(options_, rank);
        ControlClient client(rank, control_.contact(), ControlOptions{});
        while (const auto frame = client.receive()) {
          if (frame->type != static_cast<std::uint16_t>(Message::step)) continue;
          auto answer = reply(rank, worker, decode_step_plan(frame->payload));
          if (!answer) return;
          client.send(std::move(*answer));
        }
      });
    }
    control_.wait_for_all();
    control_.on_lost([this](int, const std::string& why) {
      if (coordinator) coordinator->fail_all(why);
    });
    coordinator.emplace(control_, options_);
  }
  ~Job() {
    coordinator->stop();
    control_.close();
    for (std::thread& thread : threads_) thread.join();
  }

  static Frame compute(int, FakeWorker& worker, const StepPlan& plan) { return result_frame(worker.run(plan)); }
  static Frame result_frame(const StepResult& result) {
    return {static_cast<std::uint16_t>(Message::result), encode(result)};
  }

 private:
  ControlServer control_;
  CoordinatorOptions options_;
  std::vector<std::thread> threads_;

 public:
  std::optional<Coordinator> coordinator;
};

CoordinatorOptions coordinator_options(int ranks, bool tensor_parallel = false) {
  CoordinatorOptions options;
  options.ranks = ranks;
  options.tensor_parallel = tensor_parallel;
  options.page_tokens = 4;
  options.kv_pages.assign(static_cast<std::size_t>(ranks), 60);
  options.max_model_len = 200;
  options.max_num_seqs = 8;
  options.max_batched_tokens = 16;
  return options;
}

GenerationRequest coordinator_request(int prompt_tokens, int max_tokens, std::uint64_t seed = 1) {
  GenerationRequest request;
  for (int i = 0; i < prompt_tokens; ++i)
    request.prompt.push_back((i * 3 + static_cast<int>(seed % 10)) % test::fake_vocab);
  request.max_tokens = max_tokens;
  request.sampling.seed = seed;
  return request;
}

/// Outputs are those of rank 0 alone under tensor parallelism.
Frame compute_tensor_parallel(int rank, FakeWorker& worker, const StepPlan& plan) {
  StepResult result = worker.run(plan);
  if (rank > 0) result.outputs.clear();
  return Job::result_frame(result);
}

TEST(Coordinator, ManyThreadsSubmitAndEachGetsItsOwnAnswer) {
  for (const bool tensor_parallel : {false, true}) {
    for (const int ranks : {1, 3}) {
      Job job(coordinator_options(ranks, tensor_parallel), tensor_parallel ? compute_tensor_parallel : Job::compute);
      std::vector<std::thread> users;
      for (unsigned user = 0; user < 4; ++user) {
        users.emplace_back([&job, user] {
          std::mt19937 random(user);
          for (int i = 0; i < 10; ++i) {
            GenerationRequest request =
                coordinator_request(1 + static_cast<int>(random() % 50), static_cast<int>(random() % 20), random());
            request.prompt_logprobs = random() % 2;
            Answer answer;
            job.coordinator->submit(request, answer.sink());
            EXPECT_EQ(answer.wait(), FinishReason::length);
            const test::Expected expected = test::expected_of(request, 200);
            EXPECT_EQ(answer.tokens(), expected.tokens);
            EXPECT_EQ(answer.prompt().size(), expected.prompt.size());
          }
        });
      }
      for (std::thread& user : users) user.join();
      const Coordinator::Load load = job.coordinator->load();
      EXPECT_EQ(load.running + load.waiting, 0);
      EXPECT_EQ(load.kv_pages_used, 0);
      EXPECT_EQ(load.kv_pages, tensor_parallel ? 60 : 60 * ranks);
      EXPECT_GT(load.steps, 0u);
      EXPECT_GT(load.generated_tokens, 0u);
    }
  }
}

TEST(Coordinator, CancelEndsARequestAndLeavesOthersAlone) {
  Job job(coordinator_options(2));
  Answer endless, other;
  const auto id = job.coordinator->submit(coordinator_request(5, 190), endless.sink());
  job.coordinator->submit(coordinator_request(5, 150, 2), other.sink());
  endless.wait_for_tokens(3);
  job.coordinator->cancel(id);
  const FinishReason finish = endless.wait();
  EXPECT_TRUE(finish == FinishReason::cancelled || finish == FinishReason::length);
  EXPECT_EQ(other.wait(), FinishReason::length);
  EXPECT_EQ(other.tokens(), test::expected_of(coordinator_request(5, 150, 2), 200).tokens);
  job.coordinator->cancel(id);
  job.coordinator->cancel(999);
}

TEST(Coordinator, ASinkMayCancelAndSubmit) {
  Job job(coordinator_options(1));
  Answer first, second;
  std::atomic<std::uint64_t> id = 0;
  std::atomic<int> tokens = 0;
  EventSink tell_first = first.sink();
  id = job.coordinator->submit(coordinator_request(5, 190), [&](const GenerationEvent& event) {
    tell_first(event);
    while (id == 0) std::this_thread::yield();  // submit may return after the first token
    if (event.token >= 0 && ++tokens == 5) job.coordinator->cancel(id);
    if (event.finish != FinishReason::none) job.coordinator->submit(coordinator_request(3, 4), second.sink());
  });
  EXPECT_EQ(first.wait(), FinishReason::cancelled);
  EXPECT_LE(first.tokens().size(), 7u);
  EXPECT_EQ(second.wait(), FinishReason::length);
}

TEST(Coordinator, ASinkThatThrowsIsDroppedAlone) {
  Job job(coordinator_options(1));
  Answer other;
  job.coordinator->submit(coordinator_request(5, 190),
                          [](const GenerationEvent&) { throw std::runtime_error("gone"); });
  job.coordinator->submit(coordinator_request(5, 30), other.sink());
  EXPECT_EQ(other.wait(), FinishReason::length);
  Answer later;
  job.coordinator->submit(coordinator_request(5, 3), later.sink());
  EXPECT_EQ(later.wait(), FinishReason::length);
  EXPECT_EQ(job.coordinator->load().kv_pages_used, 0);
}

TEST(Coordinator, RefusesImpossibleRequestsAndTooManyOfThem) {
  CoordinatorOptions options = coordinator_options(1);
  options.max_num_seqs = 1;
  options.max_waiting = 4;
  std::atomic<bool> go = false;
  Job job(options, [&](int rank, FakeWorker& worker, const StepPlan& plan) {
    while (!go) std::this_thread::sleep_for(1ms);
    return Job::compute(rank, worker, plan);
  });
  EXPECT_THROW(job.coordinator->submit(coordinator_request(0, 5), {}), Error);
  EXPECT_THROW(job.coordinator->submit(coordinator_request(200, 5), {}), Error);
  std::vector<Answer> answers(5);
  job.coordinator->submit(coordinator_request(5, 5), answers[0].sink());
  while (job.coordinator->load().running == 0) std::this_thread::sleep_for(1ms);
  // As many as there are places left: 2 of 4, then 1 of 2, then the last one.
  std::size_t next = 1;
  for (const auto& [client, places] : {std::pair("a", 2), {"b", 1}, {"c", 1}}) {
    GenerationRequest request = coordinator_request(5, 5);
    request.client = client;
    for (int i = 0; i < places; ++i) job.coordinator->submit(request, answers[next++].sink());
    EXPECT_THROW(job.coordinator->submit(request, {}), Overloaded) << client;
  }
  EXPECT_EQ(job.coordinator->load().waiting, 4);
  EXPECT_THROW(job.coordinator->submit(coordinator_request(5, 5), {}), Overloaded);
  go = true;
  for (Answer& answer : answers) EXPECT_EQ(answer.wait(), FinishReason::length);
}

TEST(Coordinator, WhatItMeetsUnforeseenFailsTheJobInWords) {
  CoordinatorOptions options = coordinator_options(1);
  options.move_experts = []() -> std::optional<ExpertLayer> { throw std::bad_alloc(); };
  std::promise<std::string> failed;
  options.on_failed = [&](const Error& error) { failed.set_value(error.what()); };
  Job job(options);
  Answer answer;
  job.coordinator->submit(coordinator_request(5, 5), answer.sink());
  EXPECT_EQ(answer.wait(), FinishReason::failed);
  EXPECT_EQ(failed.get_future().get(), std::bad_alloc().what());
  EXPECT_THROW(job.coordinator->submit(coordinator_request(5, 5), {}), Error);
}

TEST(Coordinator, AWorkerThatFailsFailsEverythingWithItsReason) {
  Job job(coordinator_options(2), [](int rank, FakeWorker& worker, const StepPlan& plan) -> Frame {
    if (rank == 1 && plan.step == 4) {
      return {static_cast<std::uint16_t>(Message::failed), encode(Error("rank 1: the model has overflowed"))};
    }
    return Job::compute(rank, worker, plan);
  });
  std::vector<Answer> answers(5);
  for (Answer& answer : answers) job.coordinator->submit(coordinator_request(5, 100), answer.sink());
  for (Answer& answer : answers) {
    EXPECT_EQ(answer.wait(), FinishReason::failed);
    EXPECT_EQ(answer.error(), "rank 1: the model has overflowed");
  }
  try {
    job.coordinator->submit(coordinator_request(5, 5), {});
    ADD_FAILURE() << "a request was taken after the failure";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "rank 1: the model has overflowed");
  }
  EXPECT_EQ(job.coordinator->load().running, 0);
}

/// Ranks vanish in the middle of a step, two at a time, and while the others take over: answers do not show it.
TEST(Coordinator, RanksThatVanishCostNoAnswer) {
  for (const bool tensor_parallel : {false, true}) {
    CoordinatorOptions options = coordinator_options(6, tensor_parallel);
    ControlServer control(options.ranks, ControlOptions{});
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < options.ranks; ++rank) {
      ranks.emplace_back([&, rank] {
        FakeWorker worker(options, rank);
        ControlClient client(rank, control.contact(), ControlOptions{});
        while (const auto frame = client.receive()) {
          if (frame->type == static_cast<std::uint16_t>(Message::regroup)) {
            const Regroup regroup = decode_regroup(frame->payload);
            EXPECT_EQ(std::ranges::count(regroup.members, rank), 1);
            if (rank == 4) return;
            const bool kept = !tensor_parallel && rank != 5;
            const int pages = kept ? 60 : 55;
            worker.forget(pages, kept);
            client.send({static_cast<std::uint16_t>(Message::ready),
                         encode(WorkerReady{.epoch = regroup.epoch, .cache_kept = kept, .kv_pages = pages})});
          } else if (frame->type == static_cast<std::uint16_t>(Message::step)) {
            const StepPlan plan = decode_step_plan(frame->payload);
            if ((rank == 1 && plan.step == 9) || (rank == 2 && plan.step == 9) || (rank == 3 && plan.step == 30))
              return;
            StepResult result = worker.run(plan);
            if (tensor_parallel && rank > 0) result.outputs.clear();
            client.send(Job::result_frame(result));
          }
        }
      });
    }
    control.wait_for_all();
    Recovery recovery(control, {}, {.ranks = options.ranks, .tensor_parallel = tensor_parallel, .experts = {}},
                      nullptr);
    options.regroup = [&](const auto& give_up) { return recovery.regroup(give_up); };
    std::vector<int> lost;
    recovery.on_events({.lost = [&](int rank, const std::string&, int) { lost.push_back(rank); }, .over = {}});
    Coordinator coordinator(control, options);
    control.survive_losses();
    control.on_lost([&](int rank, const std::string& why) {
      recovery.note_lost(rank, why);
      coordinator.rank_lost();
    });
    std::vector<Answer> answers(12);
    for (std::size_t i = 0; i < answers.size(); ++i)
      coordinator.submit(coordinator_request(5 + static_cast<int>(i), 100, i), answers[i].sink());
    for (std::size_t i = 0; i < answers.size(); ++i) {
      EXPECT_EQ(answers[i].wait(), FinishReason::length) << answers[i].error();
      EXPECT_EQ(answers[i].tokens(),
                test::expected_of(coordinator_request(5 + static_cast<int>(i), 100, i), 200).tokens);
    }
    coordinator.stop();
    control.close();
    for (std::thread& rank : ranks) rank.join();
    std::ranges::sort(lost);
    EXPECT_EQ(lost, (std::vector<int>{1, 2, 3, 4}));
    EXPECT_EQ(recovery.totals().lost, (std::vector<bool>{false, true, true, true, true, false}));
    EXPECT_EQ(coordinator.load().kv_pages, tensor_parallel ? 55 : 60 + 55);
  }
}

/// One rank fails by itself and is left out; a second one right behind it is a sign of something else.
TEST(Coordinator, ARankThatFailsIsLeftOutOnce) {
  CoordinatorOptions options = coordinator_options(3);
  ControlServer control(options.ranks, ControlOptions{});
  std::atomic<int> fails = -1;  // the rank that does
  std::atomic<bool> told = false;
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < options.ranks; ++rank) {
    ranks.emplace_back([&, rank] {
      FakeWorker worker(options, rank);
      ControlClient client(rank, control.contact(), ControlOptions{});
      client.on_lost([](int, const std::string&) {});
      while (const auto frame = client.receive()) {
        if (frame->type == static_cast<std::uint16_t>(Message::regroup)) {
          worker.forget(60, true);
          client.send(
              {static_cast<std::uint16_t>(Message::ready),
               encode(WorkerReady{.epoch = decode_regroup(frame->payload).epoch, .cache_kept = true, .kv_pages = 60})});
        } else if (frame->type == static_cast<std::uint16_t>(Message::failed)) {
          told = true;
        } else {
          const StepPlan plan = decode_step_plan(frame->payload);
          client.send(fails == rank
                          ? Frame{static_cast<std::uint16_t>(Message::failed), encode(Error("its GPU is hot"))}
                          : Job::result_frame(worker.run(plan)));
        }
      }
    });
  }
  control.wait_for_all();
  Recovery recovery(control, {}, {.ranks = options.ranks, .experts = {}}, nullptr);
  options.regroup = [&](const auto& give_up) { return recovery.regroup(give_up); };
  std::string why;
  recovery.on_events({.lost = [&](int, const std::string& said, int) { why = said; }, .over = {}});
  std::promise<std::string> failed;
  options.on_failed = [&](const Error& error) { failed.set_value(error.what()); };
  Coordinator coordinator(control, options);
  control.survive_losses();
  control.on_lost([&](int rank, const std::string& reason) {
    recovery.note_lost(rank, reason);
    coordinator.rank_lost();
  });
  fails = 1;
  Answer first;
  coordinator.submit(coordinator_request(5, 50), first.sink());
  EXPECT_EQ(first.wait(), FinishReason::length);
  EXPECT_EQ(first.tokens(), test::expected_of(coordinator_request(5, 50), 200).tokens);
  EXPECT_NE(why.find("its GPU is hot"), std::string::npos) << why;
  EXPECT_TRUE(told) << "so that it ends";
  fails = 2;
  Answer second;
  coordinator.submit(coordinator_request(5, 50), second.sink());
  EXPECT_EQ(second.wait(), FinishReason::failed);
  EXPECT_EQ(failed.get_future().get(), "its GPU is hot");
  coordinator.stop();
  control.close();
  for (std::thread& rank : ranks) rank.join();
}

TEST(Coordinator, EndsWhileOthersTakeOver) {
  CoordinatorOptions options = coordinator_options(2);
  std::promise<void> begun;
  options.regroup = [&](const std::function<bool()>& give_up) -> std::vector<RankState> {
    begun.set_value();
    while (!give_up()) std::this_thread::sleep_for(1ms);
    fail("the job ends");
  };
  options.on_failed = [](const Error&) { ADD_FAILURE() << "an orderly end"; };
  Job job(options);
  Answer answer;
  job.coordinator->submit(coordinator_request(5, 190), answer.sink());
  answer.wait_for_tokens(1);
  job.coordinator->rank_lost();
  begun.get_future().wait();
  job.coordinator->stop();
  EXPECT_EQ(answer.wait(), FinishReason::cancelled);
}

TEST(Coordinator, WhereTheOthersCannotTakeOverTheJobEnds) {
  CoordinatorOptions options = coordinator_options(2);
  options.regroup = [&](const auto&) -> std::vector<RankState> {
    throw Error("rank 1 would hold too much", ExitCode::does_not_fit);
  };
  std::promise<ExitCode> failed;
  options.on_failed = [&](const Error& error) { failed.set_value(error.exit_code); };
  Job job(options);
  Answer answer;
  job.coordinator->submit(coordinator_request(5, 190), answer.sink());
  job.coordinator->rank_lost();
  EXPECT_EQ(answer.wait(), FinishReason::failed);
  EXPECT_EQ(answer.error(), "rank 1 would hold too much");
  EXPECT_EQ(failed.get_future().get(), ExitCode::does_not_fit);
}

TEST(Coordinator, ARankThatVanishesFailsEverythingAndIsNamed) {
  Job job(coordinator_options(3), [](int rank, FakeWorker& worker, const StepPlan& plan) -> std::optional<Frame> {
    if (rank == 2 && plan.step == 4) return std::nullopt;
    return Job::compute(rank, worker, plan);
  });
  std::vector<Answer> answers(5);
  for (Answer& answer : answers) job.coordinator->submit(coordinator_request(5, 100), answer.sink());
  for (Answer& answer : answers) {
    EXPECT_EQ(answer.wait(), FinishReason::failed);
    EXPECT_EQ(answer.error().substr(0, 6), "rank 2") << answer.error();
  }
  EXPECT_THROW(job.coordinator->submit(coordinator_request(5, 5), {}), Error);
}

/// A GPU that never answers, say: the rank's connection lives.
TEST(Coordinator, RanksThatHangFailEverythingAndAreNamed) {
  for (const int every : {2, 1}) {  // every second rank hangs, or all do
    CoordinatorOptions options = coordinator_options(4);
    options.answer_limit = 1s;
    std::vector<Answer> answers(5);
    std::promise<std::string> failure;  // not twice
    options.on_failed = [&](const Error& error) {
      for (Answer& answer : answers) EXPECT_EQ(answer.error(), error.what()) << "told before the job ends";
      failure.set_value(error.what());
    };
    std::promise<void> end;
    const std::shared_future<void> ended = end.get_future().share();
    Job job(options, [ended, every](int rank, FakeWorker& worker, const StepPlan& plan) {
      if (rank % every == every - 1 && plan.step == 3) ended.wait();
      return Job::compute(rank, worker, plan);
    });
    for (Answer& answer : answers) job.coordinator->submit(coordinator_request(5, 100), answer.sink());
    const std::string why = failure.get_future().get();
    EXPECT_EQ(why,
              every == 2
                  ? "2 of 4 ranks did not answer step 3 within 1 s: ranks 1, 3; one hangs, or the network between them"
                  : "none of 4 ranks answered step 3 within 1 s: one hangs, which one is not known, or the network "
                    "between them");
    for (Answer& answer : answers) {
      EXPECT_EQ(answer.wait(), FinishReason::failed);
      EXPECT_EQ(answer.error(), why);
    }
    end.set_value();
  }
}

TEST(Coordinator, ALongChunkMayTakeItsTime) {
  CoordinatorOptions options = coordinator_options(1);
  options.answer_limit = 500ms;
  options.kv_pages = {300};
  options.max_model_len = options.max_batched_tokens = 1024;
  Job job(options, [](int rank, FakeWorker& worker, const StepPlan& plan) {
    if (plan.step == 1) std::this_thread::sleep_for(800ms);
    return Job::compute(rank, worker, plan);
  });
  Answer answer;
  job.coordinator->submit(coordinator_request(768, 2), answer.sink());  // may take 2 s
  EXPECT_EQ(answer.wait(), FinishReason::length);
}

TEST(Coordinator, AChunkThatAttendsToManyTokensMayTakeItsTime) {
  CoordinatorOptions options = coordinator_options(1);
  options.answer_limit = 500ms;
  options.kv_pages = {2200};
  options.max_model_len = 8500;
  options.max_batched_tokens = 256;
  Job job(options, [](int rank, FakeWorker& worker, const StepPlan& plan) {
    if (plan.step == 33) std::this_thread::sleep_for(1300ms);  // at position 8192: may take 2 s; the first one, 1 s
    return Job::compute(rank, worker, plan);
  });
  Answer answer;
  job.coordinator->submit(coordinator_request(33 * 256, 2), answer.sink());
  EXPECT_EQ(answer.wait(), FinishReason::length);
}

TEST(Coordinator, AnswersThatMakeNoSenseFailEverything) {
  const auto nonsense = [](const StepPlan& plan, int kind) -> Frame {
    StepResult result;
    result.step = kind == 0 ? plan.step + 1 : plan.step;
    Frame frame = Job::result_frame(result);  // kind 1: no outputs
    if (kind == 2) frame.payload.pop_back();
    if (kind == 3) frame.type = 77;
    return frame;
  };
  for (const int kind : {0, 1, 2, 3}) {
    CoordinatorOptions options = coordinator_options(2);
    std::promise<std::string> failure;
    options.on_failed = [&](const Error& error) { failure.set_value(error.what()); };
    Job job(options, [&](int rank, FakeWorker& worker, const StepPlan& plan) {
      return rank == 0 ? nonsense(plan, kind) : Job::compute(rank, worker, plan);
    });
    Answer answer;
    job.coordinator->submit(coordinator_request(5, 5), answer.sink());
    EXPECT_EQ(answer.wait(), FinishReason::failed);
    EXPECT_EQ(answer.error().substr(0, 6), "rank 0") << answer.error();
    EXPECT_EQ(failure.get_future().get(), answer.error()) << "the job ends";
  }
}

TEST(Coordinator, FailAllWakesAnIdleCoordinator) {
  Job job(coordinator_options(1));
  Answer before;
  job.coordinator->submit(coordinator_request(5, 5), before.sink());
  EXPECT_EQ(before.wait(), FinishReason::length);
  job.coordinator->fail_all("rank 3 (host n7): connection closed");
  job.coordinator->fail_all("a later reason, which is a consequence");
  try {
    job.coordinator->submit(coordinator_request(5, 5), {});
    ADD_FAILURE() << "a request was taken after the failure";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "rank 3 (host n7): connection closed");
  }
}

TEST(Coordinator, StopCancelsWhatIsOpenAfterTheRunningStep) {
  std::vector<Answer> answers(20);
  {
    Job job(coordinator_options(2));
    for (Answer& answer : answers) job.coordinator->submit(coordinator_request(50, 140), answer.sink());
    answers[0].wait_for_tokens(1);
    job.coordinator->stop();
    for (Answer& answer : answers) {
      const FinishReason finish = answer.wait();
      EXPECT_TRUE(finish == FinishReason::cancelled || finish == FinishReason::length);
    }
    EXPECT_THROW(job.coordinator->submit(coordinator_request(5, 5), {}), Error);
    job.coordinator->stop();
    EXPECT_GT(job.coordinator->load().prompt_tokens, 0u);
  }
}

TEST(Coordinator, LooksForExpertsToMoveWhileTheRanksComputeAndMovesThemBeforeTheNextStep) {
  CoordinatorOptions options = coordinator_options(2);
  std::promise<void> sent;
  int looks = 0;
  options.move_experts = [&]() -> std::optional<ExpertLayer> {
    const bool late = looks == 0 && sent.get_future().wait_for(60s) != std::future_status::ready;
    EXPECT_FALSE(late) << "the ranks idle";
    return ++looks % 2 == 0 ? std::nullopt : std::optional(ExpertLayer{looks, {{{1, 1}}}});
  };
  std::atomic<int> steps = 0, wrong = 0;
  Job job(options, [&](int rank, FakeWorker& worker, const StepPlan& plan) {
    if (rank == 0 && plan.step == 1) sent.set_value();
    const int look = static_cast<int>(plan.step) - 1;
    const std::vector<ExpertLayer> moved(look % 2 == 0 ? 0 : 1, ExpertLayer{look, {{{1, 1}}}});
    wrong += plan.experts != moved;
    ++steps;
    return Job::compute(rank, worker, plan);
  });
  Answer answer;
  job.coordinator->submit(coordinator_request(5, 6), answer.sink());
  EXPECT_EQ(answer.wait(), FinishReason::length);
  EXPECT_EQ(steps, 12);
  EXPECT_EQ(wrong, 0);
}

TEST(Coordinator, CountsWhatTheRanksReport) {
  CoordinatorOptions options = coordinator_options(2);
  StepCounters counters(Placement{.ranks = 2, .experts = {{}, {{{0, 1}}, {{0, 1}}, {{1, 1}}}}});
  options.on_result = [&](const StepResult& result, int rank) { counters.add(result, rank); };
  Job job(options, [](int rank, FakeWorker& worker, const StepPlan& plan) {
    StepResult result = worker.run(plan);
    result.expert_tokens = {1, 0, 2};
    result.expert_work = {rank == 0 ? 2u : 4u};
    return Job::result_frame(result);
  });
  Answer answer;
  job.coordinator->submit(coordinator_request(5, 4), answer.sink());
  answer.wait();
  const Coordinator::Load load = job.coordinator->load();
  EXPECT_EQ(load.steps, 4u);
  EXPECT_EQ(load.prompt_tokens, 5u);
  EXPECT_EQ(load.generated_tokens, 4u);
  const StepCounters::Totals totals = counters.totals();
  EXPECT_EQ(totals.steps, 4u);
  EXPECT_EQ(totals.expert_tokens, (std::vector<std::vector<std::uint64_t>>{{8, 0, 16}}));
  EXPECT_EQ(totals.experts_read, 4u * 2) << "whatever the number of ranks that ask for them";
  EXPECT_EQ(totals.ranks[0].expert_tokens, 8u);
  EXPECT_EQ(totals.ranks[1].expert_tokens, 16u);
}

}  // namespace
}  // namespace shoal
