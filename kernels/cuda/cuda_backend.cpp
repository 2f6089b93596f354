#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <array>
#include <mutex>

#include "base/cuda/memory.h"
#include "base/cuda/stream.h"
#include "kernels/cuda/gpu_moe.h"
#include "kernels/cuda/gpu_token_exchange.h"
#include "kernels/cuda/kernels_overlap.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/repetition.h"
#include "kernels/cuda/self_check.h"
#include "kernels/cuda/step_tables.h"

namespace shoal {
namespace cuda {
namespace {

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options)
      : device_((check(cudaSetDevice(options.device), "cudaSetDevice"), options.device)),
        compute_(options.compute),
        peer_memory_(options.peer_memory),
        most_parts_(options.most_parts),
        uploads_(stream_),
        vectors_(stream_, uploads_),
        products_(compute_, stream_, uploads_, vectors_),
        tables_(stream_, uploads_) {
    if (compute_ == Compute::fp8) require_hopper();
    overlap_kernels(options.self_check);
    if (compute_ != Compute::f32 && options.self_check) check_fast_kernels();
  }
  ~CudaBackend() override { static_cast<void>(cudaStreamSynchronize(on())); }

  std::string description() const override {
    const cudaDeviceProp& p = properties_;
    return fmt::format("cuda ({}, sm_{}{}, {} SMs, {:.0f} GB), {}{}", p.name, p.major, p.minor, p.multiProcessorCount,
                       1e-9 * static_cast<double>(p.totalGlobalMem),
                       compute_ == Compute::f32    ? "f32"
                       : compute_ == Compute::bf16 ? "bf16"
                                                   : "fp8",
                       notes_);
  }

  std::shared_ptr<void> allocate(std::size_t bytes) override {
    on();
    const auto block = std::make_shared<DeviceBlock>(bytes);
    check(cudaMemsetAsync(block->data(), 0, bytes, stream_), "clearing GPU memory");
    return {block, block->data()};
  }

  std::optional<std::uint64_t> free_bytes() const override {
    std::size_t free = 0, total = 0;
    on();
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return free;
  }

  void place(Matrix& matrix) override {
    on();
    if (matrix.empty() || matrix.placed()) return;
    with_placer([&](MatrixPlacer& placer) { matrix.set_placed(placer.place(matrix)); });
  }

  Matrix fetch(const Matrix& matrix) override {
    on();
    Matrix host;
    with_placer([&](MatrixPlacer& placer) { host = placer.fetch(matrix, placed(matrix)); });
    return host;
  }

  void place(std::span<const float> vector) override {
    if (vector.empty()) return;
    const std::lock_guard lock(mutex_);
    on();
    vectors_.place(vector);
  }

  Rows<float> to_host(Rows<float> x, HostRoom& room) override {
    const Rows<float> host(host_room(room, x.rows * x.cols), x.rows, x.cols);
    on();
    copy_rows(x.data, x.stride, host.data, x.cols, x.rows, x.cols, cudaMemcpyDeviceToHost);
    wait();
    return host;
  }

  void from_host(Rows<const float> x, Rows<float> to) override {
    on();
    copy_rows(x.data, x.stride, to.data, to.stride, x.rows, x.cols, cudaMemcpyHostToDevice);
  }

  void begin_step(std::span<const std::int64_t> slots, std::span<const AttentionQuery> queries,
                  int page_tokens) override {
    on();
    tables_.begin(slots, queries, page_tokens);
    // Once known, so that no layer has to bring them.
    if (tiled_heads_) tiles_of(queries, *tiled_heads_);
  }

  void repeat(std::int64_t key, std::int64_t tokens, const std::function<void()>& work) override {
    on();
    if (tokens == 0 || tokens > kMostRepeated) {
      work();
      return keep_pace();
    }
    const auto shape = tables_.shape(kSmallestPart);
    Repetition::Key all{key, tokens};
    std::copy(shape.begin(), shape.end(), all.begin() + 2);
    repetition_.run(
        all, [this] { return uploads_.count() + products_.lists_brought() + more_groups_; }, work);
    keep_pace();
  }

