#pragma once
#include <chrono>

#include "runtime/control_wire.h"

namespace shoal::control {

/// A connection to rank 0 on which both sides have proved that they belong to the job.
struct Joined {
  int fd = -1;  // the caller's
  Process server;
};

/// Tries all addresses of the contact at once, again and again, until the right server answers; loopback, too, if it is
/// on this host. Throws Error that names what each address answered, or why the server refused.
Joined join(const Contact& contact, const Hello& hello, std::chrono::milliseconds timeout);

}  // namespace shoal::control
