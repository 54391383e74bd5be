// Pairwise potentials w_ij = exp(-t |x_i - x_j|^2) on tiles that come in as products <x_i, x_j>.
//
// Squares of distances between near rows would cancel there: they are formed again from the rows,
// and the weights of such pairs carry a minus sign until close() has moved them into the gradient
// as differences, which a product would cancel too.
#pragma once
#include <limits>

#include "cpu/columns.h"
#include "cpu/ops.h"

namespace ssl_fast::SSL_FAST_ISA {

// Squares below this share of |x_i|^2 + |x_j|^2 are formed again from the rows.
constexpr double kAgain = 1.0 / 2;
// Below this share a pair is near: the product behind the gradient would lose 4 bits.
constexpr double kNear = 1.0 / 16;
// Stands for the distance of a row to itself: a weight of 0 at any t that counts.
template <typename C>
constexpr C kFar = std::numeric_limits<C>::max() / 4;
// Least square that is stored, so that the mark of a near pair shows at distance 0.
constexpr double kLeast = 1e-37;
// Weights are relative to the smallest distance met so far, to within this many nats: adjusting the
// sums to every new one would cost more than it brings.
constexpr double kSlack = 16;

// z = x less its mean, norms = |z|^2: distances know no origin, and near the mean they cancel
// least.
template <typename C>
void centred_rows(const Matrix& x, const Matrix& z, C* norms, int threads) {
  Scratch<double> stats(2 * x.cols);
  column_moments(x, stats, x.cols, z, false, 0, threads);
  for (int64_t i = 0; i < z.rows; i++) {
    const C* row = row_of<C>(z, i);
    norms[i] = (C)folded_sum<C>(z.cols, [&](int64_t k, auto lanes) {
      const Vec<C> v = Vec<C>::load(row + k, lanes);
      return v * v;
    });
  }
}

// Over a tile: the smallest square but those of a row to itself; whether any pair is near.
struct Closest {
  double square;
  bool near;
};

template <typename C>
C square_between(const C* a, const C* b, int64_t columns) {
  using V = Vec<C>;
  V sum;
  sweep<C>(columns, [&](int64_t k, auto lanes) {
    V d = V::load(a + k, lanes) - V::load(b + k, lanes);
    sum = fma(d, d, sum);
  });
  return sum.sum();
}

// Forms the small ones of a row of squares [C] from the rows of x; those of near pairs are
// negative.
template <typename C>
C square_again(C* squares, int64_t columns, C norm, const C* norms, const Matrix& x, int64_t i,
               int64_t first_col, C* scratch, bool& marked) {
  const C* xi = read_row<C>(x, i, scratch);
  C smallest = kFar<C>;
  for (int64_t j = 0; j < columns; j++) {
    const C sum = norm + norms[j];
    C d = squares[j];
    if (d < (C)kAgain * sum) {
      d = square_between(xi, read_row<C>(x, first_col + j, scratch + x.cols), x.cols);
      d = d > (C)kLeast ? d : (C)kLeast;
      const bool near = d < (C)kNear * sum;
      squares[j] = near ? -d : d;
      marked |= near;
    }
    smallest = d < smallest ? d : smallest;
  }
  return smallest;
}

template <typename C>
Closest distances(const Matrix& tile, const C* row_norms, const C* col_norms, const Matrix& x,
                  int64_t first_row, int64_t first_col, int threads) {
  const int64_t columns = tile.cols;
  Scratch<double> smallest(2 * threads);
  smallest.fill(threads, kFar<C>);
  Scratch<int> marked(threads);
  marked.fill(threads, 0);
  parallel(threads, tile.rows * columns, [&](Team team) {
    using V = Vec<C>;
    Scratch<C> scratch(converts<C>(x) ? 2 * x.cols : 0);
    C least = kFar<C>;
    bool near = false;
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows); i++) {
      C* row = row_of<C>(tile, i);
      const int64_t self = first_row + i - first_col;
      const bool has_self = self >= 0 && self < columns;
      if (has_self) row[self] = -kFar<C>;  // its square comes out as 2 kFar
      const V norm(row_norms[i]), least_square((C)kLeast), two((C)-2), threshold((C)-kAgain);
      V excess(kFar<C>), closest(kFar<C>);
      sweep<C>(columns, [&](int64_t j, auto lanes) {
        V sum = norm + V::load(col_norms + j, lanes);
        V d = max(least_square, fma(two, V::load(row + j, lanes), sum));  // NaN stays
        excess = min(excess, fma(threshold, sum, d).or_else(kFar<C>, lanes));
        closest = min(closest, d.or_else(kFar<C>, lanes));
        d.store(row + j, lanes);
      });
      C smallest_here = closest.smallest();
      if (excess.smallest() < 0)
        smallest_here = square_again(row, columns, row_norms[i], col_norms, x, first_row + i,
                                     first_col, (C*)scratch, near);
      least = smallest_here < least ? smallest_here : least;
    }
    smallest[team.thread] = least;
    marked[team.thread] = near;
  });
  Closest closest{kFar<C>, false};
  for (int t = 0; t < threads; t++) {
    if (smallest[t] < closest.square) closest.square = smallest[t];
    closest.near |= marked[t] != 0;
  }
  return closest;
}

