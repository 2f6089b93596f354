#include "launch/run.h"

#include <fmt/format.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>

#include "collectives/mpi.h"
#include "launch/api_error.h"
#include "launch/asker.h"
#include "launch/chat.h"
#include "launch/job_options.h"
#include "launch/stop_signals.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

std::string read_all(std::istream& in) {
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// The prompt's text: "-" and "@file" stand for what is there.
std::string read_prompt(const std::string& prompt) {
  if (prompt == "-") return read_all(std::cin);
  if (prompt.empty() || prompt[0] != '@') return prompt;
  const std::string path = prompt.substr(1);
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("{}: cannot be read (a prompt that begins with @ names a file)", path);
  return read_all(file);
}

Json to_json(const Answer& answer) {
  const bool stopped = answer.finish == FinishReason::stop;
  return {{"prompt_tokens", answer.prompt_tokens},
          {"completion_tokens", answer.completion_tokens},
          {"reasoning", answer.reasoning},
          {"content", answer.content},
          {"ttft_ms", answer.ttft_ms},
          {"tokens_per_s", answer.tokens_per_s},
          {"finish_reason", stopped                                 ? "stop"
                            : answer.finish == FinishReason::length ? "length"
                                                                    : "cancelled"}};
}

int answer_once(Asker& asker, const RunOptions& options, const std::string& prompt) {
  Answer answer;
  if (options.raw || !asker.can_chat()) {
    if (!options.raw) fmt::print(stderr, "the model has no chat template: it continues the prompt as it is\n");
    answer = asker.continue_text(prompt, !options.json);
  } else {
    Json messages = Json::array();
    if (!options.system.empty()) messages.push_back({{"role", "system"}, {"content", options.system}});
    messages.push_back({{"role", "user"}, {"content", prompt}});
    answer = asker.answer(messages, !options.json);
  }
  if (options.json) {
    fmt::print("{}\n", to_text(to_json(answer)));
  } else {
    fmt::print(stderr, "[{}]\n", describe(answer));
  }
  std::fflush(stdout);
  return 0;
}

}  // namespace

CLI::App* add_run(CLI::App& root, RunOptions& options) {
  CLI::App* app = root.add_subcommand("run", "Answer a prompt, or chat in the terminal");
  app->add_option("--prompt", options.prompt,
                  "The question; '-' reads it from stdin, '@file' from a file. Without it: a chat")
      ->type_name("TEXT");
  app->add_option("--system", options.system, "System prompt")->type_name("TEXT");
  app->add_option("--max-tokens", options.max_tokens, "Longest answer, in tokens; 0: as long as the context allows")
      ->check(at_least(0));
  const auto by_default = [](const char* r1) { return fmt::format(" [default: the model's own, else {}]", r1); };
  app->add_option("--temperature", options.temperature, "0: always the most likely token" + by_default("0.6"))
      ->check(within(0, 2));
  app->add_option("--top-p", options.top_p,
                  "Sample from the most likely tokens that hold this share of probability" + by_default("0.95"))
      ->check(within(0, 1));
  app->add_option("--top-k", options.top_k, "Sample from this many most likely tokens; 0: all" + by_default("0"))
      ->check(at_least(0));
  app->add_option("--min-p", options.min_p,
                  "Sample from tokens this likely, relative to the likeliest" + by_default("0"))
      ->check(within(0, 1));
  app->add_option("--repetition-penalty", options.repetition_penalty,
                  "Above 1: tokens that prompt or answer have had are less likely" + by_default("1"))
      ->check(within(0.01, 100));
  app->add_option("--seed", options.seed, "Makes the answer repeatable [default: random]")->type_name("UINT");
  app->add_flag("--json", options.json, "Print one JSON object instead of the text")->needs("--prompt");
  app->add_flag("--raw", options.raw, "Continue the prompt as it is, without the chat template")->needs("--prompt");
  add_job_options(*app, options.job);
  return app;
}

int run(const RunOptions& options, int* argc, char*** argv) {
  // With --prompt a signal ends the program as usual, and a chat only listens on rank 0, where the terminal is.
  std::optional<StopSignals> signals;
  if (!options.prompt && read_launch_environment().rank == 0) signals.emplace();
  std::string prompt;
  SamplingDefaults sampling;
  JobOptions job = options.job;
  job.before_loading = [&] {
    if (options.prompt) prompt = read_prompt(*options.prompt);
    sampling = SamplingDefaults::of_model(job.model, {.temperature = 0.6f, .top_p = 0.95f});
  };
  return run_job(argc, argv, job, [&](Engine& engine) {
    if (!options.job.quiet && !options.json) fmt::print(stderr, "{}\n", engine.summary);
    Asker asker(engine, options, sampling);
    if (options.prompt) return answer_once(asker, options, prompt);
    if (!asker.can_chat()) fail("{} has no chat template; give a --prompt to continue", options.job.model.string());
    return chat(asker, options.system, *signals);
  });
}

}  // namespace shoal
