#include "runtime/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "base/error.h"
#include "tests/unit/fake_worker.h"

namespace shoal {
namespace {

using test::FakeWorker;
using Random = std::mt19937_64;

/// What came of one request.
struct Outcome {
  std::vector<TokenLogprob> prompt;
  std::vector<std::int32_t> tokens;
  std::vector<TokenLogprob> logprobs;
  FinishReason finish = FinishReason::none;
  int prompt_events = 0;
  int cached_tokens = 0;
};

/// A scheduler and its ranks, stepped by hand.
class ScheduledJob {
 public:
  explicit ScheduledJob(const CoordinatorOptions& options, unsigned seed = 1, int drafts = 0, unsigned late = 0)
      : options_(options), random_(seed), scheduler(options) {
    for (int rank = 0; rank < options.ranks; ++rank) workers.emplace_back(options, rank, drafts, late);
    ranks.resize(workers.size());
    for (std::size_t i = 0; i < ranks.size(); ++i) ranks[i].kv_pages = options.kv_pages[i];
  }

  std::uint64_t submit(const GenerationRequest& request) {
    scheduler.submit(last_ + 1, request);
    outcomes[++last_];
    users_[last_] = {request.client, request.user};
    return last_;
  }

  void cancel(std::uint64_t request) { take(scheduler.cancel(request)); }

  /// One step; `midway` is called before each rank's answer.
  template <class Midway>
  void step(Midway midway) {
    plans = scheduler.plan();
    ASSERT_EQ(plans.size(), options_.tensor_parallel ? 1u : static_cast<std::size_t>(options_.ranks));
    check_admissions();
    std::size_t most_tokens = 0;
    for (const StepPlan& plan : plans) {
      std::size_t tokens = 0;
      for (const SequenceChunk& chunk : plan.chunks) tokens += chunk.tokens.size();
      most_tokens = std::max(most_tokens, tokens);
    }
    std::vector<std::pair<int, StepResult>> results;
    for (int rank = 0; rank < options_.ranks; ++rank) {
      if (!ranks[static_cast<std::size_t>(rank)].left) continue;
      EXPECT_EQ(plans[options_.tensor_parallel ? 0 : static_cast<std::size_t>(rank)].most_tokens,
                static_cast<std::int32_t>(most_tokens));
      const StepPlan& plan = plans[options_.tensor_parallel ? 0 : static_cast<std::size_t>(rank)];
      StepResult result = workers[static_cast<std::size_t>(rank)].run(decode_step_plan(encode(plan)));
      if (options_.tensor_parallel && rank > 0) result.outputs.clear();
      std::shuffle(result.outputs.begin(), result.outputs.end(), random_);
      results.emplace_back(rank, decode_step_result(encode(result)));
    }
    std::size_t in_use = 0;
    for (std::size_t i = 0; i < plans.size(); ++i) in_use += workers[i].pages_in_use();
    // Of those whom a rank forgot, it is told again in their turn.
    const std::int64_t untold = scheduler.kv_pages_used() - static_cast<std::int64_t>(in_use);
    EXPECT_TRUE(lost_ ? untold >= 0 : untold == 0) << "pages are lost, or owned by nobody";
    if (untold == 0) lost_ = false;
    std::shuffle(results.begin(), results.end(), random_);
    for (auto& [rank, result] : results) {
      if (loses_next >= 0 && random_() % 2 == 0) return lose();
      midway();
      EXPECT_TRUE(scheduler.step_in_flight());
      take(scheduler.apply(rank, std::move(result)));
    }
    EXPECT_FALSE(scheduler.step_in_flight());
    if (loses_next >= 0) lose();
  }
  void step() {
    step([] {});
  }
  /// Rank `loses_next` is gone. Of the others some lose their caches, to make room for weights.
  void lose() {
    lost_ = true;
    ranks[static_cast<std::size_t>(std::exchange(loses_next, -1))].left = false;
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      if (!ranks[i].left) ranks[i].kv_pages = 0;
      ranks[i].cache_kept = ranks[i].left && random_() % 3 > 0;
      if (ranks[i].left && !ranks[i].cache_kept) ranks[i].kv_pages -= static_cast<int>(random_() % 5);
    }
    if (options_.tensor_parallel) {  // slices of all caches change
      int pages = std::numeric_limits<int>::max();
      for (RankState& rank : ranks) pages = std::min(pages, rank.left ? rank.kv_pages : pages);
      for (RankState& rank : ranks) rank.kv_pages = rank.left ? pages : 0, rank.cache_kept = false;
    }
    for (std::size_t i = 0; i < ranks.size(); ++i) workers[i].forget(ranks[i].kv_pages, ranks[i].cache_kept);
    const auto pages = std::ranges::max_element(ranks, {}, &RankState::kv_pages)->kv_pages;
    least_room = std::min(least_room, static_cast<std::size_t>(pages * options_.page_tokens));
    take(scheduler.regroup(ranks));
    EXPECT_FALSE(scheduler.step_in_flight());
  }
  void finish(int most_steps = 100000) {
    while (scheduler.has_work() && most_steps-- > 0) step();
    EXPECT_FALSE(scheduler.has_work());
  }

