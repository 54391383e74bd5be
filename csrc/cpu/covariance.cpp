// What the covariance losses do around their products: columns' moments, reductions over Grams and
// strips of Z^T Z while they are in cache, gradients in one pass.
//
//   sum_{d != e} (Z^T Z)_de^2,   dZ = 4 Z (Z^T Z - diag c),   Z centred
//
// The products are torch's, and no D x D matrix is stored. Means and squares are two passes over
// columns that stay in cache, never E[z^2] - E[z]^2. Bytes: moments read z once and write the
// centred copy once; a reduction reads its operands once; the gradient reads up to three matrices
// and writes one. Bardes et al. 2022 (VICReg), Eq. 1, 4.
#include "cpu/columns.h"
#include "cpu/ops.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <typename C>
void moments(const Matrix& z, double* stats, int64_t stats_stride, const Matrix& out,
             bool standardise, double eps, int threads) {
  using V = Vec<C>;
  column_blocks(z, threads, [&](int64_t first, int64_t cols) {
    const Matrix from = columns_of(z, first, cols);
    const Matrix to = out.data ? columns_of(out, first, cols) : out;
    alignas(64) C row[kColumns], origin[kColumns], scale[kColumns];
    const C* top = read_row<C>(from, 0, row);
    for (int64_t j = 0; j < cols; j++) origin[j] = top[j];
    ColumnSums<C> sums, squares;  // of distances to the first row: equal rows sum to zero
    for (int64_t i = 0; i < z.rows; i++) {
      const C* x = read_row<C>(from, i, row);
      C* copy = to.data ? row_of<C>(to, i) : row;
      sums.add(cols, [&](int64_t j, auto lanes) {
        V v = V::load(x + j, lanes);
        v.store(copy + j, lanes);
        return v - V::load(origin + j, lanes);
      });
    }
    const double* sum = sums.total();
    for (int64_t j = 0; j < cols; j++) stats[first + j] = (double)origin[j] + sum[j] / z.rows;
    const Mean<C> mean(stats + first, cols);
    for (int64_t i = 0; i < z.rows; i++) {
      C* x = to.data ? row_of<C>(to, i) : row;
      const C* v = to.data ? x : read_row<C>(from, i, row);
      squares.add(cols, [&](int64_t j, auto lanes) {
        V d = mean.centred(V::load(v + j, lanes), j, lanes);
        d.store(x + j, lanes);
        return d * d;
      });
    }
    double* square = stats + stats_stride + first;
    sum = squares.total();
    for (int64_t j = 0; j < cols; j++) square[j] = sum[j];
    if (!standardise) return;
    for (int64_t j = 0; j < cols; j++) scale[j] = (C)(1 / sqrt(square[j] / z.rows + eps));
    for (int64_t i = 0; i < z.rows; i++) {
      C* x = row_of<C>(to, i);
      sweep<C>(cols, [&](int64_t j, auto lanes) {
        (V::load(x + j, lanes) * V::load(scale + j, lanes)).store(x + j, lanes);
      });
    }
  });
}

template <typename C>
void center_rows(const Matrix& z, const double* mean, const double* scale, const Matrix& out,
                 int threads) {
  using V = Vec<C>;
  const Mean<C> m(mean, z.cols);
  const Converted<C> scale_c(scale, z.cols);
  const C* s = scale_c;
  parallel(threads, z.rows * z.cols, [&](Team team) {
    Scratch<C> row(converts<C>(z) ? z.cols : 0);
    for (int64_t i = team.begin(z.rows); i < team.end(z.rows); i++) {
      const C* x = read_row<C>(z, i, row);
      C* y = row_of<C>(out, i);
      sweep<C>(z.cols, [&](int64_t j, auto lanes) {
        V d = m.centred(V::load(x + j, lanes), j, lanes);
        (s ? d * V::load(s + j, lanes) : d).store(y + j, lanes);
      });
    }
  });
}

template <typename C>
double inner_product(const Matrix& a, const Matrix& b, int threads) {
  using V = Vec<C>;
  return row_sums(a, threads, [&](int64_t i) {
    const C* x = row_of<C>(a, i);
    const C* y = row_of<C>(b, i);
    return folded_sum<C>(a.cols, [&](int64_t j, auto lanes) {
      return V::load(x + j, lanes) * V::load(y + j, lanes);
    });
  });
}

