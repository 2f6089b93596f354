#include "launch/answer_job.h"

#include <fmt/format.h>

#include <random>

#include "launch/sse.h"

namespace shoal {

nlohmann::ordered_json to_json(const Usage& usage, bool with_reasoning) {
  nlohmann::ordered_json json = {{"prompt_tokens", usage.prompt_tokens},
                                 {"completion_tokens", usage.completion_tokens},
                                 {"total_tokens", usage.prompt_tokens + usage.completion_tokens}};
  json["prompt_tokens_details"] = {{"cached_tokens", usage.cached_tokens}};
  if (with_reasoning) json["completion_tokens_details"] = {{"reasoning_tokens", usage.reasoning_tokens}};
  return json;
}

nlohmann::ordered_json to_json(FinishReason finish) {
  if (finish == FinishReason::none) return nullptr;
  return finish == FinishReason::length ? "length" : "stop";
}

std::string new_id(const std::string& prefix) {
  static std::mutex mutex;
  static std::mt19937_64 generator{std::random_device{}()};
  const std::lock_guard lock(mutex);
  return fmt::format("{}-{:016x}{:08x}", prefix, generator(), static_cast<std::uint32_t>(generator()));
}

void AnswerJob::send_event(const Json& chunk) {
  responder_.write(framing_ == Framing::sse ? sse::event(to_text(chunk)) : to_text(chunk) + "\n");
}

void AnswerJob::start(GenerationService& service, std::size_t parts, const std::function<Part(std::size_t)>& part) {
  // Held to the end, so that nothing is handed on before the stream is open.
  const std::lock_guard lock(mutex_);
  open_ = parts;
  try {
    for (std::size_t i = 0; i < parts; ++i) {
      Part next = part(i);
      generations_.push_back(
          service.start(std::move(next.request), std::move(next.options),
                        [self = shared_from_this(), i](const AnswerDelta& delta, const AnswerStream& answer) {
                          self->take(i, delta, answer);
                        }));
    }
  } catch (const Error& error) {
    over_ = true;
    cancel_all();
    if (dynamic_cast<const Overloaded*>(&error)) {
      throw ApiError(429, error.what(), {}, "rate_limit_exceeded", {{"Retry-After", "1"}});
    }
    // The request itself was checked, so it is the server that cannot take it.
    throw ApiError(503, error.what(), {}, "service_unavailable");
  }
  if (stream_) {
    const bool sse = framing_ == Framing::sse;
    responder_.begin_stream(200, sse ? sse::content_type : "application/x-ndjson",
                            {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}, sse ? sse::keep_alive : "");
    opened();
  }
  // A copy: this job's mutex may be held where the client's going is noticed.
  responder_.on_disconnect([generations = generations_] {
    for (const auto& generation : generations) generation->cancel();
  });
}

void AnswerJob::take(std::size_t part, const AnswerDelta& delta, const AnswerStream& answer) {
  const std::lock_guard lock(mutex_);
  if (over_) return;
  if (delta.finish == FinishReason::failed || delta.finish == FinishReason::cancelled) return give_up(delta);
  grew(part, delta, answer);
  if (delta.finish == FinishReason::none || --open_ > 0) return;
  over_ = true;
  completed();
  if (!stream_) return;
  if (framing_ == Framing::sse) responder_.write(sse::done);
  responder_.end();
}

void AnswerJob::give_up(const AnswerDelta& delta) {
  over_ = true;
  cancel_all();
  const bool failed = delta.finish == FinishReason::failed;
  const ApiError error(failed ? 500 : 503,
                       failed ? delta.error : "the request was cancelled: the server is shutting down", {},
                       failed ? "internal_error" : "service_unavailable");
  if (stream_) {
    send_event(error_json(error));
    responder_.end();
  } else {
    responder_.send(error.status, "application/json", to_text(error_json(error)));
  }
}

void AnswerJob::cancel_all() const {
  for (const auto& generation : generations_) generation->cancel();
}

}  // namespace shoal
