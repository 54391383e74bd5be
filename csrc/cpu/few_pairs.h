// The potentials of so few rows that calling the library's products costs more than their work
// does: pair by pair from differences, which cancel nothing. An N x N matrix of weights stays in
// cache.
#pragma once
#include "cpu/pairs.h"

namespace ssl_fast::SSL_FAST_ISA {

// w [N, N]: squares of distances below the diagonal; returns the smallest from rows first to last.
template <typename C>
C squares_below(const C* const* z, int64_t n, int64_t columns, int64_t first, int64_t last, C* w) {
  const auto own = [&](int64_t i) { return first <= i && i < last; };
  C smallest = kFar<C>;
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < i; j++) {
      const C d = w[i * n + j] = square_between(z[i], z[j], columns);
      if ((own(i) || own(j)) && d < smallest) smallest = d;
    }
  return smallest;
}

// out = factor sum_j w_j (z_j - own)
template <typename C>
void moved_row(const C* own, const C* const* z, const C* w, int64_t n, int64_t columns, C factor,
               C* out) {
  using V = Vec<C>;
  constexpr int kChains = 4;  // a single sum would wait for each addition
  sweep<C>(columns, [&](int64_t k, auto lanes) {
    const V origin = V::load(own + k, lanes);
    V sums[kChains];
    const auto add = [&](V& sum, int64_t j) {
      sum = fma(V(w[j]), V::load(z[j] + k, lanes) - origin, sum);
    };
    int64_t j = 0;
    for (; j + kChains <= n; j += kChains)
      for (int c = 0; c < kChains; c++) add(sums[c], j + c);
    for (; j < n; j++) add(sums[0], j);
    (((sums[0] + sums[1]) + (sums[2] + sums[3])) * V(factor)).store(out + k, lanes);
  });
}

// log S, S = sum of w_ij over rows first <= i < last and all j != i;
// moved [last - first, D] or no data: -4t / S sum_j w_ij (x_i - x_j)
template <typename C>
double potential_of_few(const Matrix& x, int64_t first, int64_t last, double t,
                        const Matrix& moved) {
  using V = Vec<C>;
  const int64_t n = x.rows;
  Scratch<C> rows(converts<C>(x) ? n * x.cols : 0), w(n * n);
  Scratch<const C*> z(n);
  V not_finite;  // 0 where all are finite, else NaN
  for (int64_t i = 0; i < n; i++) {
    z[i] = read_row<C>(x, i, rows + (converts<C>(x) ? i * x.cols : 0));
    sweep<C>(x.cols, [&](int64_t k, auto lanes) {
      not_finite = fma(V::load(z[i] + k, lanes), V(0), not_finite);
    });
  }
  const C smallest = squares_below<C>(z, n, x.cols, first, last, w);
  const V shift(smallest), k2((C)(t * kLog2e));
  for (int64_t i = 0; i < n; i++) {
    C* row = w + i * n;
    sweep<C>(i, [&](int64_t j, auto lanes) {
      exp2((shift - V::load(row + j, lanes)) * k2).store(row + j, lanes);
    });
    row[i] = 0;
    for (int64_t j = 0; j < i; j++) w[j * n + i] = row[j];
  }
  double total = (double)not_finite.sum();
  for (int64_t i = first; i < last; i++)
    total += folded_sum<C>(n, [&](int64_t j, auto lanes) { return V::load(w + i * n + j, lanes); });
  if (total == 0) total = 1;  // all squares are beyond the type's range
  for (int64_t i = 0; i < moved.rows; i++)
    moved_row<C>(z[first + i], z, w + (first + i) * n, n, x.cols, (C)(4 * t / total),
                 row_of<C>(moved, i));
  return log(total) - t * (double)smallest;
}

}  // namespace ssl_fast::SSL_FAST_ISA
