// Tiles of Z^T Z that are never stored: the squares of its upper triangle, and where the Gram dual
// cancelled digits the gradient. Both return at once unless a flag on the device asks for them.
#pragma once
#include "elementwise.cuh"

namespace ssl_fast {
namespace {

constexpr int kTile = 32;                       // of Z^T Z, square
constexpr int kStep = 16;                       // rows of Z in shared memory at a time
constexpr int kOwn = kTile * kTile / kThreads;  // entries a thread

// c[k] = (Z^T Z) at (left + threadIdx.x / kTile + 8 k, right + threadIdx.x % kTile); 0 on the
// diagonal. `memory` holds 2 kStep kTile floats.
template <typename T>
__device__ __forceinline__ void product_tile(const View<T>& z, const double* mean, int64_t n,
                                             int64_t d, int64_t left, int64_t right, float* memory,
                                             float (&c)[kOwn]) {
  float *a = memory, *b = memory + kStep * kTile;
  const int column = threadIdx.x % kTile, row = threadIdx.x / kTile;
#pragma unroll
  for (int k = 0; k < kOwn; ++k) c[k] = 0;
  for (int64_t first = 0; first < n; first += kStep) {
    __syncthreads();
    for (int r = row; r < kStep; r += kThreads / kTile) {
      const int64_t i = first + r, p = left + column, q = right + column;
      a[r * kTile + column] = i < n && p < d ? centred(z(i, p), mean[p]) : 0;
      b[r * kTile + column] = i < n && q < d ? centred(z(i, q), mean[q]) : 0;
    }
    __syncthreads();
    for (int r = 0; r < kStep; ++r) {
      const float y = b[r * kTile + column];
#pragma unroll
      for (int k = 0; k < kOwn; ++k)
        c[k] = fmaf(a[r * kTile + row + k * (kThreads / kTile)], y, c[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kOwn; ++k)
    if (left + row + k * (kThreads / kTile) == right + column) c[k] = 0;
}

// Tile (p, q), q <= p, is number p (p + 1) / 2 + q.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    covariance_triangle(View<T> z, const double* mean, int64_t n, int64_t d, float scale,
                        const bool* flag, double* partial) {
  const int64_t index = blockIdx.x;
  double sum = 0;
  if (!flag || *flag) {
    int64_t p = static_cast<int64_t>((sqrt(8.0 * index + 1) - 1) / 2);
    while (p * (p + 1) / 2 > index) --p;
    while ((p + 1) * (p + 2) / 2 <= index) ++p;
    const int64_t q = index - p * (p + 1) / 2;
    float c[kOwn];
    float* memory = reinterpret_cast<float*>(dynamic_shared() + kReduceBytes);
    product_tile(z, mean, n, d, p * kTile, q * kTile, memory, c);
#pragma unroll
    for (int k = 0; k < kOwn; ++k) sum += (p == q ? 1.f : 2.f) * (c[k] * scale) * (c[k] * scale);
  }
  BlockReduce reduce;
  sum = reduce(sum, Add());
  if (threadIdx.x == 0) partial[index] = sum;
}

// op.out at rows [m], for push = own (Z^T Z - diag c), where `flag`; op.push is not read.
template <typename T, typename Gradient>
__global__ void __launch_bounds__(kThreads)
    covariance_rescue(View<T> z, int64_t n, int64_t d, int64_t m, const bool* flag, Gradient op) {
  if (!*flag) return;
  float* memory = reinterpret_cast<float*>(dynamic_shared());
  float *tile = memory + 2 * kStep * kTile, *own = tile + kTile * kTile;  // [kTile, kTile] each
  const int64_t tiles = (d + kTile - 1) / kTile;
  const int64_t top = blockIdx.x / tiles * kTile, right = blockIdx.x % tiles * kTile;
  const int column = threadIdx.x % kTile, row = threadIdx.x / kTile;
  float push[kOwn] = {}, c[kOwn];
  for (int64_t left = 0; left < d; left += kTile) {
    product_tile(z, op.mean, n, d, left, right, memory, c);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int r = row + k * (kThreads / kTile);
      const int64_t i = top + r, j = left + column;
      tile[r * kTile + column] = c[k];
      own[r * kTile + column] = i < m && j < d ? centred(op.z(i, j), op.mean[j]) : 0;
    }
    __syncthreads();
    for (int l = 0; l < kTile; ++l)
#pragma unroll
      for (int k = 0; k < kOwn; ++k)
        push[k] = fmaf(own[(row + k * (kThreads / kTile)) * kTile + l], tile[l * kTile + column],
                       push[k]);
  }
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const int64_t i = top + row + k * (kThreads / kTile), j = right + column;
    if (i < m && j < d) op.write(i, j, op.pushed(op.pull(i, j), push[k]));
  }
}

}  // namespace
}  // namespace ssl_fast