 private:
  /// A user's requests start in the order of their submission; who starts once more had left.
  void check_admissions() {
    std::set<std::uint64_t> first_starts;
    for (const StepPlan& plan : plans) {
      for (const SequenceStart& start : plan.start) {
        if (started_.insert(start.sequence).second) first_starts.insert(start.sequence);
      }
    }
    for (const std::uint64_t id : first_starts) {
      EXPECT_GT(id, newest_[users_[id]]) << "admitted out of turn";
      newest_[users_[id]] = id;
    }
  }

  void take(Scheduler::Events events) {
    for (auto& [id, event] : events) {
      Outcome& outcome = outcomes.at(id);
      outcome.cached_tokens = std::max(outcome.cached_tokens, event.cached_tokens);
      EXPECT_EQ(outcome.finish, FinishReason::none) << "an event after the last";
      if (!event.prompt.empty()) {
        ++outcome.prompt_events;
        EXPECT_TRUE(outcome.tokens.empty() && event.token == -1);
        outcome.prompt = std::move(event.prompt);
      }
      if (event.token >= 0) outcome.tokens.push_back(event.token);
      for (auto& entry : event.logprob) outcome.logprobs.push_back(std::move(entry));
      outcome.finish = event.finish;
    }
  }

  CoordinatorOptions options_;
  Random random_;
  bool lost_ = false;       // a rank, and others do not know of all again
  std::uint64_t last_ = 0;  // submitted
  std::set<std::uint64_t> started_;
  using User = std::pair<std::string, std::string>;  // of a client
  std::map<User, std::uint64_t> newest_;             // admitted
  std::map<std::uint64_t, User> users_;              // by request

