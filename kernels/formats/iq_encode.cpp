// Encoders of the IQ formats. A group's magnitudes, in units of its scale, are rounded to the lattice that its grid is
// a part of; the grid's points nearest to that lattice point are then compared by the weighted error they leave. Scales
// are searched around the largest value and refined by least squares, as in k_quants_encode.cpp.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/formats/fit.h"
#include "kernels/formats/iq_grids.h"
#include "kernels/formats/iq_quants.h"

namespace shoal::formats {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Four floats side by side, on every machine this is built for.
using Four = float __attribute__((vector_size(16)));
Four load(const float* p) {
  Four v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
float sum_of(Four v) { return (v[0] + v[2]) + (v[1] + v[3]); }

/// A set of points, and for every point of the lattice the few of the set that are nearest.
class Grid {
 public:
  template <class Point, std::size_t n>
  Grid(std::span<const Point, n> points, std::vector<float> levels) : dims_(sizeof(Point)), levels_(std::move(levels)) {
    coordinates_.reserve(n * sizeof(Point));
    for (const Point point : points) {
      for (int i = 0; i < dims_; ++i)
        coordinates_.push_back(static_cast<float>(static_cast<std::int8_t>(point >> (8 * i))));
    }
    for (std::size_t i = 0; i + 1 < levels_.size(); ++i) borders_.push_back(0.5f * (levels_[i] + levels_[i + 1]));
    std::size_t lattice = 1;
    for (int i = 0; i < dims_; ++i) lattice *= levels_.size();
    near_.resize(lattice * kNear);
    std::vector<std::pair<float, std::uint16_t>> distances(n);
    for (std::size_t index = 0; index < lattice; ++index) find_near(index, distances);
  }

  int dims() const { return dims_; }
  const float* point(int number) const { return coordinates_.data() + number * dims_; }
  float top() const { return levels_.back(); }

  /// The number of the point nearest to x [dims] under weights w: where sum(w (x - p)^2), less its first term w x^2, is
  /// least.
  int nearest(const float* x, const float* w) const {
    std::size_t index = 0;
    for (int i = dims_ - 1; i >= 0; --i) index = index * levels_.size() + level_of(x[i]);
    const Four w0 = load(w), cross0 = -2 * w0 * load(x);
    const std::uint16_t* near = near_.data() + index * kNear;
    int best = 0;
    float best_error = kInfinity;
    const auto offer = [&](int candidate, Four rest) {
      const float error = sum_of(rest);
      if (error < best_error) {
        best_error = error;
        best = candidate;
      }
    };
    if (dims_ == 4) {
      for (int k = 0; k < kNear; ++k) {
        const Four p = load(point(near[k]));
        offer(near[k], p * (w0 * p + cross0));
      }
      return best;
    }
    const Four w1 = load(w + 4), cross1 = -2 * w1 * load(x + 4);
    for (int k = 0; k < kNear; ++k) {
      const Four p0 = load(point(near[k])), p1 = load(point(near[k]) + 4);
      offer(near[k], p0 * (w0 * p0 + cross0) + p1 * (w1 * p1 + cross1));
    }
    return best;
  }

 private:
  static constexpr int kNear = 12;

  std::size_t level_of(float value) const {
    std::size_t level = 0;
    for (const float border : borders_) level += value > border;
    return level;
  }

  void find_near(std::size_t index, std::vector<std::pair<float, std::uint16_t>>& distances) {
    std::array<float, 8> at{};
    for (std::size_t i = 0, rest = index; i < static_cast<std::size_t>(dims_); ++i, rest /= levels_.size()) {
      at[i] = levels_[rest % levels_.size()];
    }
    for (std::size_t n = 0; n < distances.size(); ++n) {
      const float* p = point(static_cast<int>(n));
      float d = 0;
      for (int i = 0; i < dims_; ++i)
        d += (at[static_cast<std::size_t>(i)] - p[i]) * (at[static_cast<std::size_t>(i)] - p[i]);
      distances[n] = {d, static_cast<std::uint16_t>(n)};
    }
    std::partial_sort(distances.begin(), distances.begin() + kNear, distances.end());
    for (std::size_t k = 0; k < kNear; ++k) near_[index * kNear + k] = distances[k].second;
  }

  int dims_;
  std::vector<float> levels_, borders_, coordinates_;  // borders: halfway between levels
  std::vector<std::uint16_t> near_;                    // [lattice, kNear]
};

/// What a sub-block of up to 32 elements is coded as under a scale.
struct Codes {
  std::array<int, 8> point{};
  std::array<std::uint8_t, 4> signs{};
  std::array<bool, 4> minus_delta{};  // IQ1
  float error = 0, xl = 0, ll = 0;    // sums of weight * rest^2, weight * value * level, weight * level^2
  float refined(float scale) const { return ll > 0 ? xl / ll : scale; }
};

/// The sums of Codes, four lanes at a time.
struct Sums {
  Four error{}, xl{}, ll{};
  void add(Four weight, Four value, Four level, float scale) {
    const Four rest = value - scale * level, weighted = weight * level;
    error += weight * rest * rest;
    xl += weighted * value;
    ll += weighted * level;
  }
  void put(Codes& codes) const {
    codes.error = sum_of(error);
    codes.xl = sum_of(xl);
    codes.ll = sum_of(ll);
  }
};

/// Magnitudes from a grid, signs apart. `even`: the number of minus signs in eight must be even.
struct SignedCoder {
  const Grid& grid;
  bool even;
  float top() const { return grid.top(); }

  Codes encode(const float* x, const float* w, int n, float scale) const {
    Codes codes;
    Sums sums;
    const float inverse = scale > 0 ? 1 / scale : 0;
    for (int g = 0; g < n / 8; ++g) {
      unsigned signs = 0;
      int cheapest = 0;
      float least = kInfinity;
      for (int i = 0; i < 8; ++i) {
        const float value = x[8 * g + i], cost = w[8 * g + i] * value * value;
        signs |= static_cast<unsigned>(value < 0) << i;
        if (cost < least) {
          least = cost;
          cheapest = i;
        }
      }
      if (even && __builtin_parity(signs)) signs ^= 1u << cheapest;
      codes.signs[static_cast<std::size_t>(g)] = static_cast<std::uint8_t>(signs);
      alignas(16) float values[8], wanted[8];
      for (int i = 0; i < 8; ++i) {
        values[i] = (signs >> i) & 1 ? -x[8 * g + i] : x[8 * g + i];
        wanted[i] = values[i] * inverse;
      }
      for (int first = 0; first < 8; first += grid.dims()) {
        const int at = 8 * g + first, number = grid.nearest(wanted + first, w + at);
        codes.point[static_cast<std::size_t>(at / grid.dims())] = number;
        for (int i = 0; i < grid.dims(); i += 4)
          sums.add(load(w + at + i), load(values + first + i), load(grid.point(number) + i), scale);
      }
    }
    sums.put(codes);
    return codes;
  }
};

/// Ternary points moved by +-1/8, the direction shared by `shared` elements.
struct TernaryCoder {
  const Grid& grid;
  int shared;
  float top() const { return 1.125f; }

  Codes encode(const float* x, const float* w, int n, float scale) const {
    Codes codes;
    for (int first = 0; first < n; first += shared) {
      const Codes plus = shifted(x + first, w + first, scale, 0.125f),
                  minus = shifted(x + first, w + first, scale, -0.125f);
      const Codes& better = minus.error < plus.error ? minus : plus;
      for (int g = 0; g < shared / 8; ++g) {
        codes.point[static_cast<std::size_t>(first / 8 + g)] = better.point[static_cast<std::size_t>(g)];
        codes.minus_delta[static_cast<std::size_t>(first / 8 + g)] = &better == &minus;
      }
      codes.error += better.error;
      codes.xl += better.xl;
      codes.ll += better.ll;
    }
    return codes;
  }

 private:
  Codes shifted(const float* x, const float* w, float scale, float delta) const {
    Codes codes;
    Sums sums;
    const float inverse = scale > 0 ? 1 / scale : 0;
    for (int g = 0; g < shared / 8; ++g) {
      alignas(16) float wanted[8];
      for (int i = 0; i < 8; ++i) wanted[i] = x[8 * g + i] * inverse - delta;
      const int number = grid.nearest(wanted, w + 8 * g);
      codes.point[static_cast<std::size_t>(g)] = number;
      for (int i = 0; i < 8; i += 4)
        sums.add(load(w + 8 * g + i), load(x + 8 * g + i), load(grid.point(number) + i) + delta, scale);
    }
    sums.put(codes);
    return codes;
  }
};

/// The scale by itself that suits a sub-block best.
template <class Coder>
float fit(const Coder& coder, const float* x, const float* w, int n) {
  float largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
  if (largest == 0) return 0;
  // Every start once, then the best few as far as they go.
  struct Trial {
    float scale, error, next;
  };
  std::array<Trial, 16> trials;
  const auto attempt = [&](float scale) {
    const Codes codes = coder.encode(x, w, n, scale);
    return Trial{scale, codes.error, codes.refined(scale)};
  };
  for (std::size_t i = 0; i < trials.size(); ++i)
    trials[i] = attempt(largest / coder.top() * (0.35f + 0.06f * static_cast<float>(i)));
  constexpr std::size_t kRefined = 4;
  std::partial_sort(trials.begin(), trials.begin() + kRefined, trials.end(),
                    [](const Trial& a, const Trial& b) { return a.error < b.error; });
  Trial best = trials[0];
  for (std::size_t i = 0; i < kRefined; ++i) {
    Trial trial = trials[i];
    for (int round = 0; round < 2 && trial.next != trial.scale && trial.next > 0; ++round) {
      trial = attempt(trial.next);
      if (trial.error < best.error) best = trial;
    }
  }
  return best.scale;
}

/// A super-block: sub-blocks of `width` elements with the scale unit * (2 s + 1), s in [0, most].
template <int width, int most>
struct SuperBlock {
  static constexpr int count = kSuper / width;
  float unit = 0;
  std::array<int, count> s{};
  std::array<Codes, count> codes{};
  float error = 0;

  /// `stored(unit)`: the unit as the block's half-precision scale can say it.
  template <class Coder, class Stored>
  static SuperBlock encode(const Coder& coder, const float* x, const float* weights, Stored stored) {
    std::array<float, kSuper> ones;
    if (!weights) ones.fill(1), weights = ones.data();
    std::array<float, count> fits{};
    for (int b = 0; b < count; ++b)
      fits[static_cast<std::size_t>(b)] = fit(coder, x + b * width, weights + b * width, width);
    const float largest = *std::max_element(fits.begin(), fits.end());
    SuperBlock best;
    best.error = kInfinity;
    // Which step the largest scale becomes decides how well the others are met.
    for (int top = most; top >= std::max(0, most - 3); --top) {
      SuperBlock trial = settle(coder, x, weights, fits, stored(largest / static_cast<float>(2 * top + 1)));
      for (int round = 0; round < 2 && trial.error < best.error; ++round) {
        best = trial;
        trial = settle(coder, x, weights, fits, stored(best.refined_unit()));
      }
    }
    return best;
  }

 private:
  template <class Coder>
  static SuperBlock settle(const Coder& coder, const float* x, const float* w, const std::array<float, count>& fits,
                           float unit) {
    SuperBlock block;
    block.unit = unit;
    for (int b = 0; b < count; ++b) {
      const auto at = static_cast<std::size_t>(b);
      const int centre = unit > 0 ? nearest_whole((fits[at] / unit - 1) / 2) : 0;
      float least = kInfinity;
      for (int c = centre - 1; c <= centre + 1; ++c) {
        const int bounded = std::clamp(c, 0, most);
        if (c != bounded && c != centre) continue;
        const Codes codes =
            coder.encode(x + b * width, w + b * width, width, unit * static_cast<float>(2 * bounded + 1));
        if (codes.error < least) {
          least = codes.error;
          block.s[at] = bounded;
          block.codes[at] = codes;
        }
      }
      block.error += least;
    }
    return block;
  }

  /// Least squares for the unit under the present codes.
  float refined_unit() const {
    double xl = 0, ll = 0;
    for (std::size_t b = 0; b < s.size(); ++b) {
      const double step = 2 * s[b] + 1;
      xl += step * static_cast<double>(codes[b].xl);
      ll += step * step * static_cast<double>(codes[b].ll);
    }
    return ll > 0 && xl > 0 ? static_cast<float>(xl / ll) : unit;
  }
};

/// `unit` as d * share, d of half precision.
auto stored_as(float share) {
  return [share](float unit) { return Half::of(unit / share).value() * share; };
}

const Grid& grid_iq2_xxs() {
  static const Grid grid(iq2_xxs_grid(), {8, 25, 43});
  return grid;
}
const Grid& grid_iq2_xs() {
  static const Grid grid(iq2_xs_grid(), {8, 25, 43});
  return grid;
}
const Grid& grid_iq2_s() {
  static const Grid grid(iq2_s_grid(), {8, 25, 43});
  return grid;
}
const Grid& grid_iq3_xxs() {
  static const Grid grid(iq3_xxs_grid(), {4, 12, 20, 28, 36, 44, 52, 62});
  return grid;
}
const Grid& grid_iq3_s() {
  static const Grid grid(iq3_s_grid(), {1, 3, 5, 7, 9, 11, 13, 15});
  return grid;
}
const Grid& grid_iq1() {
  static const Grid grid(iq1_grid(), {-1, 0, 1});
  return grid;
}

void put_half_byte(std::uint8_t* bytes, int i, int value) {
  bytes[i / 2] |= static_cast<std::uint8_t>(value << (4 * (i % 2)));
}

/// Four sets of seven signs and a scale in 32 bits.
std::uint32_t signs_and_scale(const Codes& codes, int s) {
  std::uint32_t word = static_cast<std::uint32_t>(s) << 28;
  for (unsigned k = 0; k < 4; ++k) word |= (codes.signs[k] & 127u) << (7 * k);
  return word;
}

}  // namespace

void encode(const float* x, const float* w, BlockIQ2_XXS& block) {
  const auto fit = SuperBlock<32, 15>::encode(SignedCoder{grid_iq2_xxs(), true}, x, w, stored_as(0.125f));
  block.d = Half::of(fit.unit / 0.125f);
  for (std::size_t b = 0; b < 8; ++b) {
    const auto& codes = fit.codes[b];
    const std::uint32_t rest = signs_and_scale(codes, fit.s[b]);
    block.qs[4 * b] = static_cast<std::uint16_t>(codes.point[0] | codes.point[1] << 8);
    block.qs[4 * b + 1] = static_cast<std::uint16_t>(codes.point[2] | codes.point[3] << 8);
    block.qs[4 * b + 2] = static_cast<std::uint16_t>(rest);
    block.qs[4 * b + 3] = static_cast<std::uint16_t>(rest >> 16);
  }
}

void encode(const float* x, const float* w, BlockIQ2_XS& block) {
  const auto fit = SuperBlock<16, 15>::encode(SignedCoder{grid_iq2_xs(), true}, x, w, stored_as(0.125f));
  block.d = Half::of(fit.unit / 0.125f);
  for (std::size_t b = 0; b < 16; ++b) {
    for (std::size_t k = 0; k < 2; ++k) {
      block.qs[2 * b + k] = static_cast<std::uint16_t>(fit.codes[b].point[k] | (fit.codes[b].signs[k] & 127) << 9);
    }
    put_half_byte(block.scales, static_cast<int>(b), fit.s[b]);
  }
}

void encode(const float* x, const float* w, BlockIQ2_S& block) {
  const auto fit = SuperBlock<16, 15>::encode(SignedCoder{grid_iq2_s(), false}, x, w, stored_as(0.125f));
  block.d = Half::of(fit.unit / 0.125f);
  for (std::size_t b = 0; b < 16; ++b) {
    for (std::size_t half = 0; half < 2; ++half) {
      const std::size_t k = 2 * b + half;
      const int number = fit.codes[b].point[half];
      block.qs[k] = static_cast<std::uint8_t>(number);
      block.qh[k / 4] |= static_cast<std::uint8_t>(number >> 8 << (2 * (k % 4)));
      block.signs[k] = fit.codes[b].signs[half];
    }
    put_half_byte(block.scales, static_cast<int>(b), fit.s[b]);
  }
}

void encode(const float* x, const float* w, BlockIQ3_XXS& block) {
  const auto fit = SuperBlock<32, 15>::encode(SignedCoder{grid_iq3_xxs(), true}, x, w, stored_as(0.25f));
  block.d = Half::of(fit.unit / 0.25f);
  for (std::size_t b = 0; b < 8; ++b) {
    for (std::size_t k = 0; k < 8; ++k) block.qs[8 * b + k] = static_cast<std::uint8_t>(fit.codes[b].point[k]);
    const std::uint32_t rest = signs_and_scale(fit.codes[b], fit.s[b]);
    std::memcpy(block.signs_and_scales + 4 * b, &rest, 4);
  }
}

void encode(const float* x, const float* w, BlockIQ3_S& block) {
  const auto fit = SuperBlock<32, 15>::encode(SignedCoder{grid_iq3_s(), false}, x, w, stored_as(1));
  block.d = Half::of(fit.unit);
  for (std::size_t b = 0; b < 8; ++b) {
    for (std::size_t k = 0; k < 8; ++k) {
      const int number = fit.codes[b].point[k];
      block.qs[8 * b + k] = static_cast<std::uint8_t>(number);
      block.qh[b] |= static_cast<std::uint8_t>(number >> 8 << k);
    }
    for (std::size_t g = 0; g < 4; ++g) block.signs[4 * b + g] = fit.codes[b].signs[g];
    put_half_byte(block.scales, static_cast<int>(b), fit.s[b]);
  }
}

void encode(const float* x, const float* w, BlockIQ1_S& block) {
  const auto fit = SuperBlock<32, 7>::encode(TernaryCoder{grid_iq1(), 32}, x, w, stored_as(1));
  block.d = Half::of(fit.unit);
  for (std::size_t b = 0; b < 8; ++b) {
    unsigned high = static_cast<unsigned>(fit.s[b]) << 12 | (fit.codes[b].minus_delta[0] ? 0x8000u : 0u);
    for (std::size_t k = 0; k < 4; ++k) {
      const auto number = static_cast<unsigned>(fit.codes[b].point[k]);
      block.qs[4 * b + k] = static_cast<std::uint8_t>(number);
      high |= number >> 8 << (3 * k);
    }
    block.qh[b] = static_cast<std::uint16_t>(high);
  }
}

void encode(const float* x, const float* w, BlockIQ1_M& block) {
  const auto fit = SuperBlock<16, 7>::encode(TernaryCoder{grid_iq1(), 8}, x, w, stored_as(1));
  const std::uint16_t d = Half::of(fit.unit).bits;
  for (std::size_t i = 0; i < 4; ++i) block.scales[i] = static_cast<std::uint16_t>((d >> (4 * i) & 15) << 12);
  for (std::size_t b = 0; b < 16; ++b) {
    block.scales[b / 4] |= static_cast<std::uint16_t>(fit.s[b] << (3 * (b % 4)));
    for (std::size_t half = 0; half < 2; ++half) {
      const auto number = static_cast<unsigned>(fit.codes[b].point[half]);
      block.qs[2 * b + half] = static_cast<std::uint8_t>(number);
      put_half_byte(block.qh, static_cast<int>(2 * b + half),
                    static_cast<int>(number >> 8) | (fit.codes[b].minus_delta[half] ? 8 : 0));
    }
  }
}

}  // namespace shoal::formats
