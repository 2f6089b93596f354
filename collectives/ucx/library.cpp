#include "collectives/ucx/library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

#include "base/error.h"

namespace shoal::ucx {
namespace {

/// What users have not set themselves, before it is read.
void set_defaults() {
  const auto set = [](const char* name, const char* value) { setenv(name, value, 0); };
  set("UCX_HANDLE_ERRORS", "none");  // signals are ours
  set("UCX_WARN_UNUSED_ENV_VARS", "n");
  std::error_code none;
  if (!std::filesystem::is_empty("/sys/class/infiniband", none) && !none) return;
  // Over TCP the way for long messages takes 16 KB 56 us, and that for short ones 8 (UCX 1.13.1, one host); but these
  // may have to be kept until they are received.
  set("UCX_RNDV_THRESH", "256k");
  set("UCX_MEM_EVENTS", "n");  // which memory is registered with an adapter: none
}

}  // namespace

Functions::Functions() {
  set_defaults();
  void* const library = dlopen("libucp.so.0", RTLD_NOW | RTLD_LOCAL);
  if (!library)
    throw Error(
        "--collectives ucx: libucp.so.0 was not found; install UCX (libucx0) or add its folder to "
        "LD_LIBRARY_PATH",
        ExitCode::usage);
  const auto find = [library](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (!function) fail("libucp.so.0 has no {}; UCX 1.10 or later is needed", name);
  };
  find(version, "ucp_get_version_string");
  find(config_read, "ucp_config_read");
  find(config_release, "ucp_config_release");
  find(init, "ucp_init_version");
  find(cleanup, "ucp_cleanup");
  find(worker_create, "ucp_worker_create");
  find(worker_destroy, "ucp_worker_destroy");
  find(worker_address, "ucp_worker_get_address");
  find(release_address, "ucp_worker_release_address");
  find(worker_progress, "ucp_worker_progress");
  find(endpoint_create, "ucp_ep_create");
  find(endpoint_close, "ucp_ep_close_nbx");
  find(send, "ucp_tag_send_nbx");
  find(receive, "ucp_tag_recv_nbx");
  find(request_status, "ucp_request_check_status");
  find(request_free, "ucp_request_free");
  find(status_string, "ucs_status_string");
}

void Functions::check(ucs_status_t status, const char* what) const {
  if (status != UCS_OK) fail("{}: {}", what, status_string(status));
}

}  // namespace shoal::ucx