 public:
  Scheduler scheduler;
  std::vector<FakeWorker> workers;
  std::vector<StepPlan> plans;  // of the last step
  std::map<std::uint64_t, Outcome> outcomes;
  std::vector<RankState> ranks;
  int loses_next = -1;  // a rank that is lost in the next step, or right behind it
  std::size_t least_room =
      std::numeric_limits<std::size_t>::max();  // tokens of the largest cache, when ranks were lost
};

CoordinatorOptions options_for(int ranks, bool tensor_parallel = false) {
  CoordinatorOptions options;
  options.ranks = ranks;
  options.tensor_parallel = tensor_parallel;
  options.page_tokens = 4;
  options.kv_pages.assign(static_cast<std::size_t>(ranks), 40);
  options.max_model_len = 100;
  options.max_num_seqs = 8;
  options.max_batched_tokens = 16;
  return options;
}

GenerationRequest request_of(int prompt_tokens, int max_tokens) {
  GenerationRequest request;
  for (int i = 0; i < prompt_tokens; ++i) request.prompt.push_back(i % 7);
  request.max_tokens = max_tokens;
  return request;
}

std::vector<std::int32_t> shared_prompt(int which, int tokens) {
  std::vector<std::int32_t> prompt;
  for (int i = 0; i < tokens; ++i) prompt.push_back((i * i + which) % test::fake_vocab);
  return prompt;
}

GenerationRequest any_request(Random& random) {
  const auto up_to = [&](int most) { return std::uniform_int_distribution<int>(0, most)(random); };
  GenerationRequest request;
  // Some begin alike, as questions to one system prompt do.
  if (up_to(1) == 0) request.prompt = shared_prompt(up_to(2), up_to(50));
  const int own = 1 + up_to(up_to(3) == 0 && request.prompt.empty() ? 60 : 8);
  for (int i = 0; i < own; ++i) request.prompt.push_back(up_to(test::fake_vocab - 1));
  request.client = std::string(static_cast<std::size_t>(up_to(2)), 'c');
  request.user = std::string(static_cast<std::size_t>(up_to(1)), 'u');
  if (up_to(7) == 0) request.cache_salt = "salt";
  request.max_tokens = up_to(5) == 0 ? 0 : up_to(30);
  request.sampling.seed = random();
  if (up_to(1) == 0) request.stop_token_ids = {up_to(test::fake_vocab - 1), 3};
  request.logprobs = up_to(2) - 1;
  request.prompt_logprobs = up_to(2) == 0;
  return request;
}

void expect_outcome(const Outcome& outcome, const GenerationRequest& request, int max_model_len) {
  const test::Expected expected = test::expected_of(request, max_model_len);
  if (outcome.finish == FinishReason::cancelled) {  // a beginning of it
    ASSERT_LE(outcome.tokens.size(), expected.tokens.size());
    EXPECT_TRUE(std::equal(outcome.tokens.begin(), outcome.tokens.end(), expected.tokens.begin()));
    return;
  }
  EXPECT_EQ(outcome.tokens, expected.tokens);
  EXPECT_EQ(outcome.finish, expected.finish);
  EXPECT_EQ(outcome.prompt_events, expected.prompt.empty() ? 0 : 1);
  ASSERT_EQ(outcome.prompt.size(), expected.prompt.size());
  for (std::size_t i = 0; i < expected.prompt.size(); ++i) {
    EXPECT_EQ(outcome.prompt[i].token, expected.prompt[i].token);
    EXPECT_EQ(outcome.prompt[i].logprob, expected.prompt[i].logprob);
  }
  EXPECT_EQ(outcome.logprobs.size(), request.logprobs >= 0 ? expected.tokens.size() : 0);
}

struct RankShape {
  int ranks;
  bool tensor_parallel;
};
class SchedulerInCompany : public testing::TestWithParam<RankShape> {};

/// Random requests come, go and are cancelled at any moment, with fewer pages than they would like; each gets just what
/// it would get alone, no page is written to that others read, none is lost, and no budget is exceeded (FakeWorker
/// looks at every plan).
TEST_P(SchedulerInCompany, EveryRequestGetsWhatItWouldGetAlone) {
  std::uint64_t preemptions = 0, hits = 0, accepted = 0;
  for (unsigned seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    CoordinatorOptions options = options_for(GetParam().ranks, GetParam().tensor_parallel);
    options.page_tokens = 1 + static_cast<int>(random() % 8);
    options.max_model_len = random() % 4 == 0 ? 0 : 70;
    options.max_num_seqs = 1 + static_cast<int>(random() % 12);
    options.max_batched_tokens = 1 + static_cast<int>(random() % 30);
    options.max_prefill_tokens = 1 + static_cast<int>(random() % 30);
    for (int& pages : options.kv_pages) pages = 100 / options.page_tokens + static_cast<int>(random() % 60);
    ScheduledJob job(options, seed, static_cast<int>(random() % 4), seed % 3 == 0 ? 2 + seed % 4 : 0);

    std::map<std::uint64_t, GenerationRequest> requests;
    const auto disturb = [&](unsigned one_in) {
      if (random() % one_in == 0) {
        const GenerationRequest request = any_request(random);
        requests[job.submit(request)] = request;
      }
      if (!requests.empty() && random() % (8 * one_in) == 0) {
        job.cancel(std::next(requests.begin(), static_cast<std::ptrdiff_t>(random() % requests.size()))->first);
      }
    };
    for (int i = 0; i < 100; ++i) {
      disturb(1);
      job.step([&] { disturb(6); });
      EXPECT_LE(job.scheduler.kv_pages_used(), job.scheduler.kv_pages());
    }
    job.finish();
    job.step();  // tells the workers of the last ones that left

    for (const auto& [id, request] : requests) expect_outcome(job.outcomes.at(id), request, options.max_model_len);
    EXPECT_EQ(job.scheduler.kv_pages_used(), 0);
    EXPECT_EQ(job.scheduler.running() + job.scheduler.waiting(), 0);
    for (const FakeWorker& worker : job.workers) EXPECT_EQ(worker.known_sequences(), 0u);
    preemptions += job.scheduler.totals().preemptions;
    hits += job.scheduler.totals().prefix_hits;
    accepted += job.scheduler.totals().accepted;
  }
  // The test sees what it is for.
  EXPECT_GT(preemptions, 20u);
  EXPECT_GT(hits, 1000u);
  EXPECT_GT(accepted, 1000u);
}

/// The same while ranks are lost, one after the other, in the middle of steps and between them.
TEST_P(SchedulerInCompany, LosesRanksAndNoAnswers) {
  const RankShape shape = GetParam();
  std::uint64_t losses = 0, failures = 0;
  for (unsigned seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    CoordinatorOptions options = options_for(shape.ranks + 2, shape.tensor_parallel);
    options.page_tokens = 1 + static_cast<int>(random() % 8);
    options.max_model_len = 70;
    options.max_num_seqs = 1 + static_cast<int>(random() % 12);
    options.max_batched_tokens = 1 + static_cast<int>(random() % 30);
    options.max_prefill_tokens = 1 + static_cast<int>(random() % 30);
    for (int& pages : options.kv_pages) pages = 100 / options.page_tokens + static_cast<int>(random() % 60);
    ScheduledJob job(options, seed, static_cast<int>(random() % 4), seed % 3 == 0 ? 2 + seed % 4 : 0);
    std::map<std::uint64_t, GenerationRequest> requests;
    for (int i = 0; i < 100; ++i) {
      if (random() % 2 == 0) {
        const GenerationRequest request = any_request(random);
        try {
          requests[job.submit(request)] = request;
        } catch (const Error&) {  // too long by now
          ++failures;
        }
      }
      if (!requests.empty() && random() % 12 == 0)
        job.cancel(std::next(requests.begin(), static_cast<std::ptrdiff_t>(random() % requests.size()))->first);
      if (i % 50 == 20 && job.scheduler.has_work()) {  // rank 0 stays, as it coordinates
        do job.loses_next = 1 + static_cast<int>(random() % static_cast<unsigned>(options.ranks - 1));
        while (!job.ranks[static_cast<std::size_t>(job.loses_next)].left);
        ++losses;
      }
      job.step();
    }
    job.finish();
    for (const auto& [id, request] : requests) {
      const Outcome& outcome = job.outcomes.at(id);
      // Where the largest cache has become too small, the answer ends with it, or with the loss.
      const std::size_t length = request.prompt.size() + outcome.tokens.size();
      const bool cut = outcome.finish == FinishReason::length && length > job.least_room &&
                       outcome.tokens.size() < test::expected_of(request, options.max_model_len).tokens.size();
      if (outcome.finish == FinishReason::failed || cut)
        ++failures;
      else
        expect_outcome(outcome, request, options.max_model_len);
    }
    EXPECT_EQ(job.scheduler.kv_pages_used(), 0);
    EXPECT_EQ(job.scheduler.running() + job.scheduler.waiting(), 0);
  }
  EXPECT_GT(losses, 50u);
  EXPECT_LT(failures, 100u);
}

INSTANTIATE_TEST_SUITE_P(Shapes, SchedulerInCompany,
                         testing::Values(RankShape{1, false}, RankShape{2, false}, RankShape{3, false},
                                         RankShape{1, true}, RankShape{2, true}, RankShape{3, true}),
                         [](const auto& shape) {
                           return (shape.param.tensor_parallel ? "Tensor" : "Data") + std::to_string(shape.param.ranks);
                         });

TEST(Scheduler, DecodesFirstThenPromptsInOrder) {
  ScheduledJob job(options_for(1));  // 16 tokens a step
  job.submit(request_of(3, 9));
  job.step();
  job.submit(request_of(20, 2));
  GenerationRequest last = request_of(10, 2);
  last.cache_salt = "shares nothing";
  job.submit(last);
  job.step();
  const auto shape = [&] {
    std::vector<std::array<int, 4>> all;  // sequence, position, tokens, sample
    for (const SequenceChunk& chunk : job.plans[0].chunks) {
      all.push_back({static_cast<int>(chunk.sequence), chunk.position, static_cast<int>(chunk.tokens.size()),
                     static_cast<int>(chunk.sample)});
    }
    return all;
  };
  using Chunks = std::vector<std::array<int, 4>>;
  EXPECT_EQ(shape(), (Chunks{{1, 3, 1, 1}, {2, 0, 15, 0}}));
  EXPECT_EQ(job.plans[0].chunks[1].next_token, 15 % 7);
  job.step();
  EXPECT_EQ(shape(), (Chunks{{1, 4, 1, 1}, {2, 15, 5, 1}, {3, 0, 10, 1}}));
  EXPECT_EQ(job.plans[0].chunks[2].next_token, -1);
  EXPECT_EQ(job.scheduler.running(), 3);
}

TEST(Scheduler, NewSequencesGoToTheRankWithMostFreePages) {
  CoordinatorOptions options = options_for(3);
  options.kv_pages = {20, 30, 20};
  ScheduledJob job(options);
  const auto ranks_of_starts = [&] {
    std::vector<std::size_t> counts;
    for (const StepPlan& plan : job.plans) counts.push_back(plan.start.size());
    return counts;
  };
  using Counts = std::vector<std::size_t>;
  job.submit(request_of(4, 37));  // ten pages
  job.step();
  EXPECT_EQ(ranks_of_starts(), (Counts{0, 1, 0}));
  job.submit(request_of(4, 1));  // all have 20: the idle ones first, then the lower one
  job.step();
  EXPECT_EQ(ranks_of_starts(), (Counts{1, 0, 0}));
  job.submit(request_of(4, 1));
  job.step();
  EXPECT_EQ(ranks_of_starts(), (Counts{1, 0, 0})) << "the former one has ended";
  for (int i = 0; i < 4; ++i) job.submit(request_of(4, 20));
  job.step();
  EXPECT_EQ(ranks_of_starts(), (Counts{2, 1, 1})) << "ranks 0, 2, 1 in turn, then 0 again, which runs fewer than 1";
}

TEST(Scheduler, TheLastTokenNeedsNoSlot) {
  CoordinatorOptions options = options_for(1);
  options.kv_pages = {2};  // 8 slots
  ScheduledJob job(options);
  EXPECT_THROW(job.submit(request_of(9, 0)), Error);
  EXPECT_THROW(job.submit(request_of(9, 1)), Error);
  job.submit(request_of(5, 5));  // an answer ends where the room does
  job.submit(request_of(8, 0));
  job.submit(request_of(8, 1));
  job.finish();
  EXPECT_EQ(job.outcomes.at(1).tokens.size(), 4u);
  EXPECT_EQ(job.outcomes.at(3).tokens.size(), 1u);
  for (const auto& [id, outcome] : job.outcomes) EXPECT_EQ(outcome.finish, FinishReason::length);
}

TEST(Scheduler, AnswersGetShorterWithTheRoomThatRanksLeave) {
  CoordinatorOptions options = options_for(2);
  options.kv_pages = {25, 5};
  ScheduledJob job(options);
  job.ranks[0].left = false;
  job.ranks[0].kv_pages = 0;
  job.scheduler.regroup(job.ranks);
  job.submit(request_of(10, 90));
  EXPECT_THROW(job.submit(request_of(21, 1)), Error);
  const auto plans = job.scheduler.plan();
  EXPECT_TRUE(plans[0].chunks.empty());
  EXPECT_EQ(plans[1].chunks.at(0).tokens.size(), 10u);
}

/// Nothing of its cache is kept for others, who go on.
TEST(Scheduler, ASequenceThatOverflowsFailsAlone) {
  Scheduler scheduler(options_for(1));
  scheduler.submit(1, request_of(4, 4));
  scheduler.submit(2, request_of(5, 4));
  scheduler.plan();
  StepResult result{.step = 1, .outputs = {{.sequence = 1, .overflowed = true}, {.sequence = 2, .tokens = {5}}}};
  const auto events = scheduler.apply(0, result);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].event.finish, FinishReason::failed);
  EXPECT_NE(events[0].event.error.find("overflowed"), std::string::npos);
  EXPECT_EQ(events[1].event.token, 5);
  EXPECT_EQ(scheduler.running(), 1);
  scheduler.submit(3, request_of(4, 4));
  EXPECT_EQ(scheduler.plan()[0].finish, std::vector<std::uint64_t>{1});
  EXPECT_EQ(scheduler.totals().prefix_hits, 0u);
}