// Squares to weights exp2((shift - d) k2); returns their sum. Near pairs keep their sign; the
// others count in col [C] and in `count`.
template <typename C, bool kMarked>
double weights_of_row(C* row, int64_t columns, C shift, C k2, C* col, C& count) {
  using V = Vec<C>;
  const V origin(shift), scale(k2), zero(0), one(1), minus(-1), large((C)1e38);
  V sum, counted;
  sweep<C>(columns, [&](int64_t j, auto lanes) {
    const V d = V::load(row + j, lanes);
    V w = exp2((origin - (kMarked ? max(d, zero - d) : d)) * scale).or_else(0, lanes);
    sum = sum + w;
    w = kMarked ? w * max(min(d * large, one), minus) : w;
    w.store(row + j, lanes);
    if (kMarked) w = max(w, zero), counted = counted + w;
    (V::load(col + j, lanes) + w).store(col + j, lanes);
  });
  count += kMarked ? counted.sum() : sum.sum();
  return (double)sum.sum();
}

template <typename C>
double weights(const Matrix& tile, double t, double shift, bool marked, C* rows, C* cols,
               int threads) {
  const int64_t columns = tile.cols;
  Scratch<double> totals(threads);
  totals.fill(threads, 0);
  Scratch<C> col(threads * columns), row(tile.rows);
  col.fill(threads * columns, 0);
  row.fill(tile.rows, 0);
  parallel(threads, tile.rows * columns, [&](Team team) {
    double total = 0;
    const C k2 = (C)(t * kLog2e);
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows); i++) {
      const auto of_row = marked ? weights_of_row<C, true> : weights_of_row<C, false>;
      total +=
          of_row(row_of<C>(tile, i), columns, (C)shift, k2, col + team.thread * columns, row[i]);
    }
    totals[team.thread] = total;
  });
  for (int64_t i = 0; i < tile.rows && rows; i++) rows[i] += row[i];
  double total = 0;
  for (int thread = 0; thread < threads; thread++) {
    total += totals[thread];
    for (int64_t j = 0; j < columns && cols; j++) cols[j] += col[thread * columns + j];
  }
  return total;
}

// to += w (b - a)
template <typename C>
void move(C* to, C w, const C* a, const C* b, int64_t columns) {
  using V = Vec<C>;
  const V weight(w);
  sweep<C>(columns, [&](int64_t k, auto lanes) {
    fma(weight, V::load(b + k, lanes) - V::load(a + k, lanes), V::load(to + k, lanes))
        .store(to + k, lanes);
  });
}

