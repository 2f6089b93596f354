#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>

#include "base/cuda/memory.h"
#include "kernels/cuda/expert_plan.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/placed_matrix.h"
#include "kernels/cuda/self_check.h"

namespace shoal {
namespace cuda {
namespace {

const PlacedMatrix& placed(const Matrix& m) {
  if (!m.placed()) fail("a matrix of {} x {} is not in GPU memory: it was not placed there", m.rows(), m.cols());
  return *static_cast<const PlacedMatrix*>(m.placed().get());
}

/// Where a step's tokens are written and what they see, on the device. Queries of one sequence, which share a page
/// table, share it there too.
class StepTables {
 public:
  StepTables(cudaStream_t stream, Uploads& uploads)
      : uploads_(uploads), stream_(stream), slots_(stream), numbers_(stream) {}

  /// For all layers of a step: the lists stay as they are until the next begin().
  void begin(std::span<const std::int64_t> slots, std::span<const AttentionQuery> queries, int page_tokens) {
    host_slots_ = slots;
    host_queries_ = queries;
    page_tokens_ = page_tokens;
    step_slots_ = keep(slots, slots_);
    list(queries, page_tokens);
    step_queries_ = table_at(keep(std::span<const std::int32_t>(lists_), numbers_), queries.size());
  }
  const std::int64_t* slots(std::span<const std::int64_t> wanted) {
    const bool known = wanted.data() == host_slots_.data() && wanted.size() == host_slots_.size();
    return known ? step_slots_ : uploads_.put(wanted);
  }
  QueryTable queries(std::span<const AttentionQuery> wanted, int page_tokens) {
    if (wanted.data() == host_queries_.data() && wanted.size() == host_queries_.size() && page_tokens == page_tokens_)
      return step_queries_;
    list(wanted, page_tokens);
    return table_at(uploads_.put(lists_), wanted.size());
  }

 private:
  static QueryTable table_at(const std::int32_t* all, std::size_t queries) {
    return {all, all + queries, all + 2 * queries};
  }

  /// lists_: the lengths, where each one's pages begin, then all pages.
  void list(std::span<const AttentionQuery> queries, int page_tokens) {
    std::map<const std::int32_t*, std::int32_t> longest, first;
    for (const AttentionQuery& q : queries) longest[q.pages] = std::max(longest[q.pages], q.length);
    lists_.assign(2 * queries.size(), 0);
    for (const auto& [pages, length] : longest) {
      first[pages] = static_cast<std::int32_t>(lists_.size() - 2 * queries.size());
      lists_.insert(lists_.end(), pages, pages + (length + page_tokens - 1) / page_tokens);
    }
    for (std::size_t t = 0; t < queries.size(); ++t) {
      lists_[t] = queries[t].length;
      lists_[queries.size() + t] = first[queries[t].pages];
    }
  }

  /// Through the uploads' memory into memory that lasts.
  template <class T>
  const T* keep(std::span<const T> data, Scratch& room) {
    T* to = room.room<T>(std::ssize(data));
    constexpr std::size_t kPiece = (1 << 20) / sizeof(T);
    for (std::size_t at = 0; at < data.size(); at += kPiece) {
      const auto piece = data.subspan(at, std::min(kPiece, data.size() - at));
      check(cudaMemcpyAsync(to + at, uploads_.put(piece), piece.size_bytes(), cudaMemcpyDeviceToDevice, stream_),
            "copying a step's tables");
    }
    return to;
  }

  Uploads& uploads_;
  cudaStream_t stream_;
  Scratch slots_, numbers_;
  std::span<const std::int64_t> host_slots_;
  std::span<const AttentionQuery> host_queries_;
  int page_tokens_ = 0;
  const std::int64_t* step_slots_ = nullptr;
  QueryTable step_queries_;
  std::vector<std::int32_t> lists_;
};

/// Which matrices a product of several is made with.
struct Operands {
  const Weights* on_device = nullptr;   // [groups]
  std::vector<const Weights*> weights;  // [groups] as the host sees them
  std::int64_t most_outputs = 0;
  bool has(WeightForm form) const {
    return std::any_of(weights.begin(), weights.end(), [&](const Weights* w) { return w->form == form; });
  }
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options)
      : device_((check(cudaSetDevice(options.device), "cudaSetDevice"), options.device)),
        compute_(options.compute),
        stream_(new_stream()),
        uploads_(stream_),
        tables_(stream_, uploads_) {
    if (compute_ == Compute::fp8) require_hopper();
    if (compute_ != Compute::f32 && options.self_check) check_fast_kernels();
  }
  ~CudaBackend() override { static_cast<void>(cudaStreamSynchronize(on())); }

