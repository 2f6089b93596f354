#include "launch/eval.h"

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <sstream>

#include "launch/divergence.h"
#include "launch/generation.h"
#include "launch/job_options.h"
#include "launch/report.h"
#include "launch/scored_run.h"
#include "launch/served_model.h"
#include "planner/json_fields.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kAtOnce = 64;  // requests under way

std::string contents(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf())) fail("{}: cannot be read, or is empty", path.string());
  return text.str();
}

double seconds_since(std::chrono::steady_clock::time_point begun) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
}

/// A line of --puzzles.
struct Puzzle {
  std::string task, prompt, answer;
};

/// Hands over each line of a file of JSON lines.
void for_json_lines(const std::filesystem::path& path, const std::function<void(const JsonFields&)>& use) {
  std::istringstream lines(contents(path));
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.empty()) continue;
    const auto entry = nlohmann::json::parse(line, nullptr, false);
    if (entry.is_discarded()) fail("{}:{}: is not JSON", path.string(), number);
    use(JsonFields(entry, fmt::format("{}:{}", path.string(), number)));
  }
}

std::vector<Puzzle> read_puzzles(const std::filesystem::path& path, int most_of_a_task) {
  std::vector<Puzzle> puzzles;
  std::map<std::string, int> taken;
  for_json_lines(path, [&](const JsonFields& fields) {
    Puzzle puzzle{fields.string_or("task", "all"), fields.string_or("prompt", ""), fields.string_or("answer", "")};
    if (puzzle.prompt.empty() || puzzle.answer.empty()) fields.reject("prompt", "and answer must be there");
    if (most_of_a_task == 0 || taken[puzzle.task]++ < most_of_a_task) puzzles.push_back(std::move(puzzle));
  });
  if (puzzles.empty()) fail("{}: there is no puzzle in it", path.string());
  return puzzles;
}

/// What is scored, after a prompt that is not.
struct Text {
  std::string prompt, text;
};

/// The file as one text, or the `text` of each of its JSON lines, after its `prompt` if it has one.
std::vector<Text> read_texts(const std::filesystem::path& path) {
  if (path.extension() != ".jsonl") return {{"", contents(path)}};
  std::vector<Text> texts;
  for_json_lines(path, [&](const JsonFields& fields) {
    texts.push_back({fields.string_or("prompt", ""), fields.string_or("text", "")});
    if (texts.back().text.empty()) fields.reject("text", "must be there");
  });
  return texts;
}

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  return first == text.npos ? "" : text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

/// Keeps some requests under way; each tells when it is over.
class Throttle {
 public:
  /// Starts one more; what keeps it from starting is its problem.
  void start(const std::function<void()>& request) {
    enter();
    try {
      request();
    } catch (const Error& error) {
      leave(error.what());
    }
  }
  /// From any thread. The first problem is the work's.
  void leave(const std::string& problem) {
    const std::lock_guard lock(mutex_);
    if (problem_.empty()) problem_ = problem;
    --under_way_;
    changed_.notify_all();
  }
  void wait_for_all() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return under_way_ == 0; });
    if (!problem_.empty()) throw Error(problem_);
  }

 private:
  void enter() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return under_way_ < kAtOnce; });
    ++under_way_;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  int under_way_ = 0;
  std::string problem_;
};

class Evaluation {
 public:
  Evaluation(Engine& engine, const EvalOptions& options) : engine_(engine), options_(options) {}

  Json run() {
    Json report = {{"model", engine_.model_name}};
    if (!options_.text.empty()) report["perplexity"] = perplexity();
    if (!options_.reference.empty()) report["divergence"] = divergence();
    if (!options_.puzzles.empty()) report["accuracy"] = accuracy();
    return report;
  }

 private:
  int alternatives() const {
    const int wanted = options_.top > 0 ? options_.top : 1024;
    return std::min(wanted, engine_.config.vocab_size);
  }