TEST(Scheduler, RefusesWhatCanNeverRun) {
  Scheduler scheduler(options_for(1));
  EXPECT_THROW(scheduler.check(request_of(0, 1)), Error);
  EXPECT_THROW(scheduler.check(request_of(1, -1)), Error);
  EXPECT_THROW(scheduler.check(request_of(101, 0)), Error);
  EXPECT_THROW(scheduler.check(request_of(100, 1)), Error);
  EXPECT_NO_THROW(scheduler.check(request_of(100, 0)));
  EXPECT_NO_THROW(scheduler.check(request_of(99, std::numeric_limits<int>::max())));
  scheduler.submit(7, request_of(1, 1));
  EXPECT_THROW(scheduler.submit(7, request_of(1, 1)), Error);
}

TEST(Scheduler, RefusesOptionsThatMakeNoSense) {
  const auto refused = [](auto change) {
    CoordinatorOptions options = options_for(2);
    change(options);
    EXPECT_THROW(Scheduler{options}, Error);
  };
  refused([](auto& o) { o.ranks = 0; });
  refused([](auto& o) { o.kv_pages.pop_back(); });
  refused([](auto& o) { o.kv_pages[1] = -1; });
  refused([](auto& o) { o.page_tokens = 0; });
  refused([](auto& o) { o.max_batched_tokens = 0; });
  refused([](auto& o) { o.max_prefill_tokens = 0; });
  refused([](auto& o) { o.max_num_seqs = 0; });
}

