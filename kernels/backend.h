#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/expert_batch.h"
#include "kernels/kv_row.h"
#include "kernels/matrix.h"
#include "kernels/rows.h"

/// The operations a model's layers are made of, as one table that a device fills. Activations are FP32 rows
/// [tokens, width]. Every operation computes each token by itself and in a fixed order, so a token's result does not
/// depend, to the bit, on which other tokens share the call. (One exception: mla_prompt_from().)
///
/// Some operations are others in a row (norm_linears, rope_heads, write_latent): a back end that can do them in one go,
/// as GPUs do, does; for others they are made of what they name.
namespace shoal {

/// How activations enter a product: FP32 as they are; rounded to BF16 (twice as fast on cores with BF16 dot products);
/// or, with F8 weights, to E4M3 with a scale for 128 columns, the largest becoming 448, and else to BF16 (GPUs of sm_90
/// only). With quantized weights to INT8 always, but on GPUs with bf16 those of INT4 to BF16.
enum class Compute { f32, bf16, fp8 };

/// cos and sin of each token's rotary angles: [tokens, rope_dim / 2] each.
struct RopeAngles {
  Rows<const float> cos;
  Rows<const float> sin;
};
/// Which elements form a rotated pair: 2i with 2i+1 (DeepSeek's checkpoints), or i with i + dim/2 (Llama, Qwen).
enum class RopePairing { interleaved, halves };

/// One layer of a paged cache: `rows` of `width` elements; token t of a sequence lies in row
/// pages[t / page_tokens] * page_tokens + t % page_tokens.
/// MLA: a row is latent [kv_lora_rank] then rotated key [qk_rope_head_dim].
/// GQA: a row is keys [n_kv_heads, head_dim] then values [n_kv_heads, head_dim].
struct KvLayer {
  void* data = nullptr;
  KvType type = KvType::f32;
  int page_tokens = 0;
  int width = 0;

  std::int64_t row_bytes() const { return kv_row_bytes(type, width); }
  std::byte* row(std::int64_t i) const { return static_cast<std::byte*>(data) + i * row_bytes(); }
};

/// One query token: it sees the first `length` tokens of its sequence (itself, at position length - 1, among them).
struct AttentionQuery {
  const std::int32_t* pages;
  std::int32_t length;
};

struct MlaShape {
  int heads, kv_lora_rank, qk_rope_head_dim;
};
/// What makes keys and values of latents: k_up [heads] of [kv_lora_rank, qk_nope_head_dim] (kv_b_proj's key half,
/// transposed), v_up [heads] of [v_head_dim, kv_lora_rank].
struct MlaUp {
  std::span<const Matrix> k_up, v_up;
};
/// What makes MLA's prompt form worth its expansion of the cache: so many queries of one sequence, and so many that see
/// a position on average.
struct PromptFrom {
  std::int64_t queries, seeing;
};
struct GqaShape {
  int heads, kv_heads, head_dim;
};

/// Queries that must see a position for the prompt form to take less arithmetic; nothing: it never does. A position
/// costs it (nope + value) rank once more, and each query 2 rank - nope - value less at it.
std::optional<std::int64_t> prompt_break_even(const MlaShape& shape, const MlaUp& up);

enum class Scoring { softmax, sigmoid };
/// How a group of experts is scored before `topk_group` groups are kept: V2 by its best expert, V3 by its two best.
enum class GroupScore { none, best, best_two_sum };

struct RouterShape {
  int n_experts, top_k;
  int n_group = 1, topk_group = 1;
  Scoring scoring = Scoring::sigmoid;
  GroupScore group_score = GroupScore::none;
  bool norm_topk_prob = true;
  float routed_scaling_factor = 1.0f;
};

/// A SwiGLU block: down(silu(gate x) * up x). gate, up [intermediate, hidden]; down [hidden, intermediate].
struct FeedForward {
  Matrix gate, up, down;
  bool empty() const { return gate.empty(); }
};

/// One of several products of the same rows: out [tokens, w->rows] = x w^T (+ bias [w->rows] if not empty).
struct Projection {
  const Matrix* w;
  std::span<const float> bias;
  Rows<float> out;
};

/// How a token is drawn from a row of logits; runtime/sampler.h says what comes of it.
struct Draw {
  float scale = 0;  // 1 / temperature; 0: the largest logit
  int top_k = 0;    // 0: all
  float top_p = 1, min_p = 0;
  double share = 0;  // uniform in [0, 1)
};

class Communicator;
class DeviceMoe;
class TokenExchange;
enum class Answers;
struct DeviceMoeShape;
struct ExchangeShape;

/// Host memory that Backend::to_host fills; grows as needed.
struct HostRoom {
  std::shared_ptr<void> memory;
  std::size_t bytes = 0;
};

/// Which memory an operation works on. Rows, KvLayers and RopeAngles lie where allocate() gives memory: for a GPU, its
/// own. Lists that the host makes (ids, slots, queries, vectors of weights, an ExpertBatch with its rows) and what it
/// reads at once (the experts that route() picks) lie in host memory. A CPU has but one memory: to_host() and
/// from_host() copy nothing there.
class Backend {
 public:
  virtual ~Backend() = default;

