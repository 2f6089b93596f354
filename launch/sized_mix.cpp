#include "launch/sized_mix.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <queue>

#include "base/error.h"
#include "base/task_team.h"
#include "base/units.h"
#include "runtime/progress.h"

namespace shoal {
namespace {

constexpr std::array kCandidates = {"IQ1_S", "IQ1_M",  "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S",
                                    "Q3_K",  "IQ4_XS", "IQ4_NL",  "Q4_K",   "Q5_0",  "Q5_K", "Q6_K",    "Q8_0"};
/// Of so many elements the noise is known within a few percent.
constexpr std::int64_t kSampleElements = 24 * 1024;

/// Formats that are the best for their size, in ascending order of size, each step saving less noise a byte.
std::vector<Measured> lower_hull(std::vector<Measured> all) {
  std::sort(all.begin(), all.end(), [](const Measured& a, const Measured& b) {
    return a.bytes != b.bytes ? a.bytes < b.bytes : a.noise < b.noise;
  });
  std::vector<Measured> hull;
  for (const Measured& m : all) {
    if (!hull.empty() && m.noise >= hull.back().noise) continue;
    const auto gain = [](const Measured& from, const Measured& to) {
      return (from.noise - to.noise) / (to.bytes - from.bytes);
    };
    while (hull.size() > 1 && gain(hull[hull.size() - 2], hull.back()) <= gain(hull.back(), m)) hull.pop_back();
    hull.push_back(m);
  }
  return hull;
}

/// Noise that is no longer small beside what it is added to costs more than in proportion: of the demo model's experts
/// in IQ2_XXS each unit costs 4 to 12 times as much in answers as in Q3_K. Mixes of 2.3 to 3.6 bits a weight were best
/// with a factor of 20 to 60.
double cost_of_noise(double sensitivity, double noise) { return sensitivity * noise * (1 + 30 * noise); }

}  // namespace

std::vector<Measured> measure(const Choosable& tensor) {
  std::vector<const QuantFormat*> formats;
  for (const char* name : kCandidates) {
    const QuantFormat* f = find_format(name);
    if (tensor.cols % f->block_elements == 0) formats.push_back(f);
  }
  if (formats.empty()) formats.push_back(find_format("F16"));
  std::vector<double> noise(formats.size(), 0);
  double power = 0;
  // Strips of rows from all over the tensor.
  const std::int64_t wanted = std::clamp<std::int64_t>(kSampleElements / tensor.cols, 1, tensor.rows);
  const std::int64_t strips = std::min<std::int64_t>(wanted, 8), strip = std::min(wanted / strips, tensor.matrix_rows);
  std::vector<float> values, importance, restored(static_cast<std::size_t>(tensor.cols));
  std::vector<std::byte> stored;
  for (std::int64_t s = 0; s < strips; ++s) {
    const std::int64_t first = s * (tensor.rows - strip) / std::max<std::int64_t>(1, strips - 1);
    tensor.read(strips == 1 ? 0 : first, strip, values, importance);
    const auto weight = [&](std::size_t c) { return importance.empty() ? 1.0 : double{importance[c]}; };
    for (std::int64_t r = 0; r < strip; ++r) {
      const float* row = values.data() + r * tensor.cols;
      for (std::size_t c = 0; c < restored.size(); ++c) power += weight(c) * double{row[c]} * double{row[c]};
      for (std::size_t f = 0; f < formats.size(); ++f) {
        stored.resize(static_cast<std::size_t>(formats[f]->bytes(tensor.cols)));
        formats[f]->quantize(row, tensor.cols, importance.empty() ? nullptr : importance.data(), stored.data());
        formats[f]->dequantize(stored.data(), tensor.cols, restored.data());
        for (std::size_t c = 0; c < restored.size(); ++c) {
          const double rest = double{restored[c]} - double{row[c]};
          noise[f] += weight(c) * rest * rest;
        }
      }
    }
  }
  std::vector<Measured> result;
  const auto elements = tensor.rows * tensor.cols;
  for (std::size_t f = 0; f < formats.size(); ++f)
    result.push_back({formats[f], static_cast<double>(formats[f]->bytes(elements)), power > 0 ? noise[f] / power : 0});
  return result;
}

double sensitivity(const std::string& gguf_name) {
  // KL divergence a unit of noise, each kind alone in Q3_K and in IQ2_XXS on the demo model: over answers, and over
  // questions and answers, each as a part of the embedding's, added. Embeddings enter every layer; kv_a makes keys and
  // values of all heads; the dense blocks are the first layers', whose noise all others see; an expert is one of many.
  struct Entry {
    std::string_view end;
    double value;
  };
  constexpr Entry entries[] = {
      {"token_embd.weight", 2},       {"output.weight", 1.4},           {"attn_q.weight", 0.3},
      {"attn_q_a.weight", 0.11},      {"attn_q_b.weight", 0.3},         {"attn_k.weight", 0.3},
      {"attn_kv_a_mqa.weight", 0.65}, {"attn_k_b.weight", 0.016},       {"attn_v_b.weight", 0.2},
      {"attn_v.weight", 0.3},         {"attn_output.weight", 0.31},     {"ffn_gate.weight", 0.93},
      {"ffn_up.weight", 0.47},        {"ffn_down.weight", 2.5},         {"ffn_gate_exps.weight", 0.12},
      {"ffn_up_exps.weight", 0.08},   {"ffn_down_exps.weight", 0.24},   {"ffn_gate_shexp.weight", 0.046},
      {"ffn_up_shexp.weight", 0.047}, {"ffn_down_shexp.weight", 0.145},
  };
  for (const Entry& e : entries)
    if (gguf_name.ends_with("." + std::string(e.end)) || gguf_name == e.end) return e.value;
  return 1;
}

std::map<std::string, const QuantFormat*> choose_formats(const std::vector<Choosable>& tensors, double budget_bytes,
                                                         int threads, bool progress) {
  std::vector<std::vector<Measured>> hulls(tensors.size());
  {
    std::uint64_t total = 0;
    const auto size_of = [](const Choosable& t) {
      return static_cast<std::uint64_t>(std::min(t.rows * t.cols, kSampleElements));
    };
    for (const Choosable& t : tensors) total += size_of(t);
    Progress bar("measuring", total, progress);
    run_tasks(threads, tensors.size(), [&](std::size_t i) {
      auto all = measure(tensors[i]);
      const double weight = sensitivity(tensors[i].name);
      for (Measured& m : all) m.noise = cost_of_noise(weight, m.noise);
      hulls[i] = lower_hull(std::move(all));
      bar.add(size_of(tensors[i]));
    });
  }

  // All begin with the least; then the step that saves the most noise a byte is taken, as long as there is room.
  std::vector<std::size_t> chosen(tensors.size(), 0);
  double bytes = 0;
  for (const auto& hull : hulls) bytes += hull.front().bytes;
  if (bytes > budget_bytes)
    throw Error(fmt::format("even the smallest formats take {} for these weights, and {} are left for them",
                            human_bytes(bytes), human_bytes(std::max(0.0, budget_bytes))),
                ExitCode::does_not_fit);
  using Step = std::pair<double, std::size_t>;  // noise saved a byte, tensor
  std::priority_queue<Step> steps;
  const auto offer = [&](std::size_t i) {
    if (chosen[i] + 1 >= hulls[i].size()) return;
    const Measured &now = hulls[i][chosen[i]], &then = hulls[i][chosen[i] + 1];
    steps.emplace((now.noise - then.noise) / (then.bytes - now.bytes), i);
  };
  for (std::size_t i = 0; i < tensors.size(); ++i) offer(i);
  while (!steps.empty()) {
    const std::size_t i = steps.top().second;
    steps.pop();
    const double more = hulls[i][chosen[i] + 1].bytes - hulls[i][chosen[i]].bytes;
    if (bytes + more > budget_bytes) continue;  // a smaller one may still fit
    bytes += more;
    ++chosen[i];
    offer(i);
  }
  std::map<std::string, const QuantFormat*> formats;
  for (std::size_t i = 0; i < tensors.size(); ++i) formats[tensors[i].name] = hulls[i][chosen[i]].format;
  return formats;
}

double parse_size(const std::string& text, double parameters) {
  std::size_t end = 0;
  double value = 0;
  try {
    value = std::stod(text, &end);
  } catch (const std::exception&) {
    end = 0;
  }
  std::string unit = text.substr(end);
  unit.erase(std::remove(unit.begin(), unit.end(), ' '), unit.end());
  constexpr std::array<std::pair<std::string_view, double>, 5> units = {
      {{"B", 1}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}}};
  if (end > 0 && value > 0 && std::isfinite(value)) {
    if (unit == "bpw") return value * parameters / 8;
    for (const auto& [name, bytes] : units)
      if (unit == name) return value * bytes;
  }
  throw Error(fmt::format("--size {} is no size; write 140GB, 900MB, or 2.51bpw for bits a weight", text),
              ExitCode::usage);
}

}  // namespace shoal
