#include "launch/serve.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <future>
#include <mutex>
#include <optional>

#include "collectives/mpi.h"
#include "launch/generation.h"
#include "launch/http_server.h"
#include "launch/job_options.h"
#include "launch/log.h"
#include "launch/openai_api.h"
#include "launch/option_checks.h"
#include "launch/served_model.h"
#include "launch/server_status.h"
#include "launch/stop_signals.h"

namespace shoal {
namespace {

/// In which clients get to read that they are cut off.
constexpr std::chrono::seconds kLastWords{2};

void print_line(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fputc('\n', stdout);
  std::fflush(stdout);
}

ServedModel model_of(const Engine& engine, const ServeOptions& options, const SamplingDefaults& sampling) {
  ServedModel model = served_model(engine);
  model.sampling = sampling;
  if (!options.model_names.empty()) model.names = options.model_names;
  model.names.push_back(options.job.model.string());  // as other servers call their models
  return model;
}

/// What requests are handed to: nothing but excuses until the model is there.
class Entrance {
 public:
  void open(std::shared_ptr<const OpenAiApi> api) {
    const std::lock_guard lock(mutex_);
    api_ = std::move(api);
  }
  bool handle_head(const HttpRequest& head, const Responder& responder) const {
    if (const auto api = opened()) return api->handle_head(head, responder);
    handle_while_loading(head, responder);
    return true;
  }
  /// What was not answered by its head, so that the model is there.
  void handle(HttpRequest request, Responder responder) const {
    opened()->handle(std::move(request), std::move(responder));
  }

 private:
  std::shared_ptr<const OpenAiApi> opened() const {
    const std::lock_guard lock(mutex_);
    return api_;
  }

