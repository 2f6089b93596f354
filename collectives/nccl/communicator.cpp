#include "collectives/nccl/nccl.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <numeric>

#include "base/cuda/memory.h"
#include "base/cuda/stream.h"
#include "base/cuda/wait.h"
#include "base/error.h"
#include "collectives/agreement.h"
#include "collectives/aligned_buffer.h"
#include "collectives/device_transport.h"
#include "collectives/nccl/library.h"
#include "collectives/nccl/record_layout.h"
#include "collectives/over_all_to_all.h"
#include "collectives/record_memory.h"

namespace shoal {
namespace {

using cuda::check;
using nccl::RecordLayout;
using Piece = DeviceTransport::Piece;
using Clock = std::chrono::steady_clock;

/// A rank's place in the group, its stream, and the waiting that gives up.
class Member {
 public:
  Member(std::shared_ptr<NcclLibrary> library, Communicator& others, const NcclOptions& options)
      : options_(options),
        library_(std::move(library)),
        others_(others),
        rank_(others.rank()),
        size_(others.size()),
        watch_([this](auto waited) { look(waited); }) {
    use_device();
    group_ = library_->join(size_, new_id(), rank_);
    stream_ = cuda::new_stream(true);
    last_ = cuda::new_event();
  }
  ~Member() {
    try {
      others_.check_current();
    } catch (const LeftBehind&) {
      abort();  // an orderly end would wait for all ranks
    }
    group_.reset();
    static_cast<void>(cudaEventDestroy(last_));
    static_cast<void>(cudaStreamDestroy(stream_));
  }
  Member(const Member&) = delete;
  Member& operator=(const Member&) = delete;

  void use_device() const { check(cudaSetDevice(options_.device), "cudaSetDevice"); }
  const NcclOptions& options() const { return options_; }
  NcclLibrary& library() { return *library_; }
  Communicator& others() { return others_; }
  NcclGroup& group() {
    if (lost_) fail("rank {}: NCCL was given up after an error", rank_);
    return *group_;
  }
  cudaStream_t stream() const { return stream_; }
  int rank() const { return rank_; }
  int size() const { return size_; }

  /// What has bytes goes and comes. Each rank starts with its successor, so that not all talk to rank 0 first.
  /// Exchanges follow each other in the order in which they are asked for, on whichever streams: as all ranks ask for
  /// them.
  void exchange(std::span<const Piece> to, std::span<const Piece> from, cudaStream_t on) {
    NcclGroup& all = group();
    try {
      begin_exchange(all, to, from, on);
    } catch (const LeftBehind&) {
      throw;
    } catch (const Error& error) {
      if (lost_) throw;       // what was given up stays so
      error_ = error.what();  // a rank is gone, perhaps: who knows says so soon
      heard_ = Clock::now();
      cuda::Watch::wait_until([] { return false; });
    }
  }
  void begin_exchange(NcclGroup& all, std::span<const Piece> to, std::span<const Piece> from, cudaStream_t on) {
    check(cudaStreamWaitEvent(on, last_), "cudaStreamWaitEvent");
    all.start();
    for (int i = 1; i < size_; ++i) {
      const int dest = (rank_ + i) % size_, src = (rank_ + size_ - i) % size_;
      const Piece &sent = to[static_cast<std::size_t>(dest)], &received = from[static_cast<std::size_t>(src)];
      if (sent.bytes > 0) all.send(sent.memory, sent.bytes, dest, on);
      if (received.bytes > 0) all.receive(received.memory, received.bytes, src, on);
    }
    all.end();
    check(cudaEventRecord(last_, on), "cudaEventRecord");
  }

