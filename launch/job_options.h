#pragma once
#include <CLI/CLI.hpp>

#include "runtime/job.h"

namespace shoal {

/// An option that is given must say something: a variable of the shell that is not set is no file and no key.
CLI::Validator not_empty();

/// Registers the options that all commands with a model in memory have in common.
void add_job_options(CLI::App& app, JobOptions& options);

}  // namespace shoal