  /// Scores windows, some at a time, and hands them over in order.
  void score(const std::function<std::optional<ScoredWindow>()>& next, int top,
             const std::function<void(const ScoredWindow& scored, const ScoredWindow& given)>& done) {
    for (bool more = true; more;) {
      std::vector<ScoredWindow> given, scored;
      while (given.size() < kAtOnce) {
        auto window = next();
        if (!window) {
          more = false;
          break;
        }
        given.push_back(std::move(*window));
      }
      scored.resize(given.size());
      Throttle throttle;
      for (std::size_t i = 0; i < given.size(); ++i) {
        scored[i].tokens = given[i].tokens;
        scored[i].context = given[i].context;
        GenerationRequest request;
        request.prompt = given[i].tokens;
        request.max_tokens = 0;
        request.logprobs = top;
        request.prompt_logprobs = true;
        throttle.start([&] {
          engine_.coordinator->submit(std::move(request), [&throttle, &to = scored[i]](const GenerationEvent& event) {
            for (const auto& entry : event.prompt) to.scores.push_back(entry);
            if (event.finish != FinishReason::none) throttle.leave(event.error);
          });
        });
      }
      throttle.wait_for_all();
      for (std::size_t i = 0; i < given.size(); ++i) {
        auto& scores = scored[i].scores;  // of all tokens but the first
        scores.erase(scores.begin(), scores.begin() + static_cast<std::ptrdiff_t>(scored[i].context - 1));
        done(scored[i], given[i]);
      }
    }
  }

  /// Consecutive windows of each text, each begun as the tokenizer begins texts, the first with the prompt.
  std::vector<ScoredWindow> windows_of(const std::vector<Text>& texts) const {
    if (!engine_.tokenizer)
      fail("{}: the model has no tokenizer, so there is no text to score", options_.job.model.string());
    const auto begin = engine_.tokenizer->encode("", true);
    const auto length = static_cast<std::size_t>(std::min(options_.window, engine_.max_model_len));
    std::vector<ScoredWindow> windows;
    for (const Text& text : texts) {
      const auto tokens = engine_.tokenizer->encode(text.text, false);
      auto context = begin;
      const auto prompt = engine_.tokenizer->encode(text.prompt, false);
      context.insert(context.end(), prompt.begin(), prompt.end());
      for (auto at = tokens.begin(); at != tokens.end(); context = begin) {
        if (options_.max_windows > 0 && windows.size() == static_cast<std::size_t>(options_.max_windows))
          return windows;
        if (length < context.size() + 2)
          fail("--window {} is too short for {} tokens of context and two of text", length, context.size());
        const auto end = at + std::min(tokens.end() - at, static_cast<std::ptrdiff_t>(length - context.size()));
        ScoredWindow window{context, std::max<std::size_t>(context.size(), 1), {}};
        window.tokens.insert(window.tokens.end(), at, end);
        if (window.tokens.size() > window.context) windows.push_back(std::move(window));
        at = end;
      }
    }
    if (windows.empty()) fail("{}: is too short to be scored", options_.text.string());
    return windows;
  }

  Json perplexity() {
    auto windows = windows_of(read_texts(options_.text));
    std::optional<ScoredRunWriter> save;
    if (!options_.save.empty()) save.emplace(options_.save, engine_.config.vocab_size);
    std::size_t at = 0;
    const auto begun = std::chrono::steady_clock::now();
    double loss = 0;
    std::int64_t positions = 0;
    score([&]() { return at < windows.size() ? std::optional(std::move(windows[at++])) : std::nullopt; },
          save ? alternatives() : 0,
          [&](const ScoredWindow& scored, const ScoredWindow&) {
            for (const TokenLogprob& s : scored.scores) loss -= double{s.logprob};
            positions += static_cast<std::int64_t>(scored.scores.size());
            if (save) save->add(scored);
          });
    const double seconds = seconds_since(begun);
    if (save) save->finish();
    const double mean = loss / static_cast<double>(positions);
    return {{"text", options_.text.string()},
            {"tokens", positions},
            {"loss", mean},
            {"perplexity", std::exp(mean)},
            {"tokens_per_s", static_cast<double>(positions) / seconds}};
  }

