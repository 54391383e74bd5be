// Sums over rows in a fixed order: the lanes of a warp read neighbouring columns, warps share rows.
#pragma once
#include "launch.cuh"

namespace ssl_fast {
namespace {

constexpr int kColumns = 32, kLanes = 8;  // of a block
constexpr int kColumnBlock = kColumns * kLanes;

__device__ __forceinline__ int64_t own_column() {
  return static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x % kColumns;
}

// Lane 0: sum of f(i) over begin <= i < end. Every thread of the block has to call it.
template <typename F>
__device__ __forceinline__ double column_sum(int64_t begin, int64_t end, F f) {
  double* lanes = reinterpret_cast<double*>(dynamic_shared());  // [kLanes, kColumns]
  const int column = threadIdx.x % kColumns, lane = threadIdx.x / kColumns;
  double sum = 0;
  for (int64_t i = begin + lane; i < end; i += kLanes) sum += f(i);
  lanes[threadIdx.x] = sum;
  __syncthreads();
  if (lane != 0) return 0;
  for (int k = 1; k < kLanes; ++k) sum += lanes[k * kColumns + column];
  return sum;
}

struct Share {
  int64_t begin, end;
};

// Of n rows, this block's.
__device__ __forceinline__ Share own_share(int64_t n) {
  const int64_t size = (n + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * size;
  return {begin, begin + size < n ? begin + size : n};
}

__device__ __forceinline__ bool is_first_lane() { return threadIdx.x < kColumns; }

// Blocks for all columns, the rows in `parts`; `size` bytes of shared memory a thread.
inline Launch by_columns(int64_t columns, int64_t parts, size_t size, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, kColumns)), static_cast<unsigned>(parts));
  return {grid, kColumnBlock, kColumnBlock * size, stream};
}

}  // namespace
}  // namespace ssl_fast
