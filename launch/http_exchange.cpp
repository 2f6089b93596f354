#include "launch/http_exchange.h"

#include <boost/beast/core/string.hpp>

namespace shoal {

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (equal_ignoring_case(key, name)) return value;
  }
  return {};
}

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  return boost::beast::iequals({a.data(), a.size()}, {b.data(), b.size()});
}

std::string percent_decode(std::string_view text) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  std::string decoded;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool escape = text[i] == '%' && i + 2 < text.size() && digit(text[i + 1]) >= 0 && digit(text[i + 2]) >= 0;
    if (!escape) {
      decoded += text[i];
      continue;
    }
    decoded += static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2]));
    i += 2;
  }
  return decoded;
}

Responder::Responder(const std::shared_ptr<HttpExchange>& exchange)
    : exchange_(exchange.get(), [exchange](HttpExchange*) { exchange->abandon(); }) {}

void Responder::send(int status, std::string content_type, std::string body, HttpHeaders headers) const {
  const std::lock_guard lock(exchange_->mutex_);
  if (!exchange_->begin({status, std::move(content_type), std::move(headers)})) return;
  if (!exchange_->gone_) exchange_->queue_ = std::move(body);
  exchange_->end();
}

void Responder::begin_stream(int status, std::string content_type, HttpHeaders headers, std::string keep_alive) const {
  const std::lock_guard lock(exchange_->mutex_);
  if (exchange_->begin({status, std::move(content_type), std::move(headers), true, std::move(keep_alive)}))
    exchange_->notify();
}

bool Responder::write(std::string_view chunk) const {
  HttpExchange& exchange = *exchange_;
  std::function<void()> callback;
  {
    const std::lock_guard lock(exchange.mutex_);
    if (exchange.gone_ || exchange.ended_ || exchange.broken_ || !exchange.head_.streaming) return false;
    // A chunk that finds nothing before it is the client's to read, however large.
    const bool room = exchange.queue_.empty() || exchange.queue_.size() + chunk.size() <= exchange.max_queued_bytes_;
    if (room) {
      exchange.queue_ += chunk;
    } else {
      exchange.broken_ = true;
      callback = std::exchange(exchange.disconnected_, nullptr);
    }
    exchange.notify();
    if (room) return true;
  }
  if (callback) callback();
  return false;
}

void Responder::end() const {
  const std::lock_guard lock(exchange_->mutex_);
  if (exchange_->head_.streaming && !exchange_->ended_) exchange_->end();
}

void Responder::on_disconnect(std::function<void()> callback) const {
  {
    const std::lock_guard lock(exchange_->mutex_);
    if (exchange_->ended_) return;
    if (!exchange_->gone_) {
      exchange_->disconnected_ = std::move(callback);
      return;
    }
  }
  callback();
}

bool HttpExchange::begin(Head head) {
  if (head_.status != 0) return false;
  head_ = std::move(head);
  return true;
}

void HttpExchange::end() {
  ended_ = true;
  notify();
}

void HttpExchange::notify() {
  if (gone_ || woken_) return;
  woken_ = true;
  wake_();
}

/// The last Responder has gone.
void HttpExchange::abandon() {
  std::function<void()> forgotten;  // destroyed outside the lock: it may own much
  const std::lock_guard lock(mutex_);
  forgotten.swap(disconnected_);
  if (ended_) return;
  if (begin({500, "text/plain"}))
    queue_ = "the request was not answered\n";
  else
    broken_ = true;
  end();
}

HttpExchange::Output HttpExchange::take() {
  const std::lock_guard lock(mutex_);
  woken_ = false;
  Output output;
  output.begins = head_.status != 0 && !head_taken_;
  head_taken_ |= output.begins;
  output.bytes.swap(queue_);
  output.ends = ended_;
  output.breaks = broken_;
  output.unread = gone_;
  return output;
}

void HttpExchange::detach() {
  std::function<void()> callback;
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(gone_, true)) return;
    wake_ = nullptr;
    queue_ = {};
    if (!ended_) callback = std::move(disconnected_);
    disconnected_ = nullptr;
  }
  if (callback) callback();
}

}  // namespace shoal