  std::string description() const override {
    cudaDeviceProp p{};
    check(cudaGetDeviceProperties(&p, device_), "cudaGetDeviceProperties");
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
    std::unique_ptr<MatrixPlacer> placer;
    {
      const std::lock_guard lock(mutex_);
      if (!placers_.empty()) placer = std::move(placers_.back()), placers_.pop_back();
    }
    if (!placer) placer = std::make_unique<MatrixPlacer>();  // one for each thread that loads
    matrix.set_placed(placer->place(matrix));
    const std::lock_guard lock(mutex_);
    placers_.push_back(std::move(placer));
  }

  void place(std::span<const float> vector) override {
    if (vector.empty()) return;
    const std::lock_guard lock(mutex_);
    DeviceBlock block(vector.size_bytes());
    check(cudaMemcpyAsync(block.data(), vector.data(), vector.size_bytes(), cudaMemcpyHostToDevice, on()),
          "copying weights to the GPU");
    check(cudaStreamSynchronize(stream_), "copying weights to the GPU");
    vectors_[vector.data()] = std::move(block);
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
  }

  void fill_zero(Rows<float> out) override { cuda::fill_zero(out, on()); }

  void copy_heads(Rows<const float> x, std::int64_t x_step, int heads, std::int64_t width, Rows<float> out,
                  std::int64_t out_step) override {
    cuda::copy_heads(x, x_step, heads, width, out, out_step, on());
  }

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
    cuda::rms_norm(x, on_device(weight), eps, out, stream_);
  }

  void add(Rows<const float> x, Rows<float> acc) override { cuda::add(x, acc, on()); }

  void linear(Rows<const float> x, const Matrix& w, std::span<const float> bias, Rows<float> out) override {
    on();
    LinearCall call;
    call.bias = on_device(bias);
    product(x, call, operands_of(w), {}, out);
  }

  void linear_per_head(Rows<const float> x, std::int64_t x_step, std::span<const Matrix> w, Rows<float> out,
                       std::int64_t out_step) override {
    on();
    const Operands heads = operands(w, [](const Matrix& m) -> const Matrix& { return m; });
    // Activations in bytes are made of whole rows, so heads must begin where groups of 32 do; else each head by itself.
    if (heads.has(WeightForm::packed) && (x_step % kGroupColumns != 0 || x.cols % kGroupColumns != 0)) {
      for (std::size_t h = 0; h < w.size(); ++h) {
        const auto i = static_cast<std::int64_t>(h);
        linear(x.columns(i * x_step, w[h].cols()), w[h], {}, out.columns(i * out_step, w[h].rows()));
      }
      return;
    }
    LinearCall call;
    call.x_step = x_step;
    call.out_step = out_step;
    product(x, call, heads, {}, out);
  }

  void feed_forward(Rows<const float> x, const FeedForward& ffn, Rows<float> out) override {
    on();
    const Rows<float> gate = rows(gate_, x.rows, ffn.gate.rows()), up = rows(up_, x.rows, ffn.up.rows());
    linear(x, ffn.gate, {}, gate);
    linear(x, ffn.up, {}, up);
    swiglu(gate, up, stream_);
    linear(gate, ffn.down, {}, out);
  }

  void rope(Rows<float> x, int heads, std::int64_t head_step, const RopeAngles& angles, RopePairing pairing) override {
    cuda::rope(x, heads, head_step, angles, pairing, on());
  }

  void write_kv(Rows<const float> x, std::span<const std::int64_t> slots, int column, const KvLayer& cache) override {
    on();
    cuda::write_kv(x, tables_.slots(slots), column, cache, stream_);
  }

