#include "kernels/cuda/gpu_token_exchange.h"

#include <numeric>

#include "kernels/cuda/exchange_wire.h"

namespace shoal::cuda {

GpuTokenExchange::GpuTokenExchange(cudaStream_t stream, Uploads& uploads, Communicator& comm,
                                   const ExchangeShape& shape, bool f8_rows)
    : stream_(stream),
      uploads_(uploads),
      hidden_(shape.hidden),
      hops_(comm.size(), comm.rank(), comm.ranks_per_host()),
      there_(wire_there(shape, f8_rows)),
      back_(wire_back(shape)),
      traffic_(comm.device_transport()),
      to_ranks_(comm, hops_.two() ? hops_.second() : hops_.first(), hidden_, there_, back_, shape.answers),
      x_(stream, settle()),
      results_(stream, settle()),
      sent_(stream, settle()),
      received_(stream, settle()),
      answers_sent_(stream, settle()),
      answers_(stream, settle()),
      passing_(stream, settle()),
      forwarded_(stream, settle()),
      summing_(stream, settle()),
      host_answers_sent_(stream, settle()),
      host_answers_(stream, settle()) {
  if (!hops_.two()) return;
  to_hosts_.emplace(comm, hops_.first(), hidden_, there_, back_, shape.answers);
  lists_.emplace(traffic_.stream());
}

void GpuTokenExchange::dispatch(Rows<float> h, const std::int32_t* expert, const float* weight, int top_k,
                                ExpertMap& map) {
  const auto entries = static_cast<std::size_t>(h.rows * top_k);
  GpuHop& hop = first_hop();
  hop.plan().make({expert, entries}, {weight, entries}, top_k, map, hops_);
  h_ = h;
  if (hop.alone()) return;
  list_ = hop.announce();
  if (to_hosts_) list_.insert(list_.end(), hop.own().token.begin(), hop.own().token.end());
  leaving_ = room(sent_, there_, list_.size());
  if (!list_.empty()) pack_rows(h, uploads_.put(list_), std::ssize(list_), there_, leaving_, stream_);
  // Now, so that they need not wait for what is asked for before dispatched(). All that used their buffers is done
  // then.
  traffic_.follow(stream_);
}

/// What comes for this host, and what stays there, goes on to its ranks.
void GpuTokenExchange::pass_on() {
  GpuHop& hop = *to_hosts_;
  hop.hear();
  const cudaStream_t between = traffic_.stream();
  const auto row_bytes = static_cast<std::size_t>(wire_row_bytes(there_, hidden_));
  const std::size_t own = hop.own().rows() * row_bytes;
  std::byte* passing = room(passing_, there_, hop.arrived().rows());
  hop.exchange_rows(traffic_, leaving_, passing + own);
  if (own > 0)  // behind those that leave
    check(cudaMemcpyAsync(passing, leaving_ + list_.size() * row_bytes - own, own, cudaMemcpyDeviceToDevice, between),
          "copying on the GPU");
  passed_ = passing;

  to_ranks_.plan().forward(hop.arrived());
  const std::vector<std::int32_t>& leaving = to_ranks_.announce();
  leaving_ = room(forwarded_, there_, leaving.size());
  if (!leaving.empty())
    forward_rows(passing, lists_->put(leaving), std::ssize(leaving), there_, hidden_, leaving_, between);
}

/// Rows as the experts take them: each once, or once for each of its experts.
void GpuTokenExchange::list_rows() {
  batch_.first.assign(1, 0);
  batch_.row.clear();
  batch_.expert = to_ranks_.arrived().expert;
  batch_.weight = to_ranks_.arrived().weight;
  to_ranks_.arrived().for_each_answer(to_ranks_.plan().kind(), [&](std::size_t row, std::int32_t experts) {
    batch_.row.push_back(static_cast<std::int32_t>(row));
    batch_.first.push_back(batch_.first.back() + experts);
  });
}

const ExpertBatch& GpuTokenExchange::dispatched() {
  if (to_hosts_) pass_on();
  to_ranks_.hear();
  list_rows();
  const auto all = static_cast<std::int64_t>(to_ranks_.arrived().rows()), mine = std::ssize(to_ranks_.own().token);
  const Rows<float> x(x_.room<float>(all * hidden_), all, hidden_);
  arriving_ = reinterpret_cast<std::byte*>(x.slice(mine, all - mine).data);
  if (there_ != Wire::f32 && !to_ranks_.alone())
    arriving_ = room(received_, there_, static_cast<std::size_t>(all - mine));
  if (mine > 0 && to_hosts_)
    unpack_rows(passed_, lists_->put(to_ranks_.own().token), there_, x.slice(0, mine), traffic_.stream());
  else if (mine > 0)
    keep_rows(h_, uploads_.put(to_ranks_.own().token), there_, x.slice(0, mine), stream_);
  if (!to_ranks_.alone()) to_ranks_.exchange_rows(traffic_, leaving_, arriving_);
  batch_.x = x;
  const std::int64_t n = std::ssize(batch_.row);
  batch_.results = {results_.room<float>(n * hidden_), n, hidden_};
  return batch_;
}

void GpuTokenExchange::arrived() {
  if (to_ranks_.alone()) return;
  traffic_.precede(stream_);
  if (there_ == Wire::f32) return;
  const Rows<const float> x = batch_.x;
  const std::int64_t mine = std::ssize(to_ranks_.own().token);
  unpack_rows(arriving_, nullptr, there_, {x_.room<float>(0) + mine * hidden_, x.rows - mine, hidden_}, stream_);
}

std::byte* GpuTokenExchange::pack_answers(const GpuHop& hop, Rows<const float> answers, Scratch& memory,
                                          cudaStream_t stream) {
  const auto own = static_cast<std::int64_t>(hop.own_answers());
  const Rows<const float> to_others = answers.slice(own, answers.rows - own);
  if (back_ == Wire::f32) return reinterpret_cast<std::byte*>(const_cast<float*>(to_others.data));
  std::byte* packed = room(memory, back_, static_cast<std::size_t>(to_others.rows));
  pack_rows(to_others, nullptr, to_others.rows, back_, packed, stream);
  return packed;
}

void GpuTokenExchange::combine(Rows<float>) {
  if (to_ranks_.alone()) return;
  std::byte* leaving = pack_answers(to_ranks_, batch_.results, answers_sent_, stream_);
  std::byte* of_ranks = room(answers_, back_, to_ranks_.awaited());
  of_ranks_ = of_ranks;
  traffic_.follow(stream_);
  to_ranks_.exchange_answers(traffic_, leaving, of_ranks);
  if (to_hosts_) pass_back();
}

/// The answers of this host's ranks to what was passed on to them: summed for each row, or (already in the order of its
/// experts) each by itself.
void GpuTokenExchange::pass_back() {
  GpuHop& hop = *to_hosts_;
  const cudaStream_t between = traffic_.stream();
  const auto n = static_cast<std::int64_t>(hop.arrived().answers(hop.plan().kind()));
  sums_ = {summing_.room<float>(n * hidden_), n, hidden_};
  if (n > 0)
    check(cudaMemsetAsync(sums_.data, 0, static_cast<std::size_t>(n * hidden_) * sizeof(float), between),
          "clearing GPU memory");
  const DispatchPlan& plan = to_ranks_.plan();
  if (plan.kind() == Answers::summed) {
    first_.assign(plan.first_answer().begin(), plan.first_answer().end());
  } else {
    first_.resize(static_cast<std::size_t>(n) + 1);
    std::iota(first_.begin(), first_.end(), 0);
  }
  add_up(first_, to_ranks_, batch_.results, of_ranks_, sums_, *lists_, between);
  std::byte* leaving = pack_answers(hop, sums_, host_answers_sent_, between);
  std::byte* of_hosts = room(host_answers_, back_, hop.awaited());
  of_hosts_ = of_hosts;
  hop.exchange_answers(traffic_, leaving, of_hosts);
}

void GpuTokenExchange::add_up(std::span<const std::int32_t> first, GpuHop& hop, Rows<const float> own,
                              const std::byte* others, Rows<float> out, Uploads& lists, cudaStream_t stream) {
  if (out.rows == 0) return;
  const auto [begin, place] = lists.put_all(first, std::span<const std::int32_t>(hop.places()));
  add_answers(own, others, back_, begin, place, out, stream);
}

void GpuTokenExchange::combined(Rows<float> out) {
  GpuHop& hop = first_hop();
  if (!hop.alone()) traffic_.precede(stream_);
  first_.assign(hop.plan().first_answer().begin(), hop.plan().first_answer().end());
  add_up(first_, hop, to_hosts_ ? sums_ : batch_.results, to_hosts_ ? of_hosts_ : of_ranks_, out, uploads_, stream_);
}

}  // namespace shoal::cuda
