#pragma once
#include <string>

#include "launch/asker.h"
#include "launch/stop_signals.h"

namespace shoal {

/// A chat in the terminal: lines from stdin, answers to stdout, until the end of stdin or /exit. Ctrl-C stops an
/// answer; between answers, or a second time, it ends the program. Returns the exit code.
int chat(Asker& asker, const std::string& system, StopSignals& signals);

}  // namespace shoal
