#include "runtime/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "runtime/philox.h"

// A vocabulary of 129,280 is passed over as seldom as possible, in blocks: the largest logit of each block is found
// first, and most questions (what is the largest, which n are, what exceeds a bound) then concern a few blocks only.
namespace shoal {
namespace {

constexpr std::size_t block_size = 64;
constexpr float infinity = std::numeric_limits<float>::infinity();

/// exp(x) for x <= 0, to about 1e-7 of the value; 0 below -87.7 and for NaN. Straight-line arithmetic, which compilers
/// turn into vector code as they do not with std::exp: x = n ln 2 + r, e^r by the Taylor series on |r| <= ln(2) / 2.
inline float fast_exp(float x) {
  // Clamps at -88, where n is -127 and 2^n as built below is 0. As integers, since a comparison of floats would be a
  // branch to the compiler; with the sign set, larger bits are more negative numbers, and NaN is beyond them all.
  const std::int32_t bits = std::bit_cast<std::int32_t>(x) | std::numeric_limits<std::int32_t>::min();
  x = std::bit_cast<float>(std::min(bits, std::bit_cast<std::int32_t>(-88.0f)));
  constexpr float round_bias = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float biased = x * 1.44269504f + round_bias;
  const float n = biased - round_bias;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const std::uint32_t exponent = std::bit_cast<std::uint32_t>(biased) + (127u - 0x4B400000u);
  return p * std::bit_cast<float>(exponent << 23);
}

/// One row of logits and the largest of each of its blocks, NaN left out.
struct Row {
  std::span<const float> logits;
  std::vector<float> block_max;
  float max = -infinity;

  explicit Row(std::span<const float> row) : logits(row), block_max((row.size() + block_size - 1) / block_size) {
    for (std::size_t b = 0; b < block_max.size(); ++b) {
      block_max[b] = max_of(block(b));
      max = std::max(max, block_max[b]);
    }
    if (max == -infinity) throw Overflowed(logits.size());
  }

  std::span<const float> block(std::size_t b) const {
    const std::size_t first = b * block_size;
    return logits.subspan(first, std::min(block_size, logits.size() - first));
  }

  static float max_of(std::span<const float> values) {
    constexpr std::size_t width = 16;  // accumulators side by side, one a vector lane
    float lanes[width];
    std::fill_n(lanes, width, -infinity);
    std::size_t i = 0;
    for (; i + width <= values.size(); i += width) {
      for (std::size_t j = 0; j < width; ++j) lanes[j] = values[i + j] > lanes[j] ? values[i + j] : lanes[j];
    }
    float best = *std::max_element(lanes, lanes + width);
    for (; i < values.size(); ++i) best = values[i] > best ? values[i] : best;
    return best;
  }