TEST(Scheduler, EndsAtTheModelsLength) {
  ScheduledJob job(options_for(1));
  GenerationRequest request = request_of(90, 1000);
  job.submit(request);
  job.finish();
  EXPECT_EQ(job.outcomes.at(1).tokens.size(), 10u);
  EXPECT_EQ(job.outcomes.at(1).finish, FinishReason::length);
}

TEST(Scheduler, AStopTokenIsReportedAndWinsOverLength) {
  GenerationRequest request = request_of(5, 8);
  const auto answer = test::expected_of(request, 100).tokens;
  request.stop_token_ids = {answer[7]};
  request.max_tokens = static_cast<int>(std::find(answer.begin(), answer.end(), answer[7]) - answer.begin()) + 1;
  ScheduledJob job(options_for(1));
  job.submit(request);
  job.finish();
  EXPECT_EQ(job.outcomes.at(1).tokens.back(), answer[7]);
  EXPECT_EQ(job.outcomes.at(1).finish, FinishReason::stop);
}

TEST(Scheduler, ScoresAPromptAcrossChunks) {
  CoordinatorOptions options = options_for(1);
  for (const int tokens : {1, 2, 15, 16, 17, 33}) {
    for (const int answer : {0, 3}) {
      ScheduledJob job(options);
      GenerationRequest request = request_of(tokens, answer);
      request.prompt_logprobs = true;
      job.submit(request);
      job.finish();
      expect_outcome(job.outcomes.at(1), request, 100);
    }
  }
}

TEST(Scheduler, ALargeRequestIsNotOvertakenForEver) {
  CoordinatorOptions options = options_for(1);
  options.max_num_seqs = 100;
  options.max_batched_tokens = 100;
  ScheduledJob job(options);
  for (int i = 0; i < 10; ++i) job.submit(request_of(8, 9 + i));  // four pages or more each: the cache is full
  job.step();
  const auto large = job.submit(request_of(90, 10));
  int steps = 0;
  while (job.outcomes.at(large).finish == FinishReason::none && steps++ < 200) {
    job.submit(request_of(8, 9));  // would fit again and again
    job.step();
  }
  EXPECT_LT(steps, 40);
}

TEST(Scheduler, CancelFreesPagesOnlyWhenTheStepIsOver) {
  ScheduledJob job(options_for(2));
  const auto one = job.submit(request_of(8, 20));
  job.step();
  std::int64_t used = 0;
  int calls = 0;
  job.step([&] {
    if (calls++ == 0) {
      used = job.scheduler.kv_pages_used();
      job.cancel(one);
    }
    EXPECT_EQ(job.outcomes.at(one).finish, FinishReason::cancelled);
    EXPECT_EQ(job.scheduler.kv_pages_used(), used);
  });
  EXPECT_EQ(job.scheduler.kv_pages_used(), 0);
  EXPECT_EQ(job.outcomes.at(one).tokens.size(), 1u);

  const auto two = job.submit(request_of(8, 20));
  job.step();
  job.cancel(two);  // between steps: at once
  EXPECT_EQ(job.scheduler.kv_pages_used(), 0);
  EXPECT_FALSE(job.scheduler.has_work());
  const auto three = job.submit(request_of(8, 20));
  job.cancel(three);  // never ran
  job.cancel(three);
  job.cancel(12345);
  EXPECT_EQ(job.outcomes.at(three).finish, FinishReason::cancelled);
  EXPECT_FALSE(job.scheduler.has_work());
}

