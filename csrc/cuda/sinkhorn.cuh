// The passes of Sinkhorn-Knopp over a block's own rows, wherever those lie: device memory or shared
// memory. Every pass reads each score once and ends in the block's own slice of column sums: no
// atomics.
#pragma once
#include "load.cuh"
#include "reduce.cuh"

namespace ssl_fast {

constexpr int kColumns = 16;                         // columns a thread holds in registers
constexpr int kMaxColumns = kColumns * kMaxThreads;  // wider rows take the loop form
constexpr int kRowsAtOnce = 4;
constexpr int kTile = 8;  // columns that a block combines at once: one 32-byte sector

enum class Finish { kColumnSums, kDense, kRows };  // what follows a row's normalisation
// float32 sums; float64 log-sums; the latter only if State asks for it; whichever State says.
enum class Form { kNarrow, kWide, kIfWide, kEither };

// The rows of one block: r = 0 ... count-1 stands for row first + r * step of the matrix.
template <typename T>
struct Tile {
  const T* data;  // (count, columns), rows `pitch` apart
  int64_t pitch;
  int64_t count, first, step;
  int columns;

  __device__ __forceinline__ const T* row(int64_t r) const { return data + r * pitch; }
  __device__ __forceinline__ int64_t index(int64_t r) const { return first + r * step; }
};

// Every `blocks`-th row of the matrix from number `block` on.
template <typename T>
__device__ __forceinline__ Tile<T> strided_rows(const T* scores, int64_t stride, int64_t n,
                                                int columns, int64_t block, int64_t blocks) {
  return {scores + block * stride,
          blocks * stride,
          (n - block + blocks - 1) / blocks,
          block,
          blocks,
          columns};
}

// Device-side facts that one kernel leaves for the next.
struct State {
  double shift;      // largest column potential: the unit of narrow column sums
  int wide;          // scores span more than kNarrowSpan nats
  unsigned barrier;  // arrivals at the grid barrier
};

struct Pass {
  double scale;
  const double* col;  // (K), or null: zeros
  double* row;        // (N) out, or null: not wanted
  double* maxima;     // (parts, K) out, nats; wide and start only
  float* sums;        // (parts, K) out
  Range* ranges;      // (blocks) out
  State* state;
  float* q;  // (N, K) contiguous, dense only
  Finish finish;
  int rows_at_once;  // loop form: as many as L2 holds until their second visit, at most kRowsAtOnce
  int64_t part;      // this block's slice
};

__device__ __forceinline__ double column_shift(const double* col, int columns,
                                               BlockReduce& reduce) {
  if (col == nullptr) return 0;
  double shift = -INFINITY;
  for (int k = threadIdx.x; k < columns; k += blockDim.x) shift = fmax(shift, col[k]);
  return reduce(shift, Max());
}

// Column k's log-sum over the rows of this block, row = 0; one thread a pack of columns, no
// barrier.
template <typename T, int V>
__device__ __forceinline__ void start_pass(const Tile<T>& tile, const Pass& pass, int begin,
                                           int end, Range& range) {
  const float scale2 = static_cast<float>(pass.scale * kLog2e);
  for (int k = begin + threadIdx.x * V; k < end; k += blockDim.x * V) {
    float max[V], sum[V];
#pragma unroll
    for (int v = 0; v < V; ++v) max[v] = -INFINITY, sum[v] = 0;
    for (int64_t r = 0; r < tile.count; r += kRowsAtOnce) {
      Pack<T, V> packs[kRowsAtOnce];
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i)  // past the end: the last row again, not counted below
        packs[i] = load<V>(tile.row(r + i < tile.count ? r + i : tile.count - 1) + k);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float top = max[v];
#pragma unroll
        for (int i = 0; i < kRowsAtOnce; ++i) {
          const float s = to_float(packs[i].value[v]);
          top = fmaxf(top, s);
          range.min = fminf(range.min, s);
        }
        sum[v] *= exp2_fast((max[v] - top) * scale2);
        max[v] = top;
#pragma unroll
        for (int i = 0; i < kRowsAtOnce; ++i)
          sum[v] +=
              r + i < tile.count ? exp2_fast((to_float(packs[i].value[v]) - top) * scale2) : 0.0f;
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      range.max = fmaxf(range.max, max[v]);
      pass.maxima[pass.part * tile.columns + k + v] = pass.scale * max[v];
      pass.sums[pass.part * tile.columns + k + v] = sum[v];
    }
  }
}

template <int R>
struct Totals {
  float row[R];
};

template <int R>
__device__ __forceinline__ Totals<R> exchange(Totals<R> x, int mask) {
#pragma unroll
  for (int i = 0; i < R; ++i) x.row[i] = exchange(x.row[i], mask);
  return x;
}

struct AddTotals {
  template <int R>
  __device__ __forceinline__ Totals<R> operator()(Totals<R> a, const Totals<R>& b) const {
#pragma unroll
    for (int i = 0; i < R; ++i) a.row[i] += b.row[i];
    return a;
  }
};

