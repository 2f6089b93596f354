#include "planner/simulation.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <random>

#include "base/error.h"

namespace shoal {
namespace {

struct Running {
  std::size_t request;
  int prompt_left;  // tokens still to compute
  int position;     // tokens in the cache
  int output_left;
  int planned = 0;  // tokens of the step

  bool answers() const { return prompt_left == 0; }
};

struct Group {
  std::deque<Running> running;  // in order of arrival
  double kv_tokens = 0;         // promised to its requests
};

Percentiles percentiles(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double q) {
    const auto i = static_cast<std::size_t>(std::ceil(q * static_cast<double>(values.size()))) - 1;
    return values[std::min(i, values.size() - 1)];
  };
  return {at(0.50), at(0.90), at(0.99)};
}

/// What a group does in a step: its tokens, and the cache that they attend to on average.
struct Work {
  double tokens = 0, attended = 0, prompt_tokens = 0, prompts = 0;
};

class Simulator {
 public:
  Simulator(const std::vector<Arrival>& arrivals, const SpeedModel& model, const Layout& layout,
            const SimulationOptions& options)
      : arrivals_(arrivals),
        model_(model),
        options_(options),
        groups_(static_cast<std::size_t>(layout.ranks / layout.tensor_parallel)),
        first_(arrivals.size()),
        last_(arrivals.size()) {
    for (const Arrival& a : arrivals)
      if (a.prompt + a.output > options.kv_tokens)
        throw Error(fmt::format("a request of {} tokens does not fit into a cache of {:.0f}", a.prompt + a.output,
                                options.kv_tokens),
                    ExitCode::does_not_fit);
  }

  SimulationResult run() {
    while (next_ < arrivals_.size() || active_ > 0) {
      if (active_ == 0) now_ = std::max(now_, arrivals_[next_].at_s);
      admit();
      step();
    }
    return result();
  }

 private:
  void admit() {
    for (; next_ < arrivals_.size() && arrivals_[next_].at_s <= now_; ++next_) {
      const Arrival& a = arrivals_[next_];
      Group& group = *std::min_element(groups_.begin(), groups_.end(),
                                       [](const Group& x, const Group& y) { return x.kv_tokens < y.kv_tokens; });
      const double tokens = a.prompt + a.output;
      if (group.kv_tokens + tokens > options_.kv_tokens ||
          static_cast<int>(group.running.size()) >= options_.max_num_seqs)
        break;
      const int cached = std::min(a.prompt - 1, static_cast<int>(a.prompt * options_.prefix_hit_fraction));
      group.running.push_back({next_, std::max(0, a.prompt - cached), std::max(0, cached), a.output});
      group.kv_tokens += tokens;
      ++active_;
    }
  }

  Work share_budget(Group& g, bool answering) const {
    Work w;
    int budget = options_.max_batched_tokens;
    for (Running& r : g.running) {
      if (!r.answers()) continue;
      r.planned = std::min(budget, 1);
      budget -= r.planned;
      w.tokens += r.planned;
      w.attended += r.planned * r.position;
    }
    if (answering) budget = std::min(budget, options_.max_prefill_tokens);
    for (Running& r : g.running) {
      if (r.answers()) continue;
      const int n = r.planned = std::min(budget, r.prompt_left);
      budget -= n;
      w.tokens += n;
      w.prompt_tokens += n;
      w.prompts += n > 0;
      w.attended += n * (r.position + n / 2.0);
    }
    return w;
  }

  /// All groups step together: the one with the most tokens sets the pace, and experts get those of all.
  void step() {
    const bool answering =
        std::ranges::any_of(groups_, [](const Group& g) { return std::ranges::any_of(g.running, &Running::answers); });
    Work most;
    double tokens = 0, at_work = 0;
    for (Group& g : groups_) {
      const Work w = share_budget(g, answering);
      if (w.tokens > most.tokens) most = w;
      tokens += w.tokens;
      at_work += w.tokens > 0;
      batch_sum_ += static_cast<double>(g.running.size());
    }
    ++steps_;
    const Step step{.tokens = most.tokens,
                    .mean = tokens / static_cast<double>(groups_.size()),
                    .at_work = at_work / static_cast<double>(groups_.size()),
                    .context = most.attended / most.tokens,
                    .sequences = std::max(1.0, most.prompts),
                    .prefill = most.prompt_tokens > most.tokens / 2};
    now_ += model_.step(step, options_.imbalance).total / 1e6;
    for (Group& g : groups_) advance(g);
  }