  mutable std::mutex mutex_;
  std::shared_ptr<const OpenAiApi> api_;
};

void log_access(const HttpRecord& record) {
  const bool polled = record.path == "/health" || record.path == "/metrics" || record.path == "/status.json";
  if (polled && record.status == 200) return;
  log::info("request", {{"id", record.id},
                        {"client", record.client},
                        {"method", record.method},
                        {"path", record.path},
                        {"status", record.status},
                        {"bytes", record.bytes},
                        {"ms", std::round(record.seconds * 1e4) / 10},
                        {"whole", record.whole}});
}

/// Every connection takes a descriptor, and shells give 1,024 where the system would give more: up to twice as many as
/// the server has connections at most.
void take_descriptors() {
  constexpr rlim_t wanted = 8192;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::max(limit.rlim_cur, std::min<rlim_t>(limit.rlim_max, wanted));
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

HttpServerOptions http_options(const ServeOptions& options) {
  HttpServerOptions http;
  http.host = options.host;
  http.port = options.port;
  http.tls_cert = options.tls_cert;
  http.tls_key = options.tls_key;
  http.cors_origins = options.cors_origins;
  http.error_body = http_error_body;
  if (options.access_log) http.on_answered = log_access;
  return http;
}

/// Rank 0, once the model is there.
int serve_engine(Engine& engine, const ServeOptions& options, const SamplingDefaults& sampling, HttpServer& server,
                 Entrance& entrance, StopSignals& signals) {
  // Before anyone can look at it.
  if (!options.model_names.empty()) engine.model_name = options.model_names.front();
  if (const std::string differs = sampling.describe(); !differs.empty())
    engine.summary += fmt::format("sampling  {}, unless a request says otherwise\n", differs);
  const auto metrics = std::make_shared<RequestMetrics>();
  const ServerStatus status(engine, *metrics);
  GenerationService service(generator_of(*engine.coordinator), engine.tokenizer, metrics);
  if (engine.rebalancer)
    engine.rebalancer->on_change([](const Rebalancer::Change& change) {
      log::info("experts moved", {{"layer", change.layer},
                                  {"moves", change.moves},
                                  {"largest_over_mean", std::round(change.before * 1000) / 1000},
                                  {"then", std::round(change.after * 1000) / 1000}});
    });
  if (engine.recovery)
    engine.recovery->on_events({.lost =
                                    [](int rank, const std::string& why, int left) {
                                      log::warning("rank lost", {{"rank", rank}, {"why", why}, {"ranks_left", left}});
                                    },
                                .over =
                                    [](int left, double seconds) {
                                      log::info("recovered", {{"ranks", left}, {"seconds", seconds}});
                                    }});
  entrance.open(
      std::make_shared<const OpenAiApi>(model_of(engine, options, sampling), service, options.api_keys, &status));

  std::promise<void> told_to_end;
  signals.on_signal([&told_to_end](int signal, int count) {
    if (count > 1) StopSignals::end_process(signal);
    told_to_end.set_value();
  });
  print_line(engine.summary);
  print_line("listening on " + server.url());
  log::info("ready", {{"model", engine.model_name}, {"ranks", engine.ranks}, {"address", server.url()}});

  told_to_end.get_future().wait();
  print_line("ending: no new requests; a second signal ends at once");
  const auto grace = std::chrono::milliseconds(static_cast<std::int64_t>(options.grace_s * 1000));
  const bool drained = server.drain(grace);
  if (!drained) {
    print_line("requests that are still running are cut off");
    engine.coordinator->stop();  // which their clients are told
    server.drain(kLastWords);
  }
  log::info("ending", {{"drained", drained}});
  server.stop();
  signals.on_signal(nullptr);
  return 0;
}

}  // namespace

CLI::App* add_serve(CLI::App& root, ServeOptions& options) {
  CLI::App* app = root.add_subcommand("serve", "Serve a model with an OpenAI-compatible API");
  app->add_option("--host", options.host, "Address or name to listen on; 0.0.0.0: on all");
  app->add_option("--port", options.port, "Port to listen on; 0: one that is free, printed at the start");
  app->add_option("--model-name", options.model_names,
                  "Name of the model in the API (may be repeated; the first is in the answers) "
                  "[default: last part of --model]")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->type_name("NAME");
  app->add_option("--api-key", options.api_keys,
                  "Key that requests must bring (may be repeated) [default: none needed]")
      ->envname("SHOAL_API_KEY")
      ->check(not_empty())
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->type_name("KEY");
  app->add_option("--tls-cert", options.tls_cert, "PEM file with the certificate (chain), for https, on rank 0's host")
      ->check(not_empty())
      ->type_name("FILE");
  app->add_option("--tls-key", options.tls_key, "PEM file with the certificate's key")
      ->check(not_empty())
      ->type_name("FILE");
  app->add_option("--cors-origin", options.cors_origins,
                  "Origin whose web pages may use the server, '*': all (may be repeated) [default: none]")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->type_name("ORIGIN");
  app->add_flag("--log-json", options.log_json, "Write the log as one JSON object a line");
  app->add_flag("!--no-access-log", options.access_log, "Do not log every request");
  app->add_option("--grace", options.grace_s, "Seconds that running requests get when the server is told to end")
      ->check(within(0, 1e6));
  app->add_flag("--recover", options.job.recover,
                "Go on when ranks other than 0 are lost: those left take over their experts, and answers go on after a "
                "pause (for mpirun --enable-recovery; launch/serve adds it)");
  app->add_option(
         "--max-waiting", options.job.max_waiting,
         "Requests that may wait for a place, of each client as many as there are places left; more get status "
         "429 and are to come back later")
      ->check(within(1, 1e6));
  add_job_options(*app, options.job);
  return app;
}

int serve(const ServeOptions& options, int* argc, char*** argv) {
  if (options.tls_cert.empty() != options.tls_key.empty())
    throw Error("--tls-cert and --tls-key go together", ExitCode::usage);
  StopSignals signals;
  // A reader of stdout that goes, or a client, is no reason to end.
  ::signal(SIGPIPE, SIG_IGN);
  if (const int rank = read_launch_environment().rank; rank != 0) {
    // A launcher sends every rank the signal. Rank 0 still answers what is running, and ends the others itself.
    signals.on_signal([](int signal, int count) {
      if (count > 1) StopSignals::end_process(signal);
    });
  }
  log::start(options.log_json);
  // Rank 0 listens from the start: who asks early is told to come back instead of being turned away.
  Entrance entrance;
  std::optional<HttpServer> server;
  if (read_launch_environment().rank == 0) {
    take_descriptors();
    HttpServerOptions http = http_options(options);
    http.answer_head = [&entrance](const HttpRequest& head, const Responder& responder) {
      return entrance.handle_head(head, responder);
    };
    server.emplace(std::move(http), [&entrance](HttpRequest request, Responder responder) {
      entrance.handle(std::move(request), std::move(responder));
    });
    log::info("loading", {{"model", options.job.model.string()}, {"address", server->url()}});
  }
  SamplingDefaults sampling;
  JobOptions job = options.job;
  job.before_loading = [&] { sampling = SamplingDefaults::of_model(job.model, {}); };
  return run_job(argc, argv, job,
                 [&](Engine& engine) { return serve_engine(engine, options, sampling, *server, entrance, signals); });
}

}  // namespace shoal
