#include "launch/bench_url.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cmath>
#include <exception>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "launch/http_client.h"
#include "launch/option_checks.h"
#include "launch/report.h"

namespace shoal {
namespace {

namespace net = boost::asio;
using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

double ms(Clock::duration time) { return std::chrono::duration<double, std::milli>(time).count(); }

/// What a server let pass of the fields that not every one knows.
struct Dialect {
  bool ignore_eos = true;      // answers of the wanted length (vLLM, SGLang, llama.cpp, Shoal)
  bool stream_options = true;  // the number of tokens at the end of a stream
};

/// One streamed answer, as it came.
struct Reply {
  Clock::time_point begin, first, last;
  int pieces = 0;  // of text
  std::int64_t prompt_tokens = 0, output_tokens = 0;
  std::string error;  // empty: it came to its end

  double ttft_ms() const { return ms(first - begin); }
  double tpot_ms() const { return ms(last - first) / static_cast<double>(output_tokens - 1); }
};

/// Reads a stream of server-sent events of /v1/completions.
class ReplyReader {
 public:
  explicit ReplyReader(Reply& answer) : answer_(answer) {}

  void push(std::string_view bytes) {
    now_ = Clock::now();
    for (;;) {
      const std::size_t end = bytes.find('\n');
      line_ += bytes.substr(0, end);
      if (end == bytes.npos) return;
      bytes.remove_prefix(end + 1);
      take_line();
      line_.clear();
    }
  }
  void finish() {
    if (!done_ && answer_.error.empty()) answer_.error = "the stream ended without [DONE]";
    // A server that does not count sends a piece of text a token.
    if (answer_.output_tokens == 0) answer_.output_tokens = answer_.pieces;
    if (answer_.pieces == 0) answer_.first = answer_.last = now_;  // tokens without a text of their own
  }

 private:
  void take_line() {
    std::string_view data = line_;
    if (!data.starts_with("data:")) return;
    data.remove_prefix(5);
    if (data.find("[DONE]") != data.npos) {
      done_ = true;
      return;
    }
    const Json json = Json::parse(data, nullptr, false);
    if (!json.is_object()) return;
    if (json.contains("error") && !json["error"].is_null()) answer_.error = json["error"].dump();
    if (json.contains("usage") && json["usage"].is_object()) {
      answer_.prompt_tokens = json["usage"].value("prompt_tokens", std::int64_t{0});
      answer_.output_tokens = json["usage"].value("completion_tokens", std::int64_t{0});
    }
    if (!json.contains("choices") || !json["choices"].is_array() || json["choices"].empty()) return;
    const Json& choice = json["choices"][0];
    if (!choice.contains("text") || !choice["text"].is_string() || choice["text"] == "") return;
    if (answer_.pieces++ == 0) answer_.first = now_;
    answer_.last = now_;
  }

  Reply& answer_;
  Clock::time_point now_;
  std::string line_;
  bool done_ = false;
};

/// So many words, each time others: no cache knows them.
std::string random_words(int count, std::mt19937_64& random) {
  static constexpr std::array words = {"time",  "year",  "people", "way",     "day",    "man",    "thing", "woman",
                                       "life",  "child", "world",  "school",  "state",  "family", "hand",  "part",
                                       "place", "case",  "week",   "company", "system", "number", "point", "home",
                                       "water", "room",  "mother", "area",    "money",  "story",  "fact",  "month"};
  std::string text;
  for (int i = 0; i < count; ++i) text += fmt::format("{}{}", i > 0 ? " " : "", words[random() % words.size()]);
  return text;
}

class LoadRun {
 public:
  explicit LoadRun(const UrlLoad& load) : load_(load), url_(HttpUrl::parse(load.url)), model_(load.model) {
    if (!url_.base.ends_with("/v1")) url_.base += "/v1";
  }

  /// The server's model and dialect, and how many words make a prompt.
  void get_to_know() {
    net::io_context io;
    run(io, [&] { return find_out(io); });
  }

  LoadRow measure(int users) {
    const int requests = users * load_.requests_per_user;
    answers_.assign(static_cast<std::size_t>(requests), {});
    next_ = 0;
    const auto begin = Clock::now();
    net::io_context io;
    run(
        io, [&] { return use(io); }, users);
    return summarize(users, std::chrono::duration<double>(Clock::now() - begin).count());
  }

