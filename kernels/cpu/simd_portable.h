#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/dtype.h"

/// The operations of simd_avx512.h for any CPU, in the compiler's vectors of 16 bytes; the comments stand there.
namespace shoal::cpu {
namespace {

using Quad = float __attribute__((vector_size(16)));
using QuadInt = std::int32_t __attribute__((vector_size(16)));

inline Quad quad_load(const void* p) {
  Quad q;
  std::memcpy(&q, p, sizeof q);
  return q;
}

struct Lanes {
  Quad q[4];
};
struct LanePair {
  Lanes even, odd;
};

inline Lanes lanes_zero() { return {}; }
inline Lanes lanes_load(const void* p) {
  const auto* f = static_cast<const float*>(p);
  return {{quad_load(f), quad_load(f + 4), quad_load(f + 8), quad_load(f + 12)}};
}
inline void lanes_store(float* p, Lanes a) { std::memcpy(p, &a, sizeof a); }
inline Lanes lanes_broadcast(float f) {
  const Quad q{f, f, f, f};
  return {{q, q, q, q}};
}
/// Not fused where the CPU has no such instruction.
inline Lanes lanes_fma(Lanes a, Lanes b, Lanes c) {
  return {{a.q[0] * b.q[0] + c.q[0], a.q[1] * b.q[1] + c.q[1], a.q[2] * b.q[2] + c.q[2], a.q[3] * b.q[3] + c.q[3]}};
}

inline LanePair lanes_load_bf16(const void* p) {
  LanePair r;
  const auto* bytes = static_cast<const std::byte*>(p);
  for (int i = 0; i < 4; ++i) {
    QuadInt v;
    std::memcpy(&v, bytes + 16 * i, sizeof v);
    r.even.q[i] = reinterpret_cast<Quad>(v << 16);
    r.odd.q[i] = reinterpret_cast<Quad>(v & static_cast<std::int32_t>(0xffff0000u));
  }
  return r;
}

inline LanePair lanes_load_f16(const void* p) {
  const auto* bytes = static_cast<const std::byte*>(p);
  float even[16], odd[16];
  for (int i = 0; i < 16; ++i) {
    std::uint16_t h[2];
    std::memcpy(h, bytes + 4 * i, 4);
    even[i] = f16_to_f32(h[0]);
    odd[i] = f16_to_f32(h[1]);
  }
  return {lanes_load(even), lanes_load(odd)};
}

constexpr float kF8Unit = 1.0f;
struct F8Table {
  float value[256];
  constexpr F8Table() : value{} {
    for (int i = 0; i < 256; ++i) value[i] = f8_e4m3_to_f32(static_cast<std::uint8_t>(i));
  }
};
constexpr F8Table kF8Table;
inline Lanes lanes_load_f8(const void* p) {
  std::uint8_t code[16];
  std::memcpy(code, p, 16);
  float f[16];
  for (int i = 0; i < 16; ++i) f[i] = kF8Table.value[code[i]];
  return lanes_load(f);
}
inline Lanes lanes_load_i8(const void* p) {
  std::int8_t value[16];
  std::memcpy(value, p, 16);
  float f[16];
  for (int i = 0; i < 16; ++i) f[i] = value[i];
  return lanes_load(f);
}

constexpr int kTileWidths[] = {1, 2, 3}, kManyWidth = 3;
constexpr int panels_at_once(int width) { return width == 1 ? 2 : 1; }

struct Vec {
  Quad v;
  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
};
constexpr int kVec = 4;

inline Vec vec_set(float f) { return {Quad{f, f, f, f}}; }
inline Vec vec_load(const float* p) { return {quad_load(p)}; }
inline Vec vec_load_first(const float* p, std::int64_t n) {
  Quad q{};
  for (int i = 0; i < 4 && i < n; ++i) q[i] = p[i];
  return {q};
}
inline void vec_store(float* p, Vec a) { std::memcpy(p, &a, sizeof a); }
inline void vec_store_first(float* p, Vec a, std::int64_t n) {
  for (int i = 0; i < 4 && i < n; ++i) p[i] = a.v[i];
}
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
inline Vec vec_load_bf16(const std::uint16_t* p) {
  return {Quad{bf16_to_f32(p[0]), bf16_to_f32(p[1]), bf16_to_f32(p[2]), bf16_to_f32(p[3])}};
}
inline Vec vec_greater(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
inline Vec vec_round(Vec a) {
  Quad q{};
  for (int i = 0; i < 4; ++i) q[i] = std::nearbyint(a.v[i]);
  return {q};
}
inline Vec vec_clamp(Vec a, float low, float high) {
  Quad q{};
  for (int i = 0; i < 4; ++i) q[i] = a.v[i] < low ? low : a.v[i] > high ? high : a.v[i];
  return {q};
}
inline Vec vec_scale_by_power_of_two(Vec a, Vec n) {
  Quad q{};
  for (int i = 0; i < 4; ++i) {
    // A NaN has no exponent to add; it stays what it is.
    q[i] = n.v[i] == n.v[i] ? std::ldexp(a.v[i], static_cast<int>(n.v[i])) : n.v[i];
  }
  return {q};
}
inline float vec_sum(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline float vec_max(Vec a) {
  const float x = a.v[0] > a.v[2] ? a.v[0] : a.v[2], y = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return x > y ? x : y;
}
inline void vec_sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
  out[0] = vec_sum(a);
  out[1] = vec_sum(b);
  out[2] = vec_sum(c);
  out[3] = vec_sum(d);
}

constexpr int kHeadTile = 2, kPositionTile = 4, kValueTile = 4;
constexpr int kQueryTile = 1, kFewQueries = 1;

}  // namespace
}  // namespace shoal::cpu
