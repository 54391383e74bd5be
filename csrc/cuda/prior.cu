// Column sums of P = softmax(l), l = logits * inv_temperature, for priors on prototypes (MSN; PMSN,
// Eq. 9), beside the row statistics that cross_entropy.cu leaves:
//     p_k = sum_i P_ik;   P_ik G_k = R_ik = w_k exp(log P_ik - c_k),  G = N dKL/dp
//     dloss / dl_ik = a_i P_ik - q_ik + R_ik - P_ik h_i,   h_i = sum_j R_ij
// Not stored: P, q, R. Bytes: one more read of the logits forward, backward two reads, one of the
// targets, one write. Operations: one exp2 an element in the sums of rows, two in those of columns
// and in the gradient, one more where q is evaluated. Sums leave as logarithms; exponents beyond
// kNarrowSpan nats are formed in float64.
#include "logits.cuh"

namespace ssl_fast {
namespace {

constexpr int kRowThreads = 256;
constexpr int kCombineThreads = 128;
constexpr float kNarrow2 = static_cast<float>(kNarrowSpan * kLog2e);

// What a row's log2 P needs, once in each precision.
struct RowLog {
  double shift, log2;
  float near_shift, near_log2;
};

__device__ __forceinline__ RowLog row_log(const double* stats /*(4, N)*/, int64_t stride,
                                          int64_t i) {
  const double shift = stats[i], log2 = stats[stride + i] * kLog2e;
  return {shift, log2, static_cast<float>(shift), static_cast<float>(log2)};
}

// log2(P_ik) - less2
template <typename T>
__device__ __forceinline__ float log2_softmax(const Logits<T>& logits, const RowLog& row, float l,
                                              double less2) {
  const float near = (l - row.near_shift) * logits.scale2;
  if (near >= -kNarrow2 && fabs(less2) <= kNarrow2)
    return near - (row.near_log2 + static_cast<float>(less2));
  const double wide = (l - row.shift) * logits.inv_temperature * kLog2e;
  return static_cast<float>(wide - (row.log2 + less2));
}

// R_ik = w_k exp(log P_ik - c_k)
template <typename T>
__device__ __forceinline__ float prior_term(const Logits<T>& logits, const RowLog& row, float l,
                                            double weight, double offset) {
  return static_cast<float>(weight) * exp2_fast(log2_softmax(logits, row, l, offset * kLog2e));
}

// Base-2 log of a sum: max + log2(sum).
struct LogSum2 {
  float max = kLowest, sum = 0;

  __device__ __forceinline__ void add(float x, float weight) {
    const float top = fmaxf(max, x);
    sum = sum * exp2_fast(max - top) + weight * exp2_fast(x - top);
    max = top;
  }
};

// A thread V columns, over this block's rows.
template <typename T, int V>
__global__ void __launch_bounds__(kColumnThreads, 1)
    prior_columns(Logits<T> logits, const double* row_stats /*(4, N)*/, int64_t stats_stride,
                  LogSum2* partials /*(gridDim.y, K)*/) {
  const int k = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (k >= logits.columns) return;
  LogSum2 sums[V];
  for (int64_t i = blockIdx.y; i < logits.n; i += gridDim.y) {
    const RowLog row = row_log(row_stats, stats_stride, i);
    const Pack<T, V> pack = load<V>(logits.data + i * logits.stride + k);
#pragma unroll
    for (int v = 0; v < V; ++v)
      sums[v].add(log2_softmax(logits, row, to_float(pack.value[v]), 0), 1);
  }
#pragma unroll
  for (int v = 0; v < V; ++v)
    partials[static_cast<int64_t>(blockIdx.y) * logits.columns + k + v] = sums[v];
}

__global__ void __launch_bounds__(kCombineThreads, 1)
    prior_combine(const LogSum2* partials /*(parts, K)*/, int parts, int columns,
                  double* log_mass /*(K)*/) {
  const int k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k >= columns) return;
  LogSum2 sum;
  for (int64_t p = 0; p < parts; ++p) {
    const LogSum2 part = partials[p * columns + k];
    sum.add(part.max, part.sum);
  }
  log_mass[k] = sum.max * kLn2 + log_of(sum.sum);
}

// h_i = sum_k R_ik: a block a row.
template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads, 1)
    prior_rows(Logits<T> logits, const double* row_stats /*(4, N)*/, int64_t stats_stride,
               const double* prior /*(2, K)*/, float* h /*(N)*/) {
  const int64_t i = blockIdx.x;
  const RowLog row = row_log(row_stats, stats_stride, i);
  const T* const l = logits.data + i * logits.stride;
  float sum = 0;
  for (int k = threadIdx.x * V; k < logits.columns; k += blockDim.x * V) {
    const Pack<T, V> pack = load<V>(l + k);
#pragma unroll
    for (int v = 0; v < V; ++v)
      sum += prior_term(logits, row, to_float(pack.value[v]), prior[k + v],
                        prior[logits.columns + k + v]);
  }
  BlockReduce reduce;
  sum = reduce(sum, Add());
  if (threadIdx.x == 0) h[i] = sum;
}