  void mla_attention(Rows<const float> q, const MlaShape& shape, float scale, std::span<const AttentionQuery> queries,
                     const KvLayer& cache, Rows<float> out) override {
    attend(q, {1, shape.heads, shape.kv_lora_rank + shape.qk_rope_head_dim, shape.kv_lora_rank, 0, 0, 0, 0}, scale,
           queries, cache, out);
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
    cuda::route(logits, bias.empty() ? nullptr : on_device(bias), shape, ids, shares, stream_);
    copy_rows(ids, shape.top_k, expert.data, expert.stride, logits.rows, shape.top_k, cudaMemcpyDeviceToHost);
    copy_rows(shares, shape.top_k, weight.data, weight.stride, logits.rows, shape.top_k, cudaMemcpyDeviceToHost);
    wait();
  }

  void experts(const ExpertBatch& batch, std::span<const FeedForward> experts) override {
    if (batch.rows.empty()) return;
    on();
    const std::int64_t n = std::ssize(batch.rows), pairs = std::ssize(batch.expert), hidden = experts[0].down.rows();
    const Rows<float> host(host_room(batch_room_, n * hidden), n, hidden);
    for (std::int64_t r = 0; r < n; ++r) std::copy_n(batch.rows[static_cast<std::size_t>(r)], hidden, host[r]);
    const Rows<float> x = rows(batch_x_, n, hidden), out = rows(batch_out_, n, hidden);
    from_host(host, x);
    run_experts(batch, experts, pairs, x, out);
    copy_rows(out.data, hidden, host.data, hidden, n, hidden, cudaMemcpyDeviceToHost);
    wait();
    for (std::int64_t r = 0; r < n; ++r) std::copy_n(host[r], hidden, batch.out[static_cast<std::size_t>(r)]);
  }

 private:
  static constexpr int kGroupColumns = 32;              // of activations in bytes that share a scale
  static constexpr int kCopyColumns = 8;                // BF16 values that kernels copy at a time
  static constexpr std::int64_t kMostParts = 64 << 20;  // floats of partial attention results at a time

  void require_hopper() const {
    cudaDeviceProp p{};
    check(cudaGetDeviceProperties(&p, device_), "cudaGetDeviceProperties");
    if (p.major != 9)
      throw Error(fmt::format("--compute fp8 needs a GPU of sm_90 (Hopper); this one, {}, is sm_{}{}", p.name, p.major,
                              p.minor),
                  ExitCode::usage);
  }
  void check_fast_kernels() {
    if (const std::string wrong = check_linear_mma(stream_); !wrong.empty()) {
      mma_ = false;
      notes_ += "; slower products, because " + wrong;
    }
    if (compute_ != Compute::fp8) return;
    if (const std::string wrong = check_linear_f8(stream_); !wrong.empty()) {
      f8_ = false;
      notes_ += "; FP8 weights meet BF16 activations, because " + wrong;
    }
  }

