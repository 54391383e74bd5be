// Pairwise potentials on tiles (pairs.h), powers of the distances of positive pairs, and the
// correlation of prototypes taken as distributions (PAUC, Eq. 6), whose pairs factorise:
//
//   mean_{p != q} sum_d c_pd log(c_qd / c_pd) = 1/(K - 1) sum_pd c_pd (m_d - r_pd),
//   r_pd = log c_pd - log c_0d,  m_d = mean_p r_pd
//
// Logarithms are relative to the first row's, so that prototypes near each other lose no digits.
// Bytes: one read of the inputs forward, one read and one write backward; an exp an element.
#include "cpu/few_pairs.h"
#include "cpu/pairs.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

// |a - b|^2 in double where float32 would overflow or vanish.
template <typename C>
double square_of(const C* a, const C* b, int64_t columns) {
  const double fast = (double)square_between(a, b, columns);
  if (fast > 1e-30 && fast < 1e37) return fast;
  double sum = 0;
  for (int64_t k = 0; k < columns; k++) sum += ((double)a[k] - b[k]) * ((double)a[k] - b[k]);
  return sum;
}

template <typename C>
double power_sum(const Matrix& x, const Matrix& y, double alpha, int threads) {
  return sum_of_parts(threads, x.rows * x.cols, [&](Team team) {
    Scratch<C> a(converts<C>(x) ? x.cols : 0), b(converts<C>(y) ? x.cols : 0);
    double total = 0;
    for (int64_t i = team.begin(x.rows); i < team.end(x.rows); i++) {
      const double square = square_of(read_row<C>(x, i, a), read_row<C>(y, i, b), x.cols);
      total += alpha == 2 ? square : pow(square, alpha / 2);
    }
    return total;
  });
}

// d_x = g alpha |x - y|^(alpha - 2) (x - y), d_y = -d_x
template <typename C>
void power_backward(const Matrix& x, const Matrix& y, double alpha, double g, const Matrix& d_x,
                    const Matrix& d_y, int threads) {
  const int64_t columns = x.cols;
  parallel(threads, x.rows * columns, [&](Team team) {
    using V = Vec<C>;
    const int64_t extra = converts<C>(x) ? columns : 0;
    Scratch<C> a(extra), b(extra), p(extra), q(extra);
    for (int64_t i = team.begin(x.rows); i < team.end(x.rows); i++) {
      const C *xi = read_row<C>(x, i, a), *yi = read_row<C>(y, i, b);
      C *dx = write_row<C>(d_x, i, p), *dy = write_row<C>(d_y, i, q);
      double c = g * alpha;
      if (alpha != 2) {
        const double square = square_of(xi, yi, columns);
        c = square > 0 ? c * pow(square, alpha / 2 - 1) : 0;
      }
      if (fabs(c) < 1e-30 || fabs(c) > 1e30) {  // beyond float32, where the product may not be
        for (int64_t k = 0; k < columns; k++) dx[k] = (C)(c * ((double)xi[k] - yi[k]));
        for (int64_t k = 0; k < columns; k++) dy[k] = -dx[k];
      } else {
        const V plus((C)c), minus((C)-c);
        sweep<C>(columns, [&](int64_t k, auto lanes) {
          V d = V::load(xi + k, lanes) - V::load(yi + k, lanes);
          (d * plus).store(dx + k, lanes);
          (d * minus).store(dy + k, lanes);
        });
      }
      finish_row<C>(d_x, i, p);
      finish_row<C>(d_y, i, q);
    }
  });
}