// A thread V columns, over this block's rows. `d_logits` may be the logits: a pack is read before
// it is written.
template <typename T, typename Q, int V>
__global__ void __launch_bounds__(kColumnThreads, 1)
    prior_gradient(Logits<T> logits, TargetView<Q> targets /*values null: none*/,
                   const double* row_stats /*(4, N)*/, int64_t stats_stride,
                   const double* prior /*(2, K)*/, const float* h /*(N)*/,
                   const float* d_loss /*() or null*/, double factor, T* d_logits /*(N, K)*/,
                   int64_t d_stride) {
  const int k = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (k >= logits.columns) return;
  const bool given = targets.values != nullptr;
  const double upstream = d_loss == nullptr ? 1.0 : *d_loss;
  const float g = static_cast<float>(factor * logits.inv_temperature * upstream);
  float col2[V] = {};
  if (given) load_col2<V>(targets, k, col2);
  for (int64_t i = blockIdx.y; i < logits.n; i += gridDim.y) {
    const RowLog row = row_log(row_stats, stats_stride, i);
    const Pack<T, V> pack = load<V>(logits.data + i * logits.stride + k);
    float d[V], q[V] = {};
    if (given)
      evaluate_pack<V>(targets, row_term(targets, i),
                       load<V>(targets.values + i * targets.stride + k), col2, k, q);
    const float base = (given ? static_cast<float>(row_stats[2 * stats_stride + i]) : 0.0f) - h[i];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float l = to_float(pack.value[v]);
      const float p = exp2_fast(log2_softmax(logits, row, l, 0));
      const float r = prior_term(logits, row, l, prior[k + v], prior[logits.columns + k + v]);
      // d_l = (a_i - h_i) P_ik + R_ik - q_ik
      d[v] = g * (fmaf(base, p, r) - q[v]);
    }
    store<V>(d_logits + i * d_stride + k, d);
  }
}

}  // namespace

int64_t prior_scratch_bytes(int64_t n, int64_t k) {
  const int64_t partials = column_chunks(n, k) * k * static_cast<int64_t>(sizeof(LogSum2));
  const int64_t h = aligned(n * sizeof(float));
  return std::max(partials, prepare_bytes(k) + h);
}

void prior_columns(const Matrix& logits, double inv_temperature, const Stats& stats,
                   double* log_mass, void* scratch, cudaStream_t stream) {
  auto* const partials = static_cast<LogSum2*>(scratch);
  dispatch(logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    dispatch_width<T>(is_aligned<T>(logits.data, logits.stride, logits.cols), [&](auto width) {
      constexpr int V = decltype(width)::value;
      const Launch how = column_owner_in_chunks(logits, V, stream);
      launch("prior_columns", how, prior_columns<T, V>, view<T>(logits, inv_temperature), stats.row,
             stats.row_stride, partials);
      launch("prior_combine",
             {static_cast<unsigned>(ceil_div(logits.cols, kCombineThreads)), kCombineThreads, 0,
              stream},
             prior_combine, partials, how.grid.y, static_cast<int>(logits.cols), log_mass);
    });
  });
}

void prior_backward(const Matrix& logits, double inv_temperature, const Targets& targets,
                    const Stats& stats, const double* prior, const float* d_loss, double factor,
                    const Matrix& out, void* scratch, cudaStream_t stream) {
  auto* const h =
      reinterpret_cast<float*>(static_cast<char*>(scratch) + prepare_bytes(logits.cols));
  dispatch_pair(logits, targets.values, has_aligned_rows(out), [&](auto t, auto q, auto width) {
    using T = typename decltype(t)::type;
    using Q = typename decltype(q)::type;
    constexpr int V = decltype(width)::value;
    const auto threads = static_cast<unsigned>(whole_warps(ceil_div(logits.cols, V), kRowThreads));
    launch("prior_rows", {static_cast<unsigned>(logits.rows), threads, kReduceBytes, stream},
           prior_rows<T, V>, view<T>(logits, inv_temperature), stats.row, stats.row_stride, prior,
           h);
    launch("prior_gradient", column_owner(logits.rows, logits.cols, V, stream),
           prior_gradient<T, Q, V>, view<T>(logits, inv_temperature),
           prepare<Q>(targets, scratch, stream), stats.row, stats.row_stride, prior, h, d_loss,
           factor, static_cast<T*>(out.data), out.stride);
  });
}

}  // namespace ssl_fast
