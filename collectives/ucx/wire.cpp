#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>

#include "base/error.h"
#include "collectives/mpi_group.h"
#include "collectives/ucx/library.h"
#include "collectives/ucx/ucx.h"

namespace shoal {
namespace {

using ucx::Functions;
using Clock = std::chrono::steady_clock;

/// How long the control plane may take to find that a rank is gone, and say so.
constexpr std::chrono::seconds kNews{30};

/// This process's end of all connections. One thread calls it.
class Worker {
 public:
  explicit Worker(MpiGroup& everyone) : me_(static_cast<std::uint64_t>(everyone.rank())) {
    ucp_config_t* config = nullptr;
    f.check(f.config_read(nullptr, nullptr, &config), "UCX's configuration");
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS;
    params.features = UCP_FEATURE_TAG;
    params.estimated_num_eps = static_cast<std::size_t>(everyone.size());
    const ucs_status_t opened = f.init(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &context_);
    f.config_release(config);
    f.check(opened, "UCX");
    ucp_worker_params_t worker{};
    worker.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
    worker.thread_mode = UCS_THREAD_MODE_SINGLE;
    f.check(f.worker_create(context_, &worker, &worker_), "UCX's worker");
    exchange_addresses(everyone);
    endpoints_.resize(addresses_.size());
  }
  ~Worker() {
    if (sets > 0) return;  // messages were left behind, and the memory that they may still write to
    for (ucp_ep_h endpoint : endpoints_) {
      if (!endpoint) continue;
      ucp_request_param_t how{};
      how.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
      how.flags = UCP_EP_CLOSE_FLAG_FORCE;
      finish(f.endpoint_close(endpoint, &how));
    }
    f.worker_destroy(worker_);
    f.cleanup(context_);
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  std::uint64_t rank() const { return me_; }
  ucp_worker_h get() const { return worker_; }
  /// Connections are made when first needed. Peers are told apart from the network: their end is an error of requests,
  /// and not of this process.
  ucp_ep_h endpoint(int rank) {
    ucp_ep_h& endpoint = endpoints_[static_cast<std::size_t>(rank)];
    if (endpoint) return endpoint;
    ucp_ep_params_t params{};
    params.field_mask =
        UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.address = reinterpret_cast<const ucp_address_t*>(addresses_[static_cast<std::size_t>(rank)].data());
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler.cb = [](void*, ucp_ep_h, ucs_status_t) {};  // its requests end with the error
    f.check(f.endpoint_create(worker_, &params, &endpoint), "UCX's connection to another rank");
    return endpoint;
  }
  void progress() {
    while (f.worker_progress(worker_) != 0) {
    }
  }

  const Functions f;
  int sets = 0;  // of messages, that were made and have not ended

 private:
  void exchange_addresses(MpiGroup& everyone) {
    ucp_address_t* address = nullptr;
    std::size_t length = 0;
    f.check(f.worker_address(worker_, &address, &length), "UCX's address");
    std::vector<int> all(static_cast<std::size_t>(everyone.size()));
    for (int r = 0; r < everyone.size(); ++r) all[static_cast<std::size_t>(r)] = r;
    const std::size_t longest = std::ranges::max(everyone.gather(all, length));
    std::vector<std::byte> mine(longest), theirs(longest * all.size());
    std::copy_n(reinterpret_cast<const std::byte*>(address), length, mine.begin());
    f.release_address(worker_, address);
    everyone.gather_bytes(all, mine, theirs);
    for (std::size_t r = 0; r < all.size(); ++r) {
      const auto first = theirs.begin() + static_cast<std::ptrdiff_t>(r * longest);
      addresses_.emplace_back(first, first + static_cast<std::ptrdiff_t>(longest));
    }
  }
  void finish(ucs_status_ptr_t request) {
    if (!UCS_PTR_IS_PTR(request)) return;
    while (f.request_status(request) == UCS_INPROGRESS) progress();
    f.request_free(request);
  }

  const std::uint64_t me_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  std::vector<std::vector<std::byte>> addresses_;  // [ranks]
  std::vector<ucp_ep_h> endpoints_;                // [ranks] null: not connected
};

class UcxMessages final : public MessageSet {
 public:
  explicit UcxMessages(std::shared_ptr<Worker> worker) : worker_(std::move(worker)) { ++worker_->sets; }
  ~UcxMessages() override { --worker_->sets; }
  UcxMessages(const UcxMessages&) = delete;
  UcxMessages& operator=(const UcxMessages&) = delete;

  void receive(int src, int tag, std::span<std::byte> to) override {
    const ucp_request_param_t how{};
    begun(worker_->f.receive(worker_->get(), to.data(), to.size(), full_tag(static_cast<std::uint64_t>(src), tag),
                             ~ucp_tag_t{0}, &how));
  }
  void send(int dest, int tag, std::span<const std::byte> from) override {
    const ucp_request_param_t how{};
    begun(worker_->f.send(worker_->endpoint(dest), from.data(), from.size(), full_tag(worker_->rank(), tag), &how));
  }
  void progress(std::vector<int>& completed) override {
    worker_->progress();
    for (std::size_t i = 0; i < messages_.size(); ++i) {
      Message& m = messages_[i];
      if (m.over) continue;
      if (m.request) {
        const ucs_status_t status = worker_->f.request_status(m.request);
        if (status == UCS_INPROGRESS) continue;
        worker_->f.request_free(m.request);
        m.request = nullptr;
        if (status != UCS_OK) {
          fails(m, status);
          continue;
        }
      }
      m.over = true;
      completed.push_back(static_cast<int>(i));
    }
    if (broken_since_ && Clock::now() - *broken_since_ > kNews)
      worker_->f.check(broken_, "UCX, a message to or from another rank");
  }
  void clear() override { messages_.clear(); }

 private:
  struct Message {
    void* request = nullptr;  // null: done, perhaps at once
    bool over = false;        // and told, or failed, which nobody is told
  };

  /// A message's sender and tag.
  static ucp_tag_t full_tag(std::uint64_t src, int tag) { return src << 32 | static_cast<std::uint32_t>(tag); }
  void begun(ucs_status_ptr_t request) {
    Message& m = messages_.emplace_back();
    if (UCS_PTR_IS_ERR(request)) return fails(m, UCS_PTR_STATUS(request));
    m.request = request;
  }
  void fails(Message& m, ucs_status_t status) {
    m.over = true;
    if (!broken_since_) broken_since_ = Clock::now(), broken_ = status;
  }

  std::shared_ptr<Worker> worker_;
  std::vector<Message> messages_;
  std::optional<Clock::time_point> broken_since_;  // a message ended with an error: the peer is gone, or the network
  ucs_status_t broken_ = UCS_OK;
};

class UcxWire final : public Wire {
 public:
  explicit UcxWire(MpiGroup& everyone) : worker_(std::make_shared<Worker>(everyone)) {}
  std::string description() const override { return fmt::format("ucx ({})", worker_->f.version()); }
  std::unique_ptr<MessageSet> make_set() override { return std::make_unique<UcxMessages>(worker_); }

 private:
  std::shared_ptr<Worker> worker_;
};

}  // namespace

std::unique_ptr<Wire> make_ucx_wire(MpiGroup& everyone) { return std::make_unique<UcxWire>(everyone); }

}  // namespace shoal