  Json divergence() {
    ScoredRunReader reference(options_.reference, engine_.config.vocab_size);
    Divergence divergence;
    score([&] { return reference.next(); }, alternatives(),
          [&](const ScoredWindow& scored, const ScoredWindow& given) {
            for (std::size_t i = 0; i < given.scores.size(); ++i) divergence.add(given.scores[i], scored.scores.at(i));
          });
    const Divergence::Summary s = divergence.summary();
    return {{"reference", options_.reference.string()},
            {"tokens", s.positions},
            {"kl_mean", s.mean},
            {"kl_99", s.percentile_99},
            {"kl_max", s.max},
            {"top1_agreement", s.top1_agreement},
            {"reference_perplexity", s.reference_perplexity},
            {"perplexity", s.perplexity}};
  }

  Json accuracy() {
    const auto puzzles = read_puzzles(options_.puzzles, options_.max_puzzles);
    const ServedModel model = served_model(engine_);
    if (!model.render_chat)
      fail("{}: the model has no chat template, so puzzles cannot be put to it", options_.job.model.string());
    std::vector<std::string> answers(puzzles.size());
    std::atomic<std::int64_t> tokens = 0;
    const auto begun = std::chrono::steady_clock::now();
    {
      Throttle throttle;
      GenerationService service(generator_of(*engine_.coordinator), engine_.tokenizer);
      for (std::size_t i = 0; i < puzzles.size(); ++i) {
        const std::string prompt = prompt_of_chat(
            model, Json::array({{{"role", "user"}, {"content", puzzles[i].prompt}}}), options_.job.model);
        AnswerOptions answer;
        answer.split_reasoning = true;
        answer.starts_in_reasoning = ends_in_reasoning(prompt);
        GenerationRequest request;
        request.prompt = model.tokenizer->encode(prompt, false);
        request.max_tokens =
            std::min(options_.max_tokens, model.max_model_len - static_cast<int>(request.prompt.size()));
        request.sampling.temperature = 0;
        request.stop_token_ids = model.eos_token_ids;
        throttle.start([&] {
          service.start(std::move(request), std::move(answer),
                        [&throttle, &tokens, &to = answers[i]](const AnswerDelta& delta, const AnswerStream& stream) {
                          to += delta.content;
                          if (delta.finish != FinishReason::none) tokens += stream.completion_tokens();
                          if (delta.finish != FinishReason::none) throttle.leave(delta.error);
                        });
        });
      }
      throttle.wait_for_all();
    }
    const double seconds = seconds_since(begun);
    std::map<std::string, std::pair<int, int>> by_task;  // right, asked
    int right = 0;
    for (std::size_t i = 0; i < puzzles.size(); ++i) {
      const bool correct = trimmed(answers[i]) == puzzles[i].answer;
      by_task[puzzles[i].task].first += correct;
      ++by_task[puzzles[i].task].second;
      right += correct;
    }
    Json tasks = Json::object();
    for (const auto& [task, counts] : by_task) tasks[task] = {{"right", counts.first}, {"asked", counts.second}};
    return {{"puzzles", options_.puzzles.string()},
            {"right", right},
            {"asked", puzzles.size()},
            {"accuracy", static_cast<double>(right) / static_cast<double>(puzzles.size())},
            {"answer_tokens_per_s", static_cast<double>(tokens) / seconds},
            {"tasks", tasks}};
  }

  Engine& engine_;
  const EvalOptions& options_;
};

void print_scores(const Json& report) {
  fmt::print("{}\n", report["model"].get<std::string>());
  if (const auto it = report.find("perplexity"); it != report.end()) {
    fmt::print("\nPerplexity {:.4f} over {} tokens of {}\n", (*it)["perplexity"].get<double>(),
               (*it)["tokens"].get<std::int64_t>(), (*it)["text"].get<std::string>());
  }
  if (const auto it = report.find("divergence"); it != report.end()) {
    const Json& d = *it;
    fmt::print("\nAgainst {}, {} tokens\n", d["reference"].get<std::string>(), d["tokens"].get<std::int64_t>());
    fmt::print("  {:<28} {:>10.6f} nats\n", "KL divergence, mean", d["kl_mean"].get<double>());
    fmt::print("  {:<28} {:>10.6f}\n", "99 % of positions below", d["kl_99"].get<double>());
    fmt::print("  {:<28} {:>10.6f}\n", "largest", d["kl_max"].get<double>());
    fmt::print("  {:<28} {:>10.3f} %\n", "same likeliest token", 100 * d["top1_agreement"].get<double>());
    fmt::print("  {:<28} {:>10.4f} (reference {:.4f})\n", "perplexity", d["perplexity"].get<double>(),
               d["reference_perplexity"].get<double>());
  }
  if (const auto it = report.find("accuracy"); it != report.end()) {
    fmt::print("\nPuzzles of {}\n", (*it)["puzzles"].get<std::string>());
    const auto line = [](const std::string& task, int right, int asked) {
      fmt::print("  {:<28} {:>5} of {:<5} {:>6.1f} %\n", task, right, asked, 100.0 * right / asked);
    };
    for (const auto& [task, counts] : (*it)["tasks"].items()) line(task, counts["right"], counts["asked"]);
    line("all", (*it)["right"], (*it)["asked"]);
  }
}

