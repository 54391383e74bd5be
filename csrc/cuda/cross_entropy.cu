// Cross-entropy of softmax(l), l = logits * inv_temperature, against an assignment q:
//     loss_i = a_i LSE_k(l_ik) - sum_k q_ik l_ik,   a_i = sum_k q_ik
//     dloss_i / dl_ik = a_i P_ik - q_ik
// (SwAV Eq. 2, DINO Eq. 1). Symmetric (ReSA Eq. 2): the same once more with rows and columns
// exchanged. Not stored: the softmax, and q when it comes as potentials. Forward reads logits and
// targets once (twice when symmetric: N is a batch there, L2 holds it); backward reads both once
// and writes the gradient. One exp2 an element and visit (two in a symmetric backward) and one a
// load for the running maximum, one more an element where q is evaluated.
#include "cross_entropy.cuh"
#include "evaluate.cuh"
#include "launchers.h"
#include "logits.cuh"

namespace ssl_fast {
namespace {

constexpr int kRowsAtOnce = 4;
constexpr int kPacksAtOnce = 4;
constexpr int kTile = 8;  // columns combined by one block
constexpr int kCombineThreads = 256;
constexpr int kRowThreads = 256;

// A block a row.
template <typename T, typename Q, int V>
__global__ void __launch_bounds__(kRowThreads, 1)
    cross_entropy_rows(Logits<T> logits, TargetView<Q> targets, double* row_stats /*(4, N)*/) {
  const int64_t i = blockIdx.x, n = logits.n;
  const T* const l = logits.data + i * logits.stride;
  const Q* const s = targets.values + i * targets.stride;
  const RowTerm term = row_term(targets, i);
  const int step = blockDim.x * V;
  Terms terms;
  for (int k0 = threadIdx.x * V; k0 < logits.columns; k0 += step * kPacksAtOnce) {
    Pack<T, V> packs[kPacksAtOnce];
    Pack<Q, V> values[kPacksAtOnce];
#pragma unroll
    for (int j = 0; j < kPacksAtOnce; ++j)
      if (k0 + j * step < logits.columns) {
        packs[j] = load<V>(l + k0 + j * step);
        values[j] = load<V>(s + k0 + j * step);
      }
#pragma unroll
    for (int j = 0; j < kPacksAtOnce; ++j) {
      const int k = k0 + j * step;
      if (k >= logits.columns) break;
      float col2[V], q[V], top = terms.max;
      load_col2<V>(targets, k, col2);
      evaluate_pack<V>(targets, term, values[j], col2, k, q);
#pragma unroll
      for (int v = 0; v < V; ++v) top = fmaxf(top, to_float(packs[j].value[v]));
      terms.raise(top, logits.scale2);
#pragma unroll
      for (int v = 0; v < V; ++v) terms.add(to_float(packs[j].value[v]), q[v], logits.scale2);
    }
  }
  BlockReduce reduce;
  terms = reduce(terms, MergeTerms{logits.scale2});
  if (threadIdx.x != 0) return;
  row_stats[i] = terms.max;
  row_stats[n + i] = terms.log();
  row_stats[2 * n + i] = terms.mass;
  row_stats[3 * n + i] = terms.loss(logits.inv_temperature);
}

// V columns of kRowsAtOnce rows, all loads before the first use; past the end the first row again.
template <typename T, typename Q, int V>
__device__ __forceinline__ void visit_rows(const Logits<T>& logits, const TargetView<Q>& targets,
                                           int64_t i0, int k, const float (&col2)[V],
                                           float (&l)[kRowsAtOnce][V], float (&q)[kRowsAtOnce][V]) {
  Pack<T, V> packs[kRowsAtOnce];
  Pack<Q, V> values[kRowsAtOnce];
  int64_t rows[kRowsAtOnce];
#pragma unroll
  for (int r = 0; r < kRowsAtOnce; ++r) {
    const int64_t i = i0 + static_cast<int64_t>(r) * gridDim.y;
    rows[r] = i < logits.n ? i : i0;
    packs[r] = load<V>(logits.data + rows[r] * logits.stride + k);
    values[r] = load<V>(targets.values + rows[r] * targets.stride + k);
  }
#pragma unroll
  for (int r = 0; r < kRowsAtOnce; ++r) {
    evaluate_pack<V>(targets, row_term(targets, rows[r]), values[r], col2, k, q[r]);
#pragma unroll
    for (int v = 0; v < V; ++v) l[r][v] = to_float(packs[r].value[v]);
  }
}

// A thread V columns, over this block's rows.
template <typename T, typename Q, int V>
__global__ void __launch_bounds__(kColumnThreads, 1)
    cross_entropy_columns(Logits<T> logits, TargetView<Q> targets,
                          Terms* partials /*(gridDim.y, K)*/) {
  const int k = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (k >= logits.columns) return;
  float col2[V];
  load_col2<V>(targets, k, col2);
  Terms terms[V];
  for (int64_t i0 = blockIdx.y; i0 < logits.n;
       i0 += static_cast<int64_t>(gridDim.y) * kRowsAtOnce) {
    float l[kRowsAtOnce][V], q[kRowsAtOnce][V];
    visit_rows(logits, targets, i0, k, col2, l, q);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float top = terms[v].max;
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) top = fmaxf(top, l[r][v]);
      terms[v].raise(top, logits.scale2);
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r)
        if (i0 + static_cast<int64_t>(r) * gridDim.y < logits.n)
          terms[v].add(l[r][v], q[r][v], logits.scale2);
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v)
    partials[static_cast<int64_t>(blockIdx.y) * logits.columns + k + v] = terms[v];
}