  static cudaStream_t new_stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    return stream;
  }
  /// The stream, with this device the calling thread's.
  cudaStream_t on() const {
    check(cudaSetDevice(device_), "cudaSetDevice");
    return stream_.get();
  }
  void wait() {
    check(cudaStreamSynchronize(stream_), "the GPU's work");
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
  static float* host_room(HostRoom& room, std::int64_t floats) {
    const auto bytes = static_cast<std::size_t>(floats) * sizeof(float);
    if (room.bytes < bytes || !room.memory) {
      const auto block = std::make_shared<PinnedBlock>(bytes + bytes / 4);
      room = {{block, block->data()}, block->bytes()};
    }
    return static_cast<float*>(room.memory.get());
  }

  /// A vector of weights on the device: placed, or on its way there for this call.
  const float* on_device(std::span<const float> vector) {
    if (vector.empty()) return nullptr;
    const auto found = vectors_.find(vector.data());
    return found == vectors_.end() ? uploads_.put(vector) : reinterpret_cast<const float*>(found->second.data());
  }

  static Operands operands_of(const Matrix& w) {
    const PlacedMatrix& p = placed(w);
    return {reinterpret_cast<const Weights*>(p.view_on_device.data()), {&p.view}, w.rows()};
  }
  template <class T, class MatrixOf>
  Operands operands(std::span<const T> all, const MatrixOf& matrix_of) {
    Operands result;
    views_.clear();
    for (const T& one : all) {
      const Weights& view = placed(matrix_of(one)).view;
      result.weights.push_back(&view);
      views_.push_back(view);
      result.most_outputs = std::max(result.most_outputs, view.rows);
    }
    result.on_device = uploads_.put(views_);
    return result;
  }

  /// The kernels that products are made by.
  enum class Family { cuda_cores, mma, f8, packed };
  static constexpr Family kFamilies[] = {Family::cuda_cores, Family::mma, Family::f8, Family::packed};

  Family family_of(const Weights& w, const LinearCall& call) const {
    if (w.form == WeightForm::packed) return Family::packed;
    if (compute_ == Compute::fp8 && f8_ && linear_f8_takes(w)) return Family::f8;
    const bool aligned = call.x_step % kCopyColumns == 0;
    return compute_ != Compute::f32 && mma_ && aligned && linear_mma_takes(w) ? Family::mma : Family::cuda_cores;
  }

  /// Rows of `x` as a family takes them, made at most once for a product.
  struct Activations {
    HalfRows halves;
    ByteRows bytes;
  };

  /// One launch for each kind of weights that occurs. `call` has what is not said by the other arguments. `ranges`:
  /// which rows go with which matrix; empty: all with each.
  void product(Rows<const float> x, LinearCall call, const Operands& w, std::span<const Tile> ranges, Rows<float> out) {
    if (out.rows == 0) return;
    call.x = x.data;
    call.x_stride = x.stride;
    call.weights = w.on_device;
    call.groups = static_cast<int>(w.weights.size());
    call.most_outputs = w.most_outputs;
    call.rows = x.rows;
    call.out = out.data;
    call.out_stride = out.stride;
    Activations activations;
    for (int f = 0; f < kWeightForms; ++f)
      for (const Family family : kFamilies) {
        const auto form = static_cast<WeightForm>(f);
        const auto fits = [&](const Weights* v) { return v->form == form && family_of(*v, call) == family; };
        const auto n = std::count_if(w.weights.begin(), w.weights.end(), fits);
        if (n == 0) continue;
        LinearCall part = call;
        std::vector<Tile> selected;
        if (!ranges.empty() || n < std::ssize(w.weights)) {
          selected = select(ranges, w, x.rows, fits);
          if (selected.empty()) continue;
        }
        set_tiles(part, selected, family);
        launch_product(part, form, family, x, w, activations);
      }
  }

  /// The ranges whose matrices fit; without ranges, all rows of each that does.
  template <class Fits>
  static std::vector<Tile> select(std::span<const Tile> ranges, const Operands& w, std::int64_t rows,
                                  const Fits& fits) {
    std::vector<Tile> selected;
    for (const Tile& range : ranges)
      if (fits(w.weights[static_cast<std::size_t>(range.group)])) selected.push_back(range);
    if (!ranges.empty()) return selected;
    for (std::size_t g = 0; g < w.weights.size(); ++g)
      if (fits(w.weights[g])) selected.push_back({static_cast<std::int32_t>(g), 0, static_cast<std::int32_t>(rows)});
    return selected;
  }

  /// Tiles of the size that the kernels take; a row's result does not depend on it.
  void set_tiles(LinearCall& call, std::span<const Tile> ranges, Family family) {
    const bool tensor_cores = family == Family::mma || family == Family::f8;
    auto most = static_cast<std::int32_t>(call.rows);
    if (!ranges.empty()) {
      most = 0;
      for (const Tile& range : ranges) most = std::max(most, range.count);
    }
    call.tile_rows = !tensor_cores ? kTileRows : most <= kMmaFewRows ? kMmaFewRows : kMmaManyRows;
    call.most_in_tile = std::min(most, call.tile_rows);
    if (ranges.empty()) {
      call.n_tiles = static_cast<int>((call.rows + call.tile_rows - 1) / call.tile_rows) * call.groups;
      return;
    }
    const std::vector<Tile> tiles = cut_into_tiles(ranges, call.tile_rows);
    call.tiles = uploads_.put(tiles);
    call.n_tiles = static_cast<int>(tiles.size());
  }

  void launch_product(const LinearCall& call, WeightForm form, Family family, Rows<const float> x, const Operands& w,
                      Activations& made) {
    if (family == Family::f8) {
      std::int64_t widest = 0;
      for (const Weights* one : w.weights) widest = std::max(widest, one->stride);
      const std::int64_t steps = (widest + kF8Tile - 1) / kF8Tile, places = call.n_tiles * steps * call.tile_rows;
      const F8Rows rows{halves_.room<std::byte>(places * kF8Tile), f8_scales_.room<float>(places),
                        static_cast<int>(steps)};
      quantize_f8(call, rows, stream_);
      return linear_f8(call, rows, stream_);
    }
    if (family == Family::packed) {
      if (!made.bytes.value) {
        made.bytes = {byte_values_.room<std::int8_t>(x.rows * x.cols),
                      byte_scales_.room<float>(x.rows * x.cols / kGroupColumns)};
        quantize_rows(x, made.bytes, stream_);
      }
      return linear_packed(call, made.bytes, x.cols, stream_);
    }
    if (family == Family::cuda_cores) return cuda::linear(call, form, compute_ != Compute::f32, stream_);
    if (!made.halves.value) {
      const std::int64_t stride = (x.cols + kCopyColumns - 1) / kCopyColumns * kCopyColumns;
      made.halves = {halves_.room<std::uint16_t>(x.rows * stride), stride};
      round_rows(x, made.halves, stream_);
    }
    linear_mma(call, form, made.halves, stream_);
  }

  void run_experts(const ExpertBatch& batch, std::span<const FeedForward> experts, std::int64_t pairs,
                   Rows<const float> x, Rows<float> out) {
    const ExpertPlan plan = plan_experts(batch.first, batch.expert, static_cast<int>(experts.size()));
    const Operands gates = operands(experts, [](const FeedForward& f) -> const Matrix& { return f.gate; });
    const Operands ups = operands(experts, [](const FeedForward& f) -> const Matrix& { return f.up; });
    const Operands downs = operands(experts, [](const FeedForward& f) -> const Matrix& { return f.down; });
    // Whole groups of 32, where activations become bytes.
    const std::int64_t width = (gates.most_outputs + kGroupColumns - 1) / kGroupColumns * kGroupColumns;
    const Rows<float> gate = rows(gate_, pairs, width), up = rows(up_, pairs, width);
    const Rows<float> results = rows(results_, pairs, out.cols);

    LinearCall gathered;
    gathered.row = uploads_.put(plan.row);
    product(x, gathered, gates, plan.ranges, gate);
    product(x, gathered, ups, plan.ranges, up);
    swiglu(gate, up, stream_);
    product(gate, {}, downs, plan.ranges, results);
    combine(results, uploads_.put(batch.first), uploads_.put(plan.place), uploads_.put(batch.weight), out, stream_);
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
    // As many queries at a time as there is room for their parts.
    const std::int64_t at_a_time = std::max<std::int64_t>(1, kMostParts / attention_parts(heads, 1, longest));
    for (std::int64_t first = 0; first < q.rows; first += at_a_time) {
      const std::int64_t n = std::min(at_a_time, q.rows - first);
      float* parts = parts_.room<float>(attention_parts(heads, n, longest));
      attention(q.slice(first, n), heads, scale, {table.length + first, table.first_page + first, table.pages}, longest,
                cache, parts, out.slice(first, n), stream_);
    }
  }

  /// A stream that ends with its owner.
  class Stream {
   public:
    explicit Stream(cudaStream_t stream) : stream_(stream) {}
    ~Stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    cudaStream_t get() const { return stream_; }
    operator cudaStream_t() const { return stream_; }

   private:
    cudaStream_t stream_;
  };

  const int device_;
  const Compute compute_;
  bool mma_ = true, f8_ = true;  // as the self-checks found
  std::string notes_;            // what they said
  const Stream stream_{new_stream()};
  Uploads uploads_;
  StepTables tables_;
  std::mutex mutex_;  // of the two below, while weights are placed
  std::vector<std::unique_ptr<MatrixPlacer>> placers_;
  std::unordered_map<const float*, DeviceBlock> vectors_;
  Scratch gate_{stream_}, up_{stream_}, results_{stream_}, batch_x_{stream_}, batch_out_{stream_}, picked_{stream_},
      shares_{stream_}, parts_{stream_}, byte_values_{stream_}, byte_scales_{stream_}, halves_{stream_},
      f8_scales_{stream_};
  HostRoom batch_room_;
  std::vector<Weights> views_;
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

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  return std::make_unique<cuda::CudaBackend>(options);
}

}  // namespace shoal
