#pragma once
#include <memory>

#include "collectives/dispatch_plan.h"
#include "kernels/token_exchange.h"

namespace shoal {

/// Over any communicator: rows go by the host's memory, which for CPUs is where they are.
std::unique_ptr<TokenExchange> make_host_token_exchange(Backend& backend, Communicator& comm,
                                                        const ExchangeShape& shape);

}  // namespace shoal
