#include "launch/serve.h"

#include <fmt/format.h>
#include <signal.h>

#include <chrono>
#include <cstdio>
#include <future>

#include "collectives/mpi.h"
#include "launch/generation.h"
#include "launch/http_server.h"
#include "launch/job_options.h"
#include "launch/openai_api.h"
#include "launch/served_model.h"
#include "launch/stop_signals.h"

namespace shoal {
namespace {

void print_line(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fputc('\n', stdout);
  std::fflush(stdout);
}

ServedModel model_of(const Engine& engine, const ServeOptions& options) {
  ServedModel model = served_model(engine);
  if (!options.model_names.empty()) model.names = options.model_names;
  model.names.push_back(options.job.model.string());  // as other servers call their models
  return model;
}

/// Rank 0, once the model is there.
int serve_engine(Engine& engine, const ServeOptions& options, StopSignals& signals) {
  GenerationService service(generator_of(*engine.coordinator), engine.tokenizer);
  const OpenAiApi api(model_of(engine, options), service, options.api_keys);

  HttpServerOptions http;
  http.host = options.host;
  http.port = options.port;
  http.error_body = http_error_body;
  HttpServer server(
      http, [&api](HttpRequest request, Responder responder) { api.handle(std::move(request), std::move(responder)); });

  std::promise<void> told_to_end;
  signals.on_signal([&told_to_end](int signal, int count) {
    if (count > 1) StopSignals::end_process(signal);
    told_to_end.set_value();
  });
  print_line(engine.summary);
  print_line("listening on " + server.url());

  told_to_end.get_future().wait();
  print_line("ending: no new requests; a second signal ends at once");
  const auto grace = std::chrono::milliseconds(static_cast<std::int64_t>(options.grace_s * 1000));
  if (!server.drain(grace)) print_line("requests that are still running are cut off");
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
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->type_name("KEY");
  app->add_option("--grace", options.grace_s, "Seconds that running requests get when the server is told to end")
      ->check(CLI::NonNegativeNumber);
  add_job_options(*app, options.job);
  return app;
}

int serve(const ServeOptions& options, int* argc, char*** argv) {
  StopSignals signals;
  // A reader of stdout that goes, or a client, is no reason to end.
  ::signal(SIGPIPE, SIG_IGN);
  if (const int rank = read_launch_environment().rank; rank != 0) {
    // A launcher sends every rank the signal. Rank 0 still answers what is running, and ends the others itself.
    signals.on_signal([](int signal, int count) {
      if (count > 1) StopSignals::end_process(signal);
    });
  }
  return run_job(argc, argv, options.job, [&](Engine& engine) { return serve_engine(engine, options, signals); });
}

}  // namespace shoal