  std::int32_t argmax() const {
    const std::size_t b =
        static_cast<std::size_t>(std::find(block_max.begin(), block_max.end(), max) - block_max.begin());
    const auto values = block(b);
    return static_cast<std::int32_t>(b * block_size) +
           static_cast<std::int32_t>(std::find(values.begin(), values.end(), max) - values.begin());
  }
};

/// A token that may be drawn, and how likely it is, relative to some common scale.
struct Candidate {
  std::int32_t token = 0;
  float weight = 0;
};

bool heavier(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
}

/// Tokens whose logits are at least `bound`, in order of id; their logits as weights. -inf is never among them.
std::vector<Candidate> at_least(const Row& row, double bound) {
  bound = std::max<double>(bound, std::numeric_limits<float>::lowest());
  std::vector<Candidate> found;
  for (std::size_t b = 0; b < row.block_max.size(); ++b) {
    if (row.block_max[b] < bound) continue;
    std::int32_t token = static_cast<std::int32_t>(b * block_size);
    for (const float logit : row.block(b)) {
      if (logit >= bound) found.push_back({token, logit});
      ++token;
    }
  }
  return found;
}

/// The n largest logits, in no particular order.
std::vector<Candidate> largest(const Row& row, std::size_t n) {
  float bound = -infinity;
  if (n < row.block_max.size()) {
    // n blocks have a maximum at or above the n-th largest maximum, hence so have the n largest logits.
    std::vector<float> maxima = row.block_max;
    const auto nth = maxima.begin() + static_cast<std::ptrdiff_t>(n - 1);
    std::nth_element(maxima.begin(), nth, maxima.end(), std::greater<>());
    bound = *nth;
  }
  std::vector<Candidate> found = at_least(row, bound);
  if (n < found.size()) {
    std::nth_element(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(n), found.end(), heavier);
    found.resize(n);
  }
  return found;
}

double mass_of(std::span<const Candidate> candidates) {
  double mass = 0;
  for (const Candidate& candidate : candidates) mass += candidate.weight;
  return mass;
}

/// Keeps the fewest candidates, heaviest first, that hold `mass` together; their order stays. Weights are within (0,
/// 1].
void keep_heaviest(std::vector<Candidate>& candidates, double mass) {
  // Bits of positive floats order as the floats do: their upper half sorts the candidates into buckets a percent wide,
  // and only the bucket in which the mass is reached needs a closer look.
  const auto bucket_of = [](const Candidate& c) { return std::bit_cast<std::uint32_t>(c.weight) >> 16; };
  std::vector<double> buckets(bucket_of({0, 1.0f}) + 1);
  for (const Candidate& candidate : candidates) buckets[bucket_of(candidate)] += candidate.weight;
  std::uint32_t edge = static_cast<std::uint32_t>(buckets.size() - 1);
  for (; edge > 0 && buckets[edge] < mass; --edge) mass -= buckets[edge];

  std::vector<Candidate> order;
  for (const Candidate& candidate : candidates) {
    if (bucket_of(candidate) == edge) order.push_back(candidate);
  }
  if (order.empty()) return;  // rounding: all together hold a little less than `mass`
  // Halves the range in which the last one kept must be.
  auto first = order.begin(), last = order.end();
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, heavier);
    const double upper = mass_of({first, middle});
    if (upper >= mass) {
      last = middle;
    } else {
      mass -= upper;
      first = middle;
    }
  }
  std::erase_if(candidates, [lightest = *first](const Candidate& c) { return heavier(lightest, c); });
}

/// The candidate at which the running sum passes `share` of the whole.
std::int32_t pick(std::span<const Candidate> candidates, double share) {
  double left = share * mass_of(candidates);
  std::int32_t picked = candidates.front().token;
  for (const Candidate& candidate : candidates) {
    if (candidate.weight <= 0) continue;
    picked = candidate.token;  // of rounding's making, the last one possible
    left -= candidate.weight;
    if (left < 0) break;
  }
  return picked;
}

/// Replaces the candidates' logits by exp((logit - max) * scale), so that the likeliest token of the row weighs 1.
void weigh(std::vector<Candidate>& candidates, const Row& row, float scale) {
  for (Candidate& candidate : candidates) candidate.weight = fast_exp((candidate.weight - row.max) * scale);
}

/// Sums of the same weights over a whole row, by block.
struct Mass {
  std::vector<double> of_block;
  double total = 0;

  Mass(const Row& row, float scale) : of_block(row.block_max.size()) {
    for (std::size_t b = 0; b < of_block.size(); ++b) {
      const auto logits = row.block(b);
      float weights[block_size] = {};
      for (std::size_t i = 0; i < logits.size(); ++i) weights[i] = fast_exp((logits[i] - row.max) * scale);
      constexpr std::size_t width = 8;
      double lanes[width] = {};
      for (std::size_t i = 0; i < block_size; i += width) {
        for (std::size_t j = 0; j < width; ++j) lanes[j] += weights[i + j];
      }
      for (const double lane : lanes) of_block[b] += lane;
      total += of_block[b];
    }
  }
};

/// A draw from the whole row: finds the block in which the running sum passes `share` of the whole, then the token.
std::int32_t pick(const Row& row, float scale, double share) {
  const Mass mass(row, scale);
  double left = share * mass.total;
  std::size_t b = 0;
  for (; b + 1 < mass.of_block.size() && left >= mass.of_block[b]; ++b) left -= mass.of_block[b];
  while (mass.of_block[b] <= 0) --b;  // rounding let the target slip past the end; some block does weigh something
  std::vector<Candidate> candidates;
  for (const float logit : row.block(b)) {
    candidates.push_back({static_cast<std::int32_t>(b * block_size + candidates.size()), logit});
  }
  weigh(candidates, row, scale);
  return pick(candidates, left / mass.of_block[b]);
}

