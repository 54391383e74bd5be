// Targets q_ik = exp(scale s_ik + row_i + col_k) on the fly, or stored probabilities.
// float32 after a cancellation by row: scale (s_ik - c_i) + (col_k - shift), with c_i = -(row_i +
// shift) / scale. As q <= 1, both terms are at most about the spread of col, so up to kNarrowSpan
// nats float32 is enough; beyond, exponents are summed in float64.
#pragma once
#include <algorithm>

#include "launchers.h"
#include "load.cuh"
#include "reduce.cuh"

namespace ssl_fast {

struct ColumnState {
  double shift;  // max of col
  int wide;      // col spreads over more than kNarrowSpan nats, zero priors aside
};

template <typename Q>
struct TargetView {
  const Q* values;  // (N, K)
  int64_t stride;
  double scale;
  const double* row;  // (N)
  const double* col;  // (K), or null: zeros
  const float* col2;  // (K): (col - shift) in powers of two
  const ColumnState* state;
  bool dense;
};

struct RowTerm {
  double row;
  float reference, offset2, scale2;
  bool wide;
};

template <typename Q>
__device__ __forceinline__ RowTerm row_term(const TargetView<Q>& targets, int64_t i) {
  RowTerm term = {};
  if (targets.dense) return term;
  const double shift = targets.state->shift;
  term.wide = targets.state->wide;
  term.row = targets.row[i];
  term.reference = static_cast<float>(-(term.row + shift) / targets.scale);
  term.offset2 = static_cast<float>((term.row + shift + targets.scale * term.reference) * kLog2e);
  term.scale2 = static_cast<float>(targets.scale * kLog2e);
  return term;
}

template <int V, typename Q>
__device__ __forceinline__ void load_col2(const TargetView<Q>& targets, int k, float (&col2)[V]) {
  if (targets.dense) return;
  const Pack<float, V> pack = load<V>(targets.col2 + k);
#pragma unroll
  for (int v = 0; v < V; ++v) col2[v] = pack.value[v];
}

template <int V, typename Q>
__device__ __forceinline__ void evaluate_pack(const TargetView<Q>& targets, const RowTerm& term,
                                              const Pack<Q, V>& values, const float (&col2)[V],
                                              int k, float (&q)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const float s = to_float(values.value[v]);
    if (targets.dense)
      q[v] = s;
    else if (!term.wide)
      q[v] = exp2_fast(fmaf(s - term.reference, term.scale2, col2[v] + term.offset2));
    else
      q[v] =
          exp_of(targets.scale * s + term.row + (targets.col == nullptr ? 0 : targets.col[k + v]));
  }
}

namespace {

__global__ void __launch_bounds__(kMaxThreads, 1)
    prepare_columns(const double* col /*(K)*/, int columns, float* col2 /*(K)*/,
                    ColumnState* state) {
  BlockReduce reduce;
  double max = -INFINITY, negated_min = -INFINITY;
  for (int k = threadIdx.x; col != nullptr && k < columns; k += blockDim.x) {
    max = fmax(max, col[k]);
    if (col[k] > -INFINITY) negated_min = fmax(negated_min, -col[k]);
  }
  max = col == nullptr ? 0 : reduce(max, Max());
  negated_min = reduce(negated_min, Max());
  for (int k = threadIdx.x; k < columns; k += blockDim.x)
    col2[k] = col == nullptr ? 0.0f : static_cast<float>((col[k] - max) * kLog2e);
  if (threadIdx.x == 0) *state = {max, max + negated_min > kNarrowSpan};
}

// Fills the head of `scratch` with the columns' terms; what follows it is free.
template <typename Q>
TargetView<Q> prepare(const Targets& targets, void* scratch, cudaStream_t stream) {
  const bool dense = targets.row == nullptr;
  auto* state = static_cast<ColumnState*>(scratch);
  auto* col2 = reinterpret_cast<float*>(static_cast<char*>(scratch) + aligned(sizeof(ColumnState)));
  if (!dense)
    launch("prepare_columns", {1, kMaxThreads, kReduceBytes, stream}, prepare_columns, targets.col,
           static_cast<int>(targets.values.cols), col2, state);
  return {static_cast<const Q*>(targets.values.data),
          targets.values.stride,
          targets.scale,
          targets.row,
          targets.col,
          col2,
          state,
          dense};
}

inline int64_t prepare_bytes(int64_t k) {
  return aligned(sizeof(ColumnState)) + aligned(k * sizeof(float));
}

constexpr int kColumnThreads = 128;

// Column-owner launches: a thread holds V columns and visits rows; no barrier, no sharing.
// Unmeasured: chunks of four rows or more, as many as fill the multiprocessors' 2048 threads.
inline Launch column_owner(int64_t n, int64_t k, int width, cudaStream_t stream) {
  const int threads = whole_warps(ceil_div(k, width), kColumnThreads);
  const int64_t tiles = ceil_div(k, threads * width);
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount);
  const int64_t wanted = std::max<int64_t>(1, processors * 2048 / threads / tiles);
  const int64_t chunks = std::min<int64_t>({ceil_div(n, 4), wanted, kMaxGridY});
  return {dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(chunks)),
          static_cast<unsigned>(threads), 0, stream};
}

// Chunks of rows whose partial results share one scratch, whatever the width of the loads.
inline int64_t column_chunks(int64_t n, int64_t k) { return column_owner(n, k, 8, nullptr).grid.y; }

inline Launch column_owner_in_chunks(const Matrix& m, int width, cudaStream_t stream) {
  Launch how = column_owner(m.rows, m.cols, width, stream);
  how.grid.y = static_cast<unsigned>(column_chunks(m.rows, m.cols));
  return how;
}

}  // namespace
}  // namespace ssl_fast
