#include "launch/stop_signals.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <ctime>
#include <mutex>
#include <thread>
#include <utility>

namespace shoal {

struct StopSignals::Impl {
  sigset_t signals, before;
  std::mutex mutex;
  Handler handler;
  int count = 0;
  std::atomic<bool> ending = false;
  std::thread thread;

  Impl() {
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGUSR1);
    // Threads inherit the mask, so the one below is the only one that ever gets these signals.
    pthread_sigmask(SIG_BLOCK, &signals, &before);
    thread = std::thread([this] { wait(); });
  }
  ~Impl() {
    ending = true;
    thread.join();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void wait() {
    while (!ending) {
      const timespec moment{0, 100'000'000};
      const int signal = sigtimedwait(&signals, nullptr, &moment);
      if (signal < 0) continue;
      Handler current;
      int number;
      {
        const std::lock_guard lock(mutex);
        current = handler;
        number = ++count;
      }
      if (!current) end_process(signal);
      current(signal, number);
    }
  }
};

StopSignals::StopSignals() : impl_(std::make_unique<Impl>()) {}
StopSignals::~StopSignals() = default;

void StopSignals::on_signal(Handler handler) {
  const std::lock_guard lock(impl_->mutex);
  impl_->count = 0;
  impl_->handler = std::move(handler);
}

void StopSignals::end_process(int signal) {
  std::fflush(stdout);
  _exit(128 + signal);
}

}  // namespace shoal
