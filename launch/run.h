#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "runtime/job.h"

namespace shoal {

/// `shoal run`: one answer, or a chat in the terminal.
struct RunOptions {
  JobOptions job;
  std::optional<std::string> prompt;  // a text; "-": from stdin; "@file": from a file; none: chat
  std::string system;
  int max_tokens = 0;  // 0: up to the context
  // None: as the model's authors recommend, or R1's.
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<int> top_k;
  std::optional<std::uint64_t> seed;
  bool json = false;
  bool raw = false;  // the prompt as it is, without the chat template
};

CLI::App* add_run(CLI::App& root, RunOptions& options);

/// Every rank calls it, with main's arguments for the launcher. Returns the exit code.
int run(const RunOptions& options, int* argc, char*** argv);

}  // namespace shoal
