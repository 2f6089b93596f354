#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// A request, and the way back to whoever sent it.
namespace shoal {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string id;      // from X-Request-Id, or made up; the response has it too
  std::string client;  // its address
  std::string method;  // "GET"
  std::string path;    // without the query; percent-encoded, as it came
  std::string query;   // what is behind '?'
  HttpHeaders headers;
  std::string body;

  /// The first header of this name, in any case; empty without one.
  std::string_view header(std::string_view name) const;
};

/// As names of headers and schemes of authorization are compared.
bool equal_ignoring_case(std::string_view a, std::string_view b);

/// "%2F" → "/"; what is no valid escape stays as it is.
std::string percent_decode(std::string_view text);

class HttpExchange;

/// The way back to a client: either one response (send), or a stream (begin_stream, write ..., end). A handle: copies
/// answer the same request. Thread-safe; nothing here waits for the network. If the last copy goes without an answer,
/// the client gets status 500, or a stream that breaks off.
class Responder {
 public:
  explicit Responder(const std::shared_ptr<HttpExchange>& exchange);

  void send(int status, std::string content_type, std::string body, HttpHeaders headers = {}) const;
  /// `keep_alive`: what is sent whenever nothing was for a while, so that nobody in between takes the stream for dead.
  void begin_stream(int status, std::string content_type, HttpHeaders headers = {}, std::string keep_alive = {}) const;
  /// False when nobody reads any more: the client is gone, or so slow that it was dropped.
  bool write(std::string_view chunk) const;
  void end() const;
  /// Called once, from a thread of the server, when the client goes before its answer is complete; at once if it has
  /// gone already.
  void on_disconnect(std::function<void()> callback) const;

 private:
  std::shared_ptr<HttpExchange> exchange_;  // counts Responders alone: the last one's end is noticed
};

/// What Responders and the connection share of one request: the connection's side of it.
class HttpExchange {
 public:
  /// What comes before an answer's body.
  struct Head {
    int status = 0;  // 0: not answered yet
    std::string content_type;
    HttpHeaders headers;
    bool streaming = false;
    std::string keep_alive;  // of a stream
  };
  /// What there is for the connection to write.
  struct Output {
    bool begins = false;  // there is a head now
    std::string bytes;
    bool ends = false;
    bool breaks = false;  // the handler gave up
    bool unread = false;  // the client has gone: nothing of this is to be written
  };

  /// `wake` tells the connection that there is something to take. Called under a mutex, and never after detach().
  HttpExchange(std::size_t max_queued_bytes, std::function<void()> wake)
      : max_queued_bytes_(max_queued_bytes), wake_(std::move(wake)) {}

  Output take();
  /// Never changes once `begins` was seen.
  const Head& head() const { return head_; }
  /// No one reads what comes from now on. Before the answer was complete, the handler is told.
  void detach();

 private:
  friend Responder;
  bool begin(Head head);
  void end();
  void notify();
  void abandon();

  std::mutex mutex_;  // guards everything
  Head head_;
  const std::size_t max_queued_bytes_;
  std::string queue_;
  bool head_taken_ = false, ended_ = false, broken_ = false;

  bool gone_ = false;  // the client is, or the connection has done its part
  std::function<void()> disconnected_;
  std::function<void()> wake_;
  bool woken_ = false;
};

}  // namespace shoal