// float32, rows in registers: e_ik = exp(scale (s_ik - reference)), one exp2 an element.
//   t_i = sum_k e_ik w_k,  w_k = exp(col_k - shift);  row_i = -log t_i - scale reference - shift
//   column sums of e_ik / t_i, or q_ik = e_ik w_k / t_i
// kRows at once share a barrier; half types take two, to have as many bytes in flight as float32.
template <typename T, int V, int kRows>
__device__ __forceinline__ void narrow_pass(const Tile<T>& tile, const Pass& pass,
                                            BlockReduce& reduce) {
  constexpr int kPacks = kColumns / V;
  const int stride = blockDim.x * V, k0 = threadIdx.x * V;
  const float scale2 = static_cast<float>(pass.scale * kLog2e);
  const double shift = column_shift(pass.col, tile.columns, reduce);
  if (blockIdx.x == 0 && threadIdx.x == 0) pass.state->shift = shift;

  Pack<T, V> next[kRows][kPacks];
  float weight[kPacks][V], sum[kPacks][V];
  float reference = -INFINITY;  // near the largest score: exponents that matter are most exact
#pragma unroll
  for (int j = 0; j < kPacks; ++j) {
    const int k = k0 + j * stride;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      if (k < tile.columns && i < tile.count) next[i][j] = load<V>(tile.row(i) + k);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      sum[j][v] = weight[j][v] = 0;
      if (k >= tile.columns) continue;
      weight[j][v] = pass.col == nullptr ? 1.0f : exp_of(pass.col[k + v] - shift);
      reference = fmaxf(reference, to_float(next[0][j].value[v]));
    }
  }
  reference = reduce(reference, Max());
  Range range;
  for (int64_t r = 0; r < tile.count; r += kRows) {
    float e[kRows][kPacks][V];
    Totals<kRows> total = {};
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kPacks; ++j) {
        const int k = k0 + j * stride;
        if (k >= tile.columns || r + i >= tile.count) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const float s = to_float(next[i][j].value[v]);
          range.add(s);
          e[i][j][v] = exp2_fast((s - reference) * scale2);
          total.row[i] = fmaf(e[i][j][v], weight[j][v], total.row[i]);
        }
        // In flight during the reduction.
        if (r + i + kRows < tile.count) next[i][j] = load<V>(tile.row(r + i + kRows) + k);
      }
    total = reduce(total, AddTotals());
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (r + i >= tile.count) break;
      const float inverse = 1.0f / total.row[i];
      if (pass.row != nullptr && threadIdx.x == 0)
        pass.row[tile.index(r + i)] = -(pass.scale * reference + shift + log_of(total.row[i]));
      if (pass.finish == Finish::kRows) continue;
#pragma unroll
      for (int j = 0; j < kPacks; ++j) {
        const int k = k0 + j * stride;
        if (k >= tile.columns) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (pass.finish == Finish::kColumnSums)
            sum[j][v] = fmaf(e[i][j][v], inverse, sum[j][v]);
          else
            e[i][j][v] *= weight[j][v] * inverse;
        }
        if (pass.finish == Finish::kDense)
          store<V>(pass.q + tile.index(r + i) * tile.columns + k, e[i][j]);
      }
    }
  }
  if (pass.finish == Finish::kColumnSums) {
#pragma unroll
    for (int j = 0; j < kPacks; ++j)
      if (k0 + j * stride < tile.columns)
        store<V>(pass.sums + pass.part * tile.columns + k0 + j * stride, sum[j]);
    range = reduce(range, MergeRanges());
    if (threadIdx.x == 0) pass.ranges[blockIdx.x] = range;
  }
}

// Sums of the blocks' slices, in fixed order, for kTile columns from `k0`:
//   out_k = sign * log-sum + log_prior_k.  All threads; `shared` holds a LogSum<double> a thread.
__device__ __forceinline__ void combine_tile(const Pass& pass, bool wide, int64_t parts,
                                             int columns, int k0, double sign,
                                             const double* log_prior, double* out,
                                             LogSum<double>* shared) {
  const int slices = blockDim.x / kTile, slice = threadIdx.x / kTile, k = k0 + threadIdx.x % kTile;
  LogSum<double> total;
  if (!wide) total.max = 0;
  if (k < columns)
#pragma unroll 4
    for (int64_t p = slice; p < parts; p += slices) {
      const double sum = pass.sums[p * columns + k];
      if (wide)
        merge(total, pass.maxima[p * columns + k], sum);
      else
        total.sum += sum;
    }
  __syncthreads();  // the last tile's readers are done
  shared[threadIdx.x] = total;
  __syncthreads();
  if (slice != 0 || k >= columns) return;
  for (int s = 1; s < slices; ++s) {
    const LogSum<double> other = shared[s * kTile + threadIdx.x];
    merge(total, other.max, other.sum);
  }
  const double log_sum = total.max + log(total.sum) - (wide ? 0 : pass.state->shift);
  out[k] = sign * log_sum + (log_prior == nullptr ? 0 : log_prior[k]);
}

__device__ __forceinline__ bool is_wide(Form form, const State* state) {
  return form == Form::kWide || (form != Form::kNarrow && state->wide);
}

__device__ __forceinline__ bool is_wide(const Range* ranges, int64_t count, double scale,
                                        BlockReduce& reduce) {
  Range range;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) range = MergeRanges()(range, ranges[i]);
  range = reduce(range, MergeRanges());
  // Not "<=": a NaN goes the narrow way and stays a NaN.
  return scale * (static_cast<double>(range.max) - range.min) > kNarrowSpan;
}

}  // namespace ssl_fast
