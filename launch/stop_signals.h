#pragma once
#include <functional>
#include <memory>

namespace shoal {

/// SIGINT and SIGTERM for commands that end in an orderly way, and SIGUSR1, which mpirun passes on without killing its
/// ranks a second later (launch/orderly). To be made before any other thread is started. Until a
/// handler is set, a signal ends the process, as usual.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();

  /// Called on a thread of its own for each signal; `count` is 1 for the first one that this handler gets.
  using Handler = std::function<void(int signal, int count)>;
  void on_signal(Handler handler);

  /// Ends this process at once, with the status that shells show for a signal.
  [[noreturn]] static void end_process(int signal);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