  void fill_zero(Rows<float> out) override { cuda::fill_zero(out, on()); }

  void gather_rows(Rows<const float> x, std::span<const std::int64_t> rows, Rows<float> out) override {
    on();
    cuda::gather_rows(x, uploads_.put(rows), out, stream_);
  }

  void embed(std::span<const std::int32_t> ids, const Matrix& table, Rows<float> out) override {
    on();
    cuda::embed(uploads_.put(ids), placed(table).view, out, stream_);
  }

  void rms_norm(Rows<const float> x, std::span<const float> weight, float eps, Rows<float> out) override {
    on();
    cuda::rms_norm(x, vectors_.on_device(weight), eps, out, stream_);
  }

  void add(Rows<const float> x, Rows<float> acc) override { cuda::add(x, acc, on()); }

  void linear(Rows<const float> x, const Matrix& w, std::span<const float> bias, Rows<float> out) override {
    const Projection one{&w, bias, out};
    linears(x, {&one, 1});
  }
  void linears(Rows<const float> x, std::span<const Projection> projections) override {
    on();
    products_.linears(x, projections);
  }
  void norm_linears(Rows<const float> branch, Rows<float> stream, std::span<const float> weight, float eps,
                    Rows<float> h, std::span<const Projection> projections) override {
    on();
    products_.norm_linears(branch, stream, weight, eps, h, projections);
  }
  void linear_per_head(Rows<const float> x, std::int64_t x_step, std::span<const Matrix> w, Rows<float> out,
                       std::int64_t out_step) override {
    on();
    products_.linear_per_head(x, x_step, w, out, out_step);
  }
  void feed_forward(Rows<const float> x, const FeedForward& ffn, Rows<float> out) override {
    on();
    products_.feed_forward(x, ffn, out);
  }

  void rope(Rows<float> x, int heads, std::int64_t head_step, const RopeAngles& angles, RopePairing pairing) override {
    cuda::rope(x, head_step, heads, angles, pairing, x, head_step, on());
  }

  void rope_heads(Rows<const float> x, std::int64_t x_step, int heads, const RopeAngles& angles, RopePairing pairing,
                  Rows<float> out, std::int64_t out_step) override {
    cuda::rope(x, x_step, heads, angles, pairing, out, out_step, on());
  }

  void write_latent(Rows<float> latent, std::span<const float> weight, float eps, const RopeAngles& angles,
                    RopePairing pairing, std::span<const std::int64_t> slots, const KvLayer& cache) override {
    on();
    cuda::write_latent(latent, static_cast<int>(weight.size()), vectors_.on_device(weight), eps, angles, pairing,
                       tables_.slots(slots), cache, stream_);
  }

  void write_kv(Rows<const float> x, std::span<const std::int64_t> slots, int column, const KvLayer& cache) override {
    on();
    cuda::write_kv(x, tables_.slots(slots), column, cache, stream_);
  }

  void mla_attention(Rows<const float> q, const MlaShape& shape, float scale, std::span<const AttentionQuery> queries,
                     const KvLayer& cache, Rows<float> out) override {
    attend(q, latent_heads(shape), scale, queries, cache, out);
  }

  std::optional<PromptFrom> mla_prompt_from(const MlaShape& shape, const MlaUp& up,
                                            const KvLayer& cache) const override {
    if (compute_ == Compute::f32 || !mla_prompt_ || up.k_up.empty()) return std::nullopt;
    for (std::size_t h = 0; h < up.k_up.size(); ++h)
      if (!mla_expand_takes(placed(up.k_up[h]).view, placed(up.v_up[h]).view) ||
          placed(up.k_up[h]).view.form != placed(up.k_up[0]).view.form)
        return std::nullopt;
    const ExpandedKv kv = expanded(shape, up, 1, false);
    if (!attention_mma_takes(heads_of(kv), {nullptr, KvType::bf16, 1, kv.width()}, shared_limit_) ||
        !attention_mma_takes(latent_heads(shape), cache, shared_limit_))
      return std::nullopt;
    const auto seeing = prompt_break_even(shape, up);
    if (!seeing) return std::nullopt;
    // Steps that are recorded must not differ from others of the same number of tokens.
    return PromptFrom{kMostRepeated + 1, *seeing};
  }

