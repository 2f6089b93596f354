#pragma once
#include <functional>
#include <unordered_map>
#include <vector>

#include "base/cuda/memory.h"
#include "collectives/communicator.h"
#include "collectives/device_transport.h"
#include "collectives/dispatch_plan.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/products.h"
#include "kernels/device_moe.h"

namespace shoal::cuda {

/// A layer is: route; pack_slots, which travel while the shared expert is computed; plan_slots, unpack_slots; the
/// experts' products, of as many tiles as there could be; combine_slots, which travel back; add_slot_answers.
class GpuMoe final : public DeviceMoe {
 public:
  /// A communicator of several ranks has a device_transport(). `forget`: what was recorded on the stream, before the
  /// exchanges in it end.
  GpuMoe(cudaStream_t stream, Uploads& uploads, WeightVectors& vectors, Products& products, Communicator& comm,
         const DeviceMoeShape& shape, bool f8_rows, std::function<void()> forget);
  ~GpuMoe() override;
  GpuMoe(const GpuMoe&) = delete;
  GpuMoe& operator=(const GpuMoe&) = delete;

  /// Whether its kernels are made for it.
  static bool takes(const Communicator& comm, const DeviceMoeShape& shape);

  void placed(const ExpertMap& map) override;
  std::int64_t begin_step(std::int64_t tokens, std::int64_t most_tokens) override;
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

  /// `bytes` of each rank's part: `to` has one for each rank, or all get this rank's own of `from`.
  void exchange(const std::byte* to, std::byte* from, std::int64_t bytes, bool own_to_all);
  /// What a layer leaves for chosen(): its work, then the experts of each slot.
  std::int64_t chosen_of_layer() const { return 1 + kMostSlots * shape_.router.top_k; }

  static constexpr std::int64_t kMostSlots = 256;
  /// That arrive at a rank in a layer. The counted exchange has some 100 us of host's work a layer, in which NVLink
  /// brings 45 MB and a network of 400 Gbit/s 5 MB. By reckoning, not measured.
  static constexpr std::int64_t kMostBytes = std::int64_t{24} << 20;

  cudaStream_t stream_, traffic_ = nullptr;
  cudaEvent_t ready_ = nullptr, arrived_ = nullptr, fetched_ = nullptr;
  Uploads& uploads_;
  WeightVectors& vectors_;
  Products& products_;
  const DeviceMoeShape shape_;
  DeviceTransport* const transport_;
  const std::function<void()> forget_;
  Slots slots_;
  std::uint32_t turn_ = 0;
  std::unordered_map<const ExpertMap*, Places> places_;
  std::vector<Piece> to_, from_;  // [ranks]
  DeviceBlock turn_on_device_{sizeof(std::uint32_t)};
  DeviceBlock chosen_on_device_;  // [layers, chosen_of_layer()]
  PinnedBlock chosen_;
  Scratch picked_, shares_, in_, x_, begin_, rows_, place_, sent_, answers_;
};

}  // namespace shoal::cuda