// e = exp((c - shift) inv_temperature), r = (c - c_0) inv_temperature; returns sum e.
template <typename C>
double exponentials(const C* c, const C* first, int64_t columns, double inv_temperature, C shift,
                    C* e, C* r) {
  using V = Vec<C>;
  const V origin(shift), k2((C)(inv_temperature * kLog2e)), scale((C)inv_temperature);
  V sum;
  sweep<C>(columns, [&](int64_t k, auto lanes) {
    V x = V::load(c + k, lanes);
    V value = exp2((x - origin) * k2).or_else(0, lanes);
    sum = sum + value;
    value.store(e + k, lanes);
    ((x - V::load(first + k, lanes)) * scale).store(r + k, lanes);
  });
  return (double)sum.sum();
}

// The distribution p and r = log p - log p_0 of row i, in scratch rows.
template <typename C>
class Distributions {
 public:
  Distributions(const Matrix& c, double inv_temperature)
      : c_(c),
        inv_temperature_(inv_temperature),
        n_(c.cols),
        row_(converts<C>(c) ? n_ : 0),
        first_row_(converts<C>(c) ? n_ : 0),
        p_(n_),
        r_(n_) {
    first_ = read_row<C>(c, 0, first_row_);
    shift_0_ = largest(first_, n_);
    log_0_ = log(exponentials(first_, first_, n_, inv_temperature, shift_0_, (C*)p_, (C*)r_));
  }
  void read(int64_t i) {
    using V = Vec<C>;
    const C* c = read_row<C>(c_, i, row_);
    shift = largest(c, n_);
    const double sum = exponentials(c, first_, n_, inv_temperature_, shift, (C*)p_, (C*)r_);
    log_sum = log(sum);
    const V inverse((C)(1 / sum));
    const V less((C)(((double)shift - shift_0_) * inv_temperature_ + (log_sum - log_0_)));
    sweep<C>(n_, [&](int64_t k, auto lanes) {
      (V::load(p_ + k, lanes) * inverse).store(p_ + k, lanes);
      (V::load(r_ + k, lanes) - less).store(r_ + k, lanes);
    });
  }
  const C* p() const { return p_; }
  const C* r() const { return r_; }
  C shift = 0;
  double log_sum = 0;

 private:
  const Matrix& c_;
  const double inv_temperature_;
  const int64_t n_;
  Scratch<C> row_, first_row_, p_, r_;
  const C* first_;
  C shift_0_;
  double log_0_;
};

// sums [3, n] += p, r, p r: in double, since what counts may be a small part of each.
template <typename C>
void add_products(const C* __restrict__ p, const C* __restrict__ r, int64_t n,
                  double* __restrict__ sums) {
  for (int64_t j = 0; j < n; j++) {
    sums[j] += (double)p[j];
    sums[n + j] += (double)r[j];
    sums[2 * n + j] += (double)p[j] * (double)r[j];
  }
}

template <typename C>
double correlation_of(const Matrix& c, double inv_temperature, double* row, double* col,
                      int threads) {
  const int64_t n = c.cols, k = c.rows;
  Scratch<double> sums(3 * n * threads);
  sums.fill(3 * n * threads, 0);
  parallel(threads, k * n, [&](Team team) {
    Distributions<C> rows(c, inv_temperature);
    for (int64_t i = team.begin(k); i < team.end(k); i++) {
      rows.read(i);
      row[i] = (double)rows.shift;
      row[k + i] = rows.log_sum;
      add_products(rows.p(), rows.r(), n, sums + 3 * n * team.thread);
    }
  });
  for (int t = 1; t < threads; t++)
    for (int64_t j = 0; j < 3 * n; j++) sums[j] += sums[3 * n * t + j];
  double value = 0;
  for (int64_t j = 0; j < n; j++) {
    col[j] = sums[j] / k;
    col[n + j] = sums[n + j] / k;
    value += sums[j] * col[n + j] - sums[2 * n + j];
  }
  return value / (k - 1);
}

