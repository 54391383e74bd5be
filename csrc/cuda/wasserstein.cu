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
#include "elementwise.cuh"
#include "launchers.h"

namespace ssl_fast {
namespace {

// partial[part, d]: the sum of a range of rows, in a fixed order.
template <typename T>
__global__ void __launch_bounds__(kColumnBlock)
    column_partials(View<T> z, int64_t n, int64_t d, double* partial) {
  const int64_t j = own_column();
  const Share rows = own_share(n);
  const double sum =
      column_sum(rows.begin, j < d ? rows.end : rows.begin, [&](int64_t i) { return z(i, j); });
  if (is_first_lane() && j < d) partial[blockIdx.y * d + j] = sum;
}

// Of one row of sums.
struct Totals {
  const double* partial;  // (parts, D)
  int64_t parts, d;
  double* sums;
  __device__ __forceinline__ void operator()(int64_t, int64_t j) const {
    double sum = 0;
    for (int64_t p = 0; p < parts; ++p) sum += partial[p * d + j];
    sums[j] = sum;
  }
};

template <typename T>
struct Center {
  View<T> z;
  const double* mean;
  double* x;
  int64_t d;
  __device__ __forceinline__ void operator()(int64_t i, int64_t j) const {
    x[i * d + j] = z(i, j) - (mean ? mean[j] : 0.0);
  }
};

struct Polynomial {
  const double *r, *square;
  int64_t n;
  double a, b, c;
  double* out;
  __device__ __forceinline__ void operator()(int64_t i, int64_t j) const {
    const int64_t k = i * n + j;
    out[k] = (i == j ? a : 0.0) + b * r[k] + c * square[k];
  }
};

struct Finish {
  const double *product, *row, *factor;
  float* out;
  int64_t d;
  __device__ __forceinline__ void operator()(int64_t i, int64_t j) const {
    const int64_t k = i * d + j;
    out[k] = static_cast<float>((product[k] + (row ? row[j] : 0.0)) * (factor ? *factor : 1.0));
  }
};

}  // namespace

void column_sums(const Matrix& z, int64_t parts, double* partial, double* sums,
                 cudaStream_t stream) {
  const Launch how = by_columns(z.cols, parts, sizeof(double), stream);
  dispatch(z.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch("column_partials", how, column_partials<T>, view<T>(z), z.rows, z.cols, partial);
  });
  each("column_totals", Totals{partial, parts, z.cols, sums}, 1, z.cols, stream);
}

void center(const Matrix& z, const double* mean, double* x, cudaStream_t stream) {
  dispatch(z.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    each("center", Center<T>{view<T>(z), mean, x, z.cols}, z.rows, z.cols, stream);
  });
}

void polynomial(const double* r, const double* square, int64_t n, double a, double b, double c,
                double* out, cudaStream_t stream) {
  each("polynomial", Polynomial{r, square, n, a, b, c, out}, n, n, stream);
}

void finish(const double* product, int64_t n, int64_t d, const double* row, const double* factor,
            float* out, cudaStream_t stream) {
  each("finish", Finish{product, row, factor, out, d}, n, d, stream);
}

}  // namespace ssl_fast
