#pragma once
#include <memory>

#include "collectives/device_transport.h"
#include "collectives/nccl/functions.h"

namespace shoal::nccl {

/// A window by NCCL's device interface, in a communicator of its own, so that the ranks' other one is as it was where
/// this fails. Null where NCCL is older than 2.28.7 or not the version that the kernels were compiled with, where GPUs
/// reach each other neither by stores nor by a network that they can use, or where other ranks do not come in time.
std::unique_ptr<DeviceWindow> open_window(const Functions& f, int ranks, const ncclUniqueId& id, int rank,
                                          std::size_t bytes, int signals);

}  // namespace shoal::nccl
