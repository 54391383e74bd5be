// 16-byte loads and stores, and the dispatch from dtype codes to types.
#pragma once
#include "../common/matrix.h"
#include "launch.cuh"

namespace ssl_fast {

// V neighbouring elements of a row: V * sizeof(T) is a multiple of 16 bytes, or V = 1 where rows
// are unaligned.
template <typename T, int V>
struct alignas(V * sizeof(T) >= 16 ? 16 : V * sizeof(T)) Pack {
  T value[V];
};

template <int V, typename T>
__device__ __forceinline__ Pack<T, V> load(const T* p) {
  return *reinterpret_cast<const Pack<T, V>*>(p);
}

template <int V, typename T>
__device__ __forceinline__ void store(T* p, const float (&x)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) from_float(x[v], pack.value[v]);
  *reinterpret_cast<Pack<T, V>*>(p) = pack;
}

template <typename T>
struct Type {
  using type = T;
};

template <int V>
struct Width {
  static constexpr int value = V;
};

inline int element_size(int dtype) { return dtype == kFloat32 ? 4 : 2; }

// True when rows `stride` elements apart can be read in 16-byte packs of T.
template <typename T>
bool is_aligned(const void* data, int64_t stride, int64_t k) {
  constexpr int width = 16 / sizeof(T);
  return k % width == 0 && stride % width == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// The same for rows that are only written, of any type.
inline bool has_aligned_rows(const Matrix& m) {
  return reinterpret_cast<uintptr_t>(m.data) % 16 == 0 &&
         m.stride * element_size(m.dtype) % 16 == 0;
}

template <typename Function>
void dispatch(int dtype, Function function) {
  if (dtype == kFloat32) return function(Type<float>());
  if (dtype == kBfloat16) return function(Type<bf16>());
  if (dtype == kFloat16) return function(Type<f16>());
  throw std::runtime_error(
      "ssl_fast: the CUDA kernels take float32, bfloat16 and float16 (codes 0, 2, 3), got code " +
      std::to_string(dtype));
}

// Calls function(Width<16 bytes of T>) or function(Width<1>).
template <typename T, typename Function>
void dispatch_width(bool is_aligned, Function function) {
  if (is_aligned) return function(Width<16 / sizeof(T)>());
  return function(Width<1>());
}

}  // namespace ssl_fast
