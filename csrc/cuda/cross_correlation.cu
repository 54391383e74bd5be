// The cross-correlation loss around the library's products (ssl_fast/functional/
// _cross_correlation.py), a strip of columns of Z1^T Z0 at a time:
//
//   sum_d (C_dd - 1)^2 + w sum_{d != e} C_de^2,  C = Z0^T Z1 / N,  Z standardised
//
// and its gradient through the standardisation. No D x D matrix is stored. Bytes: a strip is read
// and written once, dots read three matrices, the gradient reads three and writes one.
// Zbontar et al. 2021 (Barlow Twins), Eq. 1, 2.
#include "columns.cuh"
#include "elementwise.cuh"
#include "launchers.h"

namespace ssl_fast {
namespace {

// Columns `first` on of N C, replaced by the derivative over N.
struct Strip {
  float* tile;
  int64_t stride, first;
  float inverse, weight;
  __device__ __forceinline__ double operator()(int64_t i, int64_t j) const {
    float& x = tile[i * stride + j];
    const bool diagonal = i == first + j;
    const float d = x * inverse - (diagonal ? 1.f : 0.f), w = diagonal ? 1.f : weight;
    x = 2 * w * d * inverse;
    return w * d * d;
  }
};

// g = alpha push + beta other
struct Combined {
  View<float> push, other;
  float alpha;
  const double* beta;
  __device__ __forceinline__ float operator()(int64_t i, int64_t j) const {
    const float g = alpha * push(i, j);
    return other.data ? fmaf(static_cast<float>(beta[j]), other(i, j), g) : g;
  }
};

struct Standardised {
  Combined g;
  View<float> own;
  const double *dots, *scale;
  float* out;
  int64_t stride;
  __device__ __forceinline__ void operator()(int64_t i, int64_t j) const {
    const float rest = g(i, j) - static_cast<float>(dots[j]) * own(i, j);
    out[i * stride + j] = rest * static_cast<float>(scale[j]);
  }
};

// dots_j = sum_i g_ij own_ij
__global__ void __launch_bounds__(kColumnBlock)
    column_dots(Combined g, View<float> own, int64_t n, int64_t d, double* dots /*(D)*/) {
  const int64_t j = own_column();
  const double sum = column_sum(0, j < d ? n : 0, [&](int64_t i) { return g(i, j) * own(i, j); });
  if (is_first_lane() && j < d) dots[j] = sum;
}

}  // namespace

void cross_correlation_penalty(const Matrix& tile, int64_t first, double inverse, double weight,
                               double* partial, cudaStream_t stream) {
  const Strip op{static_cast<float*>(tile.data), tile.stride, first, static_cast<float>(inverse),
                 static_cast<float>(weight)};
  sums("cross_correlation_penalty", op, tile.rows, tile.cols, partial, stream);
}

void cross_correlation_dots(const Matrix& push, const Matrix& own, const Matrix& other,
                            double alpha, const double* beta, double* dots, cudaStream_t stream) {
  const Combined g{view<float>(push), view<float>(other), static_cast<float>(alpha), beta};
  launch("cross_correlation_dots", by_columns(own.cols, 1, sizeof(double), stream), column_dots, g,
         view<float>(own), own.rows, own.cols, dots);
}

void cross_correlation_gradient(const Matrix& push, const Matrix& own, const Matrix& other,
                                double alpha, const double* beta, const double* dots,
                                const double* scale, const Matrix& out, cudaStream_t stream) {
  const Combined g{view<float>(push), view<float>(other), static_cast<float>(alpha), beta};
  each("cross_correlation_gradient",
       Standardised{g, view<float>(own), dots, scale, static_cast<float*>(out.data), out.stride},
       own.rows, own.cols, stream);
}

}  // namespace ssl_fast