__global__ void __launch_bounds__(kCombineThreads)
    cross_entropy_combine(const Terms* partials /*(parts, K)*/, int parts, int columns,
                          double inv_temperature, double* col_stats /*(3, K)*/,
                          double* col_loss /*(K)*/) {
  Terms* shared = reinterpret_cast<Terms*>(dynamic_shared());
  const int slices = blockDim.x / kTile, slice = threadIdx.x / kTile,
            k = blockIdx.x * kTile + threadIdx.x % kTile;
  const MergeTerms merge{static_cast<float>(inv_temperature * kLog2e)};
  Terms terms;
  for (int64_t p = slice; p < parts && k < columns; p += slices)
    terms = merge(terms, partials[p * columns + k]);
  shared[threadIdx.x] = terms;
  __syncthreads();
  if (slice != 0 || k >= columns) return;
  for (int s = 1; s < slices; ++s) terms = merge(terms, shared[s * kTile + threadIdx.x]);
  col_stats[k] = terms.max;
  col_stats[columns + k] = terms.log();
  col_stats[2 * static_cast<int64_t>(columns) + k] = terms.mass;
  col_loss[k] = terms.loss(inv_temperature);
}

__global__ void __launch_bounds__(kMaxThreads, 1)
    cross_entropy_total(const double* row_loss /*(N)*/, int64_t n,
                        const double* col_loss /*(K) or null*/, int columns, double factor,
                        float* loss /*()*/) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += row_loss[i];
  for (int k = threadIdx.x; col_loss != nullptr && k < columns; k += blockDim.x) sum += col_loss[k];
  BlockReduce reduce;
  sum = reduce(sum, Add());
  if (threadIdx.x == 0) *loss = static_cast<float>(factor * sum);
}

__device__ __forceinline__ float mass_times_softmax(const Softmax& softmax, float logit,
                                                    float scale2) {
  return softmax.mass * exp2_fast(fmaf(logit - softmax.shift, scale2, -softmax.log2));
}

