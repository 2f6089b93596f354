#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/job.h"

namespace shoal {

/// `shoal serve`: the OpenAI-compatible API server.
struct ServeOptions {
  JobOptions job;
  std::string host = "127.0.0.1";
  std::uint16_t port = 8000;
  std::vector<std::string> model_names;  // empty: the last part of the model's path
  std::vector<std::string> api_keys;
  std::string tls_cert, tls_key;          // PEM files
  std::vector<std::string> cors_origins;  // whose web pages may use the server
  bool log_json = false;
  bool access_log = true;
  double grace_s = 10;  // for running requests when the server is told to end
};

CLI::App* add_serve(CLI::App& root, ServeOptions& options);

/// Serves until SIGINT or SIGTERM. Every rank calls it, with main's arguments for the launcher. Returns the exit code.
int serve(const ServeOptions& options, int* argc, char*** argv);

}  // namespace shoal