  void mla_prompt_attention(Rows<const float> q, const MlaShape& shape, const MlaUp& up, float scale,
                            std::span<const AttentionQuery> queries, const KvLayer& cache, Rows<float> out) override {
    if (q.rows == 0) return;
    on();
    const Operands k_up = products_.of(up.k_up), v_up = products_.of(up.v_up);
    const WeightForm form = k_up.weights[0]->form;
    const QueryTable table = tables_.queries(queries, cache.page_tokens);
    const std::int32_t length = queries.back().length;
    const bool wgmma = mla_prompt_wgmma_ && mla_prompt_takes(expanded(shape, up, 1, true));
    const ExpandedKv one = expanded(shape, up, 1, wgmma);
    // The last queries, which see the most, first.
    const int most =
        wgmma ? kPromptRows : attention_mma_queries(heads_of(one), static_cast<int>(q.rows), shared_limit_);
    const Tile all{0, 0, static_cast<std::int32_t>(q.rows)};
    std::vector<Tile> tiles = cut_into_tiles({&all, 1}, most);
    std::reverse(tiles.begin(), tiles.end());
    AttentionTiles part{uploads_.put(tiles), static_cast<int>(tiles.size()), most, 0, length};
    // As many heads at a time as there is room for.
    const std::int64_t of_one = ExpandedKv::elements(length, one.width());
    const auto at_a_time = static_cast<int>(std::clamp<std::int64_t>(2 * most_parts_ / of_one, 1, shape.heads));
    for (int first = 0; first < shape.heads; first += at_a_time) {
      const int n = std::min(at_a_time, shape.heads - first);
      ExpandedKv kv = expanded(shape, up, n, wgmma);
      kv.data = expanded_.room<std::uint16_t>(of_one * n);
      mla_expand(cache, table, length, shape.kv_lora_rank, k_up.on_device + first, v_up.on_device + first, form, kv,
                 stream_);
      const std::int64_t dim = kv.nope + kv.rope;
      const Rows<const float> asking = q.columns(first * dim, n * dim);
      const Rows<float> to = out.columns(std::int64_t{first} * kv.value, std::int64_t{n} * kv.value);
      if (wgmma)
        mla_prompt(asking, scale, table, part, kv, to, stream_);
      else
        attention_mma(asking, heads_of(kv), scale, {table.length}, length, part,
                      {kv.data, KvType::bf16, 1, static_cast<int>(kv.heads) * kv.width()}, nullptr, shared_limit_, to,
                      stream_);
    }
  }

  void gqa_attention(Rows<const float> q, const GqaShape& shape, float scale, std::span<const AttentionQuery> queries,
                     const KvLayer& cache, Rows<float> out) override {
    const int dim = shape.head_dim;
    attend(q, {shape.kv_heads, shape.heads / shape.kv_heads, dim, dim, 0, dim, shape.kv_heads * dim, dim}, scale,
           queries, cache, out);
  }

  void route(Rows<const float> logits, std::span<const float> bias, const RouterShape& shape, Rows<std::int32_t> expert,
             Rows<float> weight) override {
    if (logits.rows == 0) return;
    if (shape.n_experts > kMaxExperts)
      fail("the GPU's router takes up to {} experts; this model has {}", kMaxExperts, shape.n_experts);
    on();
    const std::int64_t n = logits.rows * shape.top_k;
    auto* ids = picked_.room<std::int32_t>(n);
    auto* shares = shares_.room<float>(n);
    cuda::route(logits, bias.empty() ? nullptr : vectors_.on_device(bias), shape, ids, shares, stream_);
    copy_rows(ids, shape.top_k, expert.data, expert.stride, logits.rows, shape.top_k, cudaMemcpyDeviceToHost);
    copy_rows(shares, shape.top_k, weight.data, weight.stride, logits.rows, shape.top_k, cudaMemcpyDeviceToHost);
    wait();
  }