// Moves w (x_j - x_i) of the near pairs into rows, and columns where they are others, and sets
// their weights to zero.
template <typename C>
void close(const Matrix& tile, const Matrix& x, int64_t first_row, int64_t first_col,
           const Matrix& rows, const Matrix& cols, int threads) {
  parallel(threads, tile.rows * tile.cols, [&](Team team) {
    Scratch<C> scratch(converts<C>(x) ? 2 * x.cols : 0);
    C* other = scratch + (converts<C>(x) ? x.cols : 0);
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows) && rows.data; i++) {
      const C *row = row_of<C>(tile, i), *xi = read_row<C>(x, first_row + i, (C*)scratch);
      for (int64_t j = 0; j < tile.cols; j++)
        if (row[j] < 0)
          move(row_of<C>(rows, i), -row[j], xi, read_row<C>(x, first_col + j, other), x.cols);
    }
    for (int64_t j = team.begin(tile.cols); j < team.end(tile.cols) && cols.data; j++) {
      const C* xj = read_row<C>(x, first_col + j, (C*)scratch);
      for (int64_t i = 0; i < tile.rows; i++) {
        const C w = row_of<C>(tile, i)[j];
        if (w < 0) move(row_of<C>(cols, j), -w, xj, read_row<C>(x, first_row + i, other), x.cols);
      }
    }
    team.barrier();
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows); i++) {
      C* row = row_of<C>(tile, i);
      sweep<C>(tile.cols, [&](int64_t j, auto lanes) {
        max(Vec<C>::load(row + j, lanes), Vec<C>(0)).store(row + j, lanes);
      });
    }
  });
}

// Rows [first, first + rows) of m, which may have no data.
inline Matrix rows_of(const Matrix& m, int64_t first, int64_t rows) {
  return m.data ? Matrix{row_address(m, first), rows, m.cols, m.stride, m.dtype} : m;
}

template <typename C>
void scale_rows(const Matrix& m, C factor, int threads) {
  parallel(threads, m.rows * m.cols, [&](Team team) {
    for (int64_t i = team.begin(m.rows); i < team.end(m.rows) && m.data; i++) {
      C* row = row_of<C>(m, i);
      for (int64_t k = 0; k < m.cols; k++) row[k] *= factor;
    }
  });
}

// Products at (first_row, first_col) to weights, which `sums` and `counts` gain, and the near pairs
// into `moments`, whose first row is that of row `own`.
template <typename C>
PairSums add_tile(const Matrix& tile, const Matrix& x, const C* norms, int64_t first_row,
                  int64_t first_col, bool mirrored, double t, PairSums sums, int64_t own,
                  const Matrix& moments, C* counts, int threads) {
  const Closest closest =
      distances(tile, norms + first_row, norms + first_col, x, first_row, first_col, threads);
  if (t * (sums.shift - closest.square) > kSlack) {
    const double factor = exp(t * (closest.square - sums.shift));
    if (sums.total) {
      scale_rows(moments, (C)factor, threads);
      for (int64_t i = 0; i < moments.rows; i++) counts[i] *= (C)factor;
      sums.total *= factor;
    }
    sums.shift = closest.square;
  }
  C* rows = counts ? counts + first_row - own : nullptr;
  C* cols = counts && mirrored ? counts + first_col - own : nullptr;
  const double weight = weights(tile, t, sums.shift, closest.near, rows, cols, threads);
  if (closest.near && moments.data)
    close<C>(tile, x, first_row, first_col, rows_of(moments, first_row - own, tile.rows),
             mirrored ? rows_of(moments, first_col - own, tile.cols) : Matrix{}, threads);
  sums.total += mirrored ? 2 * weight : weight;
  return sums;
}

// moments = factor (moments - counts z)
template <typename C>
void finish_moments(const Matrix& moments, const Matrix& z, int64_t own, const C* counts,
                    double factor, int threads) {
  using V = Vec<C>;
  const V scale((C)factor);
  parallel(threads, moments.rows * moments.cols, [&](Team team) {
    for (int64_t i = team.begin(moments.rows); i < team.end(moments.rows); i++) {
      C* m = row_of<C>(moments, i);
      const C* row = row_of<C>(z, own + i);
      const V count(-counts[i]);
      sweep<C>(moments.cols, [&](int64_t k, auto lanes) {
        const V moved = fma(count, V::load(row + k, lanes), V::load(m + k, lanes));
        (moved * scale).store(m + k, lanes);
      });
    }
  });
}

}  // namespace ssl_fast::SSL_FAST_ISA
