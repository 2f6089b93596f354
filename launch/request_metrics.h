#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "launch/prometheus_text.h"
#include "runtime/coordinator.h"

namespace shoal {

/// How long requests took, from the server's point of view. Thread-safe.
class RequestMetrics {
 public:
  using Clock = std::chrono::steady_clock;

  RequestMetrics();

  /// One request's times.
  struct Request {
    Clock::time_point begin = Clock::now(), first{}, last{};
    double queue_s = -1;  // of it; negative: it was never computed
    int prompt_tokens = 0, tokens = 0;
  };
  void token(Request& request);
  void finished(const Request& request, FinishReason reason);

  /// Adds the families; `prefix` is in front of their names.
  void write(PrometheusText& text, const std::string& prefix) const;

  struct Totals {
    std::uint64_t requests = 0;
    double ttft_s = 0, inter_token_s = 0;  // means of late: each new one counts a sixteenth
  };
  Totals totals() const;

 private:
  mutable std::mutex mutex_;
  Histogram ttft_, inter_token_, time_per_token_, latency_, queue_, prefill_, decode_, inference_, prompt_tokens_,
      generation_tokens_;
  std::map<std::string, std::uint64_t> finished_;  // by reason
  Totals totals_;
};

}  // namespace shoal
