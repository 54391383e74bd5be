// Sinkhorn-Knopp in one launch, for scores that fit in the multiprocessors' shared memory.
#pragma once
#include "sinkhorn.cuh"
#include "sinkhorn_loop.cuh"

namespace ssl_fast {
namespace {

// Cooperative: all blocks meet between the passes.
template <typename T, int V>
__global__ void __launch_bounds__(kMaxThreads, 1)
    sinkhorn_on_chip(const T* scores /*(N, K)*/, int64_t stride, int64_t n, int columns, Pass pass,
                     double* col /*(K)*/, const double* log_prior /*(K)*/, int iterations,
                     bool softmax_start) {
  auto* combine_shared = reinterpret_cast<LogSum<double>*>(dynamic_shared() + kReduceBytes);
  T* chip =
      reinterpret_cast<T*>(dynamic_shared() + kReduceBytes + blockDim.x * sizeof(LogSum<double>));
  Tile<T> tile = strided_rows(scores, stride, n, columns, blockIdx.x, gridDim.x);
  const int pitch = (columns + V - 1) / V * V;
  BlockReduce reduce;
  unsigned passed = 0;
  const Finish finish = pass.finish;
  double* const row = pass.row;
  pass.finish = Finish::kColumnSums, pass.row = nullptr, pass.part = blockIdx.x;

  // A thread reads back only what it wrote, except in the transposed visits that follow a barrier.
  for (int64_t r = 0; r < tile.count; r += kRowsAtOnce)
    for (int k = threadIdx.x * V; k < columns; k += blockDim.x * V) {
      Pack<T, V> packs[kRowsAtOnce];
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i)
        if (r + i < tile.count) packs[i] = load<V>(tile.row(r + i) + k);
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i)
        if (r + i < tile.count)
          *reinterpret_cast<Pack<T, V>*>(chip + (r + i) * pitch + k) = packs[i];
    }
  __syncthreads();
  tile.data = chip;
  tile.pitch = pitch;

  Range range;
  start_pass<T, V>(tile, pass, 0, columns, range);
  range = reduce(range, MergeRanges());
  if (threadIdx.x == 0) pass.ranges[blockIdx.x] = range;
  grid_barrier(&pass.state->barrier, passed);
  const bool wide = is_wide(pass.ranges, gridDim.x, pass.scale, reduce);

  // The last round ends in rows or in q; the first one's column sums come from the visit above.
  bool log_sums = true;
  pass.col = nullptr;
  for (int t = 0; t <= iterations; ++t) {
    if (t == iterations) pass.row = row, pass.finish = finish;
    if (t > 0 || softmax_start) {
      step_pass<T, V, true>(tile, pass, wide, reduce);
      if (t == iterations) break;
      log_sums = wide;
      grid_barrier(&pass.state->barrier, passed);
    }
    for (int k0 = blockIdx.x * kTile; k0 < columns; k0 += gridDim.x * kTile)
      combine_tile(pass, log_sums, gridDim.x, columns, k0, -1, log_prior, col, combine_shared);
    grid_barrier(&pass.state->barrier, passed);
    pass.col = col;
  }
}

}  // namespace
}  // namespace ssl_fast