// d_c = g [ p (m - r - sum p (m - r)) + a - p ],  a and m the columns' means
template <typename C>
void correlation_gradient(const Matrix& c, double inv_temperature, const double* col, double g,
                          const Matrix& d_c, int threads) {
  const int64_t n = c.cols;
  Scratch<C> means(2 * n);
  for (int64_t j = 0; j < 2 * n; j++) means[j] = (C)col[j];
  parallel(threads, c.rows * n, [&](Team team) {
    using V = Vec<C>;
    Distributions<C> rows(c, inv_temperature);
    Scratch<C> scratch(converts<C>(c) ? n : 0);
    const V scale((C)g);
    for (int64_t i = team.begin(c.rows); i < team.end(c.rows); i++) {
      rows.read(i);
      C* d = write_row<C>(d_c, i, scratch);
      V dot;
      sweep<C>(n, [&](int64_t j, auto lanes) {
        V away = V::load(means + n + j, lanes) - V::load(rows.r() + j, lanes);
        dot = fma(V::load(rows.p() + j, lanes), away, dot);
      });
      const V mean(dot.sum());
      sweep<C>(n, [&](int64_t j, auto lanes) {
        V p = V::load(rows.p() + j, lanes);
        V away = V::load(means + n + j, lanes) - V::load(rows.r() + j, lanes) - mean;
        (fma(p, away, V::load(means + j, lanes) - p) * scale).store(d + j, lanes);
      });
      finish_row<C>(d_c, i, scratch);
    }
  });
}

}  // namespace

void pair_rows(const Matrix& x, const Matrix& z, void* norms, int threads) {
  if (z.dtype == kFloat64)
    centred_rows(x, z, (double*)norms, threads);
  else
    centred_rows(x, z, (float*)norms, threads);
}

PairSums pair_weights(const Matrix& tile, const Matrix& x, const void* norms, int64_t first_row,
                      int64_t first_col, bool mirrored, double t, const PairSums& sums, int64_t own,
                      const Matrix& moments, void* counts, int threads) {
  if (tile.dtype == kFloat64)
    return add_tile(tile, x, (const double*)norms, first_row, first_col, mirrored, t, sums, own,
                    moments, (double*)counts, threads);
  return add_tile(tile, x, (const float*)norms, first_row, first_col, mirrored, t, sums, own,
                  moments, (float*)counts, threads);
}

void pair_moments(const Matrix& moments, const Matrix& z, int64_t own, const void* counts,
                  double factor, int threads) {
  if (z.dtype == kFloat64)
    finish_moments(moments, z, own, (const double*)counts, factor, threads);
  else
    finish_moments(moments, z, own, (const float*)counts, factor, threads);
}

double few_pairs(const Matrix& x, int64_t first, int64_t last, double t, const Matrix& moved) {
  return x.dtype == kFloat64 ? potential_of_few<double>(x, first, last, t, moved)
                             : potential_of_few<float>(x, first, last, t, moved);
}

double distance_power(const Matrix& x, const Matrix& y, double alpha, int threads) {
  return x.dtype == kFloat64 ? power_sum<double>(x, y, alpha, threads)
                             : power_sum<float>(x, y, alpha, threads);
}

void distance_power_backward(const Matrix& x, const Matrix& y, double alpha, double g, void* d_x,
                             void* d_y, int threads) {
  const auto kernel = x.dtype == kFloat64 ? power_backward<double> : power_backward<float>;
  kernel(x, y, alpha, g, dense_like(x, d_x), dense_like(x, d_y), threads);
}

double correlation(const Matrix& c, double inv_temperature, double* row, double* col, int threads) {
  return c.dtype == kFloat64 ? correlation_of<double>(c, inv_temperature, row, col, threads)
                             : correlation_of<float>(c, inv_temperature, row, col, threads);
}

void correlation_backward(const Matrix& c, double inv_temperature, const double* col, double g,
                          void* d_c, int threads) {
  const auto kernel =
      c.dtype == kFloat64 ? correlation_gradient<double> : correlation_gradient<float>;
  kernel(c, inv_temperature, col, g, dense_like(c, d_c), threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
