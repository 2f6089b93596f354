// Operations on one row of activations, included after the simd header of an instruction set and vector_math.inl.
#include <cmath>

namespace shoal::cpu {
namespace {

float sum_of_squares(const float* x, std::int64_t n) {
  // Four sums, so that additions need not wait for one another.
  Vec sum[4] = {vec_set(0), vec_set(0), vec_set(0), vec_set(0)};
  std::int64_t i = 0;
  for (; i + 4 * kVec <= n; i += 4 * kVec) {
    for (int j = 0; j < 4; ++j) {
      const Vec v = vec_load(x + i + j * kVec);
      sum[j] = vec_fma(v, v, sum[j]);
    }
  }
  for_each_vec(
      n - i,
      [&](std::int64_t j) {
        const Vec v = vec_load(x + i + j);
        sum[0] = vec_fma(v, v, sum[0]);
      },
      [&](std::int64_t j, std::int64_t left) {
        const Vec v = vec_load_first(x + i + j, left);
        sum[0] = vec_fma(v, v, sum[0]);
      });
  return vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

void rms_norm(const float* x, const float* weight, float eps, std::int64_t n, float* out) {
  const float scale = 1.0f / __builtin_sqrtf(sum_of_squares(x, n) / static_cast<float>(n) + eps);
  const Vec s = vec_set(scale);
  for_each_vec(
      n, [&](std::int64_t i) { vec_store(out + i, vec_load(x + i) * s * vec_load(weight + i)); },
      [&](std::int64_t i, std::int64_t left) {
        vec_store_first(out + i, vec_load_first(x + i, left) * s * vec_load_first(weight + i, left), left);
      });
}

void add(const float* x, float* acc, std::int64_t n) {
  for_each_vec(
      n, [&](std::int64_t i) { vec_store(acc + i, vec_load(acc + i) + vec_load(x + i)); },
      [&](std::int64_t i, std::int64_t left) {
        vec_store_first(acc + i, vec_load_first(acc + i, left) + vec_load_first(x + i, left), left);
      });
}

/// Calls body(outputs, i, n) for a token's outputs i .. i + n of each panel.
template <class Body>
inline void for_each_panel(const float* results, int width, int token, std::int64_t n, const Body& body) {
  for (std::int64_t i = 0; i < n; i += 16) body(results + (i * width + token * 16), i, n - i < 16 ? n - i : 16);
}

void copy_outputs(const float* results, int width, int token, std::int64_t n, const float* bias, float* out) {
  for_each_panel(results, width, token, n, [&](const float* x, std::int64_t i, std::int64_t count) {
    for_each_vec(
        count,
        [&](std::int64_t j) {
          const Vec v = vec_load(x + j);
          vec_store(out + i + j, bias ? v + vec_load(bias + i + j) : v);
        },
        [&](std::int64_t j, std::int64_t left) {
          const Vec v = vec_load_first(x + j, left);
          vec_store_first(out + i + j, bias ? v + vec_load_first(bias + i + j, left) : v, left);
        });
  });
}

void add_outputs(const float* results, int width, int token, std::int64_t n, float factor, float* out) {
  const Vec f = vec_set(factor);
  for_each_panel(results, width, token, n, [&](const float* x, std::int64_t i, std::int64_t count) {
    float* acc = out + i;
    for_each_vec(
        count, [&](std::int64_t j) { vec_store(acc + j, vec_fma(f, vec_load(x + j), vec_load(acc + j))); },
        [&](std::int64_t j, std::int64_t left) {
          vec_store_first(acc + j, vec_fma(f, vec_load_first(x + j, left), vec_load_first(acc + j, left)), left);
        });
  });
}

inline Vec silu_mul_vec(Vec gate, Vec up) {
  const Vec one = vec_set(1.0f);
  return gate / (one + vec_exp(vec_set(0.0f) - gate)) * up;
}

void silu_mul(const float* gate, const float* up, float* out, std::int64_t n) {
  for_each_vec(
      n, [&](std::int64_t i) { vec_store(out + i, silu_mul_vec(vec_load(gate + i), vec_load(up + i))); },
      [&](std::int64_t i, std::int64_t left) {
        vec_store_first(out + i, silu_mul_vec(vec_load_first(gate + i, left), vec_load_first(up + i, left)), left);
      });
}

void exp_row(const float* x, float* out, std::int64_t n) {
  for_each_vec(
      n, [&](std::int64_t i) { vec_store(out + i, vec_exp(vec_load(x + i))); },
      [&](std::int64_t i, std::int64_t left) { vec_store_first(out + i, vec_exp(vec_load_first(x + i, left)), left); });
}

void rope(float* x, const float* cos, const float* sin, int pairs, bool interleaved) {
  const std::int64_t step = interleaved ? 2 : 1, apart = interleaved ? 1 : pairs;
  for (int i = 0; i < pairs; ++i) {
    float &a = x[i * step], &b = x[i * step + apart];
    const float u = a, v = b;
    a = u * cos[i] - v * sin[i];
    b = v * cos[i] + u * sin[i];
  }
}

void to_bf16(const float* x, std::uint16_t* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const auto u = __builtin_bit_cast(std::uint32_t, x[i]);
    const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    out[i] = static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
  }
}

inline void fill_rows(KernelTable& table) {
  table.rms_norm = rms_norm;
  table.add = add;
  table.copy_outputs = copy_outputs;
  table.add_outputs = add_outputs;
  table.silu_mul = silu_mul;
  table.rope = rope;
  table.to_bf16 = to_bf16;
  table.exp = exp_row;
}

}  // namespace
}  // namespace shoal::cpu
