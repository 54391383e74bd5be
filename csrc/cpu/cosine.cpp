// Cosines of paired rows, and the nearest other row.
//
//   c_i = <x_i, y_i> / (max(|x_i|, eps) max(|y_i|, eps))
//   n_i = argmax_{j != own(i)} t_ij,  the first of equals
//
// Reads x and y once; keeps three numbers a row.
#include <limits>

#include "cpu/ops.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

struct Products {
  double xy, xx, yy;
};

template <typename C>
Products products(const C* x, const C* y, int64_t columns) {
  using V = Vec<C>;
  V xy, xx, yy;
  sweep<C>(columns, [&](int64_t k, auto lanes) {
    V a = V::load(x + k, lanes), b = V::load(y + k, lanes);
    xy = xy + (a * b).or_else(0, lanes);
    xx = xx + (a * a).or_else(0, lanes);
    yy = yy + (b * b).or_else(0, lanes);
  });
  return {(double)xy.sum(), (double)xx.sum(), (double)yy.sum()};
}

template <typename C>
Products exact_products(const C* x, const C* y, int64_t columns) {
  Products p{};
  for (int64_t k = 0; k < columns; k++) {
    p.xy += (double)x[k] * y[k];
    p.xx += (double)x[k] * x[k];
    p.yy += (double)y[k] * y[k];
  }
  return p;
}

template <typename C>
double forward(const Matrix& x, const Matrix& y, double eps, double* stats, int threads) {
  return sum_of_parts(threads, x.rows * x.cols, [&](Team team) {
    Scratch<C> a(converts<C>(x) ? x.cols : 0), b(converts<C>(y) ? x.cols : 0);
    double total = 0;
    for (int64_t i = team.begin(x.rows); i < team.end(x.rows); i++) {
      const C *xi = read_row<C>(x, i, a), *yi = read_row<C>(y, i, b);
      Products p = products(xi, yi, x.cols);
      if (!fits_float32(p.xx) || !fits_float32(p.yy)) p = exact_products(xi, yi, x.cols);
      const double nx = sqrt(p.xx), ny = sqrt(p.yy);
      stats[i] = p.xy;
      stats[x.rows + i] = nx;
      stats[2 * x.rows + i] = ny;
      total += p.xy / ((nx > eps ? nx : eps) * (ny > eps ? ny : eps));
    }
    return total;
  });
}

// d_x = g / nx (y / ny - x xy / (nx ny |x|)), n = max(norm, eps): torch's derivative; 0 for x = 0.
// No factor is a product of two norms: float32 has none of 1e20.
template <typename C>
void backward(const Matrix& x, const Matrix& y, double eps, const double* stats, double g,
              const Matrix& d_x, const Matrix& d_y, int threads) {
  using V = Vec<C>;
  const int64_t columns = x.cols;
  parallel(threads, x.rows * columns, [&](Team team) {
    const int64_t extra = converts<C>(x) ? columns : 0;
    Scratch<C> a(extra), b(extra), p(extra), q(extra);
    for (int64_t i = team.begin(x.rows); i < team.end(x.rows); i++) {
      const C *xi = read_row<C>(x, i, a), *yi = read_row<C>(y, i, b);
      const double xy = stats[i], rx = stats[x.rows + i], ry = stats[2 * x.rows + i];
      const double nx = rx > eps ? rx : eps, ny = ry > eps ? ry : eps, cosine = xy / nx / ny;
      const V gx((C)(rx > 0 ? g / nx : 0)), gy((C)(ry > 0 ? g / ny : 0));
      const V cx((C)(1 / nx)), cy((C)(1 / ny));
      const V ax((C)(rx > 0 ? cosine / rx : 0)), ay((C)(ry > 0 ? cosine / ry : 0));
      C* dx = d_x.data ? write_row<C>(d_x, i, p) : nullptr;
      C* dy = d_y.data ? write_row<C>(d_y, i, q) : nullptr;
      sweep<C>(columns, [&](int64_t k, auto lanes) {
        V u = V::load(xi + k, lanes), v = V::load(yi + k, lanes);
        if (dx) ((v * cy - u * ax) * gx).store(dx + k, lanes);
        if (dy) ((u * cx - v * ay) * gy).store(dy + k, lanes);
      });
      if (dx) finish_row<C>(d_x, i, p);
      if (dy) finish_row<C>(d_y, i, q);
    }
  });
}

// As torch.argmax: the first of equals, NaN above all.
template <typename C>
int64_t first_largest(const C* t, int64_t columns) {
  using V = Vec<C>;
  constexpr int64_t kBlock = 128;  // the column is sought in one block alone
  C top = (C)-INFINITY;
  int64_t at = 0;
  V none(0);  // but for NaN and infinities
  for (int64_t first = 0; first < columns; first += kBlock) {
    V most((C)-INFINITY);
    const int64_t left = columns - first;
    sweep<C>(left < kBlock ? left : kBlock, [&](int64_t k, auto lanes) {
      V x = V::load(t + first + k, lanes);
      most = max(most, x.or_else(most, lanes));
      none = none + (x - x).or_else(0, lanes);
    });
    const C here = most.largest();
    if (here > top) top = here, at = first;
  }
  const bool finite = none.sum() == 0;
  for (int64_t k = 0; !finite && k < columns; k++)
    if (t[k] != t[k]) return k;
  while (at < columns - 1 && t[at] != top) at++;
  return at;
}

template <typename C>
void nearest(const Matrix& tile, const int64_t* own, int64_t* index, int threads) {
  parallel(threads, tile.rows * tile.cols, [&](Team team) {
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows); i++) {
      C* t = row_of<C>(tile, i);
      if (own[i] < tile.cols) t[own[i]] = std::numeric_limits<C>::lowest();
      index[i] = first_largest(t, tile.cols);
    }
  });
}

}  // namespace

double cosine_forward(const Matrix& x, const Matrix& y, double eps, double* stats, int threads) {
  return x.dtype == kFloat64 ? forward<double>(x, y, eps, stats, threads)
                             : forward<float>(x, y, eps, stats, threads);
}

void cosine_backward(const Matrix& x, const Matrix& y, double eps, const double* stats, double g,
                     void* d_x, void* d_y, int threads) {
  const auto kernel = x.dtype == kFloat64 ? backward<double> : backward<float>;
  kernel(x, y, eps, stats, g, dense_like(x, d_x), dense_like(x, d_y), threads);
}

void nearest(const Matrix& tile, const int64_t* own, int64_t* index, int threads) {
  if (tile.dtype == kFloat64)
    nearest<double>(tile, own, index, threads);
  else
    nearest<float>(tile, own, index, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
