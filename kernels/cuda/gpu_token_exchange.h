#pragma once
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/cuda/memory.h"
#include "kernels/cuda/gpu_hop.h"
#include "kernels/token_exchange.h"

namespace shoal::cuda {

/// An exchange whose rows go from GPU to GPU. Which rows go where is worked out by the host, which reads the router's
/// choice anyway; only that, experts' ids and weights, travels between the hosts' memories, and tells each rank how
/// much comes. Rows are packed, sent, multiplied, sent back and added without the host, and travel on a stream of their
/// own while other experts are computed. So does what is between two hops: rows go on as they came, and the answers of
/// a host's ranks are added up.
class GpuTokenExchange final : public TokenExchange {
 public:
  /// `stream`: where operations on rows go. A communicator of several ranks has a device_transport(). `f8_rows`:
  /// experts of E4M3 round their rows to it.
  GpuTokenExchange(cudaStream_t stream, Uploads& uploads, Communicator& comm, const ExchangeShape& shape, bool f8_rows);
  GpuTokenExchange(const GpuTokenExchange&) = delete;
  GpuTokenExchange& operator=(const GpuTokenExchange&) = delete;

  bool overlaps() const override { return !first_hop().alone(); }
  void dispatch(Rows<float> h, const std::int32_t* expert, const float* weight, int top_k, ExpertMap& map) override;
  const ExpertBatch& dispatched() override;
  void arrived() override;
  void combine(Rows<float> out) override;
  void combined(Rows<float> out) override;

 private:
  void pass_on();
  void pass_back();
  void list_rows();
  /// For memory that grows while exchanges are under way: of the other half of a layer's tokens, too.
  std::function<void()> settle() {
    return [this] { traffic_.settle(); };
  }
  GpuHop& first_hop() { return to_hosts_ ? *to_hosts_ : to_ranks_; }
  const GpuHop& first_hop() const { return to_hosts_ ? *to_hosts_ : to_ranks_; }
  std::byte* room(Scratch& memory, Wire wire, std::size_t rows) const {
    return memory.room<std::byte>(static_cast<std::int64_t>(rows) * wire_row_bytes(wire, hidden_));
  }
  /// Memory for the answers of a hop that are not for own tokens, as they travel, put there on `stream`.
  std::byte* pack_answers(const GpuHop& hop, Rows<const float> answers, Scratch& memory, cudaStream_t stream);
  void add_up(std::span<const std::int32_t> first, GpuHop& hop, Rows<const float> own, const std::byte* others,
              Rows<float> out, Uploads& lists, cudaStream_t stream);

  cudaStream_t stream_;
  Uploads& uploads_;
  const std::int64_t hidden_;
  const Hops hops_;
  const Wire there_, back_;  // how rows travel, and answers
  Traffic traffic_;
  std::optional<GpuHop> to_hosts_;  // the first of two hops
  GpuHop to_ranks_;                 // the last

  std::optional<Uploads> lists_;  // of what is done between them

  Rows<const float> h_;
  std::byte *leaving_ = nullptr, *arriving_ = nullptr;  // rows of the hop that is under way
  const std::byte* passed_ = nullptr;                   // all that came for this host, as it travels
  ExpertBatch batch_;
  Rows<float> sums_;                     // of the answers to those
  const std::byte* of_ranks_ = nullptr;  // answers that came: of ranks
  const std::byte* of_hosts_ = nullptr;  // and of hosts
  std::vector<std::int32_t> list_, first_;
  Scratch x_, results_, sent_, received_, answers_sent_, answers_;
  /// Of two hops; used on the traffic's stream, which combined() puts ahead of what grows them in the next layer.
  Scratch passing_, forwarded_, summing_, host_answers_sent_, host_answers_;
};

}  // namespace shoal::cuda
