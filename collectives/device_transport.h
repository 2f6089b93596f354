#pragma once
#include <cstddef>
#include <functional>
#include <span>

namespace shoal {

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
  /// Called when exchanges are given up: kernels that wait for other ranks in ways of their own are to stop. Replaces
  /// the one before; null: none.
  virtual void on_abort(std::function<void()> stop) = 0;
};

}  // namespace shoal