  void on_abort(std::function<void()> stop) { on_abort_ = std::move(stop); }
  std::shared_ptr<DeviceWindow> open_window(std::size_t bytes, int signals, std::string& why_not) {
    why_not = library_->why_no_windows();
    if (!all_agree(others_, why_not.empty())) {
      if (why_not.empty()) why_not = "another rank's NCCL has no windows";
      return nullptr;
    }
    try {
      const std::shared_ptr<DeviceWindow> window = library_->open_window(size_, new_id(), rank_, bytes, signals);
      window_ = window;
      return window;
    } catch (const LeftBehind&) {
      throw;
    } catch (const Error& error) {
      why_not = error.what();
      return nullptr;
    }
  }

  /// Until the event has happened.
  void wait_for(cudaEvent_t event) { cuda::wait_for(event, "the GPU's exchange"); }
  /// Until all exchanges are over.
  void settle() { wait_for(last_); }
  void abort() {
    if (lost_) return;
    lost_ = true;
    if (on_abort_) std::exchange(on_abort_, nullptr)();
    if (group_) group_->abort();
  }

 private:
  /// The same on all ranks.
  NcclLibrary::Id new_id() {
    NcclLibrary::Id id{};
    if (rank_ == 0) id = library_->make_id();
    others_.broadcast(std::as_writable_bytes(std::span(id)), 0);
    return id;
  }
  /// While this thread waits for its GPU, or for NCCL.
  void look(std::chrono::duration<double> waited) {
    if (lost_) return;  // what is left of the work ends by itself
    try {
      others_.check_current();
    } catch (const LeftBehind&) {
      abort();
      throw;
    }
    if (error_.empty() && group_) {
      error_ = group_->error();
      if (const auto window = window_.lock(); error_.empty() && window) error_ = window->error();
      heard_ = Clock::now();
    }
    if (!error_.empty() && std::chrono::duration<double>(Clock::now() - heard_).count() >= options_.news_s)
      give_up(error_);
    if (waited.count() > options_.patience_s)
      give_up(fmt::format("nothing came for {:.1f} s; another rank has ended or hangs", options_.patience_s));
  }
  [[noreturn]] void give_up(const std::string& why) {
    abort();
    fail("rank {}: NCCL: {}", rank_, why);
  }

  const NcclOptions options_;
  std::shared_ptr<NcclLibrary> library_;
  Communicator& others_;
  const int rank_, size_;
  const cuda::Watch watch_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t last_ = nullptr;  // exchange
  std::unique_ptr<NcclGroup> group_;
  std::weak_ptr<DeviceWindow> window_;
  std::function<void()> on_abort_;
  bool lost_ = false;
  std::string error_;  // that NCCL has reported
  Clock::time_point heard_{};
};

class NcclTransport final : public DeviceTransport {
 public:
  explicit NcclTransport(std::shared_ptr<Member> member) : member_(std::move(member)) {}

  void exchange(std::span<const Piece> to, std::span<const Piece> from, void* stream) override {
    member_->use_device();
    member_->exchange(to, from, static_cast<cudaStream_t>(stream));
  }
  void settle() override { member_->settle(); }
  void on_abort(std::function<void()> stop) override { member_->on_abort(std::move(stop)); }
  std::shared_ptr<DeviceWindow> open_window(std::size_t bytes, int signals, std::string& why_not) override {
    member_->use_device();
    return member_->open_window(bytes, signals, why_not);
  }

 private:
  std::shared_ptr<Member> member_;
};

/// Records of ranks that share memory: what ends their waits ends those of the GPU as well.
class HostAllToAll final : public AllToAll {
 public:
  HostAllToAll(std::shared_ptr<Member> member, std::unique_ptr<AllToAll> records)
      : member_(std::move(member)), records_(std::move(records)) {}
  std::span<std::byte> outgoing(int dest, std::size_t bytes) override { return records_->outgoing(dest, bytes); }
  void post(std::span<const std::size_t> bytes) override { records_->post(bytes); }
  void wait() override {
    try {
      records_->wait();
    } catch (const LeftBehind&) {
      member_->abort();
      throw;
    }
  }
  std::span<const std::byte> incoming(int src) const override { return records_->incoming(src); }