  bool can_sample(std::int64_t vocab) const override { return vocab <= kMostVocabulary; }

  void sample(Rows<const float> logits, std::span<const Draw> draws, std::span<std::int32_t> tokens) override {
    if (logits.rows == 0) return;
    on();
    const Draw* how = uploads_.put(draws);
    auto* drawn = picked_.room<std::int32_t>(logits.rows);
    for (std::int64_t first = 0; first < logits.rows; first += kMostSampled) {
      const std::int64_t n = std::min(kMostSampled, logits.rows - first);
      const auto room = static_cast<std::int64_t>(sample_room_bytes(static_cast<int>(logits.cols)));
      cuda::sample(logits.slice(first, n), how + first, drawn + first, sampling_.room<std::byte>(n * room), stream_);
    }
    copy_rows(drawn, logits.rows, tokens.data(), logits.rows, 1, logits.rows, cudaMemcpyDeviceToHost);
    wait();
  }

  void finish() override {
    on();
    wait();
  }

  std::unique_ptr<TokenExchange> token_exchange(Communicator& comm, const ExchangeShape& shape) override {
    if (comm.size() > 1 && !comm.device_transport()) return nullptr;
    on();
    // The wire follows what was asked for, not what this GPU's self-check found: all ranks must agree on it.
    return std::make_unique<GpuTokenExchange>(stream_, uploads_, comm, shape, compute_ == Compute::fp8);
  }

  bool has_device_moe(const Communicator& comm, const DeviceMoeShape& shape) const override {
    return GpuMoe::takes(comm, shape);
  }
  std::unique_ptr<DeviceMoe> device_moe(Communicator& comm, const DeviceMoeShape& shape) override {
    on();
    auto moe = std::make_unique<GpuMoe>(GpuMoe::Parts{stream_, uploads_, vectors_, products_, device_, peer_memory_,
                                                      retired_windows_, [this] { repetition_.forget(); }},
                                        comm, shape, compute_ == Compute::fp8);
    if (!moe->reaches_all()) return nullptr;
    if (!moe->why_no_windows().empty()) notes_ += "; slots for all tokens by NCCL, because " + moe->why_no_windows();
    return moe;
  }

  void experts(const ExpertBatch& batch, std::span<const FeedForward> experts) override {
    if (batch.first.size() < 2) return;
    on();
    if (batch.x.data != nullptr) return products_.experts(batch, experts, batch.x, batch.results);
    const std::int64_t n = std::ssize(batch.rows), hidden = experts[0].down.rows();
    const Rows<float> host(host_room(batch_room_, n * hidden), n, hidden);
    for (std::int64_t r = 0; r < n; ++r) std::copy_n(batch.rows[static_cast<std::size_t>(r)], hidden, host[r]);
    const Rows<float> x = rows(batch_x_, n, hidden), out = rows(batch_out_, n, hidden);
    from_host(host, x);
    products_.experts(batch, experts, x, out);
    copy_rows(out.data, hidden, host.data, hidden, n, hidden, cudaMemcpyDeviceToHost);
    wait();
    for (std::int64_t r = 0; r < n; ++r) std::copy_n(host[r], hidden, batch.out[static_cast<std::size_t>(r)]);
  }

 private:
  static constexpr std::int64_t kMostSampled = 64;    // rows at a time: 1.2 MB each for R1's vocabulary
  static constexpr std::int64_t kMostRepeated = 256;  // tokens: more take longer than their launches
  static constexpr int kSmallestPart = 512;           // positions that attention's launches are cut by

