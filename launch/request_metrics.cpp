#include "launch/request_metrics.h"

#include <algorithm>

namespace shoal {
namespace {

// vLLM's bounds (vllm/v1/metrics/loggers.py), so that dashboards made for it fit.
std::vector<double> first_token_bounds() {
  return {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,  0.25,  0.5,   0.75,
          1.0,   2.5,   5.0,  7.5,  10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0};
}
std::vector<double> per_token_bounds() {
  return {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1,  0.15, 0.2,  0.3,
          0.4,   0.5,    0.75,  1.0,  2.5,   5.0,  7.5,   10.0, 20.0, 40.0, 80.0};
}
std::vector<double> latency_bounds() {
  return {0.1,  0.3,  0.5,  0.8,  1.0,  1.5,   2.0,   2.5,   5.0,   10.0,   15.0,
          20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0};
}
std::vector<double> token_bounds() {
  return {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};
}

double in_seconds(RequestMetrics::Clock::duration time) { return std::chrono::duration<double>(time).count(); }

const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::failed:
      return "error";
    default:
      return "abort";
  }
}

void blend(double& mean, double value) { mean = mean == 0 ? value : mean + (value - mean) / 16; }

}  // namespace

RequestMetrics::RequestMetrics()
    : ttft_(first_token_bounds()),
      inter_token_(per_token_bounds()),
      time_per_token_(per_token_bounds()),
      latency_(latency_bounds()),
      queue_(latency_bounds()),
      prefill_(latency_bounds()),
      decode_(latency_bounds()),
      inference_(latency_bounds()),
      prompt_tokens_(token_bounds()),
      generation_tokens_(token_bounds()) {
  for (const char* reason : {"stop", "length", "abort", "error"}) finished_[reason] = 0;
}

void RequestMetrics::token(Request& request) {
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  if (++request.tokens == 1) {
    request.first = now;
    ttft_.observe(in_seconds(now - request.begin));
    blend(totals_.ttft_s, in_seconds(now - request.begin));
  } else {
    inter_token_.observe(in_seconds(now - request.last));
    blend(totals_.inter_token_s, in_seconds(now - request.last));
  }
  request.last = now;
}

void RequestMetrics::finished(const Request& request, FinishReason reason) {
  const std::lock_guard lock(mutex_);
  ++finished_[name_of(reason)];
  ++totals_.requests;
  latency_.observe(in_seconds(Clock::now() - request.begin));
  if (request.queue_s >= 0) queue_.observe(request.queue_s);
  if (request.queue_s >= 0 && request.tokens > 0) {
    // What is not waiting is work, so the three parts add up to the time of the last token.
    prefill_.observe(std::max(0.0, in_seconds(request.first - request.begin) - request.queue_s));
    decode_.observe(in_seconds(request.last - request.first));
    inference_.observe(std::max(0.0, in_seconds(request.last - request.begin) - request.queue_s));
  }
  prompt_tokens_.observe(request.prompt_tokens);
  generation_tokens_.observe(request.tokens);
  if (request.tokens > 1) time_per_token_.observe(in_seconds(request.last - request.first) / (request.tokens - 1));
}

void RequestMetrics::write(PrometheusText& text, const std::string& prefix) const {
  const std::lock_guard lock(mutex_);
  const auto write_one = [&](const char* name, const char* help, const Histogram& histogram) {
    text.family(prefix + name, "histogram", help);
    text.sample(histogram);
  };
  write_one("time_to_first_token_seconds", "From a request's arrival to its first token.", ttft_);
  write_one("inter_token_latency_seconds", "Between two tokens of a request.", inter_token_);
  write_one("request_time_per_output_token_seconds", "A request's mean time between tokens.", time_per_token_);
  write_one("e2e_request_latency_seconds", "From a request's arrival to its end.", latency_);
  write_one("request_queue_time_seconds", "From a request's arrival to its first step.", queue_);
  write_one("request_prefill_time_seconds", "From a request's first step to its first token.", prefill_);
  write_one("request_decode_time_seconds", "From a request's first token to its last.", decode_);
  write_one("request_inference_time_seconds", "From a request's first step to its last token.", inference_);
  write_one("request_prompt_tokens", "Tokens of a request's prompt.", prompt_tokens_);
  write_one("request_generation_tokens", "Tokens of a request's answer.", generation_tokens_);
  text.family(prefix + "request_success_total", "counter", "Requests that ended, by reason.");
  for (const auto& [reason, count] : finished_) {
    text.sample(static_cast<double>(count), {{"finished_reason", reason}});
  }
}

RequestMetrics::Totals RequestMetrics::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

}  // namespace shoal
