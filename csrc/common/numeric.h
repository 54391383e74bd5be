// Per-element mathematics that host and device share. Base-2 exponents: MUFU and vector units have
// exp2.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define SSL_FAST_FN __host__ __device__ __forceinline__
#else
// Never emitted on its own: the linker must not keep one instruction set's copy for all.
#define SSL_FAST_FN inline __attribute__((always_inline))
#endif

namespace ssl_fast {

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;
// Where a running maximum starts: finite, so that 0 times its first move stays 0.
constexpr float kLowest = -3.402823466e38f;
// Exponents that span at most this many nats are formed in float32: e^64 and e^-76 (64 and log K)
// stay inside its range, so plain sums can neither overflow nor vanish. Beyond, float64.
constexpr double kNarrowSpan = 64.0;

SSL_FAST_FN float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// exp of a difference formed in float64.
SSL_FAST_FN float exp_of(double x) { return exp2_fast(static_cast<float>(x * kLog2e)); }

SSL_FAST_FN uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

SSL_FAST_FN float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// log of a float32 to 1e-7 absolute, also far from 1: exponent in float64, mantissa in float32.
SSL_FAST_FN double log_of(float x) {
  if (!(x >= 1.17549435e-38f && x <= 3.402823466e38f)) return logf(x);
  const uint32_t bits = bits_of(x);
  const float mantissa = float_of((bits & 0x007fffffu) | 0x3f800000u);
  return (static_cast<int>(bits >> 23) - 127) * kLn2 + logf(mantissa);
}

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

SSL_FAST_FN float to_float(float x) { return x; }
SSL_FAST_FN float to_float(bf16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
SSL_FAST_FN float to_float(f16 x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // 2^112 moves the exponent's bias from 15 to 127; subnormals come out exact.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 5.192296858534828e33f));
#endif
}

SSL_FAST_FN void from_float(float x, float& y) { y = x; }
SSL_FAST_FN void from_float(float x, bf16& y) {
  const uint32_t bits = bits_of(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  y.bits = static_cast<uint16_t>(nan ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
SSL_FAST_FN void from_float(float x, f16& y) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
  const uint32_t sign = bits_of(x) >> 16 & 0x8000u, bits = bits_of(x) & 0x7fffffffu;
  uint32_t half;
  if (bits > 0x7f800000u)
    half = 0x7e00u;
  else if (bits >= 0x477ff000u)
    half = 0x7c00u;
  else if (bits < 0x38800000u)  // subnormal: adding 1/2 lets the adder round
    half = bits_of(float_of(bits) + 0.5f) - 0x3f000000u;
  else
    half = (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13;
  y.bits = static_cast<uint16_t>(sign | half);
#endif
}

// log of a sum of exponentials, taken one term at a time relative to the largest; nats.
template <typename Sum>
struct LogSum {
  double max = -INFINITY;
  Sum sum = 0;
};

template <typename Sum>
SSL_FAST_FN void merge(LogSum<Sum>& a, double max, Sum sum) {
  if (max == -INFINITY) return;
  if (max > a.max) {
    a.sum = a.sum * exp_of(a.max - max) + sum;
    a.max = max;
  } else {
    a.sum += sum * exp_of(max - a.max);
  }
}

}  // namespace ssl_fast
