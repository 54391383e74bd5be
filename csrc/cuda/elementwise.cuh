// Views of matrices; kernels of one operation an entry, and of its sum.
#pragma once
#include <algorithm>

#include "load.cuh"
#include "reduce.cuh"

namespace ssl_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 4096;  // unmeasured: some rounds for every multiprocessor, few partials

// A matrix (n, d); null data: absent.
template <typename T>
struct View {
  const T* data;
  int64_t stride;
  __device__ __forceinline__ float operator()(int64_t i, int64_t j) const {
    return to_float(data[i * stride + j]);
  }
};

template <typename T>
View<T> view(const Matrix& m) {
  return {static_cast<const T*>(m.data), m.stride};
}

// z - mean, the float64 mean in two floats.
__device__ __forceinline__ float centred(float z, double mean) {
  const float high = static_cast<float>(mean);
  return (z - high) - static_cast<float>(mean - high);
}

// op(i, j) for every entry.
template <typename Op>
__global__ void __launch_bounds__(kThreads) matrix_each(Op op, int64_t n, int64_t d) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < n * d; k += step)
    op(k / d, k % d);
}

// partial[block] = sum of op(i, j), for sum_blocks(n, d) blocks.
template <typename Op>
__global__ void __launch_bounds__(kThreads)
    matrix_sums(Op op, int64_t n, int64_t d, double* partial) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  double sum = 0;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < n * d; k += step)
    sum += op(k / d, k % d);
  BlockReduce reduce;
  sum = reduce(sum, Add());
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

Launch blocks(int64_t count, size_t shared, cudaStream_t stream) {
  return {static_cast<unsigned>(count), kThreads, shared, stream};
}

// Four entries a thread, unmeasured.
inline int64_t sum_blocks(int64_t n, int64_t d) {
  return std::min<int64_t>(ceil_div(n * d, 4 * kThreads), kMaxBlocks);
}

template <typename Op>
void each(const char* name, const Op& op, int64_t n, int64_t d, cudaStream_t stream) {
  const int64_t count = std::min<int64_t>(ceil_div(n * d, kThreads), kMaxBlocks);
  launch(name, blocks(count, 0, stream), matrix_each<Op>, op, n, d);
}

template <typename Op>
void sums(const char* name, const Op& op, int64_t n, int64_t d, double* partial,
          cudaStream_t stream) {
  launch(name, blocks(sum_blocks(n, d), kReduceBytes, stream), matrix_sums<Op>, op, n, d, partial);
}

}  // namespace
}  // namespace ssl_fast
