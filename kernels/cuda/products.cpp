#include "kernels/cuda/products.h"

#include "kernels/cuda/expert_plan.h"

namespace shoal::cuda {
namespace {

constexpr int kGroupColumns = 32;  // of activations in bytes that share a scale
constexpr int kCopyColumns = 8;    // BF16 values that kernels copy at a time

std::int64_t steps_of(std::int64_t columns) { return (columns + kF8Tile - 1) / kF8Tile; }

/// The ranges whose matrices fit; without ranges, all rows of each that does.
template <class Fits>
std::vector<Tile> select_ranges(std::span<const Tile> ranges, const Operands& w, std::int64_t rows, const Fits& fits) {
  std::vector<Tile> selected;
  for (const Tile& range : ranges)
    if (fits(w.weights[static_cast<std::size_t>(range.group)])) selected.push_back(range);
  if (!ranges.empty()) return selected;
  for (std::size_t g = 0; g < w.weights.size(); ++g)
    if (fits(w.weights[g])) selected.push_back({static_cast<std::int32_t>(g), 0, static_cast<std::int32_t>(rows)});
  return selected;
}

/// 1 for each matrix that fits, 0 for the others.
template <class Fits>
std::vector<std::int32_t> ones_where(const std::vector<const Weights*>& weights, const Fits& fits) {
  std::vector<std::int32_t> numbers;
  for (const Weights* w : weights) numbers.push_back(fits(w) ? 1 : 0);
  return numbers;
}

/// Tiles of up to `rows` pairs, however they are spread over the experts.
std::int64_t most_tiles(std::int64_t pairs, std::int64_t experts, std::int64_t rows) {
  return std::min(pairs, std::min(pairs, experts) + pairs / rows);
}

}  // namespace

const Weights* MatrixLists::on_device(const std::shared_ptr<const void>& first) {
  List& list = lists_[first.get()];
  if (list.views != views_ || list.first.lock() != first) {
    wait_for(stream_, "waiting for the GPU");  // work under way may use the old ones
    list = {first, views_, DeviceBlock(views_.size() * sizeof(Weights))};
    std::erase_if(lists_, [](const auto& entry) { return entry.second.first.expired(); });
    check(cudaMemcpyAsync(list.memory.data(), views_.data(), list.memory.bytes(), cudaMemcpyHostToDevice, stream_),
          "copying to the GPU");
    wait_for(stream_, "copying to the GPU");  // views_ changes
    ++brought_;
  }
  return reinterpret_cast<const Weights*>(list.memory.data());
}

Products::Products(Compute compute, cudaStream_t stream, Uploads& uploads, WeightVectors& vectors)
    : compute_(compute),
      stream_(stream),
      uploads_(uploads),
      vectors_(vectors),
      lists_(stream),
      rows_(stream),
      firsts_(stream),
      places_(stream),
      weights_(stream),
      tiles_(stream),
      gate_(stream),
      up_(stream),
      results_(stream),
      byte_values_(stream),
      byte_scales_(stream),
      halves_(stream),
      f8_values_(stream),
      f8_scales_(stream),
      hidden_values_(stream),
      hidden_scales_(stream),
      piece_sums_(stream) {
  check(cudaMemsetAsync(pieces_arrived_.data(), 0, pieces_arrived_.bytes(), stream), "clearing GPU memory");
}

void Products::linears(Rows<const float> x, std::span<const Projection> projections) {
  Activations rounded;
  multiply(x, projections, rounded);
}

void Products::norm_linears(Rows<const float> branch, Rows<float> stream, std::span<const float> weight, float eps,
                            Rows<float> h, std::span<const Projection> projections) {
  if (stream.rows == 0) return;
  // In each form that one of the products takes, as if it were rounded afterwards.
  Activations rounded;
  for (const Projection& p : projections) {
    const Weights& w = placed(*p.w).view;
    LinearCall call;
    call.rows = stream.rows;
    call.groups = 1;
    const Family family = family_of(w, call);
    set_tiles(call, {}, family);
    if (family == Family::f8 && !rounded.f8.value) make_room_f8(rounded, call, steps_of(w.stride));
    if (w.order != nullptr) continue;
    if (takes_halves(family) && !rounded.halves.value) make_room_halves(rounded, stream.rows, stream.cols);
    if (takes_bytes(family) && !rounded.bytes.value) make_room_bytes(rounded, stream.rows, stream.cols);
  }
  add_rms_norm(stream, branch, stream, vectors_.on_device(weight), eps, h, rounded, stream_);
  multiply(h, projections, rounded);
}

void Products::linear_per_head(Rows<const float> x, std::int64_t x_step, std::span<const Matrix> w, Rows<float> out,
                               std::int64_t out_step) {
  if (x.rows == 0 || w.empty()) return;
  const Operands heads = of(w);
  // Activations in bytes are made of whole rows, so heads must begin where groups of 32 do; else, and where each has an
  // order of its own, each head by itself.
  if (heads.has(WeightForm::packed) &&
      (heads.has_order() || x_step % kGroupColumns != 0 || x.cols % kGroupColumns != 0)) {
    for (std::size_t h = 0; h < w.size(); ++h) {
      const auto i = static_cast<std::int64_t>(h);
      const Projection one{&w[h], {}, out.columns(i * out_step, w[h].rows())};
      linears(x.columns(i * x_step, w[h].cols()), {&one, 1});
    }
    return;
  }
  LinearCall call;
  call.x_step = x_step;
  call.out_step = out_step;
  Activations rounded;
  product(x, call, heads, {}, rounded, out);
}

void Products::feed_forward(Rows<const float> x, const FeedForward& ffn, Rows<float> out) {
  if (x.rows == 0) return;
  if (const Operands gates = lists_.of(ffn.gate), ups = lists_.of(ffn.up), downs = lists_.of(ffn.down);
      are_f8(gates, ups, downs))
    return f8_blocks(x, {}, gates, ups, downs, {}, out);
  const Rows<float> gate = rows(gate_, x.rows, ffn.gate.rows()), up = rows(up_, x.rows, ffn.up.rows());
  const Projection both[] = {{&ffn.gate, {}, gate}, {&ffn.up, {}, up}};
  linears(x, both);
  gated_product(gate, up, lists_.of(ffn.down), {}, out);
}

F8Pieces Products::pieces_of(const LinearCall& call, const Weights& w) {
  if (call.tiles != nullptr || call.groups != 1) return {};
  const int count = linear_f8_pieces(w);
  const std::int64_t room = linear_f8_room(call, count);
  return {count, room > 0 ? piece_sums_.room<float>(room) : nullptr,
          reinterpret_cast<unsigned*>(pieces_arrived_.data())};
}

Products::Family Products::family_of(const Weights& w, const LinearCall& call) const {
  if (w.form == WeightForm::packed) {
    if (compute_ == Compute::bf16 && int4_mma_ && linear_int4_mma_takes(w)) return Family::int4_mma;
    return compute_ != Compute::f32 && packed_mma_ ? Family::packed_mma : Family::packed;
  }
  if (compute_ == Compute::fp8 && f8_ && linear_f8_takes(w)) return Family::f8;
  const bool aligned = call.x_step % kCopyColumns == 0;
  return compute_ != Compute::f32 && mma_ && aligned && linear_mma_takes(w) ? Family::mma : Family::cuda_cores;
}

void Products::make_room_f8(Rounded& to, const LinearCall& call, std::int64_t steps) {
  const std::int64_t places = call.n_tiles * steps * call.tile_rows;
  to.f8 = {f8_values_.room<std::byte>(places * kF8Tile), f8_scales_.room<float>(places), static_cast<int>(steps)};
  to.f8_tile_rows = call.tile_rows;
}
void Products::make_room_halves(Rounded& to, std::int64_t n, std::int64_t cols) {
  const std::int64_t stride = (cols + kCopyColumns - 1) / kCopyColumns * kCopyColumns;
  to.halves = {halves_.room<std::uint16_t>(n * stride), stride};
}
void Products::make_halves(Rows<const float> x, Activations& made) {
  if (made.halves.value != nullptr) return;
  make_room_halves(made, x.rows, x.cols);
  round_rows(x, made.up, made.count, made.halves, stream_);
}
void Products::make_room_bytes(Rounded& to, std::int64_t n, std::int64_t cols) {
  to.bytes = {byte_values_.room<std::int8_t>(n * cols), byte_scales_.room<float>(n * cols / kGroupColumns)};
}

void Products::multiply(Rows<const float> x, std::span<const Projection> projections, Activations& rounded) {
  for (const Projection& p : projections) {
    LinearCall call;
    call.bias = vectors_.on_device(p.bias);
    product(x, call, lists_.of(*p.w), {}, rounded, p.out);
  }
}

void Products::gated_product(Rows<float> gate, Rows<const float> up, const Operands& w, const Ranges& ranges,
                             Rows<float> out) {
  Activations rounded;
  if (ranges.pairs) rounded.count = ranges.pairs->begin + w.weights.size();
  const auto as_it_is = [&](const Weights* v) { return family_of(*v, {}) == Family::cuda_cores; };
  if (std::any_of(w.weights.begin(), w.weights.end(), as_it_is))
    swiglu(gate, up, rounded.count, stream_);
  else
    rounded.up = up;  // when it is rounded
  product(gate, {}, w, ranges, rounded, out);
}

bool Products::are_f8(const Operands& gates, const Operands& ups, const Operands& downs) const {
  if (compute_ != Compute::fp8 || !f8_) return false;
  for (std::size_t i = 0; i < gates.weights.size(); ++i) {
    const Weights &gate = *gates.weights[i], &up = *ups.weights[i], &down = *downs.weights[i];
    if (!linear_f8_takes(gate) || !linear_f8_takes(up) || !linear_f8_takes(down)) return false;
    if (gate.rows != up.rows || gate.cols != up.cols || gate.rows != down.cols) return false;
  }
  return true;
}
void Products::f8_blocks(Rows<const float> x, LinearCall call, const Operands& gates, const Operands& ups,
                         const Operands& downs, const Ranges& ranges, Rows<float> out) {
  if (out.rows == 0) return;  // no ranges would mean all rows
  call.x = x.data;
  call.x_stride = x.stride;
  call.weights = gates.on_device;
  call.groups = static_cast<int>(gates.weights.size());
  call.most_outputs = gates.most_outputs;
  call.rows = x.rows;
  set_tiles(call, ranges, Family::f8);
  Rounded rows_in;
  make_room_f8(rows_in, call, steps_of(gates.widest()));
  quantize_f8(call, rows_in.f8, stream_);
  const std::int64_t steps = steps_of(gates.most_outputs), places = call.n_tiles * steps * call.tile_rows;
  const F8Rows hidden{hidden_values_.room<std::byte>(places * kF8Tile), hidden_scales_.room<float>(places),
                      static_cast<int>(steps)};
  gated_f8(call, ups.on_device, rows_in.f8, hidden, stream_);
  call.weights = downs.on_device;
  call.most_outputs = downs.most_outputs;
  call.out = out.data;
  call.out_stride = out.stride;
  call.pieces = pieces_of(call, *downs.weights[0]);
  linear_f8(call, hidden, stream_);
}

void Products::product(Rows<const float> x, LinearCall call, const Operands& w, const Ranges& ranges,
                       Activations& rounded, Rows<float> out) {
  if (out.rows == 0) return;
  call.x = x.data;
  call.x_stride = x.stride;
  call.weights = w.on_device;
  call.groups = static_cast<int>(w.weights.size());
  call.most_outputs = w.most_outputs;
  call.rows = x.rows;
  call.out = out.data;
  call.out_stride = out.stride;
  call.up = rounded.up.cols > 0 ? rounded.up.data : nullptr;
  call.up_stride = rounded.up.stride;
  rounded.listed = x.rows;
  for (const Tile& range : ranges.list)
    rounded.listed = std::max<std::int64_t>(rounded.listed, range.first + range.count);
  if (ranges.pairs) rounded.listed = std::max(rounded.listed, ranges.pairs->most);
  const auto alike = [&](const Weights& a, const Weights& b) {
    if (a.form != b.form || family_of(a, call) != family_of(b, call)) return false;
    return !is_for_layouts(family_of(a, call)) || a.packed.is_read_like(b.packed);
  };
  std::vector<const Weights*> kinds;  // a matrix of each
  for (const Weights* v : w.weights)
    if (std::none_of(kinds.begin(), kinds.end(), [&](const Weights* kind) { return alike(*v, *kind); }))
      kinds.push_back(v);
  for (const Weights* kind : kinds) {
    LinearCall part = call;
    const auto is_kind = [&](const Weights* v) { return alike(*v, *kind); };
    const Family family = family_of(*kind, call);
    std::vector<Tile> selected;
    if (ranges.pairs) {
      set_tiles(part, ranges, family, kinds.size() > 1 ? uploads_.put(ones_where(w.weights, is_kind)) : nullptr);
    } else if (!ranges.all() || kinds.size() > 1) {
      selected = select_ranges(ranges.list, w, x.rows, is_kind);
      if (selected.empty()) continue;
      set_tiles(part, {selected}, family);
    } else {
      set_tiles(part, {}, family);
    }
    launch_product(part, *kind, family, x, w, rounded);
  }
}

void Products::set_tiles(LinearCall& call, const Ranges& ranges, Family family, const std::int32_t* wanted) {
  auto most = static_cast<std::int32_t>(call.rows);
  if (!ranges.list.empty()) most = 0;
  for (const Tile& range : ranges.list) most = std::max(most, range.count);
  // What an expert gets that is asked for twice as often as others.
  if (ranges.pairs) most = static_cast<std::int32_t>(2 * ranges.pairs->usual);
  const bool few =
      family == Family::cuda_cores || family == Family::packed || (is_for_layouts(family) && most <= kTileRows);
  call.tile_rows = few ? kTileRows : most <= kMmaFewRows ? kMmaFewRows : kMmaManyRows;
  call.most_in_tile = std::min(most, call.tile_rows);
  if (ranges.pairs) return make_tiles(call, *ranges.pairs, wanted);
  if (ranges.all()) {
    call.n_tiles = static_cast<int>((call.rows + call.tile_rows - 1) / call.tile_rows) * call.groups;
    return;
  }
  const std::vector<Tile> tiles = cut_into_tiles(ranges.list, call.tile_rows);
  call.tiles = uploads_.put(tiles);
  call.n_tiles = static_cast<int>(tiles.size());
}

void Products::make_tiles(LinearCall& call, const ListedPairs& pairs, const std::int32_t* wanted) {
  call.most_in_tile = call.tile_rows;
  call.n_tiles = static_cast<int>(most_tiles(pairs.most, call.groups, call.tile_rows));
  call.tiles_made = true;
  Tile* tiles = tiles_.room<Tile>(call.n_tiles);
  call.tiles = tiles;
  if (!wanted && tiles_of_ == pairs.begin && tiles_rows_ == call.tile_rows) return;
  cut_ranges(pairs.begin, call.groups, wanted, call.tile_rows, call.n_tiles, tiles, stream_);
  tiles_of_ = wanted ? nullptr : pairs.begin;
  tiles_rows_ = call.tile_rows;
}

void Products::launch_product(const LinearCall& call, const Weights& like, Family family, Rows<const float> x,
                              const Operands& w, Activations& made) {
  if (family == Family::f8) {
    const std::int64_t steps = steps_of(w.widest());
    // Tiles of all rows in order serve every matrix; those of a list only this one.
    const bool plain = call.tiles == nullptr && call.groups == 1;
    if (!plain || made.f8.value == nullptr || made.f8_tile_rows != call.tile_rows || made.f8.steps != steps) {
      make_room_f8(made, call, steps);
      quantize_f8(call, made.f8, stream_);
    }
    const F8Rows tiles = made.f8;
    if (!plain) made.f8 = {};
    LinearCall in_pieces = call;
    in_pieces.pieces = pieces_of(call, *w.weights[0]);
    return linear_f8(in_pieces, tiles, stream_);
  }
  if (takes_bytes(family)) {
    LinearCall of_bytes = call;
    if (w.has_order()) {
      make_room_bytes(made, made.listed, x.cols);
      quantize_in_order(call, x.cols, made.bytes, stream_);
      of_bytes.row = nullptr;
    } else if (made.bytes.value == nullptr) {
      make_room_bytes(made, x.rows, x.cols);
      quantize_rows(x, made.up, made.count, made.bytes, stream_);
    }
    if (family == Family::packed_mma)
      linear_packed_mma(of_bytes, like.packed, made.bytes, x.cols, stream_);
    else
      linear_packed(of_bytes, made.bytes, x.cols, stream_);
    if (w.has_order()) made.bytes = {};
    return;
  }
  if (family == Family::cuda_cores) return cuda::linear(call, like.form, compute_ != Compute::f32, stream_);
  if (family == Family::int4_mma && w.has_order()) {
    make_room_halves(made, made.listed, x.cols);
    round_in_order(call, x.cols, made.halves, stream_);
    LinearCall in_order = call;
    in_order.row = nullptr;
    linear_int4_mma(in_order, like.packed, made.halves, stream_);
    made.halves = {};
    return;
  }
  make_halves(x, made);
  if (family == Family::int4_mma)
    linear_int4_mma(call, like.packed, made.halves, stream_);
  else
    linear_mma(call, like.form, made.halves, stream_);
}

void Products::experts(const ExpertBatch& batch, std::span<const FeedForward> experts, Rows<const float> x,
                       Rows<float> out) {
  const std::int64_t pairs = std::ssize(batch.expert);
  ExpertPlan plan = plan_experts(batch.first, batch.expert, static_cast<int>(experts.size()));
  if (!batch.row.empty())
    for (std::int32_t& row : plan.row) row = batch.row[static_cast<std::size_t>(row)];
  const std::span<const std::int32_t> pair_rows(plan.row), firsts(batch.first), places(plan.place);
  const std::span<const float> weights(batch.weight);
  using Lists = std::tuple<const std::int32_t*, const std::int32_t*, const std::int32_t*, const float*>;
  const auto [row, first, place, weight] =
      uploads_.fit(pair_rows, firsts, places, weights)
          ? uploads_.put_all(pair_rows, firsts, places, weights)
          : Lists{uploads_.keep(pair_rows, rows_), uploads_.keep(firsts, firsts_), uploads_.keep(places, places_),
                  uploads_.keep(weights, weights_)};
  const Rows<float> results = pair_results(x, row, pairs, {plan.ranges}, experts);
  combine(results, first, place, weight, out, stream_);
}

Rows<const float> Products::experts(const ListedPairs& pairs, std::span<const FeedForward> experts,
                                    Rows<const float> x) {
  tiles_of_ = nullptr;  // the list is a new one, wherever it lies
  return pair_results(x, pairs.row, pairs.most, {{}, &pairs}, experts);
}

Rows<float> Products::pair_results(Rows<const float> x, const std::int32_t* row, std::int64_t pairs,
                                   const Ranges& ranges, std::span<const FeedForward> experts) {
  const Operands gates = lists_.of(experts, [](const FeedForward& f) -> const Matrix& { return f.gate; });
  const Operands ups = lists_.of(experts, [](const FeedForward& f) -> const Matrix& { return f.up; });
  const Operands downs = lists_.of(experts, [](const FeedForward& f) -> const Matrix& { return f.down; });
  const Rows<float> results = rows(results_, pairs, x.cols);
  LinearCall gathered;
  gathered.row = row;
  if (are_f8(gates, ups, downs)) {
    f8_blocks(x, gathered, gates, ups, downs, ranges, results);
    return results;
  }
  // Whole groups of 32, where activations become bytes.
  const std::int64_t width = (gates.most_outputs + kGroupColumns - 1) / kGroupColumns * kGroupColumns;
  const Rows<float> gate = rows(gate_, pairs, width), up = rows(up_, pairs, width);
  Activations rounded;
  product(x, gathered, gates, ranges, rounded, gate);
  product(x, gathered, ups, ranges, rounded, up);
  gated_product(gate, up, downs, ranges, results);
  return results;
}

}  // namespace shoal::cuda