/// A model may take long to read: what is wrong with other files is told meanwhile.
void check_files(const EvalOptions& options) {
  std::error_code ignored;
  for (const auto& file : {options.text, options.reference, options.puzzles})
    if (!file.empty() && (std::filesystem::is_directory(file, ignored) || !std::ifstream(file)))
      fail("{}: cannot be read", file.string());
  for (const auto& file : {options.save, options.importance}) {
    if (file.empty()) continue;
    const bool there = std::filesystem::symlink_status(file, ignored).type() != std::filesystem::file_type::not_found;
    if (!std::ofstream(file, std::ios::app)) fail("{}: cannot be written", file.string());
    if (!there) std::filesystem::remove(file, ignored);
  }
}

}  // namespace

CLI::App* add_eval(CLI::App& root, EvalOptions& options) {
  CLI::App* app = root.add_subcommand("eval", "Measure a model: perplexity, distance from a reference, puzzles solved");
  add_job_options(*app, options.job);
  app->add_option("--text", options.text,
                  "File whose perplexity is computed: a text, or JSON lines (.jsonl) with a text, and a prompt, each");
  app->add_option("--save", options.save, "With --text: file to write, which --reference of other runs reads")
      ->needs("--text");
  app->add_option(
         "--importance", options.importance,
         "With --text: file to write with the importance of each weight's columns, for quantize (and llama.cpp)")
      ->needs("--text");
  app->add_option("--reference", options.reference, "File of a run with --save to compare with");
  app->add_option("--puzzles", options.puzzles, "JSON lines with task, prompt and answer");
  app->add_option("--window", options.window, "Tokens that are scored together")->check(CLI::Range(4, 1 << 20));
  app->add_option("--max-windows", options.max_windows, "0: all of the text")->check(at_least(0));
  app->add_option("--top", options.top, "Likeliest tokens compared at each position; 0: all, up to 1024")
      ->check(at_least(0));
  app->add_option("--max-puzzles", options.max_puzzles, "Of each task; 0: all")->check(at_least(0));
  app->add_option("--max-tokens", options.max_tokens, "Of an answer to a puzzle")->check(at_least(1));
  app->add_flag("--json", options.json, "Print JSON");
  return app;
}

int eval(const EvalOptions& options, int* argc, char*** argv) {
  if (options.text.empty() && options.reference.empty() && options.puzzles.empty()) {
    throw Error("eval: give --text, --reference or --puzzles", ExitCode::usage);
  }
  JobOptions job = options.job;
  job.before_loading = [&] { check_files(options); };
  std::uint32_t windows = 0;  // on rank 0
  if (!options.importance.empty()) {
    job.rebalance_steps = 0;  // what is recorded belongs to an expert where it was at the start
    job.on_importance = [&](const Importance& importance) {
      if (windows > 0)
        importance.write(options.importance, options.text.string(), windows,
                         static_cast<std::uint32_t>(options.window));
    };
  }
  return run_job(argc, argv, job, [&](Engine& engine) {
    const Json report = Evaluation(engine, options).run();
    if (report.contains("perplexity")) {
      const auto tokens = report["perplexity"]["tokens"].get<std::uint64_t>(), window = std::uint64_t(options.window);
      windows = static_cast<std::uint32_t>((tokens + window - 1) / window);
    }
    print_report(report, options.json, print_scores);
    return 0;
  });
}

}  // namespace shoal