 private:
  std::shared_ptr<Member> member_;
  std::unique_ptr<AllToAll> records_;
};

/// Pinned memory that grows, in which records are written and read.
class PinnedBuffer {
 public:
  std::byte* data() const { return block_.data(); }
  std::size_t capacity() const { return block_.bytes(); }
  void reserve(std::size_t bytes) {
    if (bytes <= block_.bytes()) return;
    block_ = {};  // first, so that there are never two
    block_ = cuda::PinnedBlock(bytes + bytes / 2);
  }

 private:
  cuda::PinnedBlock block_;
};
class DeviceBuffer {
 public:
  std::size_t capacity() const { return block_.bytes(); }
  std::byte* reserve(std::size_t bytes) {
    if (bytes > block_.bytes()) block_ = cuda::DeviceBlock(bytes + bytes / 2);
    return block_.data();
  }

 private:
  cuda::DeviceBlock block_;
};

class NcclAllToAll final : public AllToAll {
 public:
  /// ranks: that it is among, of the group.
  NcclAllToAll(std::shared_ptr<Member> member, std::size_t eager, std::vector<int> ranks)
      : member_(std::move(member)),
        layout_{eager},
        ranks_(std::move(ranks)),
        n_(ranks_.size()),
        me_(static_cast<int>(std::ranges::find(ranks_, member_->rank()) - ranks_.begin())),
        pieces_to_(static_cast<std::size_t>(member_->size())),
        pieces_from_(pieces_to_.size()) {
    member_->use_device();
    for (Round& r : rounds_) {
      r.to.resize(n_);
      r.from.resize(n_);
      r.sent.resize(n_);
      r.received.resize(n_);
      r.asked.resize(n_);
      r.outgoing.reserve(n_ * layout_.slot_bytes());
      r.slots.reserve(n_ * layout_.slot_bytes());
      r.device_send.reserve(n_ * layout_.slot_bytes());
      r.device_receive.reserve(n_ * layout_.slot_bytes());
      r.arrived = cuda::new_event();
    }
  }
  ~NcclAllToAll() override {
    for (Round& r : rounds_) static_cast<void>(cudaEventDestroy(r.arrived));
  }

  std::span<std::byte> outgoing(int dest, std::size_t bytes) override {
    check_room();
    if (dest == me_) {
      AlignedBuffer& own = own_[posts_ % 3];
      own.reserve(bytes);
      return {own.data(), bytes};
    }
    Round& r = round(posts_);
    r.asked[static_cast<std::size_t>(dest)] = bytes;
    if (bytes <= layout_.eager) return {r.outgoing.data() + layout_.slot(dest) + RecordLayout::kHeader, bytes};
    r.to[static_cast<std::size_t>(dest)] = r.send.take(bytes);
    return {r.to[static_cast<std::size_t>(dest)], bytes};
  }

