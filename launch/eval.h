#pragma once
#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>

#include "runtime/job.h"

namespace shoal {

/// `shoal eval`: how good a model is, and how far a quantized one is from its original.
struct EvalOptions {
  JobOptions job;
  std::filesystem::path text;        // perplexity of this file
  std::filesystem::path save;        // what the model says of it, for --reference
  std::filesystem::path reference;   // KL divergence from such a file, on its text
  std::filesystem::path importance;  // file to write: how much each weight's inputs count on the text
  std::filesystem::path puzzles;     // JSON lines with task, prompt, answer
  int window = 512;                  // tokens that are scored together
  int max_windows = 0;               // 0: all
  int top = 0;                       // alternatives kept for each position; 0: the vocabulary, up to 1024
  int max_puzzles = 0;               // of each task; 0: all
  int max_tokens = 1024;             // of an answer
  bool json = false;
};

CLI::App* add_eval(CLI::App& root, EvalOptions& options);

/// Every rank calls it. Returns the exit code.
int eval(const EvalOptions& options, int* argc, char*** argv);

}  // namespace shoal
