#include "kernels/cuda/gpu_moe.h"

#include <cmath>

#include "collectives/hops.h"
#include "kernels/cuda/exchange_wire.h"

namespace shoal::cuda {
namespace {

// What place_of() has room for.
constexpr std::size_t kMostRanks = std::size_t{1} << (31 - kIndexBits), kMostOfRank = std::size_t{1} << kIndexBits;

/// So many that few numbers occur, since each is launched in its own way: powers of two, and halfway between.
std::int64_t slots_for(std::int64_t tokens) {
  std::int64_t n = 1;
  while (n < tokens) n *= 2;
  return n >= 8 && tokens <= n * 3 / 4 ? n * 3 / 4 : n;
}

}  // namespace

bool GpuMoe::takes(const Communicator& comm, const DeviceMoeShape& shape) {
  const auto& r = shape.router;
  return r.n_experts * shape.slices <= kMaxExperts && r.top_k * shape.slices <= kMostEntries &&
         static_cast<std::size_t>(comm.size()) < kMostRanks;
}

GpuMoe::GpuMoe(const Parts& parts, Communicator& comm, const DeviceMoeShape& shape, bool f8_rows)
    : parts_(parts),
      stream_(parts.stream),
      shape_(shape),
      transport_(comm.size() > 1 ? comm.device_transport() : nullptr),
      traffic_(transport_),
      slots_{comm.size(),
             comm.rank(),
             0,
             0,
             shape.router.top_k * shape.slices,
             shape.exchange.hidden,
             wire_there(shape.exchange, f8_rows),
             wire_back(shape.exchange),
             shape.exchange.answers == Answers::by_expert,
             Hops(comm.size(), comm.rank(), comm.ranks_per_host()).added_up()},
      to_(static_cast<std::size_t>(comm.size())),
      from_(static_cast<std::size_t>(comm.size())),
      chosen_on_device_(static_cast<std::size_t>(shape.layers * chosen_of_layer()) * sizeof(std::int32_t)),
      chosen_(chosen_on_device_.bytes()),
      picked_(parts.stream),
      shares_(parts.stream),
      in_(parts.stream),
      x_(parts.stream),
      begin_(parts.stream),
      rows_(parts.stream),
      place_(parts.stream),
      sent_(parts.stream),
      answers_(parts.stream) {
  if (slots_.ranks == 1) {
    parts.retired_windows.clear();  // nobody else is left
    return;
  }
  using PeerMemory = CudaOptions::PeerMemory;
  if (parts.peer_memory != PeerMemory::no) {
    most_slots_ = most_slots(kMostInWindow);
    const std::int64_t all = slots_.ranks * most_slots_;
    const PeerWindows::Room room{static_cast<std::size_t>(all * slots_.slot_bytes()),
                                 static_cast<std::size_t>(all * slots_.answer_bytes())};
    if (parts.peer_memory != PeerMemory::over_network)
      windows_ = PeerWindows::open(comm, parts.device, parts.peer_memory == PeerMemory::even_of_this_one, room,
                                   parts.retired_windows, stream_);
    if (!windows_) windows_ = PeerWindows::open_over_network(comm, room, stream_, why_no_windows_);
  }
  if (!windows_) most_slots_ = most_slots(kMostBytes);
  if (windows_ && transport_) transport_->on_abort([this] { windows_->stop(); });
}

std::int64_t GpuMoe::most_slots(std::int64_t bytes) const {
  std::int64_t n = kMostSlots;
  while (n > 0 && (slots_.ranks - 1) * n * (slots_.slot_bytes() + slots_.answer_bytes()) > bytes) --n;
  return n;
}

GpuMoe::~GpuMoe() {
  if (windows_) windows_->stop();
  parts_.forget();  // graphs with this one's memory in them
  if (transport_) transport_->on_abort(nullptr);
}

void GpuMoe::placed(const ExpertMap& map) {
  std::vector<std::int32_t> first{0}, place;
  std::vector<std::uint32_t> edge;
  for (std::size_t e = 0; e < map.replicas.size(); ++e) {
    double below = 0;
    for (const ExpertReplica& replica : map.replicas[e]) {
      if (static_cast<std::size_t>(replica.local) >= kMostOfRank) fail("a rank has more experts than its GPU can list");
      below += static_cast<double>(replica.share);
      place.push_back(place_of(replica.rank, replica.local));
      edge.push_back(static_cast<std::uint32_t>(std::min(std::ldexp(below, 32), std::ldexp(1.0, 32) - 1)));
    }
    if (place.size() == static_cast<std::size_t>(first.back())) fail("no rank holds expert {}", e);
    first.push_back(static_cast<std::int32_t>(place.size()));
  }
  // New memory: then nothing is repeated that knows the old.
  Places& places = places_[&map];
  const std::size_t list_bytes = first.size() * 4, places_bytes = place.size() * 4;
  DeviceBlock memory(list_bytes + 2 * places_bytes);
  const auto bring = [&](std::size_t at, const auto& values) {
    auto* to = reinterpret_cast<std::remove_cvref_t<decltype(values[0])>*>(memory.data() + at);
    check(cudaMemcpyAsync(to, parts_.uploads.put(values), values.size() * 4, cudaMemcpyDeviceToDevice, stream_),
          "copying on the GPU");
    return to;
  };
  places.on_device = {bring(0, first), bring(list_bytes, place), bring(list_bytes + places_bytes, edge)};
  places.memory = std::move(memory);
}

std::int64_t GpuMoe::begin_step(std::int64_t tokens, std::int64_t most_tokens) {
  if (most_tokens == 0) return 0;
  if (tokens > most_tokens) fail("a rank has {} tokens in a step of up to {}", tokens, most_tokens);
  if (most_tokens > most_slots_) return 0;
  const std::int64_t slots = slots_.ranks > 1 ? std::min(slots_for(most_tokens), most_slots_) : most_tokens;
  slots_.of_rank = static_cast<int>(slots);
  slots_.apart = windows_ ? most_slots_ : slots;
  ++turn_;
  check(cudaMemcpyAsync(turn_on_device_.data(), parts_.uploads.put(std::span<const std::uint32_t>(&turn_, 1)),
                        sizeof turn_, cudaMemcpyDeviceToDevice, stream_),
        "copying on the GPU");
  return slots;
}

void GpuMoe::exchange(const std::byte* to, std::byte* from, std::int64_t bytes, bool own_to_all) {
  const auto rank = static_cast<std::size_t>(slots_.rank);
  for (std::size_t r = 0; r < to_.size(); ++r) {
    const auto n = static_cast<std::size_t>(bytes);
    to_[r] = {const_cast<std::byte*>(to) + (own_to_all ? rank : r) * n, n};
    from_[r] = {from + r * n, n};
  }
  traffic_.follow(stream_);
  traffic_.exchange(to_, from_);
}

void GpuMoe::run(const Layer& layer, Rows<const float> scores, Rows<const float> h, Rows<float> out,
                 const std::function<void()>& meanwhile) {
  const Places& places = places_.at(layer.map);
  const RouterShape& router = shape_.router;
  auto* ids = picked_.room<std::int32_t>(slots_.of_rank * router.top_k);
  auto* shares = shares_.room<float>(slots_.of_rank * router.top_k);
  if (h.rows > 0) route(scores, parts_.vectors.on_device(layer.score_bias), router, ids, shares, stream_);

  const std::int64_t all = slots_.all(), slot = slots_.slot_bytes(), answer = slots_.answer_bytes();
  auto* chosen = reinterpret_cast<std::int32_t*>(chosen_on_device_.data()) + layer.index * chosen_of_layer();
  std::byte* in = slots_memory(all * slot);
  const Peers peers = windows_ ? windows_->peers() : Peers{};
  std::byte* own = in + slots_.part_at(slots_.rank);
  pack_slots(h, ids, shares, router.top_k, shape_.slices, places.on_device,
             reinterpret_cast<const std::uint32_t*>(turn_on_device_.data()), slots_, own, peers, chosen + 1, stream_);
  const bool travel = slots_.ranks > 1 && !windows_, put = peers.network.communicator != nullptr;
  if (put) put_slots(slots_, peers, stream_);
  if (travel) exchange(in, in, slots_.of_rank * slot, true);
  meanwhile();
  const auto arrive = [&](Written what) {
    if (windows_) wait_for_peers(peers, slots_.ranks, slots_.rank, what, stream_);
    if (put) wait_for_puts(peers, slots_.ranks, slots_.rank, what, stream_);
    if (travel) traffic_.precede(stream_);
  };
  arrive(Written::slots);

  const auto experts = static_cast<int>(layer.experts.size());
  // Of an expert's slices a rank has one.
  const std::int64_t pairs = all * router.top_k;
  const SlotPlan plan{begin_.room<std::int32_t>(kMaxExperts + 1), rows_.room<std::int32_t>(pairs),
                      place_.room<std::int32_t>(all * slots_.entries), chosen};
  plan_slots(in, slots_, experts, plan, stream_);
  const Rows<float> x(x_.room<float>(all * slots_.hidden), all, slots_.hidden);
  unpack_slots(in, slots_, x.data, stream_);
  Rows<const float> results;
  if (experts > 0)
    results = parts_.products.experts({plan.row, plan.begin, pairs, (pairs + router.n_experts - 1) / router.n_experts},
                                      layer.experts, x);

  std::byte* answers = answers_memory(all * answer);
  std::byte* sent = travel ? sent_.room<std::byte>(all * answer) : put ? in + peers.sent_at : answers;
  combine_slots(results, in, plan.place, slots_, sent, answers, peers, stream_);
  if (put) put_answers(plan.place, slots_, peers, stream_);
  if (travel) exchange(sent, answers, slots_.of_rank * answer, false);
  arrive(Written::answers);
  add_slot_answers(own, answers, slots_, out, stream_);
}

void GpuMoe::end_step() {
  const auto pitch = static_cast<std::size_t>(chosen_of_layer()) * sizeof(std::int32_t);
  const auto used = static_cast<std::size_t>(1 + slots_.of_rank * shape_.router.top_k) * sizeof(std::int32_t);
  check(cudaMemcpy2DAsync(chosen_.data(), pitch, chosen_on_device_.data(), pitch, used,
                          static_cast<std::size_t>(shape_.layers), cudaMemcpyDeviceToHost, stream_),
        "copying from the GPU");
  check(cudaEventRecord(fetched_, stream_), "cudaEventRecord");
}

DeviceMoe::Chosen GpuMoe::chosen(int layer) {
  wait_for(fetched_, "the GPU's work");
  const auto* of_layer = reinterpret_cast<const std::int32_t*>(chosen_.data()) + layer * chosen_of_layer();
  return {{of_layer + 1, static_cast<std::size_t>(slots_.of_rank * shape_.router.top_k)}, *of_layer};
}

}  // namespace shoal::cuda
