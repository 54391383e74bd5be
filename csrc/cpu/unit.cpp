// Rows of unit norm, and the gradient through the normalisation.
//
//   u = x / max(|x|, eps)
//   d_x = (d_u - (d_u . u) u) / |x|;   the gradient of a zero row is zero
//
// Bytes: forward reads x and writes u, backward reads u and d_u and writes d_x, once each.
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <typename C>
double norm_of(const C* x, int64_t width) {
  using V = Vec<C>;
  V sum;
  sweep<C>(width, [&](int64_t j, auto lanes) {
    V value = V::load(x + j, lanes);
    sum = fma(value, value, sum);
  });
  double square = (double)sum.sum();
  if (!fits_float32(square)) {
    square = 0;
    for (int64_t j = 0; j < width; j++) square += (double)x[j] * x[j];
  }
  return sqrt(square);
}

// An element takes so much less than those that kSerialElements was set by: even at 65536.
constexpr int64_t kLight = 4;

template <typename C>
void forward(const Matrix& x, double eps, const Matrix& unit, C* norm, int threads) {
  using V = Vec<C>;
  parallel(threads, x.rows * x.cols / kLight, [&](Team team) {
    Scratch<C> scratch(converts<C>(x) ? x.cols : 0);
    for (int64_t i = team.begin(x.rows); i < team.end(x.rows); i++) {
      const C* row = read_row<C>(x, i, scratch);
      C* out = row_of<C>(unit, i);
      const double length = norm_of(row, x.cols);
      const V inverse((C)(1 / (length > eps ? length : eps)));
      sweep<C>(x.cols, [&](int64_t j, auto lanes) {
        (V::load(row + j, lanes) * inverse).store(out + j, lanes);
      });
      norm[i] = (C)length;
    }
  });
}

template <typename C>
void backward(const Matrix& d_unit, double eps, const Matrix& unit, const C* norm,
              const Matrix& out, int threads) {
  using V = Vec<C>;
  const int64_t width = out.cols;
  parallel(threads, out.rows * width / kLight, [&](Team team) {
    Scratch<C> scratch(converts<C>(out) ? width : 0);
    for (int64_t i = team.begin(out.rows); i < team.end(out.rows); i++) {
      const C *d = read_row<C>(d_unit, i, nullptr), *u = row_of<C>(unit, i);
      C* d_x = write_row<C>(out, i, scratch);
      V dot;
      sweep<C>(width, [&](int64_t j, auto lanes) {
        dot = fma(V::load(d + j, lanes), V::load(u + j, lanes), dot);
      });
      const double length = norm[i];
      const V along(length > eps ? (C)dot.sum() : 0);
      const V inverse(length > 0 ? (C)(1 / (length > eps ? length : eps)) : 0);
      sweep<C>(width, [&](int64_t j, auto lanes) {
        V across = V::load(d + j, lanes) - along * V::load(u + j, lanes);
        (across * inverse).store(d_x + j, lanes);
      });
      finish_row<C>(out, i, scratch);
    }
  });
}

}  // namespace

void unit_rows_forward(const Matrix& x, double eps, const Matrix& unit, void* norm, int threads) {
  if (x.dtype == kFloat64)
    forward<double>(x, eps, unit, (double*)norm, threads);
  else
    forward<float>(x, eps, unit, (float*)norm, threads);
}

void unit_rows_backward(const Matrix& d_unit, double eps, const Matrix& unit, const void* norm,
                        const Matrix& out, int threads) {
  if (d_unit.dtype == kFloat64)
    backward<double>(d_unit, eps, unit, (const double*)norm, out, threads);
  else
    backward<float>(d_unit, eps, unit, (const float*)norm, out, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