/// The limit of a row in which some logits are +inf: those are equally likely, the others impossible.
std::vector<float> without_infinity(std::span<const float> logits) {
  std::vector<float> finite(logits.size());
  std::transform(logits.begin(), logits.end(), finite.begin(), [](float x) { return x == infinity ? 0 : -infinity; });
  return finite;
}

}  // namespace

double uniform_draw(std::uint64_t seed, std::int64_t position) {
  const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
  const auto counter = static_cast<std::uint64_t>(position);
  const auto bits = philox4x32({low(counter), low(counter >> 32), 0, 0}, {low(seed), low(seed >> 32)});
  return static_cast<double>((std::uint64_t{bits[1]} << 32 | bits[0]) >> 11) * 0x1p-53;
}

Overflowed::Overflowed(std::size_t vocab)
    : Error(fmt::format("none of {} logits is a finite number: the model has overflowed", vocab)) {}

Draw draw_of(const SamplingParams& params, std::int64_t position) {
  if (!(params.temperature > 0) || params.top_k == 1) return {};
  // A temperature so small that its inverse overflows is greedy in all but name.
  const float scale = std::min(1.0f / params.temperature, std::numeric_limits<float>::max());
  return {scale, params.top_k, params.top_p, params.min_p, uniform_draw(params.seed, position)};
}

std::int32_t sample(std::span<const float> logits, const SamplingParams& params, std::int64_t position) {
  const Row row(logits);
  const Draw draw = draw_of(params, position);
  const float scale = draw.scale;
  const double share = draw.share;
  if (scale == 0) return row.argmax();
  if (row.max == infinity) return sample(without_infinity(logits), params, position);

  const bool top_k = params.top_k > 0 && static_cast<std::size_t>(params.top_k) < logits.size();
  const bool top_p = params.top_p < 1;
  const double top_p_share = std::max(params.top_p, 0.0f);
  const float min_weight = params.min_p > 0 ? std::min(params.min_p, 1.0f) : 0;  // the likeliest token weighs 1

  if (!top_k && !top_p && min_weight == 0) return pick(row, scale, share);

  std::vector<Candidate> candidates;
  double mass = 0;
  if (top_k) {
    candidates = largest(row, static_cast<std::size_t>(params.top_k));
    std::sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.token < b.token; });
    weigh(candidates, row, scale);
    mass = mass_of(candidates);
  } else {
    double bound = min_weight;
    if (top_p) {
      // Tokens below (1 - top_p) / vocab of the mass hold less than 1 - top_p together: none of them is among the
      // top_p.
      mass = Mass(row, scale).total;
      bound = std::max(bound, (1 - top_p_share) * mass / static_cast<double>(logits.size()));
    }
    const double slack = 0.01;  // more than rounding can amount to; what it lets through is cut below
    candidates = at_least(row, row.max + (std::log(bound) - slack) / scale);
    weigh(candidates, row, scale);
  }
  if (top_p) keep_heaviest(candidates, top_p_share * mass);
  std::erase_if(candidates, [&](const Candidate& c) { return c.weight < min_weight; });
  return pick(candidates, share);
}

TokenLogprob log_probability(std::span<const float> logits, std::int32_t token, int n_top) {
  if (token < 0 || static_cast<std::size_t>(token) >= logits.size()) {
    fail("token {} is outside the vocabulary of {}", token, logits.size());
  }
  const Row row(logits);
  if (row.max == infinity) return log_probability(without_infinity(logits), token, n_top);
  const double log_sum = row.max + std::log(Mass(row, 1).total);
  const auto logprob = [&](float logit) { return std::isnan(logit) ? -infinity : static_cast<float>(logit - log_sum); };
  TokenLogprob result;
  result.token = token;
  result.logprob = logprob(logits[static_cast<std::size_t>(token)]);
  if (n_top <= 0) return result;
  std::vector<Candidate> top = largest(row, static_cast<std::size_t>(n_top));
  std::sort(top.begin(), top.end(), heavier);
  for (const Candidate& candidate : top) result.top.emplace_back(candidate.token, logprob(candidate.weight));
  return result;
}

}  // namespace shoal
