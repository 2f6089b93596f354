#include "runtime/host_token_exchange.h"

#include "collectives/expert_exchange.h"

namespace shoal {
namespace {

class HostTokenExchange final : public TokenExchange {
 public:
  HostTokenExchange(Backend& backend, Communicator& comm, const ExchangeShape& shape)
      : backend_(backend),
        exchange_(comm, shape.hidden, shape.bf16_wire, shape.answers, 0,
                  [&backend](std::size_t rows, double elements, const auto& body) {
                    backend.on_host(rows, elements, body);
                  }) {}

  void dispatch(Rows<float> h, const std::int32_t* expert, const float* weight, int top_k, ExpertMap& map) override {
    const Rows<const float> sent = backend_.to_host(h, sent_);
    exchange_.dispatch(sent.data, sent.stride, sent.rows, expert, weight, top_k, map);
  }

  const ExpertBatch& dispatched() override { return exchange_.dispatched(); }

  void combine(Rows<float> out) override {
    exchange_.combine();
    returned_ = backend_.to_host(out, returned_room_);
  }

  void combined(Rows<float> out) override {
    exchange_.combined(returned_.data, returned_.stride);
    backend_.from_host(returned_, out);
  }

 private:
  Backend& backend_;
  ExpertExchange exchange_;
  HostRoom sent_, returned_room_;
  Rows<float> returned_;  // in host memory
};

}  // namespace

std::unique_ptr<TokenExchange> make_host_token_exchange(Backend& backend, Communicator& comm,
                                                        const ExchangeShape& shape) {
  return std::make_unique<HostTokenExchange>(backend, comm, shape);
}

}  // namespace shoal