  void require_hopper() const {
    const cudaDeviceProp& p = properties_;
    if (p.major != 9)
      throw Error(fmt::format("--compute fp8 needs a GPU of sm_90 (Hopper); this one, {}, is sm_{}{}", p.name, p.major,
                              p.minor),
                  ExitCode::usage);
  }
  void overlap_kernels(bool check) {
    kernels_overlap = properties_.major == 9 || properties_.major == 10;
    if (!kernels_overlap || !check) return;
    if (const std::string wrong = check_overlap(stream_); !wrong.empty()) {
      kernels_overlap = false;
      notes_ += "; kernels one after the other, because " + wrong;
    }
  }
  void check_fast_kernels() {
    if (const std::string wrong = check_linear_mma(stream_); !wrong.empty()) {
      products_.distrust_mma();
      notes_ += "; slower products, because " + wrong;
    }
    if (const std::string wrong = check_linear_packed_mma(stream_); !wrong.empty()) {
      products_.distrust_packed_mma();
      notes_ += "; slower products of quantized weights, because " + wrong;
    }
    if (compute_ == Compute::bf16) {
      if (const std::string wrong = check_linear_int4_mma(stream_); !wrong.empty()) {
        products_.distrust_int4_mma();
        notes_ += "; INT4 weights meet INT8 activations, because " + wrong;
      }
    }
    if (const std::string wrong = check_attention_mma(shared_limit_, stream_); !wrong.empty()) {
      attention_mma_ = false;
      notes_ += "; slower attention, because " + wrong;
    }
    if (const std::string wrong = check_mla_prompt(shared_limit_, false, stream_); !wrong.empty()) {
      mla_prompt_ = false;
      notes_ += "; prompts in MLA's absorbed form, because " + wrong;
    }
    if (properties_.major == 9) {
      if (const std::string wrong = check_mla_wgmma(stream_); !wrong.empty()) {
        mla_wgmma_ = false;
        notes_ += "; MLA by mma.sync, because " + wrong;
      }
      if (const std::string wrong = check_mla_prompt(shared_limit_, true, stream_); !wrong.empty()) {
        mla_prompt_wgmma_ = false;
        notes_ += "; prompts by mma.sync, because " + wrong;
      }
    }
    if (compute_ != Compute::fp8) return;
    if (const std::string wrong = check_linear_f8(stream_); !wrong.empty()) {
      products_.distrust_f8();
      notes_ += "; FP8 weights meet BF16 activations, because " + wrong;
    }
  }

  /// No more than so many layers ahead of the GPU: launches wait where a stream is full, and there nobody looks whether
  /// it will ever go on.
  void keep_pace() {
    if (!Watch::is_set()) return;
    const Event& event = pace_[repeated_++ % pace_.size()];
    wait_for(event, "the GPU's work");
    check(cudaEventRecord(event, stream_), "cudaEventRecord");
  }

  /// One for each thread that has matrices copied.
  template <class Use>
  void with_placer(const Use& use) {
    std::unique_ptr<MatrixPlacer> placer;
    {
      const std::lock_guard lock(mutex_);
      if (!placers_.empty()) placer = std::move(placers_.back()), placers_.pop_back();
    }
    if (!placer) placer = std::make_unique<MatrixPlacer>();
    use(*placer);
    const std::lock_guard lock(mutex_);
    placers_.push_back(std::move(placer));
  }

  static cudaDeviceProp properties_of(int device) {
    cudaDeviceProp p{};
    check(cudaGetDeviceProperties(&p, device), "cudaGetDeviceProperties");
    return p;
  }
  /// The stream, with this device the calling thread's.
  cudaStream_t on() const {
    check(cudaSetDevice(device_), "cudaSetDevice");
    return stream_;
  }
  void wait() {
    wait_for(stream_, "the GPU's work");
    check(cudaGetLastError(), "the GPU's work");
  }

