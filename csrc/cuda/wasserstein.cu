// The fused updates between the products of a polar iteration (ssl_fast/_polar.py), float64:
//
//   column_sums   sum_i Z_id               one read of Z
//   center        X = Z - mean             one read, one write
//   polynomial    P = a I + b R + c R^2    two reads, one write of r x r
//   finish        (product + row) * factor, rounded to float32
//
// Not stored: no identity, no scaled copies. The products between them are the library's.
// Fang et al. 2024 (W2); Amsel et al. 2025 (the polynomials).
#include "columns.cuh"
#include "launchers.h"
#include "load.cuh"

namespace ssl_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 65535;

__device__ __forceinline__ double to_double(float x) { return x; }
__device__ __forceinline__ double to_double(bf16 x) { return to_float(x); }
__device__ __forceinline__ double to_double(f16 x) { return to_float(x); }

// partial[part, d]: the sum of a range of rows, in a fixed order.
template <typename T>
__global__ void __launch_bounds__(kColumnBlock)
    column_partials(const T* z, int64_t n, int64_t d, int64_t stride, double* partial) {
  const int64_t j = own_column();
  const int64_t share = (n + gridDim.y - 1) / gridDim.y;
  const int64_t begin = blockIdx.y * share, end = begin + share < n ? begin + share : n;
  const double sum = column_sum(begin, j < d ? end : begin,
                                [&](int64_t i) { return to_double(z[i * stride + j]); });
  if (is_first_lane() && j < d) partial[blockIdx.y * d + j] = sum;
}

__global__ void __launch_bounds__(kThreads)
    column_totals(const double* partial, int64_t parts, int64_t d, double* sums) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= d) return;
  double sum = 0;
  for (int64_t p = 0; p < parts; ++p) sum += partial[p * d + j];
  sums[j] = sum;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    center_rows(const T* z, int64_t n, int64_t d, int64_t stride, const double* mean, double* x) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < n * d;
       k += step) {
    const int64_t i = k / d, j = k % d;
    x[k] = to_double(z[i * stride + j]) - (mean ? mean[j] : 0.0);
  }
}

__global__ void __launch_bounds__(kThreads)
    matrix_polynomial(const double* r, const double* square, int64_t n, double a, double b,
                      double c, double* out) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < n * n; k += step)
    out[k] = (k / n == k % n ? a : 0.0) + b * r[k] + c * square[k];
}

__global__ void __launch_bounds__(kThreads)
    finish_gradient(const double* product, int64_t n, int64_t d, const double* row,
                    const double* factor, float* out) {
  const double scale = factor ? *factor : 1.0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < n * d; k += step)
    out[k] = static_cast<float>((product[k] + (row ? row[k % d] : 0.0)) * scale);
}

Launch flat(int64_t elements, cudaStream_t stream) {
  const int64_t blocks = ceil_div(elements, kThreads);
  return {static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks), kThreads, 0, stream};
}

}  // namespace

void column_sums(const Matrix& z, int64_t parts, double* partial, double* sums,
                 cudaStream_t stream) {
  const Launch how = by_columns(z.cols, parts, sizeof(double), stream);
  dispatch(z.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch("column_partials", how, column_partials<T>, static_cast<const T*>(z.data), z.rows,
           z.cols, z.stride, partial);
  });
  launch("column_totals", flat(z.cols, stream), column_totals, partial, parts, z.cols, sums);
}

void center(const Matrix& z, const double* mean, double* x, cudaStream_t stream) {
  dispatch(z.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch("center", flat(z.rows * z.cols, stream), center_rows<T>, static_cast<const T*>(z.data),
           z.rows, z.cols, z.stride, mean, x);
  });
}

void polynomial(const double* r, const double* square, int64_t n, double a, double b, double c,
                double* out, cudaStream_t stream) {
  launch("polynomial", flat(n * n, stream), matrix_polynomial, r, square, n, a, b, c, out);
}

void finish(const double* product, int64_t n, int64_t d, const double* row, const double* factor,
            float* out, cudaStream_t stream) {
  launch("finish", flat(n * d, stream), finish_gradient, product, n, d, row, factor, out);
}

}  // namespace ssl_fast