TEST(Scheduler, RefusesAnswersToOtherQuestions) {
  const auto refuses = [](auto spoil) {
    Scheduler scheduler(options_for(2));
    scheduler.submit(1, request_of(3, 4));
    scheduler.submit(2, request_of(3, 4));
    scheduler.plan();
    StepResult result{.step = 1, .outputs = {{1, {5}, {}, {}, {}}}, .expert_tokens = {}};
    int rank = 0;
    spoil(result, rank, scheduler);
    EXPECT_THROW(scheduler.apply(rank, result), Error);
  };
  refuses([](auto& result, int&, auto&) { result.step = 2; });
  refuses([](auto&, int& rank, auto&) { rank = 1; });  // sequence 1 lives on rank 0
  refuses([](auto&, int& rank, auto&) { rank = 2; });
  refuses([](auto&, int& rank, auto&) { rank = -1; });
  refuses([](auto& result, int&, auto& scheduler) { scheduler.apply(0, result); });  // twice
  refuses([](auto& result, int&, auto&) { result.outputs.clear(); });
  refuses([](auto& result, int&, auto&) { result.outputs[0].tokens.clear(); });
  refuses([](auto& result, int&, auto&) { result.outputs[0].tokens = {5, 6}; });
  refuses([](auto& result, int&, auto&) { result.outputs[0].sequence = 9; });
  refuses([](auto& result, int&, auto&) { result.outputs[0].scored.resize(1); });
  refuses([](auto& result, int&, auto&) { result.outputs.push_back(result.outputs[0]); });
  Scheduler scheduler(options_for(1));
  EXPECT_THROW(scheduler.apply(0, {}), Error);
  scheduler.plan();
  EXPECT_THROW(scheduler.plan(), Error);
}

TEST(Scheduler, ClearForgetsEverythingAndStartsAfresh) {
  Scheduler scheduler(options_for(2));
  for (std::uint64_t id = 1; id <= 30; ++id) scheduler.submit(id, request_of(9, 9));
  scheduler.plan();
  EXPECT_GT(scheduler.running(), 0);
  EXPECT_GT(scheduler.waiting(), 0);
  scheduler.clear();
  EXPECT_FALSE(scheduler.has_work());
  EXPECT_FALSE(scheduler.step_in_flight());
  EXPECT_EQ(scheduler.kv_pages_used() + scheduler.running() + scheduler.waiting(), 0);
  scheduler.submit(1, request_of(9, 9));
  EXPECT_EQ(scheduler.plan()[0].start.size(), 1u);
}

TEST(Scheduler, CountsTokens) {
  ScheduledJob job(options_for(2));
  job.submit(request_of(20, 3));
  job.submit(request_of(5, 0));
  job.finish();
  EXPECT_EQ(job.scheduler.totals().prompt_tokens, 25u);
  EXPECT_EQ(job.scheduler.totals().generated_tokens, 3u);
  EXPECT_EQ(job.scheduler.totals().steps, 4u);
}

TEST(Scheduler, ASharedBeginningIsComputedOnce) {
  ScheduledJob job(options_for(1));  // pages of 4 tokens
  GenerationRequest first = request_of(21, 6), second = first;
  job.submit(first);
  job.finish();
  second.prompt.push_back(3);
  job.submit(second);
  job.step();
  ASSERT_EQ(job.plans[0].chunks.size(), 1u);
  EXPECT_EQ(job.plans[0].chunks[0].position, 20);
  EXPECT_EQ(job.plans[0].chunks[0].tokens.size(), 2u);
  EXPECT_EQ(job.plans[0].chunks[0].pages.size(), 6u);
  job.finish();
  EXPECT_EQ(job.outcomes.at(2).cached_tokens, 20);
  EXPECT_EQ(job.scheduler.totals().prefix_queries, 43u);
  EXPECT_EQ(job.scheduler.totals().prefix_hits, 20u);

  // An answer is a beginning too: the next turn of a conversation.
  GenerationRequest turn = first;
  turn.prompt.insert(turn.prompt.end(), job.outcomes.at(1).tokens.begin(), job.outcomes.at(1).tokens.end());
  turn.prompt.push_back(5);
  job.submit(turn);
  job.finish();
  EXPECT_EQ(job.outcomes.at(3).cached_tokens, 24) << "26 tokens are in the cache: 27 less the last, never computed";

  // With another salt nothing is shared; the whole prompt again leaves its last token to compute.
  first.cache_salt = second.cache_salt = "another tenant";
  second.prompt.resize(20);
  job.submit(first);
  job.finish();
  EXPECT_EQ(job.outcomes.at(4).cached_tokens, 0);
  job.submit(second);
  job.finish();
  EXPECT_EQ(job.outcomes.at(5).cached_tokens, 16);
  for (const auto& [id, request] : {std::pair(2, second), std::pair(3, turn), std::pair(4, first)}) {
    if (id != 2) expect_outcome(job.outcomes.at(static_cast<std::uint64_t>(id)), request, 100);
  }
}

