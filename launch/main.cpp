#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <sstream>

#include "base/error.h"
#include "base/printable.h"
#include "collectives/mpi.h"
#include "launch/bench.h"
#include "launch/eval.h"
#include "launch/inspect.h"
#include "launch/option_checks.h"
#include "launch/plan.h"
#include "launch/quantize.h"
#include "launch/run.h"
#include "launch/serve.h"
#include "launch/version.h"

namespace shoal {
namespace {

/// Runs the command that the arguments name. Every rank returns the same code, and one of them speaks.
int run_command(int argc, char** argv, bool speaks) {
  CLI::App app("Serves DeepSeek-R1 and its relatives over many machines. Start it with mpirun to use more than one.",
               "shoal");
  app.option_defaults()->always_capture_default();
  app.set_version_flag("--version", std::string("shoal ") + version);
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 done, 2 wrong usage, 3 does not fit, 1 anything else. 'shoal COMMAND --help' explains a command.");

  RunOptions run_options;
  ServeOptions serve_options;
  InspectOptions inspect_options;
  PlanOptions plan_options;
  QuantizeOptions quantize_options;
  EvalOptions eval_options;
  BenchOptions bench_options;
  add_run(app, run_options);
  add_serve(app, serve_options);
  add_inspect(app, inspect_options);
  add_plan(app, plan_options);
  add_quantize(app, quantize_options);
  add_eval(app, eval_options);
  add_bench(app, bench_options);
  refuse_what_is_not_finite(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out, err;
    const bool wrong = app.exit(error, out, err) != 0;
    if (speaks) {
      std::fputs(out.str().c_str(), stdout);
      std::fputs(err.str().c_str(), stderr);
    }
    return static_cast<int>(wrong ? ExitCode::usage : ExitCode::ok);
  }
  if (app.got_subcommand("run")) return run(run_options, &argc, &argv);
  if (app.got_subcommand("serve")) return serve(serve_options, &argc, &argv);
  if (app.got_subcommand("eval")) return eval(eval_options, &argc, &argv);
  if (app.got_subcommand("bench")) return bench(bench_options, &argc, &argv);
  if (app.got_subcommand("quantize")) return speaks ? quantize(quantize_options) : 0;
  if (app.got_subcommand("plan")) return plan(plan_options, speaks, &argc, &argv);
  if (speaks) return inspect(inspect_options);
  return inspection(inspect_options)["whole"].get<bool>() ? 0 : 1;
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  bool speaks = true;
  int code = static_cast<int>(shoal::ExitCode::failure);
  try {
    speaks = shoal::read_launch_environment().rank == 0;
    return shoal::run_command(argc, argv, speaks);
  } catch (const shoal::Error& error) {
    code = static_cast<int>(error.exit_code);
    if (speaks) std::fprintf(stderr, "shoal: %s\n", shoal::printable(error.what()).c_str());
  } catch (const std::exception& error) {
    if (speaks) std::fprintf(stderr, "shoal: %s\n", shoal::printable(error.what()).c_str());
  }
  return code;
}
