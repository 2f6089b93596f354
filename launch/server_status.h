#pragma once
#include <condition_variable>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "launch/request_metrics.h"
#include "runtime/job.h"

namespace shoal {

/// What an operator wants to know, for /metrics and /status.json.
class ServerStatus {
 public:
  /// Both must live longer.
  ServerStatus(const Engine& engine, const RequestMetrics& requests);
  ~ServerStatus();

  /// Prometheus' text format. Metrics that vLLM has too are named as there, with `shoal:` for `vllm:`
  /// (launch/grafana/README.md lists them).
  std::string metrics() const;
  nlohmann::ordered_json json() const;
  /// Ranks were lost, and requests wait until the others go on without them.
  bool recovering() const;

 private:
  /// A moment of the last minutes.
  struct Sample {
    std::int64_t time = 0;  // Unix, s
    double prompt_tokens_per_s = 0, tokens_per_s = 0;
    int running = 0, waiting = 0;
    double kv_usage = 0;
  };
  void watch();

  const Engine& engine_;
  const RequestMetrics& requests_;
  mutable std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::deque<Sample> history_;
  std::thread thread_;
};

}  // namespace shoal
