#pragma once
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>

namespace shoal {

/// `shoal inspect M`: what is in a checkpoint, and whether it is whole.
struct InspectOptions {
  std::string model;
  bool json = false;
  bool tensors = false;  // list every tensor
};

CLI::App* add_inspect(CLI::App& root, InspectOptions& options);

/// Prints to stdout. Returns 0 where every tensor that the architecture needs is there in its shape, else 1. Throws
/// Error where the configuration or a file cannot be read.
int inspect(const InspectOptions& options);

/// What `--json` prints: `architecture`, `dimensions`, `parameters` by part with `total` and `active`, `types`,
/// `files`, `bytes`, `kv_bytes_per_token` (BF16), `mtp_layers`, `whole`, `missing`, `wrong`, `unexpected`, and
/// `tensors` if asked for.
nlohmann::ordered_json inspection(const InspectOptions& options);

}  // namespace shoal
