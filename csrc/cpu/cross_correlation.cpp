// The cross-correlation loss around its products, row by row while a strip of Z1^T Z0 is in cache:
//
//   sum_d (C_dd - 1)^2 + w sum_{d != e} C_de^2,  C = Z0^T Z1 / N,  Z standardised
//
// and its gradient through the standardisation. The products are torch's; no D x D matrix is
// stored. Bytes: a strip is read and written once, dots read three matrices, the gradient reads
// three and writes one. Zbontar et al. 2021 (Barlow Twins), Eq. 1, 2.
#include "cpu/columns.h"
#include "cpu/ops.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

// c = tile / N in place of the derivative: 2 (c_dd - 1) / N on the diagonal, 2 w c / N off it.
template <typename C>
double correlation_rows(const Matrix& tile, int64_t first, double count, double weight,
                        int threads) {
  using V = Vec<C>;
  const V inverse((C)(1 / count)), slope((C)(2 * weight / count));
  return row_sums(tile, threads, [&](int64_t i) {
    C* x = row_of<C>(tile, i);
    const int64_t own = i - first;
    const bool crosses = 0 <= own && own < tile.cols;
    const double diagonal = crosses ? x[own] / count - 1 : 0;
    if (crosses) x[own] = 0;
    const double squares = folded_sum<C>(tile.cols, [&](int64_t j, auto lanes) {
      V c = V::load(x + j, lanes) * inverse;
      (c * slope).store(x + j, lanes);
      return c * c;
    });
    if (crosses) x[own] = (C)(2 * diagonal / count);
    return diagonal * diagonal + weight * squares;
  });
}

// g = alpha push + beta other, row by row.
template <typename C>
struct Combined {
  const Matrix &push, &other;
  const C* beta;  // [D], or null with no other
  Vec<C> alpha;
  template <typename Lanes>
  Vec<C> operator()(int64_t i, int64_t j, Lanes lanes) const {
    using V = Vec<C>;
    V g = alpha * V::load(row_of<C>(push, i) + j, lanes);
    if (!beta) return g;
    const C* o = row_of<C>(other, i);
    return fma(V::load(beta + j, lanes), V::load(o + j, lanes), g);
  }
};

template <typename C>
void dots_of(const Matrix& push, const Matrix& own, const Matrix& other, double alpha,
             const double* beta, double* dots, int threads) {
  using V = Vec<C>;
  const Converted<C> beta_c(beta, own.cols);
  const Combined<C> g{push, other, beta_c, (C)alpha};
  column_blocks(own, threads, [&](int64_t first, int64_t cols) {
    ColumnSums<C> sums;
    for (int64_t i = 0; i < own.rows; i++) {
      const C* x = row_of<C>(own, i) + first;
      sums.add(cols, [&](int64_t j, auto lanes) {
        return g(i, first + j, lanes) * V::load(x + j, lanes);
      });
    }
    const double* total = sums.total();
    for (int64_t j = 0; j < cols; j++) dots[first + j] = total[j];
  });
}

// out = scale (g - dots own)
template <typename C>
void standardised_gradient(const Matrix& push, const Matrix& own, const Matrix& other, double alpha,
                           const double* beta, const double* dots, const double* scale,
                           const Matrix& out, int threads) {
  using V = Vec<C>;
  const Converted<C> beta_c(beta, own.cols), dots_c(dots, own.cols), scale_c(scale, own.cols);
  const Combined<C> g{push, other, beta_c, (C)alpha};
  const C *t = dots_c, *s = scale_c;
  parallel(threads, own.rows * own.cols, [&](Team team) {
    Scratch<C> row(converts<C>(out) ? own.cols : 0);
    for (int64_t i = team.begin(own.rows); i < team.end(own.rows); i++) {
      const C* x = row_of<C>(own, i);
      C* d = write_row<C>(out, i, row);
      sweep<C>(own.cols, [&](int64_t j, auto lanes) {
        V rest = g(i, j, lanes) - V::load(t + j, lanes) * V::load(x + j, lanes);
        (rest * V::load(s + j, lanes)).store(d + j, lanes);
      });
      finish_row<C>(out, i, row);
    }
  });
}

template <typename C>
Diagonal diagonal_of(const Matrix& first, const Matrix& second, double weight, double* beta,
                     int threads) {
  const double n = (double)first.rows;
  dots_of<C>(first, second, Matrix{}, 1, nullptr, beta, threads);
  Diagonal sums{};
  for (int64_t d = 0; d < first.cols; d++) {
    const double c = beta[d] / n;
    sums.squares += c * c;
    sums.away += (c - 1) * (c - 1);
    beta[d] = (2 * (c - 1) - 2 * weight * c) / n;
  }
  return sums;
}

template <typename C>
void through_standardisation(const Matrix& push, const Matrix& own, const Matrix& other,
                             double alpha, const double* beta, const double* squares, double eps,
                             const Matrix& out, int threads) {
  Scratch<double> dots(own.cols), scale(own.cols);
  dots_of<C>(push, own, other, alpha, beta, dots, threads);
  for (int64_t d = 0; d < own.cols; d++) {
    dots[d] /= own.rows;
    scale[d] = 1 / sqrt(squares[d] / own.rows + eps);
  }
  standardised_gradient<C>(push, own, other, alpha, beta, dots, scale, out, threads);
}

}  // namespace

double cross_correlation_penalty(const Matrix& tile, int64_t first, double count, double weight,
                                 int threads) {
  const auto kernel = tile.dtype == kFloat64 ? correlation_rows<double> : correlation_rows<float>;
  return kernel(tile, first, count, weight, threads);
}

void cross_correlation_dots(const Matrix& push, const Matrix& own, const Matrix& other,
                            double alpha, const double* beta, double* dots, int threads) {
  const auto kernel = own.dtype == kFloat64 ? dots_of<double> : dots_of<float>;
  kernel(push, own, other, alpha, beta, dots, threads);
}

void cross_correlation_gradient(const Matrix& push, const Matrix& own, const Matrix& other,
                                double alpha, const double* beta, const double* dots,
                                const double* scale, const Matrix& out, int threads) {
  const auto kernel =
      own.dtype == kFloat64 ? standardised_gradient<double> : standardised_gradient<float>;
  kernel(push, own, other, alpha, beta, dots, scale, out, threads);
}

Diagonal cross_correlation_diagonal(const Matrix& first, const Matrix& second, double weight,
                                    double* beta, int threads) {
  const auto kernel = first.dtype == kFloat64 ? diagonal_of<double> : diagonal_of<float>;
  return kernel(first, second, weight, beta, threads);
}

void cross_correlation_standardised(const Matrix& push, const Matrix& own, const Matrix& other,
                                    double alpha, const double* beta, const double* squares,
                                    double eps, const Matrix& out, int threads) {
  const auto kernel =
      own.dtype == kFloat64 ? through_standardisation<double> : through_standardisation<float>;
  kernel(push, own, other, alpha, beta, squares, eps, out, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