TEST(Scheduler, RunningSequencesShareAndCatchUp) {
  CoordinatorOptions options = options_for(1);
  options.kv_pages = {200};
  options.max_prefill_tokens = 16;
  ScheduledJob job(options);
  // Eight users with one system prompt of 64 tokens come at once: only the first computes it.
  for (int user = 0; user < 8; ++user) {
    GenerationRequest request;
    request.prompt = shared_prompt(0, 64);
    request.prompt.push_back(user);
    request.max_tokens = 8;
    job.submit(request);
  }
  job.finish();
  EXPECT_EQ(job.scheduler.totals().prompt_tokens, 8u * 65u);
  EXPECT_EQ(job.scheduler.totals().prefix_hits, 7u * 64u);
}

TEST(Scheduler, SequencesGoWhereTheirBeginningIsUntilThatRankIsCrowded) {
  CoordinatorOptions options = options_for(2);
  options.kv_pages = {200, 200};
  options.max_batched_tokens = 128;
  ScheduledJob job(options);
  GenerationRequest request;
  request.prompt = shared_prompt(0, 90);
  request.max_tokens = 1;
  job.submit(request);
  job.finish();
  request.max_tokens = 9;
  std::vector<int> lanes;
  for (int user = 0; user < 6; ++user) {
    request.prompt.back() = user;
    job.submit(request);
    job.step();
    lanes.push_back(job.plans[0].start.empty() ? 1 : 0);
  }
  EXPECT_EQ(lanes, (std::vector<int>{0, 0, 0, 1, 1, 1}))
      << "88 cached tokens outweigh two sequences that run, not three; then both ranks have them";
}

TEST(Scheduler, TheYoungestLeavesForWantOfPagesAndComesBackFirst) {
  CoordinatorOptions options = options_for(1);
  options.kv_pages = {12};  // 48 tokens
  ScheduledJob job(options);
  for (int i = 0; i < 3; ++i) job.submit(request_of(8, 30));  // 10 pages each in the end
  std::vector<std::uint64_t> ends;
  std::map<std::uint64_t, int> starts;
  for (int steps = 0; job.scheduler.has_work() && steps < 500; ++steps) {
    job.step();
    for (const SequenceStart& start : job.plans[0].start) ++starts[start.sequence];
    const std::uint64_t oldest = ends.size() + 1;
    if (job.outcomes.at(oldest).finish != FinishReason::none) {
      ends.push_back(oldest);
      EXPECT_EQ(starts[1], 1) << "the oldest never leaves";
    }
  }
  EXPECT_EQ(ends, (std::vector<std::uint64_t>{1, 2, 3})) << "in the order in which they came";
  EXPECT_GT(job.scheduler.totals().preemptions, 0u);
  for (std::uint64_t id = 1; id <= 3; ++id) expect_outcome(job.outcomes.at(id), request_of(8, 30), 100);
}

TEST(Scheduler, ALongPromptDoesNotHoldUpAnswers) {
  CoordinatorOptions options = options_for(2);
  options.kv_pages = {300, 300};
  options.max_model_len = 1000;
  options.max_batched_tokens = 64;
  options.max_prefill_tokens = 8;
  ScheduledJob job(options);
  job.submit(request_of(4, 60));
  job.step();
  EXPECT_EQ(job.plans[0].chunks.at(0).tokens.size(), 4u);
  job.submit(request_of(700, 2));
  job.submit(request_of(600, 2));
  for (int i = 0; i < 59; ++i) {
    job.step();
    EXPECT_EQ(job.outcomes.at(1).tokens.size(), static_cast<std::size_t>(i + 2)) << "a token in every step";
    for (const StepPlan& plan : job.plans) {
      std::size_t tokens = 0;
      for (const SequenceChunk& chunk : plan.chunks) tokens += chunk.tokens.size() * (chunk.sequence != 1);
      EXPECT_LE(tokens, 8u) << "on any rank";
    }
  }
  job.step();  // nobody is being answered
  std::size_t tokens = 0;
  for (const StepPlan& plan : job.plans) tokens += plan.chunks.at(0).tokens.size();
  EXPECT_EQ(tokens, 128u);
}

/// One client floods the queue; others ask one thing after the other. These wait for a request in front of them at
/// most.
TEST(Scheduler, AFloodOfOneClientDoesNotDelayAnother) {
  CoordinatorOptions options = options_for(1);
  options.max_num_seqs = 2;
  ScheduledJob job(options);
  const auto from = [](const char* client, int prompt, int answer) {
    GenerationRequest request = request_of(prompt, answer);
    request.client = client;
    return request;
  };
  for (int i = 0; i < 100; ++i) job.submit(from("flood", 10, 10));
  for (int i = 0; i < 5; ++i) job.step();
  for (int i = 0; i < 10; ++i) {
    const auto id = job.submit(from("other", 10, 10));
    int steps = 0;
    while (job.outcomes.at(id).finish == FinishReason::none && steps++ < 100) job.step();
    EXPECT_LE(steps, 11 + 11) << "the longest that runs, then itself";
  }
}

