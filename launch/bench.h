#pragma once
#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "launch/bench_url.h"
#include "runtime/job.h"

namespace shoal {

/// `shoal bench`: how fast a model runs on the ranks of this job, with no client in between.
struct BenchOptions {
  JobOptions job;
  std::string weights = "model";  // or "random": `job.model` is a card
  std::string precision;          // of random weights; empty: what the card's checkpoint holds
  UrlLoad load;                   // with load.url a server is measured instead
  std::vector<int> concurrency;   // empty: those that are usual
  int prompt_tokens = 256;
  int output_tokens = 64;
  int repeat = 1;  // of each concurrency; the mean of the middle half is told
  bool json = false, csv = false;
};

CLI::App* add_bench(CLI::App& root, BenchOptions& options);

/// Every rank calls it. Returns the exit code.
int bench(const BenchOptions& options, int* argc, char*** argv);

}  // namespace shoal