  void post(std::span<const std::size_t> bytes) override {
    check_room();
    member_->use_device();
    Round& r = round(posts_);
    r.receive.clear();
    const cudaStream_t stream = member_->stream();
    std::byte *sends = r.device_send.reserve(0), *receives = r.device_receive.reserve(0);
    std::size_t longest = 0;
    for (std::size_t d = 0; d < n_; ++d) {
      r.sent[d] = bytes[d];
      const bool own = static_cast<int>(d) == me_;
      if (bytes[d] > (own ? own_[posts_ % 3].capacity() : r.asked[d]))
        fail("all-to-all: rank {} sends {} bytes to rank {} and asked for less", member_->rank(), bytes[d], ranks_[d]);
      if (own) continue;
      std::byte* slot = r.outgoing.data() + layout_.slot(static_cast<int>(d));
      std::memcpy(slot, &r.sent[d], sizeof r.sent[d]);
      if (r.asked[d] > layout_.eager) std::memcpy(slot + RecordLayout::kHeader, r.to[d], layout_.first(bytes[d]));
      longest = std::max(longest, layout_.first(bytes[d]));
    }
    std::fill(r.asked.begin(), r.asked.end(), 0);
    if (n_ > 1) {
      // One copy for all ranks: the host's time for a call is more than the GPU's for what is copied in vain.
      check(cudaMemcpy2DAsync(sends, layout_.slot_bytes(), r.outgoing.data(), layout_.slot_bytes(),
                              RecordLayout::kHeader + longest, n_, cudaMemcpyHostToDevice, stream),
            "copying records to the GPU");
      for (std::size_t p = 0; p < n_; ++p) {
        piece(pieces_to_, p) = {sends + layout_.slot(static_cast<int>(p)), layout_.slot_bytes()};
        piece(pieces_from_, p) = {receives + layout_.slot(static_cast<int>(p)), layout_.slot_bytes()};
      }
      member_->exchange(pieces_to_, pieces_from_, stream);
      check(cudaMemcpyAsync(r.slots.data(), receives, n_ * layout_.slot_bytes(), cudaMemcpyDeviceToHost, stream),
            "copying records from the GPU");
    }
    check(cudaEventRecord(r.arrived, stream), "cudaEventRecord");
    ++posts_;
  }

  void wait() override {
    if (waits_ == posts_) fail("all-to-all: rank {} waits for an exchange that it did not post", member_->rank());
    member_->use_device();
    Round& r = round(waits_);
    member_->wait_for(r.arrived);
    for (std::size_t s = 0; s < n_; ++s) {
      r.received[s] = r.sent[s];
      if (static_cast<int>(s) != me_)
        std::memcpy(&r.received[s], r.slots.data() + layout_.slot(static_cast<int>(s)), sizeof r.received[s]);
    }
    exchange_rests(r);
    r.send.clear();
    ++waits_;
  }

  std::span<const std::byte> incoming(int src) const override {
    const Round& r = rounds_[(waits_ - 1) % 2];
    const auto s = static_cast<std::size_t>(src);
    if (src == me_) return {own_[(waits_ - 1) % 3].data(), r.received[s]};
    const std::byte* from =
        layout_.rest(r.received[s]) > 0 ? r.from[s] : r.slots.data() + layout_.slot(src) + RecordLayout::kHeader;
    return {from, r.received[s]};
  }

 private:
  /// One of the two exchanges that may be under way, with its buffers.
  struct Round {
    RecordMemory<PinnedBuffer> send, receive;   // long records
    std::vector<std::byte*> to, from;           // [ranks] where they lie there
    std::vector<std::uint64_t> sent, received;  // [ranks] bytes
    std::vector<std::size_t> asked;             // [ranks] of outgoing()
    PinnedBuffer outgoing, slots;               // what goes and what arrives first, of all ranks
    DeviceBuffer device_send, device_receive, device_send_rests, device_receive_rests;
    cudaEvent_t arrived = nullptr;
  };

