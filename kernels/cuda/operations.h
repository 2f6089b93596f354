#pragma once
#include <cstdint>

#include "base/cuda/runtime_api.h"
#include "kernels/backend.h"
#include "kernels/cuda/expanded_kv.h"
#include "kernels/cuda/weights.h"

/// The device's operations, each one or two kernels put on a stream. Every pointer is to device memory. What an
/// operation computes is said in kernels/backend.h; how, with its shape, grid, memory traffic and the limit these set,
/// in the source file of its name.
namespace shoal::cuda {

/// embed.cu: out[t] = row ids[t] of `table`.
void embed(const std::int32_t* ids, const Weights& table, Rows<float> out, cudaStream_t stream);

/// Activations in BF16 [rows, stride], zeros behind the last column.
struct HalfRows {
  std::uint16_t* value = nullptr;
  std::int64_t stride = 0;  // a multiple of 8
};
/// Activations in E4M3, as the tiles of one product and their steps of 128 columns lie behind each other.
struct F8Rows {
  std::byte* value = nullptr;  // [tiles, steps, tile_rows, 128], swizzled
  float* scale = nullptr;      // [tiles, steps, tile_rows]
  int steps = 0;               // of the widest matrix
};
/// Activations in bytes: 32 of them share a scale, the largest becomes 127. [rows, cols] and [rows, cols / 32].
struct ByteRows {
  std::int8_t* value = nullptr;
  float* scale = nullptr;
};
/// Rows in the forms that the products of one list of matrices take; null: not in this one.
struct Rounded {
  HalfRows halves;
  ByteRows bytes;
  F8Rows f8;
  int f8_tile_rows = 0;
};

/// norm.cu. Where `branch` has columns, sum = x + branch first. Rounded: what the norm's result is stored as, besides.
void rms_norm(Rows<const float> x, const float* weight, float eps, Rows<float> out, cudaStream_t stream);
void add_rms_norm(Rows<const float> x, Rows<const float> branch, Rows<float> sum, const float* weight, float eps,
                  Rows<float> out, const Rounded& rounded, cudaStream_t stream);

/// elementwise.cu
void add(Rows<const float> x, Rows<float> acc, cudaStream_t stream);
void fill_zero(Rows<float> out, cudaStream_t stream);
/// out[i] = x[rows[i]].
void gather_rows(Rows<const float> x, const std::int64_t* rows, Rows<float> out, cudaStream_t stream);
/// gate = silu(gate) * up. `count`: on the device, of how many rows; null: all.
void swiglu(Rows<float> gate, Rows<const float> up, const std::int32_t* count, cudaStream_t stream);

/// rope.cu: out may be x, with the same step.
void rope(Rows<const float> x, std::int64_t x_step, int heads, const RopeAngles& angles, RopePairing pairing,
          Rows<float> out, std::int64_t out_step, cudaStream_t stream);

/// kv_write.cu
void write_kv(Rows<const float> x, const std::int64_t* slots, int column, const KvLayer& cache, cudaStream_t stream);
/// MLA's rows: the first columns, as many as `weight` has, normed, the rest rotated.
void write_latent(Rows<const float> x, int rank, const float* weight, float eps, const RopeAngles& angles,
                  RopePairing pairing, const std::int64_t* slots, const KvLayer& cache, cudaStream_t stream);

/// Query tokens and their page tables: query t sees `length[t]` tokens, whose pages are pages[first_page[t] ..]; of a
/// single sequence whose rows follow each other, without pages.
struct QueryTable {
  const std::int32_t* length = nullptr;
  const std::int32_t* first_page = nullptr;
  const std::int32_t* pages = nullptr;
};

/// Heads that share keys and values, and where these lie in a cache row. MLA is one group, its values the first columns
/// of its keys; GQA has a group for each KV head.
struct HeadGroups {
  int groups, heads;  // heads in each group
  int key_dim, value_dim;
  int first_key, key_step;      // group g's keys begin at column first_key + g * key_step
  int first_value, value_step;  // and its values likewise
};

/// attention.cu. `longest`: of the queries. `parts`: room for attention_parts() floats.
void attention(Rows<const float> q, const HeadGroups& heads, float scale, const QueryTable& queries,
               std::int32_t longest, const KvLayer& cache, float* parts, Rows<float> out, cudaStream_t stream);
std::int64_t attention_parts(const HeadGroups& heads, std::int64_t tokens, std::int32_t longest);
/// Whether the heads are of a size that attention() has kernels for: 576 columns of MLA, 256 of GQA.
bool attention_takes(const HeadGroups& heads);

/// Rows first .. first + count of a list, all with matrix (or of sequence) `group`.
struct Tile {
  std::int32_t group, first, count;
};

/// Positions of a part. No parts are needed where no query sees more.
constexpr int kMmaPart = 1024;

/// attention_mma.cu: on tensor cores, queries and cached rows as BF16 (caches of FP32 are not for it). Tiles: queries
/// of one sequence, at most attention_mma_queries() of them. `parts`: room for attention_mma_parts() floats, for the
/// queries from `first_query` on.
struct AttentionTiles {
  const Tile* tile = nullptr;
  int count = 0, queries = 0;  // tiles; queries in each, at most
  std::int32_t first_query = 0;
  int part = kMmaPart;
};
void attention_mma(Rows<const float> q, const HeadGroups& heads, float scale, const QueryTable& queries,
                   std::int32_t longest, const AttentionTiles& tiles, const KvLayer& cache, float* parts,
                   std::size_t shared_limit, Rows<float> out, cudaStream_t stream);
std::int64_t attention_mma_parts(const HeadGroups& heads, std::int64_t tokens, std::int32_t longest);
/// How many queries a tile takes, where up to `run` neighbours are of one sequence. `shared_limit`: bytes of shared
/// memory that a block can have.
int attention_mma_queries(const HeadGroups& heads, int run, std::size_t shared_limit);
bool attention_mma_takes(const HeadGroups& heads, const KvLayer& cache, std::size_t shared_limit);

/// sm90/mla_wgmma.cu (GPUs of sm_90 alone): the same for MLA of R1's size, where attention_mma() takes it, in parts of
/// the same length.
void mla_wgmma(Rows<const float> q, const HeadGroups& heads, float scale, const QueryTable& queries,
               std::int32_t longest, const AttentionTiles& tiles, const KvLayer& cache, float* parts, Rows<float> out,
               cudaStream_t stream);
int mla_wgmma_queries(const HeadGroups& heads);
bool mla_wgmma_takes(const HeadGroups& heads);

/// merge_parts.cu: out [tokens, heads * value_dim] of parts [tokens, heads, most_parts, value_dim + 2].
void merge_parts(const float* parts, int part_length, int most_parts, const std::int32_t* length, int value_dim,
                 Rows<float> out, cudaStream_t stream);

/// mla_expand.cu: keys and values of the first `length` positions of query 0's sequence, of heads that lie one after
/// the other in k_up [heads] of [rank, nope] and v_up [heads] of [value, rank], all of this form.
void mla_expand(const KvLayer& cache, const QueryTable& queries, int length, int rank, const Weights* k_up,
                const Weights* v_up, WeightForm form, const ExpandedKv& out, cudaStream_t stream);
bool mla_expand_takes(const Weights& k_up, const Weights& v_up);

/// sm90/mla_prompt.cu (GPUs of sm_90 alone): attention of queries of one sequence, of any number of heads, over its
/// keys and values in tiles. q [tokens, heads * 192], out [tokens, heads * 128]; tiles of up to kPromptRows queries.
void mla_prompt(Rows<const float> q, float scale, const QueryTable& queries, const AttentionTiles& tiles,
                const ExpandedKv& kv, Rows<float> out, cudaStream_t stream);
constexpr int kPromptRows = 128;
bool mla_prompt_takes(const ExpandedKv& kv);

/// router.cu. `bias` may be null. Up to kMaxExperts experts.
void route(Rows<const float> logits, const float* bias, const RouterShape& shape, std::int32_t* expert, float* weight,
           cudaStream_t stream);
constexpr int kMaxExperts = 512;

/// Sums over so many columns that a few blocks would take them all: in pieces, each by a block of its own, which are
/// then added in ascending order. Without `sums` one block goes through all pieces, with the same result.
struct F8Pieces {
  int count = 1;
  float* sums = nullptr;        // linear_f8_room() of them
  unsigned* arrived = nullptr;  // [kF8FewBlocks], zero before and after
};

/// Products of many rows with matrices of the same form, `weights` [groups]:
///   out[i][group * out_step + r] = sum over c of x[row[i]][group * x_step + c] * weights[group][r][c] (+ bias[r])
/// for every i of every tile and r < weights[group].rows. `row` null: row i is i. `tiles` null: all of `rows` with
/// every matrix, tile_rows at a time.
struct LinearCall {
  const float* x = nullptr;
  std::int64_t x_stride = 0, x_step = 0;
  const std::int32_t* row = nullptr;
  const Weights* weights = nullptr;
  int groups = 1;
  std::int64_t most_outputs = 0;  // of the matrices
  const Tile* tiles = nullptr;
  bool tiles_made = false;  // by a kernel before this one: what is not needed of the list is empty tiles
  std::int64_t rows = 0;
  int tile_rows = 0, n_tiles = 0, most_in_tile = 0;
  const float* bias = nullptr;
  float* out = nullptr;
  std::int64_t out_stride = 0, out_step = 0;
  const float* up = nullptr;  // quantize_f8: activations are silu(x) * up
  std::int64_t up_stride = 0;
  F8Pieces pieces;  // linear_f8
};

/// linear.cu: F32, F16, BF16 and F8 weights of any shape; activations as they are or rounded to BF16. Tiles of
/// kTileRows.
void linear(const LinearCall& call, WeightForm form, bool bf16_activations, cudaStream_t stream);
constexpr int kTileRows = 8;

/// linear_mma.cu: BF16 and F8 weights; call.x is not read, but x, which has its rows and columns. Tiles of 16 or of 64
/// rows. call.x_step must be a multiple of 8.
/// `up`: of as many columns, or none; with them silu(x) * up is rounded. `count`: on the device, of how many rows;
/// null: all.
void round_rows(Rows<const float> x, Rows<const float> up, const std::int32_t* count, const HalfRows& out,
                cudaStream_t stream);
void linear_mma(const LinearCall& call, WeightForm form, const HalfRows& x, cudaStream_t stream);
/// Whether it has a kernel for this matrix: block scales must span whole multiples of kMmaScaleColumns columns.
bool linear_mma_takes(const Weights& w);
constexpr int kMmaScaleColumns = 64;
constexpr int kMmaFewRows = 16, kMmaManyRows = 64;

/// quantize_f8.cu: the rows of a call's tiles. sm90/linear_f8.cu (GPUs of sm_90 alone): their products with F8 weights
/// whose scales are for blocks of 128 x 128, or that have none. Tiles of 16 or of 64 rows.
void quantize_f8(const LinearCall& call, const F8Rows& out, cudaStream_t stream);
void linear_f8(const LinearCall& call, const F8Rows& x, cudaStream_t stream);
bool linear_f8_takes(const Weights& w);
/// Pieces of a product of all rows with one matrix: the same however many rows, so that no row's bits depend on others.
int linear_f8_pieces(const Weights& w);
/// Floats for the sums of pieces; 0 where there are blocks enough without.
std::int64_t linear_f8_room(const LinearCall& call, int pieces);
constexpr int kF8FewBlocks = 64;
/// silu(gate) * up of a call's tiles, in tiles again: call.weights are the gates [groups], `ups` lie beside them.
void gated_f8(const LinearCall& call, const Weights* ups, const F8Rows& x, const F8Rows& out, cudaStream_t stream);

/// quantize.cu: cols a multiple of 32. `up`, `count` as for round_rows().
void quantize_rows(Rows<const float> x, Rows<const float> up, const std::int32_t* count, const ByteRows& out,
                   cudaStream_t stream);
/// For matrices that have their columns in an order of their own: row i of the product's list becomes row i of `out`.
void quantize_in_order(const LinearCall& call, std::int64_t cols, const ByteRows& out, cudaStream_t stream);
void round_in_order(const LinearCall& call, std::int64_t cols, const HalfRows& out, cudaStream_t stream);

/// linear_packed.cu: packed weights and activations in bytes, which have the rows and columns of call.x. Tiles of
/// kTileRows.
void linear_packed(const LinearCall& call, const ByteRows& x, std::int64_t x_cols, cudaStream_t stream);
/// linear_packed_mma.cu: the same on tensor cores, for matrices that are all read like `layout`. Tiles of 8, 16 or 64
/// rows.
void linear_packed_mma(const LinearCall& call, const PackedLayout& layout, const ByteRows& x, std::int64_t x_cols,
                       cudaStream_t stream);

/// linear_int4_mma.cu: INT4 weights with activations in BF16, on tensor cores, for matrices that are all read like
/// `layout`; call.x is not read, but x. Tiles as above. call.x_step must be a multiple of 8.
void linear_int4_mma(const LinearCall& call, const PackedLayout& layout, const HalfRows& x, cudaStream_t stream);
/// Packed in codes of four bits that are whole numbers of scales: AWQ, GPTQ, compressed-tensors, Q4_0.
bool linear_int4_mma_takes(const Weights& w);

/// How a row travels between ranks: FP32, BF16, or E4M3 with a scale for 128 columns behind the codes of whole ones.
enum class Wire : std::uint8_t { f32, bf16, f8 };
constexpr std::int64_t wire_row_bytes(Wire wire, std::int64_t cols) {
  const std::int64_t groups = (cols + kF8Tile - 1) / kF8Tile;
  return wire == Wire::f8 ? groups * (kF8Tile + 4) : cols * (wire == Wire::f32 ? 4 : 2);
}
/// wire_rows.cu. pack_rows: `n` rows of x, row[i] or (null) i.
void pack_rows(Rows<const float> x, const std::int32_t* row, std::int64_t n, Wire wire, std::byte* out,
               cudaStream_t stream);
/// out[i] = x[row[i]] as it would arrive, had it travelled.
void keep_rows(Rows<const float> x, const std::int32_t* row, Wire wire, Rows<float> out, cudaStream_t stream);
/// out[i] = the row that arrived as number row[i] or (null) i.
void unpack_rows(const std::byte* in, const std::int32_t* row, Wire wire, Rows<float> out, cudaStream_t stream);
/// Rows that travel on as they came: row row[i] of `in` becomes row i of `out`.
void forward_rows(const std::byte* in, const std::int32_t* row, std::int64_t n, Wire wire, std::int64_t cols,
                  std::byte* out, cudaStream_t stream);
/// out[t] += its answers, place[first[t]] .. place[first[t + 1]]: rows of `others`, which travelled in FP32 or BF16, or
/// (~n) of `own`.
void add_answers(Rows<const float> own, const std::byte* others, Wire wire, const std::int32_t* first,
                 const std::int32_t* place, Rows<float> out, cudaStream_t stream);

/// Slots of a layer whose host learns nothing of it (device_moe.h). A rank's token t is in its slot t, in the memory of
/// all ranks: the row as it travels (of peers only where they have experts for it), and its experts.
struct Slots {
  int ranks, rank;
  int of_rank;         // slots of each rank
  std::int64_t apart;  // from the first slot of a rank to that of the next
  int entries;         // of a token: its experts, and their slices
  std::int64_t hidden;
  Wire there, back;  // how rows travel, and answers
  bool by_expert;    // answers: one for each entry, in the order of the router's, and not one for each token
  int added_up = 1;  // ranks of a host whose answers have a sum of their own, rounded as they travel (Hops)