  void advance(Group& g) {
    for (Running& r : g.running) {
      if (r.planned == 0) continue;
      if (!r.answers()) {
        r.prompt_left -= r.planned;
        r.position += r.planned;
      }
      if (r.answers()) emit(r);
    }
    const auto done = [&](const Running& r) {
      if (r.output_left > 0) return false;
      g.kv_tokens -= arrivals_[r.request].prompt + arrivals_[r.request].output;
      --active_;
      return true;
    };
    g.running.erase(std::remove_if(g.running.begin(), g.running.end(), done), g.running.end());
  }

  void emit(Running& r) {
    if (first_[r.request] == 0) first_[r.request] = now_;
    last_[r.request] = now_;
    ++r.position;
    --r.output_left;
  }

  SimulationResult result() const {
    SimulationResult result;
    std::vector<double> ttft, tpot;
    double tokens = 0;
    for (std::size_t i = 0; i < arrivals_.size(); ++i) {
      ttft.push_back((first_[i] - arrivals_[i].at_s) * 1e3);
      if (arrivals_[i].output > 1) tpot.push_back((last_[i] - first_[i]) / (arrivals_[i].output - 1) * 1e3);
      tokens += arrivals_[i].output;
    }
    result.ttft_ms = percentiles(std::move(ttft));
    result.tpot_ms = percentiles(std::move(tpot));
    if (!arrivals_.empty()) result.seconds = now_ - arrivals_.front().at_s;
    if (result.seconds > 0) result.output_tokens_per_s = tokens / result.seconds;
    if (steps_ > 0) result.mean_batch = batch_sum_ / steps_ / static_cast<double>(groups_.size());
    result.first_token_s = first_;
    result.last_token_s = last_;
    return result;
  }

  const std::vector<Arrival>& arrivals_;
  const SpeedModel& model_;
  const SimulationOptions options_;
  std::vector<Group> groups_;
  std::vector<double> first_, last_;  // [arrivals] seconds
  std::size_t next_ = 0;
  int active_ = 0;
  double now_ = 0, steps_ = 0, batch_sum_ = 0;
};

}  // namespace

std::vector<Arrival> poisson_arrivals(int count, double rate_per_s, int prompt, int output, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Arrival> arrivals;
  double at = 0;
  for (int i = 0; i < count; ++i) {
    const double u = (static_cast<double>(random()) + 0.5) / 4294967296.0;
    at -= std::log(u) / rate_per_s;
    arrivals.push_back({at, prompt, output});
  }
  return arrivals;
}

SimulationResult simulate(const std::vector<Arrival>& arrivals, const SpeedModel& model, const Layout& layout,
                          const SimulationOptions& options) {
  return Simulator(arrivals, model, layout, options).run();
}

SimulationResult simulate_disaggregated(const std::vector<Arrival>& arrivals, const SpeedModel& prefill,
                                        const Layout& prefill_layout, const SimulationOptions& prefill_options,
                                        const SpeedModel& decode, const Layout& decode_layout,
                                        const SimulationOptions& decode_options) {
  std::vector<Arrival> prompts = arrivals;
  for (Arrival& a : prompts) a.output = 1;
  const SimulationResult first = simulate(prompts, prefill, prefill_layout, prefill_options);

  // The rest of each answer begins when its first token came; its prompt is in the cache by then.
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < arrivals.size(); ++i)
    if (arrivals[i].output > 1) order.push_back(i);
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return first.first_token_s[a] < first.first_token_s[b]; });
  std::vector<Arrival> rest;
  for (const std::size_t i : order)
    rest.push_back({first.first_token_s[i], arrivals[i].prompt + 1, arrivals[i].output - 1});
  SimulationOptions options = decode_options;
  options.prefix_hit_fraction = 1;
  SimulationResult result = simulate(rest, decode, decode_layout, options);
  result.ttft_ms = first.ttft_ms;
  std::vector<double> tpot;
  for (std::size_t i = 0; i < rest.size(); ++i)
    tpot.push_back((result.last_token_s[i] - rest[i].at_s) / rest[i].output * 1e3);
  result.tpot_ms = percentiles(std::move(tpot));
  double tokens = 0;
  for (const Arrival& a : arrivals) tokens += a.output;
  if (!rest.empty()) result.seconds += rest.front().at_s - arrivals.front().at_s;
  if (rest.empty()) result.seconds = first.seconds;
  if (result.seconds > 0) result.output_tokens_per_s = tokens / result.seconds;
  std::vector<double> last = first.first_token_s;
  for (std::size_t i = 0; i < order.size(); ++i) last[order[i]] = result.last_token_s[i];
  result.first_token_s = first.first_token_s;
  result.last_token_s = std::move(last);
  return result;
}

}  // namespace shoal
