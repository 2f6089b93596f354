#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace shoal {

/// Users of a server with the OpenAI API: each sends a request, reads the streamed answer to its end, and sends the
/// next.
struct UrlLoad {
  std::string url;                                          // http://host:port, with or without /v1
  std::string model;                                        // empty: the first one that the server lists
  std::string api_key;                                      // empty: none is sent
  std::vector<int> concurrency = {1, 2, 4, 8, 16, 32, 64};  // users at once, one row each
  int prompt_tokens = 256;                                  // about: prompts are random words, no two alike
  int output_tokens = 64;                                   // at most; all of them where the server knows `ignore_eos`
  int requests_per_user = 3;
};

/// The median and the 99th percentile, ms.
struct Quantiles {
  double p50_ms = 0, p99_ms = 0;
};

/// What `users` users at once saw.
struct LoadRow {
  int users = 0, requests = 0, failed = 0;
  std::string first_error;  // why the first of these failed
  double seconds = 0;       // from the first request to the end of the last answer
  std::int64_t prompt_tokens = 0, output_tokens = 0;
  double requests_per_s = 0;
  double tokens_per_s = 0;           // generated, of all users together
  double tokens_per_s_per_user = 0;  // of one answer from request to end, in the mean of those with tokens
  Quantiles ttft;                    // from the request to the first text
  Quantiles tpot;                    // an answer's mean time between tokens
};

/// Measures one row after the other; `on_row` is told of each. Returns the model's name. Throws Error when the server
/// cannot be reached, refuses such requests, or a row's requests all fail or get no token.
std::string measure_load(const UrlLoad& load, const std::function<void(const LoadRow&)>& on_row);

/// The options of `shoal bench` that are about a server.
void add_url_options(CLI::App& app, UrlLoad& load);

/// Measures, and prints a table, JSON or CSV. Returns the exit code: 1 when a request failed.
int bench_url(const UrlLoad& load, bool as_json, bool as_csv);

}  // namespace shoal
