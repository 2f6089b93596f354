#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>

namespace shoal {

/// Memory of this rank's GPU into which kernels of all ranks' GPUs write: by stores those that reach it, the others by
/// puts over the network, which they start themselves.
class DeviceWindow {
 public:
  virtual ~DeviceWindow() = default;
  /// For kernels (kernels/cuda/network.cu), which find its address by them: NCCL's ncclDevComm, in GPU memory, and
  /// ncclWindow_t. It is uninitialised.
  virtual const void* device_communicator() const = 0;
  virtual const void* handle() const = 0;
  /// What went wrong since, as far as this rank has heard; empty: nothing.
  virtual std::string error() = 0;
};

/// Moves bytes between the memories of the ranks' GPUs, in the order of a stream (a cudaStream_t).
class DeviceTransport {
 public:
  /// Of one rank; nothing where there are no bytes.
  struct Piece {
    std::byte* memory = nullptr;
    std::size_t bytes = 0;
  };
  virtual ~DeviceTransport() = default;
  /// to, from [ranks]; both sides know how much. The own rank's pieces are not looked at.
  virtual void exchange(std::span<const Piece> to, std::span<const Piece> from, void* stream) = 0;
  /// Waits until all exchanges that were asked for are over. To be called before memory is freed meanwhile: that waits
  /// for them too, but in a way that nobody can end where a rank is gone.
  virtual void settle() = 0;
  /// A window of so many bytes, with so many signals (numbers of the network's that others count up). Every rank calls
  /// it with the same sizes. Null where there is none here, with the reason; then it is of no use to the others either.
  virtual std::shared_ptr<DeviceWindow> open_window(std::size_t bytes, int signals, std::string& why_not) = 0;
  /// Called when exchanges are given up: kernels that wait for other ranks in ways of their own are to stop. Replaces
  /// the one before; null: none.
  virtual void on_abort(std::function<void()> stop) = 0;
};

}  // namespace shoal