  const std::string& model() const { return model_; }

 private:
  /// So many coroutines side by side, to their end; throws what broke one.
  template <class Work>
  static void run(net::io_context& io, const Work& work, int count = 1) {
    std::exception_ptr broken;
    for (int i = 0; i < count; ++i) {
      net::co_spawn(io, work(), [&](std::exception_ptr error) {
        if (error) broken = error;
      });
    }
    io.run();
    if (broken) std::rethrow_exception(broken);
  }

  net::awaitable<void> find_out(net::io_context& io) {
    net::steady_timer patience(io, std::chrono::seconds(5));
    patience.async_wait([this](const boost::system::error_code& over) {
      if (!over) fmt::print(stderr, "{} has not answered the first request yet: still waiting\n", load_.url);
    });
    HttpClient client(io, url_, load_.api_key);
    if (model_.empty()) {
      const HttpClient::Response listed = co_await client.ask("/models", "", nullptr);
      const Json json = Json::parse(listed.body, nullptr, false);
      try {
        model_ = json.at("data").at(0).at("id").get<std::string>();
      } catch (const Json::exception&) {
        fail("{}/models lists no model (status {}); name one with --model", load_.url, listed.status);
      }
    }
    static constexpr int sample = 64;
    for (const Dialect dialect : {Dialect{true, true}, Dialect{false, true}, Dialect{false, false}}) {
      dialect_ = dialect;
      Reply answer;
      const int status = co_await ask(client, random_words(sample, random_), answer);
      if (status == 400 || status == 422) {
        if (dialect.stream_options) continue;
      }
      if (!answer.error.empty()) fail("{}: {}", load_.url, answer.error);
      const double words_per_token =
          answer.prompt_tokens > 0 ? sample / static_cast<double>(answer.prompt_tokens) : 0.8;
      words_ = std::max(1, static_cast<int>(std::lround(load_.prompt_tokens * words_per_token)));
      co_return;
    }
  }

  /// A user: the next request as soon as the last one is answered.
  net::awaitable<void> use(net::io_context& io) {
    HttpClient client(io, url_, load_.api_key);
    while (next_ < answers_.size()) {
      Reply& answer = answers_[next_++];
      try {
        co_await ask(client, random_words(words_, random_), answer);
      } catch (const Error& error) {
        answer.error = error.what();
      }
    }
  }

  net::awaitable<int> ask(HttpClient& client, std::string prompt, Reply& answer) {
    Json body = {{"model", model_},
                 {"prompt", std::move(prompt)},
                 {"max_tokens", load_.output_tokens},
                 {"temperature", 0.0},
                 {"stream", true}};
    if (dialect_.ignore_eos) body["ignore_eos"] = true;
    if (dialect_.stream_options) body["stream_options"] = {{"include_usage", true}};
    ReplyReader reader(answer);
    answer.begin = Clock::now();
    const HttpClient::Response response =
        co_await client.ask("/completions", body.dump(), [&](std::string_view bytes) { reader.push(bytes); });
    if (response.status == 200) {
      reader.finish();
    } else {
      answer.error = fmt::format("status {}: {}", response.status, response.body.substr(0, 300));
    }
    co_return response.status;
  }

  LoadRow summarize(int users, double seconds) const {
    LoadRow row;
    row.users = users;
    row.requests = static_cast<int>(answers_.size());
    row.seconds = seconds;
    std::vector<double> ttft, tpot;
    double speed = 0;
    for (const Reply& answer : answers_) {
      if (!answer.error.empty()) {
        if (row.failed++ == 0) row.first_error = answer.error;
        if (row.failed == row.requests) fail("{}: {}", load_.url, answer.error);
        continue;
      }
      row.prompt_tokens += answer.prompt_tokens;
      if (answer.output_tokens == 0) continue;  // a server that knows no ignore_eos may end an answer at once
      row.output_tokens += answer.output_tokens;
      ttft.push_back(answer.ttft_ms());
      if (answer.output_tokens > 1) tpot.push_back(answer.tpot_ms());
      speed += 1e3 * static_cast<double>(answer.output_tokens) / ms(answer.last - answer.begin);
    }
    row.requests_per_s = (row.requests - row.failed) / seconds;
    row.tokens_per_s = static_cast<double>(row.output_tokens) / seconds;
    if (ttft.empty()) fail("{}: every answer was empty", load_.url);
    row.tokens_per_s_per_user = speed / static_cast<double>(ttft.size());
    row.ttft = quantiles(std::move(ttft));
    row.tpot = quantiles(std::move(tpot));
    return row;
  }

