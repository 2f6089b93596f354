#pragma once
#include <ucp/api/ucp.h>

namespace shoal::ucx {

/// UCX's functions by name. It is opened when asked for: it hooks into the process (signals, mmap) as soon as it is
/// loaded.
struct Functions {
  /// Error (wrong usage) where the library is not there.
  Functions();

  decltype(&ucp_get_version_string) version;
  decltype(&ucp_config_read) config_read;
  decltype(&ucp_config_release) config_release;
  decltype(&ucp_init_version) init;
  decltype(&ucp_cleanup) cleanup;
  decltype(&ucp_worker_create) worker_create;
  decltype(&ucp_worker_destroy) worker_destroy;
  decltype(&ucp_worker_get_address) worker_address;
  decltype(&ucp_worker_release_address) release_address;
  decltype(&ucp_worker_progress) worker_progress;
  decltype(&ucp_ep_create) endpoint_create;
  decltype(&ucp_ep_close_nbx) endpoint_close;
  decltype(&ucp_tag_send_nbx) send;
  decltype(&ucp_tag_recv_nbx) receive;
  decltype(&ucp_request_check_status) request_status;
  decltype(&ucp_request_free) request_free;
  decltype(&ucs_status_string) status_string;

  /// Throws Error with UCX's own words.
  void check(ucs_status_t status, const char* what) const;
};

}  // namespace shoal::ucx
