#pragma once
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/cuda/memory.h"
#include "base/cuda/stream.h"
#include "collectives/communicator.h"
#include "collectives/device_transport.h"
#include "collectives/dispatch_plan.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/peer_windows.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/traffic.h"
#include "kernels/device_moe.h"

namespace shoal::cuda {

/// A layer is: route; pack_slots, which travel while the shared expert is computed; plan_slots, unpack_slots; the
/// experts' products, of as many tiles as there could be; combine_slots, which travel back; add_slot_answers.
///
/// GPUs of one host write slots and answers into each other's memory, and only what is asked for (PeerWindows); so do
/// others where NCCL's device interface connects them (put_slots and put_answers behind the kernels that store).
/// Elsewhere slots travel whole, over the communicator's device_transport().
class GpuMoe final : public DeviceMoe {
 public:
  /// Of the back end, all of which outlive it.
  struct Parts {
    cudaStream_t stream;
    Uploads& uploads;
    WeightVectors& vectors;
    Products& products;
    int device;
    CudaOptions::PeerMemory peer_memory;
    std::vector<DeviceBlock>& retired_windows;
    std::function<void()> forget;  // what was recorded on the stream
  };
  GpuMoe(const Parts& parts, Communicator& comm, const DeviceMoeShape& shape, bool f8_rows);
  ~GpuMoe() override;
  GpuMoe(const GpuMoe&) = delete;
  GpuMoe& operator=(const GpuMoe&) = delete;

  /// Whether its kernels are made for it.
  static bool takes(const Communicator& comm, const DeviceMoeShape& shape);
  /// Whether the ranks have a way between their GPUs.
  bool reaches_all() const { return slots_.ranks == 1 || windows_ || transport_; }
  /// Why slots travel whole between them; empty: they do not, or it was not tried.
  const std::string& why_no_windows() const { return why_no_windows_; }

  void placed(const ExpertMap& map) override;
  std::int64_t begin_step(std::int64_t tokens, std::int64_t most_tokens) override;
  bool repeats() const override { return slots_.ranks == 1 || windows_; }
  void run(const Layer& layer, Rows<const float> scores, Rows<const float> h, Rows<float> out,
           const std::function<void()>& meanwhile) override;
  void end_step() override;
  Chosen chosen(int layer) override;

 private:
  using Piece = DeviceTransport::Piece;
  struct Places {
    DeviceBlock memory;
    ExpertPlaces on_device;
  };

  /// Where slots are, and answers.
  std::byte* slots_memory(std::int64_t bytes) { return windows_ ? windows_->own() : in_.room<std::byte>(bytes); }
  std::byte* answers_memory(std::int64_t bytes) {
    return windows_ ? windows_->own() + windows_->peers().answers_at : answers_.room<std::byte>(bytes);
  }
  /// `bytes` of each rank's part: `to` has one for each rank, or all get this rank's own of `from`.
  void exchange(const std::byte* to, std::byte* from, std::int64_t bytes, bool own_to_all);
  /// What a layer leaves for chosen(): its work, then the experts of each slot.
  std::int64_t chosen_of_layer() const { return 1 + kMostSlots * shape_.router.top_k; }

  /// Of a rank, for which no more than so much may arrive.
  std::int64_t most_slots(std::int64_t bytes) const;

  static constexpr std::int64_t kMostSlots = 256;
  /// That arrive at a rank in a layer. The counted exchange has some 100 us of host's work a layer, in which NVLink
  /// brings 45 MB and a network of 400 Gbit/s 5 MB. By reckoning, not measured.
  static constexpr std::int64_t kMostBytes = std::int64_t{24} << 20;
  /// Of a window, in which of rows only those arrive that are asked for. (Over the network answers on their way take
  /// room besides.)
  static constexpr std::int64_t kMostInWindow = std::int64_t{96} << 20;

  const Parts parts_;
  const cudaStream_t stream_;
  const Event fetched_;
  const DeviceMoeShape shape_;
  DeviceTransport* const transport_;
  Traffic traffic_;
  Slots slots_;
  std::unique_ptr<PeerWindows> windows_;
  std::string why_no_windows_;
  std::int64_t most_slots_ = kMostSlots;
  std::uint32_t turn_ = 0;
  std::unordered_map<const ExpertMap*, Places> places_;
  std::vector<Piece> to_, from_;  // [ranks]
  DeviceBlock turn_on_device_{sizeof(std::uint32_t)};
  DeviceBlock chosen_on_device_;  // [layers, chosen_of_layer()]
  PinnedBlock chosen_;
  Scratch picked_, shares_, in_, x_, begin_, rows_, place_, sent_, answers_;
};

}  // namespace shoal::cuda