  template <class T>
  void copy_rows(const T* from, std::int64_t from_stride, T* to, std::int64_t to_stride, std::int64_t n,
                 std::int64_t cols, cudaMemcpyKind kind) {
    if (n == 0 || cols == 0) return;
    check(cudaMemcpy2DAsync(to, static_cast<std::size_t>(to_stride) * sizeof(T), from,
                            static_cast<std::size_t>(from_stride) * sizeof(T),
                            static_cast<std::size_t>(cols) * sizeof(T), static_cast<std::size_t>(n), kind, stream_),
          "copying between host and GPU");
  }

  static Rows<float> rows(Scratch& memory, std::int64_t n, std::int64_t cols) {
    return {memory.room<float>(n * cols), n, cols};
  }
  float* host_room(HostRoom& room, std::int64_t floats) {
    const auto bytes = static_cast<std::size_t>(floats) * sizeof(float);
    if (room.bytes < bytes || !room.memory) {
      wait();  // to free what is there waits as well, whatever for
      const auto block = std::make_shared<PinnedBlock>(bytes + bytes / 4);
      room = {{block, block->data()}, block->bytes()};
    }
    return static_cast<float*>(room.memory.get());
  }

  void attend(Rows<const float> q, const HeadGroups& heads, float scale, std::span<const AttentionQuery> queries,
              const KvLayer& cache, Rows<float> out) {
    if (q.rows == 0) return;
    if (!attention_takes(heads))
      fail("the GPU's attention takes heads of up to 576 columns (MLA) or 256 (else); this model's have {}",
           heads.key_dim);
    on();
    const QueryTable table = tables_.queries(queries, cache.page_tokens);
    std::int32_t longest = 0;
    for (const AttentionQuery& query : queries) longest = std::max(longest, query.length);
    if (compute_ != Compute::f32 && attention_mma_ && attention_mma_takes(heads, cache, shared_limit_))
      return attend_on_tensor_cores(q, heads, scale, queries, table, longest, cache, out);
    // As many queries at a time as there is room for their parts.
    const std::int64_t at_a_time = std::max<std::int64_t>(1, most_parts_ / attention_parts(heads, 1, longest));
    for (std::int64_t first = 0; first < q.rows; first += at_a_time) {
      const std::int64_t n = std::min(at_a_time, q.rows - first);
      float* parts = parts_.room<float>(attention_parts(heads, n, longest));
      attention(q.slice(first, n), heads, scale, {table.length + first, table.first_page + first, table.pages}, longest,
                cache, parts, out.slice(first, n), stream_);
    }
  }

  static HeadGroups latent_heads(const MlaShape& shape) {
    return {1, shape.heads, shape.kv_lora_rank + shape.qk_rope_head_dim, shape.kv_lora_rank, 0, 0, 0, 0};
  }
  static ExpandedKv expanded(const MlaShape& shape, const MlaUp& up, int heads, bool tiled) {
    return {nullptr,
            heads,
            static_cast<int>(up.k_up[0].cols()),
            shape.qk_rope_head_dim,
            static_cast<int>(up.v_up[0].rows()),
            tiled};
  }
  /// As rows of a cache: each head has keys of its own.
  static HeadGroups heads_of(const ExpandedKv& kv) {
    const int dim = kv.nope + kv.rope, step = kv.width();
    return {kv.heads, 1, dim, kv.value, 0, step, dim, step};
  }