  /// For the start-up summary: "avx512 (bf16), 2 threads".
  virtual std::string description() const = 0;

  /// Device memory, zeroed, 64-byte aligned; throws Error when there is none left.
  virtual std::shared_ptr<void> allocate(std::size_t bytes) = 0;
  /// Returns when all that was begun is done. Error where it waits for ranks that are gone.
  virtual void finish() {}

  /// Bytes that allocate() could still give, where that is not the host's memory.
  virtual std::optional<std::uint64_t> free_bytes() const { return std::nullopt; }

  /// Moves a matrix to the device, once; from any thread. Operations take placed matrices only.
  virtual void place(Matrix&) {}
  /// A matrix with its elements in host memory once more, as they were before place(). From any thread.
  virtual Matrix fetch(const Matrix& placed);
  /// The same as place() for a vector of weights, which must stay where it is, unchanged, as long as the back end
  /// lives.
  virtual void place(std::span<const float>) {}

  /// x where the host can read and write it: x itself, or a copy in `room`. Waits for what computes x.
  virtual Rows<float> to_host(Rows<float> x, HostRoom&) { return x; }
  /// to = x, which the host has written. Nothing where they are the same rows.
  virtual void from_host(Rows<const float> x, Rows<float> to);
  /// Calls body(begin, end) for ranges that together are [0, count): work on the host's memory, shared among the
  /// threads that a back end computes with there. `elements`: roughly how many it moves.
  virtual void on_host(std::size_t count, double elements,
                       const std::function<void(std::size_t begin, std::size_t end)>& body);
  /// Tells, for all layers of a step, where its tokens' cache rows are and what they see; write_kv() and the attentions
  /// get the same lists again, which stay as they are until then.
  virtual void begin_step(std::span<const std::int64_t>, std::span<const AttentionQuery>, int /*page_tokens*/) {}

  /// Runs `work`: operations of a step, of which the host reads nothing before all are asked for. Under the same `key`
  /// it must always be the same operations on the same memory, but for what begin_step() told, the contents of rows and
  /// how many rows there are (`tokens`); then a device may repeat what it recorded instead of calling it.
  virtual void repeat(std::int64_t /*key*/, std::int64_t /*tokens*/, const std::function<void()>& work) { work(); }

  /// out = 0.
  virtual void fill_zero(Rows<float> out);
  /// out[i] = x[rows[i]].
  virtual void gather_rows(Rows<const float> x, std::span<const std::int64_t> rows, Rows<float> out);

  /// out[t] = table[ids[t]]. ids were checked against table.rows().
  virtual void embed(std::span<const std::int32_t> ids, const Matrix& table, Rows<float> out) = 0;

  /// out = x / sqrt(mean(x^2) + eps) * weight. out may be x.
  virtual void rms_norm(Rows<const float> x, std::span<const float> weight, float eps, Rows<float> out) = 0;

  /// acc += x.
  virtual void add(Rows<const float> x, Rows<float> acc) = 0;

  /// out [tokens, w.rows] = x [tokens, w.cols] w^T (+ bias [w.rows] if not empty).
  virtual void linear(Rows<const float> x, const Matrix& w, std::span<const float> bias, Rows<float> out) = 0;

  /// linear() of the same rows with several matrices.
  virtual void linears(Rows<const float> x, std::span<const Projection> projections);

  /// How each half of a layer begins: stream += branch (if it has columns), h = rms_norm(stream), linears(h). h may be
  /// stream.
  virtual void norm_linears(Rows<const float> branch, Rows<float> stream, std::span<const float> weight, float eps,
                            Rows<float> h, std::span<const Projection> projections);

  /// One product for each head h: out[:, h * out_step .. + w[h].rows] = x[:, h * x_step .. + w[h].cols] w[h]^T.
  virtual void linear_per_head(Rows<const float> x, std::int64_t x_step, std::span<const Matrix> w, Rows<float> out,
                               std::int64_t out_step) = 0;

  /// out = down(silu(gate x) * up x), overwritten.
  virtual void feed_forward(Rows<const float> x, const FeedForward& ffn, Rows<float> out) = 0;

  /// Rotates, in place, `heads` vectors of angles' rope_dim in each row, `head_step` elements apart, the first at
  /// x[t][0]. With `interleaved` the pairs stay where they are (2i, 2i+1): only dot products of two vectors rotated
  /// alike are ever used, and those do not depend on the order.
  virtual void rope(Rows<float> x, int heads, std::int64_t head_step, const RopeAngles& angles,
                    RopePairing pairing) = 0;

  /// The same on the way to another spacing: head h of out, at h * out_step, is the rotated head h of x, at h * x_step.
  virtual void rope_heads(Rows<const float> x, std::int64_t x_step, int heads, const RopeAngles& angles,
                          RopePairing pairing, Rows<float> out, std::int64_t out_step);

