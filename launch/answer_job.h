#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/api_error.h"
#include "launch/generation.h"
#include "launch/http_exchange.h"

namespace shoal {

struct Usage {
  int prompt_tokens = 0, completion_tokens = 0, reasoning_tokens = 0;
  int cached_tokens = 0;  // of the prompt's, which the prefix cache had
};
nlohmann::ordered_json to_json(const Usage& usage, bool with_reasoning);

/// "stop" or "length"; null while it goes on.
nlohmann::ordered_json to_json(FinishReason finish);

/// "cmpl-" and 24 random hexadecimal digits.
std::string new_id(const std::string& prefix);

/// One API request and the generations that answer it: starts them all, hands on what they give, cancels them when the
/// client goes, and turns a failure of any into an error for the client.
class AnswerJob : public std::enable_shared_from_this<AnswerJob> {
 public:
  using Json = nlohmann::ordered_json;
  struct Part {
    GenerationRequest request;
    AnswerOptions options;
  };

  /// How a stream is written: server-sent events that end with [DONE], as OpenAI does, or a JSON object a line, as
  /// Ollama does.
  enum class Framing { sse, lines };

  AnswerJob(Responder responder, bool stream, Framing framing = Framing::sse)
      : responder_(std::move(responder)), stream_(stream), framing_(framing) {}
  virtual ~AnswerJob() = default;

  /// Throws ApiError (400, 429, 503) when it cannot begin; nothing was sent then. Parts are made one after the other,
  /// so that of too many there are never more than are taken.
  void start(GenerationService& service, std::size_t parts, const std::function<Part(std::size_t)>& part);

 protected:
  // These are called one at a time.
  /// A stream was opened: what comes before any token.
  virtual void opened() {}
  virtual void grew(std::size_t part, const AnswerDelta& delta, const AnswerStream& answer) = 0;
  /// All parts have ended well: send the response, or the end of the stream's data.
  virtual void completed() = 0;

  void send_event(const Json& chunk);
  void send_json(const Json& response) { responder_.send(200, "application/json", to_text(response)); }
  bool streaming() const { return stream_; }
  /// The error as this API writes it.
  virtual Json error_json(const ApiError& error) const { return error_object(error); }

 private:
  void take(std::size_t part, const AnswerDelta& delta, const AnswerStream& answer);
  void give_up(const AnswerDelta& delta);
  void cancel_all() const;

  Responder responder_;
  const bool stream_;
  const Framing framing_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<Generation>> generations_;
  std::size_t open_ = 0;
  bool over_ = false;
};

}  // namespace shoal
