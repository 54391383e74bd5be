// Logits beside their targets, for the losses that compare them: views, softmax, dispatch.
#pragma once
#include "evaluate.cuh"
#include "launchers.h"
#include "load.cuh"

namespace ssl_fast {

template <typename T>
struct Logits {
  const T* data;  // (N, K)
  int64_t stride, n;
  int columns;
  double inv_temperature;
  float scale2;  // inv_temperature / log 2
};

// P = exp2(scale2 (logit - shift) - log2): one row's or one column's softmax and its mass.
struct Softmax {
  float shift, log2, mass;
};

__device__ __forceinline__ Softmax softmax_of(const double* stats /*(3, ...)*/, int64_t stride,
                                              int64_t i) {
  return {static_cast<float>(stats[i]), static_cast<float>(stats[stride + i] * kLog2e),
          static_cast<float>(stats[2 * stride + i])};
}

namespace {

template <typename T>
Logits<T> view(const Matrix& s, double inv_temperature) {
  return {
      static_cast<const T*>(s.data), s.stride,        s.rows,
      static_cast<int>(s.cols),      inv_temperature, static_cast<float>(inv_temperature * kLog2e)};
}

// Calls function(T, Q, V) for logits of T against targets of float32 or of T.
template <typename Function>
void dispatch_pair(const Matrix& logits, const Matrix& values, bool more_aligned,
                   Function function) {
  dispatch(logits.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    auto with = [&](auto value_type) {
      using Q = typename decltype(value_type)::type;
      constexpr int width = 16 / sizeof(T);
      const bool fits = more_aligned && is_aligned<T>(logits.data, logits.stride, logits.cols) &&
                        is_aligned<Q>(values.data, values.stride, values.cols) &&
                        values.stride % width == 0;
      dispatch_width<T>(fits, [&](auto v) { function(type, value_type, v); });
    };
    if (values.dtype == kFloat32) return with(Type<float>());
    if (values.dtype == logits.dtype) return with(type);
    throw std::runtime_error("ssl_fast: targets must be float32 or of the logits' type");
  });
}

}  // namespace
}  // namespace ssl_fast
