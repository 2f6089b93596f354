#include "launch/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "base/error.h"
#include "base/units.h"
#include "launch/option_checks.h"
#include "launch/quantize_gguf.h"
#include "launch/recipe.h"
#include "launch/report.h"
#include "runtime/checkpoint.h"
#include "runtime/gguf.h"
#include "runtime/model_source.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

bool makes_folder(const std::string& type) { return type == "FP8" || type == "INT8" || type == "INT4"; }

std::uint64_t bytes_of(const Checkpoint& checkpoint) {
  std::uint64_t sum = 0;
  for (const fs::path& file : checkpoint.files()) sum += fs::file_size(file);
  return sum;
}

/// An option that would change nothing was meant for another type.
void check_options(const QuantizeOptions& options) {
  if (options.type.empty() && options.size.empty()) throw Error("quantize: give --type or --size", ExitCode::usage);
  if (options.group_size && options.type != "INT4")
    throw Error("--group-size: only --type INT4 has groups of a size to choose", ExitCode::usage);
  if (!options.importance.empty() && (options.type == "FP8" || options.type == "INT8")) {
    throw Error(fmt::format("--importance: --type {} rounds to the nearest step, whatever counts more", options.type),
                ExitCode::usage);
  }
}

void print_quantized(const Json& report) {
  fmt::print("{}: {}, {} ({} before)\n\n", report["out"].get<std::string>(), report["type"].get<std::string>(),
             human_bytes(report["bytes"].get<std::uint64_t>()),
             human_bytes(report["source_bytes"].get<std::uint64_t>()));
  fmt::print("Error relative to the weights (root mean square)\n");
  for (const auto& [part, error] : report["relative_error"].items())
    fmt::print("  {:<24} {:>8.3f} %\n", part, 100 * error.get<double>());
}

}  // namespace

CLI::App* add_quantize(CLI::App& root, QuantizeOptions& options) {
  CLI::App* app = root.add_subcommand("quantize", "Write a model in a smaller form");
  app->add_option("in", options.in, "Hugging Face folder or GGUF file")->required();
  app->add_option("out", options.out, "GGUF file to write; for FP8, INT8 and INT4 a folder")->required();
  auto* type = app->add_option("--type", options.type,
                               fmt::format("FP8, INT8, INT4, or GGUF's {}", fmt::join(Recipe::names(), ", ")));
  app->add_option(
         "--size", options.size,
         "A GGUF of at most this size (140GB, 900MB, or 2.51bpw for bits a weight): each tensor's type is chosen "
         "by the error it makes")
      ->excludes(type);
  app->add_option("--importance", options.importance,
                  "File of `shoal eval --importance` or llama.cpp's imatrix: where errors count most");
  app->add_option("--group-size", options.group_size, "INT4: inputs that share a scale [default: 128]");
  app->add_option("--threads", options.threads, "0: as many as there are cores")->check(within(0, most_threads));
  app->add_flag("--json", options.json, "Print JSON");
  app->add_flag("--quiet", options.quiet, "No progress");
  app->footer("A conversion that was interrupted goes on where it stopped when the same command is given again.");
  return app;
}

std::string job_of(const Checkpoint& checkpoint, const QuantizeOptions& options) {
  std::vector<fs::path> files = checkpoint.files();
  std::error_code ignored;
  for (const fs::path& file : {options.in / "config.json", options.importance})
    if (fs::is_regular_file(file, ignored)) files.push_back(file);
  Json reads = Json::array();
  for (const fs::path& file : files) {
    reads.push_back(
        {fs::canonical(file).string(), fs::file_size(file), fs::last_write_time(file).time_since_epoch().count()});
  }
  const Json job = {
      {"type", options.type}, {"size", options.size}, {"group_size", options.group_size.value_or(0)}, {"reads", reads}};
  return job.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json quantize_model(const QuantizeOptions& given) {
  check_options(given);
  QuantizeOptions options = given;
  if (options.threads == 0) options.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const bool folder = makes_folder(options.type);
  if (is_gguf(options.in) && folder)
    fail("{}: is a GGUF file; {} is made from the model's Hugging Face folder", options.in.string(), options.type);
  if (!folder && options.size.empty()) Recipe(options.type);  // a wrong name is told before anything is read
  std::error_code ignored;
  if (fs::exists(options.out, ignored) && fs::equivalent(options.in, options.out, ignored)) {
    throw Error(fmt::format("{}: OUT must not be IN", options.out.string()), ExitCode::usage);
  }
  // A rename would put the file in the place of a device or a pipe.
  const fs::file_type there = fs::status(options.out, ignored).type();
  if (there != fs::file_type::not_found && there != (folder ? fs::file_type::directory : fs::file_type::regular)) {
    throw Error(
        fmt::format("{}: is no {}; {} is written as a {}", options.out.string(), folder ? "folder" : "regular file",
                    options.size.empty() ? options.type : "mix of " + options.size,
                    folder ? "Hugging Face folder" : "GGUF file"),
        ExitCode::usage);
  }
  const ModelConfig config = read_model_config(options.in);
  const Checkpoint checkpoint = Checkpoint::open(options.in);
  const auto errors = folder ? write_folder(config, checkpoint, options) : write_gguf(config, checkpoint, options);

  Json by_part = Json::object();
  StorageError all;
  for (const auto& [part, error] : errors) {
    if (error.squared_values > 0) by_part[part] = error.relative();
    all += error;
  }
  by_part["all"] = all.relative();
  return {{"out", options.out.string()},
          {"type", options.size.empty() ? options.type : "mix of " + options.size},
          {"bytes", bytes_of(Checkpoint::open(options.out))},
          {"source_bytes", bytes_of(checkpoint)},
          {"relative_error", by_part}};
}

int quantize(const QuantizeOptions& options) {
  const Json report = quantize_model(options);
  print_report(report, options.json, print_quantized);
  return 0;
}

}  // namespace shoal
