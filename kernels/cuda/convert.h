#pragma once
#include "kernels/cuda/device.h"
#include "kernels/cuda/weights.h"

// Narrow floats and back, by bits, so that the device rounds as the host does (kernels/dtype.h).
namespace shoal::cuda {

__device__ __forceinline__ float widen_bf16(unsigned bits) { return __uint_as_float(bits << 16); }

/// Round to nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ unsigned narrow_bf16(float f) {
  const unsigned u = __float_as_uint(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (u >> 16) | 0x40u;
  return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}
__device__ __forceinline__ float round_bf16(float f) { return widen_bf16(narrow_bf16(f)); }

/// FP16: shifting the exponent up multiplies by 2^-112 what subnormals and normals are worth alike; infinities and NaN
/// keep the largest exponent.
__device__ __forceinline__ float widen_f16(unsigned h) {
#ifndef SHOAL_CUDA_EMULATION
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(static_cast<unsigned short>(h)));
  return f;
#else
  const unsigned sign = (h & 0x8000u) << 16, magnitude = (h & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) return __uint_as_float(sign | 0x70000000u | magnitude);
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude) * 0x1p112f));
#endif
}

/// E4M3 has no infinities; 0x7f and 0xff are NaN.
__device__ __forceinline__ float widen_f8(unsigned v) {
  const unsigned sign = (v & 0x80u) << 24, magnitude = v & 0x7fu;
  if (magnitude == 0x7fu) return __uint_as_float(sign | 0x7fc00000u);
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 20) * 0x1p120f));
}

/// Round to nearest, ties to even; beyond 448 to 448, and NaN becomes some number.
__device__ __forceinline__ unsigned narrow_f8(float f) {
  const unsigned bits = __float_as_uint(f), sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
  if (magnitude < 0x3c800000u) return sign | static_cast<unsigned>(rintf(fabsf(f) * 512.0f));
  const unsigned code = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
  return sign | (code < 0x7eu ? code : 0x7eu);
}

__device__ __forceinline__ bool is_finite(float f) { return (__float_as_uint(f) & 0x7f800000u) != 0x7f800000u; }

}  // namespace shoal::cuda
