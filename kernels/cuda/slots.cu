#include "kernels/cuda/peer_arrivals.h"
#include "kernels/cuda/slot_entries.h"
#include "kernels/cuda/wire_row.h"

// What travels between ranks of a layer whose host learns nothing of it (kernels/device_moe.h).
namespace shoal::cuda {
namespace {

constexpr int kThreads = kWireThreads;
static_assert(kMostEntries == kThreads);  // each thread has an entry

/// Which copy of an expert takes a token, by the golden ratio as ExpertMap::next() has it.
__device__ __forceinline__ std::int32_t copy_for(const ExpertPlaces& places, std::int32_t expert, std::uint32_t turn) {
  std::int32_t i = places.first[expert];
  const std::int32_t last = places.first[expert + 1] - 1;
  const std::uint32_t point = turn * 0x9E3779B9u;
  while (i < last && point >= places.edge[i]) ++i;
  return places.place[i];
}

/// A rank's tokens into its slots, here and in its peers' windows.
///   shape      h [tokens, hidden] FP32, id and weight [tokens, top_k] -> slots [of_rank] of a row as it travels and
///              `entries` experts
///   grid       (slots, columns of a row); the first block of a slot sorts its entries by rank and expert, each thread
///              finding the place of one
///   traffic    each row once read, and written once here and once to each peer: 36 KB of an R1 token in E4M3, and 7.5
///              over NVLink for each of some four peers
///   limit      memory: 128 tokens 4.6 MB, 1 us on H200; NVLink: 128 tokens for four peers each 3.8 MB, 8 us
template <Wire kWire>
__global__ void __launch_bounds__(kThreads)
    pack_slots_kernel(Rows<const float> h, const std::int32_t* id, const float* weight, int top_k, int slices,
                      ExpertPlaces places, const std::uint32_t* turn, Slots s, std::byte* own, Peers peers,
                      std::int32_t* chosen) {
  follow_previous_kernels();
  struct Shared {
    std::int32_t place[kMostEntries];
    unsigned asked[kMostPeers / 32];  // ranks, a bit each
  };
  Shared& all = shared<Shared>();
  const std::int64_t t = blockIdx.x, part = s.part_at(s.rank);
  const bool there = t < h.rows;
  const int i = static_cast<int>(threadIdx.x);
  SlotEntry mine{-1, 0};
  if (there && i < s.entries) {
    const std::int64_t of_router = t * top_k + i / slices;
    const std::int32_t expert = id[of_router];
    const auto now = *turn + static_cast<std::uint32_t>(t + s.rank);
    if (expert >= 0) mine = {copy_for(places, expert * slices + i % slices, now), weight[of_router]};
  }
  all.place[i] = mine.place;
  if (i < kMostPeers / 32) all.asked[i] = 0;
  __syncthreads();
  const bool to_peers = has_peers(peers);
  if (to_peers) {
    if (mine.place >= 0) atomicOr(&all.asked[rank_of(mine.place) / 32], 1u << rank_of(mine.place) % 32);
    __syncthreads();
  }
  if (there) {
    const WireColumns<kWire> columns;
    const auto held = columns.round(h.data + t * h.stride, s.hidden);
    columns.put(held, s.hidden, own + s.row_at(t));
    for (int r = 0; to_peers && r < s.ranks; ++r)
      if (r != s.rank && (all.asked[r / 32] >> r % 32 & 1u) != 0 && peers.window[r] != nullptr)
        columns.put(held, s.hidden, peers.window[r] + part + s.row_at(t));
  }
  if (blockIdx.y == 0) {
    if (i < top_k) chosen[t * top_k + i] = there ? id[t * top_k + i] : -1;
    int at = i;
    if (!s.by_expert) {
      at = 0;
      for (int j = 0; j < s.entries; ++j) {
        const auto other = static_cast<std::uint32_t>(all.place[j]), here = static_cast<std::uint32_t>(mine.place);
        at += other < here || (other == here && j < i) ? 1 : 0;
      }
    }
    if (i < s.entries) {
      reinterpret_cast<SlotEntry*>(own + s.entries_at(t))[at] = mine;
      for (int r = 0; to_peers && r < s.ranks; ++r)
        if (r != s.rank && peers.window[r] != nullptr)
          reinterpret_cast<SlotEntry*>(peers.window[r] + part + s.entries_at(t))[at] = mine;
    }
  }
  if (peers.window != nullptr) tell_when_written(peers, s.ranks, s.rank, Written::slots);
}

/// The rows that this rank has experts for, as products read them; zeros for all others, whose slots may hold anything.
///   shape      slots [all] -> x [all, hidden] FP32
///   traffic    36 KB of an R1 token in E4M3, 29 KB of one that goes elsewhere
///   limit      memory: 8 ranks of 64 tokens 17 MB, 3.6 us on H200
template <Wire kWire>
__global__ void __launch_bounds__(kThreads) unpack_slots_kernel(const std::byte* in, Slots s, float* x) {
  follow_previous_kernels();
  const std::int64_t slot = blockIdx.x;
  const SlotEntry* entry = entries_of(in, s, slot);
  bool here = false;
  for (int i = 0; i < s.entries; ++i) here = here || is_here(s, entry[i]);
  float* to = x + slot * s.hidden;
  if (here)
    WireColumns<kWire>().load(in + s.part_at(static_cast<int>(slot / s.of_rank)) + s.row_at(slot % s.of_rank), s.hidden,
                              to);
  else
    WireColumns<kWire>().clear(s.hidden, to);
}

/// The answers to all ranks' tokens: of a token the weighted sum of its experts here, in their order, or each of them.
///   shape      results [pairs, hidden] FP32, place [all, entries] -> answers [all] as they travel
///   grid       (slots, 256 columns)
///   traffic    each result once, each answer once: with one expert here 43 KB of an R1 token in BF16
///   limit      memory: 8 ranks of 64 tokens 22 MB, 4.6 us on H200
template <Wire kWire>
__global__ void __launch_bounds__(kThreads)
    combine_slots_kernel(Rows<const float> results, const std::byte* in, const std::int32_t* place, Slots s,
                         std::byte* sent, std::byte* own, Peers peers) {
  follow_previous_kernels();
  const WireColumns<kWire> columns;
  const std::int64_t slot = blockIdx.x, t = slot % s.of_rank;
  const int asker = static_cast<int>(slot / s.of_rank);
  const SlotEntry* entry = entries_of(in, s, slot);
  std::byte* to = (asker == s.rank ? own : sent) + s.place(slot) * s.answer_bytes();
  const bool stores = peers.window != nullptr && peers.window[asker] != nullptr;
  if (asker != s.rank && stores) to = peers.window[asker] + peers.answers_at + (s.first(s.rank) + t) * s.answer_bytes();
  const bool answers = asker == s.rank || !stores || has_peers(peers);
  float sum = 0;
  bool here = false;
  for (int i = 0; answers && i < s.entries; ++i) {
    const std::int32_t pair = place[slot * s.entries + i];
    if (pair < 0) continue;
    const float result = columns.c < s.hidden ? results.data[pair * results.stride + columns.c] : 0.0f;
    if (s.by_expert) {
      columns.put(columns.narrow(entry[i].weight * result), s.hidden, to + i * wire_row_bytes(kWire, s.hidden));
      continue;
    }
    sum = fmaf(entry[i].weight, result, sum);
    here = true;
  }
  if (here) columns.put(columns.narrow(sum), s.hidden, to);
  if (peers.window != nullptr) tell_when_written(peers, s.ranks, s.rank, Written::answers);
}

/// Of each token the answers of the ranks that it went to; those of ranks that are added up, as a sum that travelled.
///   shape      answers [ranks, of_rank] as they travelled -> out [tokens, hidden] FP32 +=
///   grid       (tokens, 256 columns)
///   traffic    as add_answers: of an R1 token with answers of four ranks 115 KB in BF16
///   limit      memory: 64 tokens 7.3 MB, 1.5 us on H200
template <Wire kWire>
__global__ void __launch_bounds__(kThreads)
    add_slot_answers_kernel(const std::byte* own_slots, const std::byte* answers, Slots s, Rows<float> out) {
  follow_previous_kernels();
  const WireColumns<kWire> columns;
  const std::int64_t c = columns.c, t = blockIdx.x;
  if (c >= s.hidden) return;
  const SlotEntry* entry = entries_of_token(own_slots, s, t);
  float sum = out.data[t * out.stride + c], of_host = 0;
  std::int32_t before = -1, last = -1;  // rank, and the last one of its host
  for (int i = 0; i < s.entries; ++i) {
    if (entry[i].place < 0) continue;
    const std::int32_t rank = rank_of(entry[i].place);
    if (!s.by_expert && rank == before) continue;
    before = rank;
    const std::byte* answer =
        answers + (s.first(rank) + t) * s.answer_bytes() + (s.by_expert ? i * wire_row_bytes(kWire, s.hidden) : 0);
    if (s.by_expert || rank > last) {
      sum += columns.travelled(of_host);
      of_host = 0;
      last = (rank / s.added_up + 1) * s.added_up - 1;
    }
    of_host += columns.at(answer);
  }
  out.data[t * out.stride + c] = sum + columns.travelled(of_host);
}

}  // namespace

void pack_slots(Rows<const float> h, const std::int32_t* id, const float* weight, int top_k, int slices,
                const ExpertPlaces& places, const std::uint32_t* turn, const Slots& slots, std::byte* own,
                const Peers& peers, std::int32_t* chosen, cudaStream_t stream) {
  with_wire(slots.there, [&]<Wire kWire>(std::integral_constant<Wire, kWire>) {
    launch("pack_slots", pack_slots_kernel<kWire>, wire_grid(kWire, slots.of_rank, slots.hidden), kThreads, stream, h,
           id, weight, top_k, slices, places, turn, slots, own, peers, chosen);
  });
}

void unpack_slots(const std::byte* in, const Slots& slots, float* x, cudaStream_t stream) {
  with_wire(slots.there, [&]<Wire kWire>(std::integral_constant<Wire, kWire>) {
    launch("unpack_slots", unpack_slots_kernel<kWire>, wire_grid(kWire, slots.all(), slots.hidden), kThreads, stream,
           in, slots, x);
  });
}

void combine_slots(Rows<const float> results, const std::byte* in, const std::int32_t* place, const Slots& slots,
                   std::byte* sent, std::byte* own, const Peers& peers, cudaStream_t stream) {
  with_answers(slots.back, [&]<Wire kWire>(std::integral_constant<Wire, kWire>) {
    launch("combine_slots", combine_slots_kernel<kWire>, wire_grid(kWire, slots.all(), slots.hidden), kThreads, stream,
           results, in, place, slots, sent, own, peers);
  });
}

void add_slot_answers(const std::byte* own_slots, const std::byte* answers, const Slots& slots, Rows<float> out,
                      cudaStream_t stream) {
  with_answers(slots.back, [&]<Wire kWire>(std::integral_constant<Wire, kWire>) {
    launch("add_slot_answers", add_slot_answers_kernel<kWire>, wire_grid(kWire, out.rows, slots.hidden), kThreads,
           stream, own_slots, answers, slots, out);
  });
}

}  // namespace shoal::cuda