  constexpr std::int64_t all() const { return std::int64_t{ranks} * of_rank; }
  /// A rank's part of this memory: the rows of its slots side by side, then their entries, so that a run of either is
  /// one piece. Where things lie in it, in bytes from its beginning.
  constexpr std::int64_t part_at(int of) const { return of * apart * slot_bytes(); }
  constexpr std::int64_t row_at(std::int64_t t) const { return t * row_bytes(); }
  constexpr std::int64_t entries_at(std::int64_t t) const { return apart * row_bytes() + t * entries_bytes(); }
  constexpr std::int64_t row_bytes() const { return (wire_row_bytes(there, hidden) + 15) / 16 * 16; }
  constexpr std::int64_t entries_bytes() const { return (std::int64_t{entries} * 8 + 15) / 16 * 16; }
  constexpr std::int64_t slot_bytes() const { return row_bytes() + entries_bytes(); }
  /// Where the answer to the i-th of all slots lies, counted in answers. As with slots, in windows that does not depend
  /// on of_rank: peers may write the next step's while a rank still reads its own of the last.
  constexpr std::int64_t place(std::int64_t i) const { return i / of_rank * apart + i % of_rank; }
  constexpr std::int64_t first(int of) const { return of * apart; }
  constexpr std::int64_t answer_bytes() const { return wire_row_bytes(back, hidden) * (by_expert ? entries : 1); }
};
/// Where an expert is, as one number: its rank, and its index there. Ascending by rank; below 0: nowhere.
constexpr int kIndexBits = 16;
constexpr std::int32_t place_of(int rank, int index) { return rank << kIndexBits | index; }
constexpr int rank_of(std::int32_t place) { return place >> kIndexBits; }
constexpr int index_of(std::int32_t place) { return place & ((1 << kIndexBits) - 1); }

/// An expert that a token goes to, of any rank; those of one rank in ascending order where answers are summed.
struct SlotEntry {
  std::int32_t place;  // place_of(), or -1: none
  float weight;
};
/// Where the experts of a layer are: expert e at place[first[e]] .. place[first[e + 1]], each of which takes the tokens
/// whose point in [0, 2^32) lies below `edge`, the last one all others.
struct ExpertPlaces {
  const std::int32_t* first;  // [experts + 1]
  const std::int32_t* place;
  const std::uint32_t* edge;
};
constexpr int kMostEntries = 256;

/// Windows that NCCL's device interface puts to over the network: ncclDevComm, in GPU memory, and ncclWindow_t.
struct Network {
  const void* communicator = nullptr;  // null: there are none
  const void* window = nullptr;
};
/// Memory of all ranks' GPUs that each of them writes into (peer_windows.h). A window: slots [ranks, apart], answers
/// [ranks, apart], those on their way over the network likewise, and how often each rank has written slots or answers
/// (over the network: signals). Nobody writes where another one still reads: slots come again only after all answers to
/// the last ones have, answers only after the next slots. What is on its way stays as long, too.
struct Peers {
  std::byte* const* window = nullptr;  // [ranks] as this GPU sees them, null: over the network; null: in another way
  std::int64_t answers_at = 0, sent_at = 0, arrivals_at = 0;
  Network network;
  unsigned* written = nullptr;     // [2] how often this rank has written slots, and answers
  unsigned* blocks = nullptr;      // [2] of the kernel that writes, those that have; else 0
  const unsigned* stop = nullptr;  // of the host: 1: nobody is waited for any more
  unsigned* stopped = nullptr;     // 1: it has been seen; then nothing is written to others, who may be gone
};
constexpr int kMostPeers = 256;
enum class Written : int { slots, answers };

/// slots.cu. pack_slots: this rank's slots, of tokens h whose experts are id, weight [tokens, top_k], an expert being
/// `slices` of `places`; chosen [of_rank * top_k] gets the ids, -1 behind the last token's. `turn`: grows with steps,
/// so that an expert's copies take turns. Peers get the entries of all, and the rows that they have experts for.
void pack_slots(Rows<const float> h, const std::int32_t* id, const float* weight, int top_k, int slices,
                const ExpertPlaces& places, const std::uint32_t* turn, const Slots& slots, std::byte* own,
                const Peers& peers, std::int32_t* chosen, cudaStream_t stream);
/// x [all, hidden] = the rows that this rank has experts for, else zeros.
void unpack_slots(const std::byte* in, const Slots& slots, float* x, cudaStream_t stream);
/// Of the results [pairs, hidden] of a SlotPlan the answers to each slot: of other ranks in `sent`, as they travel, or
/// written to these peers; of the own one in `own`; [apart] for each rank in both.
void combine_slots(Rows<const float> results, const std::byte* in, const std::int32_t* place, const Slots& slots,
                   std::byte* sent, std::byte* own, const Peers& peers, cudaStream_t stream);
/// out[t] += the answers to own slot t, in ascending order of ranks or in that of the router's experts; answers
/// [ranks, of_rank].
void add_slot_answers(const std::byte* own_slots, const std::byte* answers, const Slots& slots, Rows<float> out,
                      cudaStream_t stream);

/// peers.cu: returns on the stream when all ranks have written as often as this one. tell_peers: of a rank that writes
/// nothing.
void wait_for_peers(const Peers& peers, int ranks, int rank, Written what, cudaStream_t stream);
void tell_peers(const Peers& peers, int ranks, int rank, Written what, cudaStream_t stream);

/// network.cu: for ranks whose windows stores do not reach. list_windows: window [ranks] as stores reach them, null for
/// those. put_slots, put_answers: after pack_slots and combine_slots, to each of them what these left for it in the own
/// window, then a signal. put_blocks: likewise `bytes` from offset `from` + r * `step` of the own window to `to` of
/// rank r's. wait_for_puts: as wait_for_peers.
void list_windows(const Network& network, int ranks, std::byte** window, cudaStream_t stream);
void put_slots(const Slots& slots, const Peers& peers, cudaStream_t stream);
void put_answers(const std::int32_t* place, const Slots& slots, const Peers& peers, cudaStream_t stream);
void put_blocks(const Peers& peers, int ranks, int rank, Written what, std::int64_t from, std::int64_t step,
                std::int64_t to, std::int64_t bytes, cudaStream_t stream);
void wait_for_puts(const Peers& peers, int ranks, int rank, Written what, cudaStream_t stream);

/// slot_plan.cu: the (slot, expert) pairs of what arrived for this rank's experts, sorted by expert.
struct SlotPlan {
  std::int32_t* begin;  // [experts + 1] of each expert's pairs; the last is their number
  std::int32_t* row;    // [pairs] slot
  std::int32_t* place;  // [all, entries] pair; -1: not here
  std::int32_t* work;   // their number again
};
void plan_slots(const std::byte* in, const Slots& slots, int experts, const SlotPlan& plan, cudaStream_t stream);
/// Ranges of pairs in tiles of up to `rows`: tiles [count], empty ones behind the last. `wanted` [groups]: of which
/// ranges; null: all. Up to kMaxExperts groups.
void cut_ranges(const std::int32_t* begin, int groups, const std::int32_t* wanted, int rows, int count, Tile* tiles,
                cudaStream_t stream);

/// sample.cu: a token from each row; -1 where no logit is a finite number. Vocabularies up to kMostVocabulary. `room`:
/// sample_room_bytes() for each row.
void sample(Rows<const float> logits, const Draw* draws, std::int32_t* tokens, std::byte* room, cudaStream_t stream);
constexpr int kMostVocabulary = 1 << 18;
std::size_t sample_room_bytes(int vocab);

/// combine.cu: out[r] = sum over e in [first[r], first[r + 1]) of weight[e] * results[place[e]], in this order.
void combine(Rows<const float> results, const std::int32_t* first, const std::int32_t* place, const float* weight,
             Rows<float> out, cudaStream_t stream);

}  // namespace shoal::cuda