// A thread V columns, over this block's rows. `d_logits` may be the logits: a pack is read before
// it is written.
template <typename T, typename Q, int V>
__global__ void __launch_bounds__(kColumnThreads, 1)
    cross_entropy_gradient(Logits<T> logits, TargetView<Q> targets,
                           const double* row_stats /*(4, N)*/, int64_t row_stats_stride,
                           const double* col_stats /*(3, K) or null*/,
                           const float* d_loss /*() or (N)*/, int64_t d_loss_stride, double factor,
                           T* d_logits /*(N, K)*/, int64_t d_stride) {
  const int k = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (k >= logits.columns) return;
  float col2[V];
  load_col2<V>(targets, k, col2);
  Softmax columns[V];
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (col_stats != nullptr) columns[v] = softmax_of(col_stats, logits.columns, k + v);
  for (int64_t i0 = blockIdx.y; i0 < logits.n;
       i0 += static_cast<int64_t>(gridDim.y) * kRowsAtOnce) {
    float l[kRowsAtOnce][V], d[kRowsAtOnce][V];
    visit_rows(logits, targets, i0, k, col2, l, d);
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int64_t i = i0 + static_cast<int64_t>(r) * gridDim.y;
      if (i >= logits.n) return;
      const Softmax row = softmax_of(row_stats, row_stats_stride, i);
      const double upstream = d_loss == nullptr ? 1.0 : d_loss[i * d_loss_stride];
      const float g = static_cast<float>(factor * logits.inv_temperature * upstream);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float q = d[r][v];
        // d_l = a_i P_ik - q_ik  [+ b_k P'_ik - q_ik]
        d[r][v] = mass_times_softmax(row, l[r][v], logits.scale2) - q;
        if (col_stats != nullptr)
          d[r][v] += mass_times_softmax(columns[v], l[r][v], logits.scale2) - q;
        d[r][v] *= g;
      }
      store<V>(d_logits + i * d_stride + k, d[r]);
    }
  }
}

}  // namespace

int64_t cross_entropy_scratch_bytes(int64_t n, int64_t k, bool symmetric) {
  const int64_t partials =
      symmetric ? column_chunks(n, k) * k * static_cast<int64_t>(sizeof(Terms)) : 0;
  return prepare_bytes(k) + aligned(k * sizeof(double)) + partials;
}

void cross_entropy_forward(const Matrix& logits, double inv_temperature, const Targets& targets,
                           const Stats& stats, double factor, float* loss, void* scratch,
                           cudaStream_t stream) {
  const int64_t n = logits.rows, k = logits.cols;
  const int columns = static_cast<int>(k);
  char* const free = static_cast<char*>(scratch) + prepare_bytes(k);
  double* const col_loss = stats.col == nullptr ? nullptr : reinterpret_cast<double*>(free);
  auto* const partials = reinterpret_cast<Terms*>(free + aligned(k * sizeof(double)));
  dispatch_pair(logits, targets.values, true, [&](auto t, auto q, auto width) {
    using T = typename decltype(t)::type;
    using Q = typename decltype(q)::type;
    constexpr int V = decltype(width)::value;
    const auto values = prepare<Q>(targets, scratch, stream);
    // Unmeasured: one round of loads a thread, so that many rows are in flight on a multiprocessor.
    const int threads = whole_warps(ceil_div(k, V * kPacksAtOnce), kRowThreads);
    launch("cross_entropy_rows",
           {static_cast<unsigned>(n), static_cast<unsigned>(threads), kReduceBytes, stream},
           cross_entropy_rows<T, Q, V>, view<T>(logits, inv_temperature), values, stats.row);
    if (stats.col == nullptr) return;
    const Launch how = column_owner_in_chunks(logits, V, stream);
    launch("cross_entropy_columns", how, cross_entropy_columns<T, Q, V>,
           view<T>(logits, inv_temperature), values, partials);
    launch("cross_entropy_combine",
           {static_cast<unsigned>(ceil_div(k, kTile)), kCombineThreads,
            kCombineThreads * sizeof(Terms), stream},
           cross_entropy_combine, partials, how.grid.y, columns, inv_temperature, stats.col,
           col_loss);
  });
  launch("cross_entropy_total", {1, kMaxThreads, kReduceBytes, stream}, cross_entropy_total,
         stats.row + 3 * n, n, col_loss, columns, factor, loss);
}

void cross_entropy_backward(const Matrix& logits, double inv_temperature, const Targets& targets,
                            const Stats& stats, const float* d_loss, int64_t d_loss_stride,
                            double factor, const Matrix& out, void* scratch, cudaStream_t stream) {
  dispatch_pair(logits, targets.values, has_aligned_rows(out), [&](auto t, auto q, auto width) {
    using T = typename decltype(t)::type;
    using Q = typename decltype(q)::type;
    constexpr int V = decltype(width)::value;
    launch("cross_entropy_gradient", column_owner(logits.rows, logits.cols, V, stream),
           cross_entropy_gradient<T, Q, V>, view<T>(logits, inv_temperature),
           prepare<Q>(targets, scratch, stream), stats.row, stats.row_stride, stats.col, d_loss,
           d_loss_stride, factor, static_cast<T*>(out.data), out.stride);
  });
}

}  // namespace ssl_fast