  Round& round(std::uint64_t exchange) { return rounds_[exchange % 2]; }
  Piece& piece(std::vector<Piece>& of_group, std::size_t p) const {
    return of_group[static_cast<std::size_t>(ranks_[p])];
  }
  void check_room() const {
    if (posts_ - waits_ >= 2)
      fail("all-to-all: rank {} starts a third exchange before it waited for the first", member_->rank());
  }
  void exchange_rests(Round& r) {
    const auto mine = static_cast<std::size_t>(me_);
    std::vector<std::uint64_t> sent = r.sent, received = r.received;
    sent[mine] = received[mine] = 0;
    const auto to = layout_.rest_places(sent), from = layout_.rest_places(received);
    if (to.back() == 0 && from.back() == 0) return;
    const cudaStream_t stream = member_->stream();
    if (to.back() > r.device_send_rests.capacity() || from.back() > r.device_receive_rests.capacity())
      member_->settle();
    std::byte *sends = r.device_send_rests.reserve(to.back()), *receives = r.device_receive_rests.reserve(from.back());
    for (std::size_t p = 0; p < n_; ++p) {
      if (layout_.rest(sent[p]) > 0)
        check(cudaMemcpyAsync(sends + to[p], r.to[p] + layout_.eager, layout_.rest(sent[p]), cudaMemcpyHostToDevice,
                              stream),
              "copying records to the GPU");
      if (layout_.rest(received[p]) == 0) continue;
      r.from[p] = r.receive.take(received[p]);
      std::memcpy(r.from[p], r.slots.data() + layout_.slot(static_cast<int>(p)) + RecordLayout::kHeader, layout_.eager);
    }
    for (std::size_t p = 0; p < n_; ++p) {
      piece(pieces_to_, p) = {sends + to[p], layout_.rest(sent[p])};
      piece(pieces_from_, p) = {receives + from[p], layout_.rest(received[p])};
    }
    member_->exchange(pieces_to_, pieces_from_, stream);
    for (std::size_t s = 0; s < n_; ++s)
      if (layout_.rest(received[s]) > 0)
        check(cudaMemcpyAsync(r.from[s] + layout_.eager, receives + from[s], layout_.rest(received[s]),
                              cudaMemcpyDeviceToHost, stream),
              "copying records from the GPU");
    check(cudaEventRecord(r.arrived, stream), "cudaEventRecord");
    member_->wait_for(r.arrived);
  }

  std::shared_ptr<Member> member_;
  const RecordLayout layout_;
  const std::vector<int> ranks_;
  const std::size_t n_;
  const int me_;                                // among them
  std::vector<Piece> pieces_to_, pieces_from_;  // of all ranks of the group
  std::array<Round, 2> rounds_;
  /// What a rank sends to itself stays where it was written: it may be read until the second post() after the exchange,
  /// and the next record is written before that post.
  std::array<AlignedBuffer, 3> own_;
  std::uint64_t posts_ = 0, waits_ = 0;
};

class NcclCommunicator final : public CollectivesOverAllToAll {
 public:
  explicit NcclCommunicator(std::shared_ptr<Member> member) : member_(std::move(member)), transport_(member_) {}
  ~NcclCommunicator() override { release_exchange(); }
  int rank() const override { return member_->rank(); }
  int size() const override { return member_->size(); }
  std::string description() const override { return "nccl (" + member_->library().version() + ")"; }
  std::unique_ptr<AllToAll> make_all_to_all(std::size_t usual, std::span<const int> among) override {
    if (on_one_host(among))
      return std::make_unique<HostAllToAll>(member_, member_->others().make_all_to_all(usual, among));
    const std::size_t eager = member_->options().eager;
    std::vector<int> ranks(among.begin(), among.end());
    if (among.empty()) {
      ranks.resize(static_cast<std::size_t>(size()));
      std::iota(ranks.begin(), ranks.end(), 0);
    }
    return std::make_unique<NcclAllToAll>(member_, usual > 0 ? std::min(align_up(usual), eager) : eager,
                                          std::move(ranks));
  }
  int ranks_per_host() const override { return member_->others().ranks_per_host(); }
  DeviceTransport* device_transport() override { return &transport_; }
  void check_current() const override { member_->others().check_current(); }

 private:
  bool on_one_host(std::span<const int> among) const {
    const int of_host = ranks_per_host();
    return of_host > 1 && !among.empty() && among.front() / of_host == among.back() / of_host;
  }

  std::shared_ptr<Member> member_;
  NcclTransport transport_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(std::shared_ptr<NcclLibrary> library, Communicator& others,
                                                     const NcclOptions& options) {
  if (options.eager % 64 != 0) fail("NCCL's first messages must carry a multiple of 64 bytes, not {}", options.eager);
  return std::make_unique<NcclCommunicator>(std::make_shared<Member>(std::move(library), others, options));
}

}  // namespace shoal