  static Quantiles quantiles(std::vector<double> values) {
    if (values.empty()) return {};
    std::sort(values.begin(), values.end());
    const auto at = [&](double share) {
      return values[static_cast<std::size_t>(std::ceil(share * static_cast<double>(values.size()))) - 1];
    };
    return {at(0.5), at(0.99)};
  }

  const UrlLoad& load_;
  HttpUrl url_;
  std::string model_;
  Dialect dialect_;
  int words_ = 0;
  std::mt19937_64 random_{std::random_device{}()};
  std::vector<Reply> answers_;  // of the row
  std::size_t next_ = 0;
};

}  // namespace

std::string measure_load(const UrlLoad& load, const std::function<void(const LoadRow&)>& on_row) {
  LoadRun run(load);
  run.get_to_know();
  for (const int users : load.concurrency) on_row(run.measure(users));
  return run.model();
}

void add_url_options(CLI::App& app, UrlLoad& load) {
  const std::string group = "A server instead of a model";
  app.add_option("--url", load.url, "Measure this server with the OpenAI API, of whatever make: http://host:8000")
      ->group(group);
  app.add_option("--api-key", load.api_key, "Key for it")->envname("SHOAL_API_KEY")->group(group);
  app.add_option("--requests-per-user", load.requests_per_user, "Requests of each user, one after the other")
      ->check(at_least(1))
      ->group(group);
}

int bench_url(const UrlLoad& load, bool as_json, bool as_csv) {
  const bool table = !as_json && !as_csv;
  Json report = {{"url", load.url},
                 {"model", load.model},
                 {"prompt_tokens", load.prompt_tokens},
                 {"output_tokens", load.output_tokens},
                 {"results", Json::array()}};
  int failed = 0;
  if (table) {
    fmt::print(
        "{:>5} {:>8} {:>6} {:>10} {:>14} {:>20} {:>20}\n{:>5} {:>8} {:>6} {:>10} {:>14} {:>10} {:>9} {:>10} {:>9}\n",
        "", "", "", "tokens/s", "tokens/s", "first token, ms", "between tokens, ms", "users", "requests", "failed",
        "all users", "each user", "p50", "p99", "p50", "p99");
  }
  report["model"] = measure_load(load, [&](const LoadRow& row) {
    failed += row.failed;
    if (row.failed > 0)
      fmt::print(stderr, "{} of {} requests failed; the first: {}\n", row.failed, row.requests, row.first_error);
    const int answered = row.requests - row.failed;
    report["results"].push_back({{"concurrency", row.users},
                                 {"requests", row.requests},
                                 {"failed", row.failed},
                                 {"seconds", row.seconds},
                                 {"requests_per_s", row.requests_per_s},
                                 {"prompt_tokens", static_cast<double>(row.prompt_tokens) / answered},
                                 {"output_tokens", static_cast<double>(row.output_tokens) / answered},
                                 {"tokens_per_s", row.tokens_per_s},
                                 {"tokens_per_s_per_user", row.tokens_per_s_per_user},
                                 {"ttft_p50_ms", row.ttft.p50_ms},
                                 {"ttft_p99_ms", row.ttft.p99_ms},
                                 {"tpot_p50_ms", row.tpot.p50_ms},
                                 {"tpot_p99_ms", row.tpot.p99_ms}});
    if (!table) return;
    fmt::print("{:>5} {:>8} {:>6} {:>10.1f} {:>14.1f} {:>10.1f} {:>9.1f} {:>10.2f} {:>9.2f}\n", row.users, row.requests,
               row.failed, row.tokens_per_s, row.tokens_per_s_per_user, row.ttft.p50_ms, row.ttft.p99_ms,
               row.tpot.p50_ms, row.tpot.p99_ms);
    std::fflush(stdout);
  });
  if (as_json) print_report(report, true, nullptr);
  if (as_csv) print_csv(report);
  return failed > 0 ? 1 : 0;
}

}  // namespace shoal
