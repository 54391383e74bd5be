// Block reductions in a fixed order: the same bits on every run, the same result in every thread.
#pragma once
#include <algorithm>

#include "launch.cuh"

namespace ssl_fast {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 512;
// Two buffers of one 16-byte value a warp; the first bytes of dynamic shared memory.
constexpr int kReduceBytes = 2 * (kMaxThreads / kWarp) * 16;

// Threads of a block that `wanted` ask for: whole warps, at most `most`.
inline int whole_warps(int64_t wanted, int most) {
  return static_cast<int>(std::min<int64_t>(ceil_div(wanted, kWarp) * kWarp, most));
}

__device__ __forceinline__ float exchange(float x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
__device__ __forceinline__ double exchange(double x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

// Every result passes through one of two buffers in turn, so that one barrier a reduction is
// enough: a warp can overwrite a buffer only after the barrier of the reduction in between.
class BlockReduce {
 public:
  template <typename Value, typename Merge>
  __device__ __forceinline__ Value operator()(Value x, Merge merge) {
    static_assert(sizeof(Value) <= 16, "reduce buffers hold 16 bytes a warp");
    x = within_warp(x, merge);
    const int warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
    if (warps == 1) return x;
    Value* buffer = reinterpret_cast<Value*>(dynamic_shared() + parity_ * (kReduceBytes / 2));
    parity_ ^= 1;
    if (lane == 0) buffer[threadIdx.x / kWarp] = x;
    __syncthreads();
    x = buffer[0];
    for (int w = 1; w < warps; ++w) x = merge(x, buffer[w]);
    return x;
  }

 private:
  template <typename Value, typename Merge>
  __device__ __forceinline__ static Value within_warp(Value x, Merge merge) {
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) x = merge(x, exchange(x, mask));
    return x;
  }

  int parity_ = 0;
};

struct Add {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
  __device__ __forceinline__ double operator()(double a, double b) const { return fmax(a, b); }
};

// log-sum-exp pairs.
template <typename Sum>
__device__ __forceinline__ LogSum<Sum> exchange(LogSum<Sum> x, int mask) {
  return LogSum<Sum>{exchange(x.max, mask), exchange(x.sum, mask)};
}

struct MergeLogSums {
  template <typename Sum>
  __device__ __forceinline__ LogSum<Sum> operator()(LogSum<Sum> a, LogSum<Sum> b) const {
    merge(a, b.max, b.sum);
    return a;
  }
};

// Smallest and largest value seen.
struct Range {
  float min = INFINITY, max = -INFINITY;
  __device__ __forceinline__ void add(float x) {
    min = fminf(min, x);
    max = fmaxf(max, x);
  }
};

__device__ __forceinline__ Range exchange(Range x, int mask) {
  Range other;
  other.min = exchange(x.min, mask);
  other.max = exchange(x.max, mask);
  return other;
}

struct MergeRanges {
  __device__ __forceinline__ Range operator()(Range a, Range b) const {
    a.min = fminf(a.min, b.min);
    a.max = fmaxf(a.max, b.max);
    return a;
  }
};

}  // namespace ssl_fast