  /// Stores row t of x at cache row slots[t], from column `column` on, rounding to the cache's type.
  virtual void write_kv(Rows<const float> x, std::span<const std::int64_t> slots, int column, const KvLayer& cache) = 0;

  /// MLA's cache rows: rms_norm() of the first weight.size() columns, rope() of those behind, then write_kv() of all.
  /// What is in `latent` afterwards is not defined.
  virtual void write_latent(Rows<float> latent, std::span<const float> weight, float eps, const RopeAngles& angles,
                            RopePairing pairing, std::span<const std::int64_t> slots, const KvLayer& cache);

  /// MLA in the absorbed form (DeepSeek-V2, arXiv 2405.04434, section 2.1.2 and appendix B).
  /// q [tokens, heads * (kv_lora_rank + qk_rope_head_dim)]: per head, the query in latent space, then its rotated part.
  /// out [tokens, heads * kv_lora_rank]: softmax(scale * q k) over the latents of the tokens seen.
  virtual void mla_attention(Rows<const float> q, const MlaShape& shape, float scale,
                             std::span<const AttentionQuery> queries, const KvLayer& cache, Rows<float> out) = 0;

  /// MLA with each head's own keys and values, which are made of the latents of all tokens seen: the form it is trained
  /// in, and less arithmetic for many queries. Of one sequence's queries, in ascending order.
  /// q [tokens, heads * (qk_nope_head_dim + qk_rope_head_dim)]: rotated. out [tokens, heads * v_head_dim].
  virtual void mla_prompt_attention(Rows<const float> q, const MlaShape& shape, const MlaUp& up, float scale,
                                    std::span<const AttentionQuery> queries, const KvLayer& cache, Rows<float> out);
  /// From where on mla_prompt_attention() is the better way; nothing: it is not there. The two forms round differently,
  /// so with one that is there a prompt's last bits depend on how it was cut into chunks.
  virtual std::optional<PromptFrom> mla_prompt_from(const MlaShape&, const MlaUp&, const KvLayer&) const {
    return std::nullopt;
  }

  /// Grouped-query attention. q, out [tokens, heads * head_dim]; head h reads KV head h / (heads / kv_heads).
  virtual void gqa_attention(Rows<const float> q, const GqaShape& shape, float scale,
                             std::span<const AttentionQuery> queries, const KvLayer& cache, Rows<float> out) = 0;

  /// Picks each token's experts. logits [tokens, n_experts]; `bias` [n_experts] (e_score_correction_bias) moves the
  /// choice but not the weights; empty: none. expert [tokens, top_k] ascending by id, weight [tokens, top_k].
  /// DeepSeek-V3, arXiv 2412.19437, section 2.1.2. Ties go to the lower id.
  virtual void route(Rows<const float> logits, std::span<const float> bias, const RouterShape& shape,
                     Rows<std::int32_t> expert, Rows<float> weight) = 0;

  /// Whether sample() is there, for a vocabulary of this size; else the host draws.
  virtual bool can_sample(std::int64_t /*vocab*/) const { return false; }
  /// Draws a token from each row of logits [tokens, vocab], the very one that the host would draw, into host memory; -1
  /// where no logit is a finite number.
  virtual void sample(Rows<const float> logits, std::span<const Draw> draws, std::span<std::int32_t> tokens);

  /// An exchange whose rows do not leave the device on their way from rank to rank; null where there is none over such
  /// a communicator, which must outlive the back end, and rows go by the host's memory.
  virtual std::unique_ptr<TokenExchange> token_exchange(Communicator&, const ExchangeShape&);
  /// Whether there may be layers with experts that need no host in between.
  virtual bool has_device_moe(const Communicator&, const DeviceMoeShape&) const { return false; }
  /// They, asked for by all ranks of the communicator or none; null, on all alike, where GPUs do not reach each other.
  virtual std::unique_ptr<DeviceMoe> device_moe(Communicator&, const DeviceMoeShape&);

  /// Runs a batch through this rank's experts. Contributions to a row are added in ascending expert order.
  virtual void experts(const ExpertBatch& batch, std::span<const FeedForward> experts) = 0;
};

/// CPU instruction sets a kernel family exists for, weakest first.
/// avx512bw: AVX-512 without VNNI.
enum class Isa { portable, avx2, avxvnni, avx512bw, avx512, amx };

struct CpuOptions {
  int threads = 0;     // 0: every CPU this process may use, shared among `local_ranks`
  bool pin = false;    // pin threads to cores
  int local_rank = 0;  // this process's number on its host, for sharing the cores out
  int local_ranks = 1;
  Compute compute = Compute::f32;
  std::string isa = "auto";  // or name_of() one (for tests); Error if this CPU lacks it
};

/// The strongest instruction set this CPU and operating system support.
Isa detect_isa();
std::string_view name_of(Isa isa);
std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options);

}  // namespace shoal