/// Two clients that always have work get the same amount of it, whatever the sizes of their requests and however many
/// users they name.
TEST(Scheduler, BusyClientsGetEqualShares) {
  CoordinatorOptions options = options_for(1);
  options.max_num_seqs = 2;
  ScheduledJob job(options);
  std::map<std::string, std::int64_t> work;
  std::map<std::uint64_t, std::string> client_of;
  Random random(4);
  for (int steps = 0; steps < 3000; ++steps) {
    std::map<std::string, int> open;
    for (const auto& [id, client] : client_of) open[client] += job.outcomes.at(id).finish == FinishReason::none;
    for (const char* client : {"long", "short"}) {
      for (; open[client] < 5; ++open[client]) {
        GenerationRequest request = *client == 'l' ? request_of(60, 30) : request_of(3, 5);
        request.cache_salt = std::to_string(random());
        request.client = client;
        if (*client == 's') request.user = request.cache_salt;
        client_of[job.submit(request)] = client;
      }
    }
    job.step();
    for (const SequenceChunk& chunk : job.plans[0].chunks) {
      work[client_of.at(chunk.sequence)] += static_cast<std::int64_t>(chunk.tokens.size());
    }
  }
  EXPECT_LT(std::abs(work["long"] - work["short"]), 100) << "about one long request";
  EXPECT_GT(work["long"], 3000);
}

/// However many newcomers there are, each a client of its own, who came before gets on.
TEST(Scheduler, NewcomersWithoutEndStarveNobody) {
  CoordinatorOptions options = options_for(1);
  options.max_num_seqs = 1;
  ScheduledJob job(options);
  GenerationRequest request = request_of(60, 5);
  request.client = "old";
  job.submit(request);
  const auto second = job.submit(request);
  int steps = 0;
  while (job.outcomes.at(second).finish == FinishReason::none && steps++ < 2000) {
    GenerationRequest newcomer = request_of(10, 5);
    newcomer.client = "new" + std::to_string(steps);
    if (steps % 4 == 0) job.submit(newcomer);
    job.step();
  }
  EXPECT_LT(steps, 1000);
}

/// Where one page is left, it is the younger one's that needs it, not the older one's that would guess into it.
TEST(Scheduler, GuessesTakeNobodysPage) {
  for (const int pages : {4, 5}) {
    CoordinatorOptions options = options_for(1);
    options.kv_pages = {pages};  // of 4 tokens
    Scheduler scheduler(options);
    scheduler.submit(1, request_of(7, 9));
    scheduler.submit(2, request_of(4, 9));
    ASSERT_EQ(scheduler.plan()[0].chunks.size(), 2u);
    scheduler.apply(0, {.step = 1, .outputs = {{1, {5}, {}, {6}, {}}, {2, {5}, {}, {}, {}}}, .expert_tokens = {}});
    const StepPlan plan = scheduler.plan()[0];
    ASSERT_EQ(plan.chunks.size(), 2u);
    EXPECT_EQ(plan.chunks[0].drafts, pages - 4);
    EXPECT_EQ(plan.chunks[1].pages.size(), 1u);
    EXPECT_EQ(scheduler.totals().preemptions, 0u);
  }
}

/// A token that takes a rank longer comes later and is the same; meanwhile others get theirs.
TEST(Scheduler, LateTokensHoldUpNobodyElse) {
  for (const int drafts : {0, 2}) {
    ScheduledJob job(options_for(2), 1, drafts, 2);
    for (int i = 0; i < 4; ++i) job.submit(request_of(5 + i, 20));
    job.finish();
    for (int i = 0; i < 4; ++i)
      expect_outcome(job.outcomes.at(static_cast<std::uint64_t>(i) + 1), request_of(5 + i, 20), 100);
    EXPECT_GT(job.scheduler.totals().steps, drafts > 0 ? 15u : 25u);
    EXPECT_LT(job.scheduler.totals().steps, 70u);
  }
}

/// Guesses change how fast answers come, never what they are; those that cannot be used are not made.
TEST(Scheduler, GuessesSaveSteps) {
  CoordinatorOptions options = options_for(1);
  std::map<int, std::uint64_t> steps;
  for (const int drafts : {0, 1, 3}) {
    ScheduledJob job(options, 1, drafts);
    job.submit(request_of(10, 60));
    job.finish();
    expect_outcome(job.outcomes.at(1), request_of(10, 60), 100);
    const Scheduler::Totals& totals = job.scheduler.totals();
    steps[drafts] = totals.steps;
    EXPECT_EQ(totals.steps + totals.accepted, 60u);
    EXPECT_LE(totals.accepted, totals.drafted);
  }
  EXPECT_LT(steps[1], steps[0]);
  EXPECT_LT(steps[3], steps[1]);
}

}  // namespace
}  // namespace shoal