template <typename C>
double distance(const Matrix& a, const Matrix& b, int threads) {
  using V = Vec<C>;
  return row_sums(a, threads, [&](int64_t i) {
    C left[kFoldCols], right[kFoldCols];
    double total = 0;
    for (int64_t first = 0; first < a.cols; first += kFoldCols) {
      const int64_t cols = first + kFoldCols < a.cols ? (int64_t)kFoldCols : a.cols - first;
      const C* x = read_row<C>(columns_of(a, first, cols), i, left);
      const C* y = read_row<C>(columns_of(b, first, cols), i, right);
      total += folded_sum<C>(cols, [&](int64_t j, auto lanes) {
        V d = V::load(x + j, lanes) - V::load(y + j, lanes);
        return d * d;
      });
    }
    return total;
  });
}

template <typename C>
double triangle_squares(const Matrix& tile, double scale, int threads) {
  using V = Vec<C>;
  const V s((C)scale);
  return row_sums(tile, threads, [&](int64_t i) {
    C* x = row_of<C>(tile, i);
    x[i] = 0;
    const auto squares = [&](const C* y, int64_t cols) {
      return folded_sum<C>(cols, [&](int64_t j, auto lanes) {
        V c = V::load(y + j, lanes) * s;
        return c * c;
      });
    };
    return squares(x, tile.rows) + 2 * squares(x + tile.rows, tile.cols - tile.rows);
  });
}

// out = f0 push + beta (z - mean) + f1 (z - other)
template <typename C>
void gradient(const Matrix& push, const Matrix& z, const Matrix& other, const double* mean,
              const double* beta, const double* factors, const Matrix& out, int threads) {
  using V = Vec<C>;
  const Mean<C> m(mean, z.cols);
  const Converted<C> beta_c(beta, z.cols);
  const C* b = beta_c;
  const V f0((C)factors[0]), f1((C)factors[1]);
  parallel(threads, z.rows * z.cols, [&](Team team) {
    Scratch<C> own_row(converts<C>(z) ? z.cols : 0), other_row(converts<C>(z) ? z.cols : 0),
        out_row(converts<C>(out) ? z.cols : 0);
    for (int64_t i = team.begin(z.rows); i < team.end(z.rows); i++) {
      const C* x = read_row<C>(z, i, own_row);
      const C* y = other.data ? read_row<C>(other, i, other_row) : nullptr;
      const C* p = push.data ? row_of<C>(push, i) : nullptr;
      C* d = write_row<C>(out, i, out_row);
      sweep<C>(z.cols, [&](int64_t j, auto lanes) {
        const V v = V::load(x + j, lanes);
        V g = m.centred(v, j, lanes) * V::load(b + j, lanes);
        if (p) g = fma(f0, V::load(p + j, lanes), g);
        if (y) g = fma(f1, v - V::load(y + j, lanes), g);
        g.store(d + j, lanes);
      });
      finish_row<C>(out, i, out_row);
    }
  });
}

}  // namespace

void column_moments(const Matrix& z, double* stats, int64_t stats_stride, const Matrix& out,
                    bool standardise, double eps, int threads) {
  const auto kernel =
      (out.data ? out.dtype : z.dtype) == kFloat64 ? moments<double> : moments<float>;
  kernel(z, stats, stats_stride, out, standardise, eps, threads);
}

void center(const Matrix& z, const double* mean, const double* scale, const Matrix& out,
            int threads) {
  const auto kernel = out.dtype == kFloat64 ? center_rows<double> : center_rows<float>;
  kernel(z, mean, scale, out, threads);
}

double inner(const Matrix& a, const Matrix& b, int threads) {
  const auto kernel = a.dtype == kFloat64 ? inner_product<double> : inner_product<float>;
  return kernel(a, b, threads);
}

double squared_distance(const Matrix& a, const Matrix& b, int threads) {
  const auto kernel = a.dtype == kFloat64 ? distance<double> : distance<float>;
  return kernel(a, b, threads);
}

double triangle(const Matrix& tile, double scale, int threads) {
  const auto kernel = tile.dtype == kFloat64 ? triangle_squares<double> : triangle_squares<float>;
  return kernel(tile, scale, threads);
}

void covariance_gradient(const Matrix& push, const Matrix& z, const Matrix& other,
                         const double* mean, const double* beta, const double* factors,
                         const Matrix& out, int threads) {
  const auto kernel =
      (push.data ? push.dtype : z.dtype) == kFloat64 ? gradient<double> : gradient<float>;
  kernel(push, z, other, mean, beta, factors, out, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
