#pragma once
#include <memory>
#include <string>

#include "collectives/device_transport.h"
#include "collectives/nccl/functions.h"

namespace shoal::nccl {

/// NCCL older than 2.28.7, or not the version that kernels were compiled with; empty: neither.
std::string why_no_windows(const Functions& f);

/// A window by NCCL's device interface, in a communicator of its own, so that the ranks' other one is as it was where
/// this fails. Error where GPUs reach each other neither by stores nor by a network that they can use, or where other
/// ranks do not come within two minutes.
std::shared_ptr<DeviceWindow> open_window(const Functions& f, int ranks, const ncclUniqueId& id, int rank,
                                          std::size_t bytes, int signals);

}  // namespace shoal::nccl
