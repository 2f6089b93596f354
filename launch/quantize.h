#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace shoal {

/// `shoal quantize IN OUT --type T`: a model in a smaller form.
struct QuantizeOptions {
  std::filesystem::path in, out;
  std::string type;  // a GGUF type or mix: OUT is a file. FP8, INT8, INT4: OUT is a Hugging Face folder
  std::string size;  // instead of `type`: a GGUF of this size, formats chosen by what they cost ("140GB", "2.51bpw")
  std::filesystem::path importance;  // of `shoal eval --importance` or llama.cpp; empty: all columns count alike
  std::optional<int> group_size;     // INT4: inputs that share a scale; none: 128
  int threads = 0;                   // 0: as many as there are cores
  bool json = false, quiet = false;
};

CLI::App* add_quantize(CLI::App& root, QuantizeOptions& options);

/// What `--json` prints: `out`, `type`, `bytes`, `source_bytes`, and `relative_error` by part with `all`. Throws Error.
nlohmann::ordered_json quantize_model(const QuantizeOptions& options);

/// Does it and prints the report. Returns the exit code.
int quantize(const QuantizeOptions& options);

}  // namespace shoal
