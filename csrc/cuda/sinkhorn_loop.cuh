// The row passes that visit a row twice: float64, or too wide for registers; and which pass when.
#pragma once
#include "sinkhorn.cuh"

namespace ssl_fast {

// float64 log-sums, any width: the row is read again (from L2) once its potential is
// known, and the column sums live in this block's slice of device memory.
template <typename T, int V>
__device__ __forceinline__ void wide_pass(const Tile<T>& tile, const Pass& pass,
                                          BlockReduce& reduce) {
  double* const maxima = pass.maxima + pass.part * tile.columns;
  float* const sums = pass.sums + pass.part * tile.columns;
  for (int64_t r = 0; r < tile.count; ++r) {
    LogSum<float> total;
    for (int k = threadIdx.x * V; k < tile.columns; k += blockDim.x * V) {
      const Pack<T, V> pack = load<V>(tile.row(r) + k);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const double col = pass.col == nullptr ? 0 : pass.col[k + v];
        merge(total, pass.scale * to_float(pack.value[v]) + col, 1.0f);
      }
    }
    total = reduce(total, MergeLogSums());
    const double row = -(total.max + log_of(total.sum));
    if (pass.row != nullptr && threadIdx.x == 0) pass.row[tile.index(r)] = row;
    if (pass.finish == Finish::kRows) continue;
    for (int k = threadIdx.x * V; k < tile.columns; k += blockDim.x * V) {
      const Pack<T, V> pack = load<V>(tile.row(r) + k);
      float q[V] = {};
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const double exponent = pass.scale * to_float(pack.value[v]) + row;
        if (pass.finish == Finish::kDense) {
          q[v] = exp_of(exponent + (pass.col == nullptr ? 0 : pass.col[k + v]));
        } else {
          LogSum<float> column;
          if (r > 0) column = LogSum<float>{maxima[k + v], sums[k + v]};
          merge(column, exponent, 1.0f);
          maxima[k + v] = column.max;
          sums[k + v] = column.sum;
        }
      }
      if (pass.finish == Finish::kDense) store<V>(pass.q + tile.index(r) * tile.columns + k, q);
    }
  }
}

// A few rows that share one visit of the weights and of the column sums.
struct Rows {
  int64_t first;
  int count;
  float reference, scale2;
  double shift;
};

// total_i = sum_k exp(scale (s_ik - reference) + col_k - shift) over this thread's columns
template <typename T, int V>
__device__ __forceinline__ void add_exponentials(const Tile<T>& tile, const Pass& pass,
                                                 const Rows& rows, float (&total)[kRowsAtOnce],
                                                 Range& range) {
  for (int k = threadIdx.x * V; k < tile.columns; k += blockDim.x * V) {
    Pack<T, V> packs[kRowsAtOnce];
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i)
      packs[i] = load<V>(tile.row(i < rows.count ? rows.first + i : rows.first) + k);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float col2 =
          pass.col == nullptr ? 0 : static_cast<float>((pass.col[k + v] - rows.shift) * kLog2e);
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        const float s = to_float(packs[i].value[v]);
        range.add(s);
        total[i] += exp2_fast(fmaf(s - rows.reference, rows.scale2, col2));
      }
    }
  }
}

// Column sums or dense targets, from the reciprocals of the rows' totals.
template <typename T, int V>
__device__ __forceinline__ void finish_rows(const Tile<T>& tile, const Pass& pass, const Rows& rows,
                                            const float (&inverse)[kRowsAtOnce]) {
  float* const sums = pass.sums + pass.part * tile.columns;
  for (int k = threadIdx.x * V; k < tile.columns; k += blockDim.x * V) {
    float sum[V] = {}, weight[V] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (pass.finish == Finish::kColumnSums) sum[v] = rows.first > 0 ? sums[k + v] : 0;
      if (pass.finish == Finish::kDense)
        weight[v] = pass.col == nullptr ? 1.0f : exp_of(pass.col[k + v] - rows.shift);
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      if (i >= rows.count) break;
      const Pack<T, V> pack = load<V>(tile.row(rows.first + i) + k);
      float q[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        q[v] = exp2_fast((to_float(pack.value[v]) - rows.reference) * rows.scale2);
        if (pass.finish == Finish::kColumnSums) sum[v] = fmaf(q[v], inverse[i], sum[v]);
        if (pass.finish == Finish::kDense) q[v] *= weight[v] * inverse[i];
      }
      if (pass.finish == Finish::kDense)
        store<V>(pass.q + tile.index(rows.first + i) * tile.columns + k, q);
    }
    if (pass.finish == Finish::kColumnSums) store<V>(sums + k, sum);
  }
}

// float32, any width, a row's scores read twice.
template <typename T, int V>
__device__ __forceinline__ void narrow_loop_pass(const Tile<T>& tile, const Pass& pass,
                                                 BlockReduce& reduce) {
  Rows rows;
  rows.scale2 = static_cast<float>(pass.scale * kLog2e);
  rows.shift = column_shift(pass.col, tile.columns, reduce);
  if (blockIdx.x == 0 && threadIdx.x == 0) pass.state->shift = rows.shift;
  float reference = -INFINITY;
  for (int k = threadIdx.x; k < tile.columns; k += blockDim.x)
    reference = fmaxf(reference, to_float(tile.row(0)[k]));
  rows.reference = reduce(reference, Max());
  Range range;
  for (rows.first = 0; rows.first < tile.count; rows.first += rows.count) {
    const int64_t left = tile.count - rows.first;
    rows.count = left < pass.rows_at_once ? static_cast<int>(left) : pass.rows_at_once;
    float inverse[kRowsAtOnce] = {};
    add_exponentials<T, V>(tile, pass, rows, inverse, range);
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const float total = reduce(inverse[i], Add());
      inverse[i] = i < rows.count ? 1.0f / total : 0.0f;
      if (pass.row != nullptr && threadIdx.x == 0 && i < rows.count)
        pass.row[tile.index(rows.first + i)] =
            -(pass.scale * rows.reference + rows.shift + log_of(total));
    }
    if (pass.finish != Finish::kRows) finish_rows<T, V>(tile, pass, rows, inverse);
  }
  if (pass.finish == Finish::kColumnSums) {
    range = reduce(range, MergeRanges());
    if (threadIdx.x == 0) pass.ranges[blockIdx.x] = range;
  }
}

// Unaligned rows (V = 1) always take the loop; on chip, aligned ones never do.
template <typename T, int V, bool kOnChip>
__device__ __forceinline__ void step_pass(const Tile<T>& tile, const Pass& pass, bool wide,
                                          BlockReduce& reduce) {
  if (wide) {
    wide_pass<T, V>(tile, pass, reduce);
    return;
  }
  if constexpr (V > 1) {
    if (kOnChip || tile.columns <= kColumns * static_cast<int>(blockDim.x)) {
      narrow_pass<T, V, kOnChip ? 1 : 4 / sizeof(T)>(tile, pass, reduce);
      return;
    }
  }
  if constexpr (V == 1 || !kOnChip) narrow_loop_pass<T, V>(tile, pass, reduce);
}

}  // namespace ssl_fast
