#pragma once
#include <CLI/CLI.hpp>

#include "launch/option_checks.h"
#include "runtime/job.h"

namespace shoal {

/// Registers the options that all commands with a model in memory have in common.
void add_job_options(CLI::App& app, JobOptions& options);

}  // namespace shoal