  /// Of heads that attention_mma() takes too.
  bool uses_wgmma(const HeadGroups& heads) const {
    return properties_.major == 9 && mla_wgmma_ && mla_wgmma_takes(heads);
  }
  const StepTables::Tiles& tiles_of(std::span<const AttentionQuery> queries, const HeadGroups& heads) {
    tiled_heads_ = heads;
    const bool wgmma = uses_wgmma(heads);
    return tables_.tiles(queries, [&](int run) {
      return wgmma ? mla_wgmma_queries(heads) : attention_mma_queries(heads, run, shared_limit_);
    });
  }
  void attend_on_tensor_cores(Rows<const float> q, const HeadGroups& heads, float scale,
                              std::span<const AttentionQuery> queries, const QueryTable& table, std::int32_t longest,
                              const KvLayer& cache, Rows<float> out) {
    const bool wgmma = uses_wgmma(heads);
    const auto& [tiles, on_device] = tiles_of(queries, heads);
    const std::int64_t of_one = std::max<std::int64_t>(1, attention_mma_parts(heads, 1, longest));
    AttentionTiles part;
    for (const Tile& tile : tiles) part.queries = std::max(part.queries, tile.count);
    for (std::size_t first = 0, next = 0; first < tiles.size(); first = next) {
      // As many tiles at a time as there is room for their parts.
      if (first > 0) ++more_groups_;
      std::int64_t n = 0;
      while (next < tiles.size() && (n == 0 || (n + tiles[next].count) * of_one <= most_parts_))
        n += tiles[next++].count;
      part.tile = on_device + first;
      part.count = static_cast<int>(next - first);
      part.first_query = tiles[first].first;
      float* parts = parts_.room<float>(attention_mma_parts(heads, n, longest));
      if (wgmma)
        mla_wgmma(q, heads, scale, table, longest, part, cache, parts, out, stream_);
      else
        attention_mma(q, heads, scale, table, longest, part, cache, parts, shared_limit_, out, stream_);
      if (longest > kMmaPart)
        merge_parts(parts, kMmaPart, (longest + kMmaPart - 1) / kMmaPart, table.length + part.first_query,
                    heads.value_dim, out.slice(part.first_query, n), stream_);
    }
  }

  const int device_;
  const Compute compute_;
  const CudaOptions::PeerMemory peer_memory_;
  const std::int64_t most_parts_;
  const cudaDeviceProp properties_ = properties_of(device_);
  const std::size_t shared_limit_ = properties_.sharedMemPerBlockOptin;  // of a block, bytes
  // As their self-checks found.
  bool attention_mma_ = true, mla_wgmma_ = true, mla_prompt_ = true, mla_prompt_wgmma_ = properties_.major == 9;
  std::string notes_;  // what they said
  const Stream stream_;
  Uploads uploads_;
  WeightVectors vectors_;
  Products products_;
  StepTables tables_;
  std::mutex mutex_;  // of the two below, while weights are placed
  std::vector<std::unique_ptr<MatrixPlacer>> placers_;
  Scratch batch_x_{stream_}, batch_out_{stream_}, picked_{stream_}, shares_{stream_}, parts_{stream_},
      sampling_{stream_}, expanded_{stream_};
  HostRoom batch_room_;
  std::optional<HeadGroups> tiled_heads_;
  std::uint64_t more_groups_ = 0;  // of tiles than one, which repetitions' keys do not tell apart
  Repetition repetition_{stream_};
  std::array<Event, 8> pace_;
  std::size_t repeated_ = 0;
  std::vector<DeviceBlock> retired_windows_;
};

}  // namespace
}  // namespace cuda

CudaDevices find_cuda_devices() {
  CudaDevices found;
  const cudaError_t code = cudaGetDeviceCount(&found.count);
  if (code == cudaSuccess && found.count > 0) return found;
  static_cast<void>(cudaGetLastError());
  constexpr int kInsufficientDriver = 35;  // which the runtime also says where there is none
  if (code == kInsufficientDriver) return {0, "no NVIDIA driver is loaded, or it is too old for CUDA 13"};
  return {0, code == cudaSuccess ? "no GPU is visible" : cudaGetErrorString(code)};
}

std::string cuda_device_place(int device) {
  char id[32] = "";
  return cudaDeviceGetPCIBusId(id, sizeof id, device) == cudaSuccess ? id : "";
}

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  return std::make_unique<cuda::CudaBackend>(options);
}

}  // namespace shoal
