#pragma once
#include <memory>
#include <vector>

#include "base/cuda/memory.h"
#include "collectives/communicator.h"
#include "collectives/device_transport.h"
#include "collectives/dispatch_plan.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/traffic.h"
#include "kernels/token_exchange.h"

namespace shoal::cuda {

/// An exchange whose rows go from GPU to GPU. Which rows go where is worked out by the host, which reads the router's
/// choice anyway; only that, experts' ids and weights, travels between the hosts' memories, and tells each rank how
/// much comes. Rows are packed, sent, multiplied, sent back and added without the host, and travel on a stream of their
/// own while the shared expert is computed.
class GpuTokenExchange final : public TokenExchange {
 public:
  /// `stream`: where operations on rows go. A communicator of several ranks has a device_transport(). `f8_rows`:
  /// experts of E4M3 round their rows to it.
  GpuTokenExchange(cudaStream_t stream, Uploads& uploads, Communicator& comm, const ExchangeShape& shape, bool f8_rows);
  GpuTokenExchange(const GpuTokenExchange&) = delete;
  GpuTokenExchange& operator=(const GpuTokenExchange&) = delete;

  void dispatch(Rows<float> h, const std::int32_t* expert, const float* weight, int top_k, ExpertMap& map) override;
  const ExpertBatch& dispatched() override;
  void combine(Rows<float> out) override;
  void combined(Rows<float> out) override;

 private:
  using Piece = DeviceTransport::Piece;

  /// Appends a rank's rows, the first of which is row `row` of x.
  void append(const SlotRecord::View& slot, std::int32_t row);
  /// Divides a buffer of rows as they travel among the other ranks, in ascending order.
  template <class RowsOf>
  void divide(std::byte* memory, Wire wire, const RowsOf& rows_of, std::vector<Piece>& pieces) const;
  std::byte* room(Scratch& memory, Wire wire, std::size_t rows) const {
    return memory.room<std::byte>(static_cast<std::int64_t>(rows) * wire_row_bytes(wire, hidden_));
  }

  cudaStream_t stream_;
  Uploads& uploads_;
  const std::size_t ranks_, rank_;
  const std::int64_t hidden_;
  const Wire there_, back_;  // how rows travel, and answers
  Traffic traffic_;
  const std::unique_ptr<AllToAll> records_;  // null with one rank
  const SlotRecord record_;
  DispatchPlan plan_;

  Rows<const float> h_;
  ExpertBatch batch_;
  std::vector<std::size_t> rows_from_;   // [ranks]
  std::vector<std::size_t> answers_to_;  // [ranks] rows of the batch for each; the own rank's come first
  std::vector<Piece> to_, from_;         // [ranks]
  std::vector<std::int32_t> list_, first_;
  Scratch x_, results_, sent_, received_, answers_sent_, answers_;
};

}  // namespace shoal::cuda
