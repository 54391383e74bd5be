// Pairwise potentials w_ij = exp(-t |x_i - x_j|^2) on tiles that come in as products <x_i, x_j>.
//
// Squares of distances between near rows would cancel there: they are formed again from the rows,
// and the weights of such pairs carry a minus sign until close() has moved them into the gradient
// as differences, which a product would cancel too.
#pragma once
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {

// A pair is near when |x_i - x_j|^2 < kNear (|x_i|^2 + |x_j|^2): its square has lost 4 bits.
constexpr double kNear = 1.0 / 16;
// Stands for the distance of a row to itself: a weight of 0 at any t that counts.
constexpr double kFar = 1e38;
// Marks a near pair even at distance 0.
constexpr double kMark = 1e-37;

template <typename C>
inline C* tile_row(const Matrix& tile, int64_t i) {
  return reinterpret_cast<C*>(tile.data) + i * tile.stride;
}

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

// Replaces the near ones of a row of squares [C] by minus what the rows of x say.
template <typename C>
C near_again(C* squares, int64_t columns, C norm, const C* norms, const Matrix& x, int64_t i,
             int64_t first_col, C* scratch) {
  const C* xi = read_row<C>(x, i, scratch);
  C smallest = (C)kFar;
  for (int64_t j = 0; j < columns; j++) {
    C d = squares[j];
    if (d < (C)kNear * (norm + norms[j])) {
      d = square_between(xi, read_row<C>(x, first_col + j, scratch + x.cols), x.cols);
      squares[j] = -(d > (C)kMark ? d : (C)kMark);
    }
    smallest = d < smallest ? d : smallest;
  }
  return smallest;
}

template <typename C>
void distances(const Matrix& tile, const C* row_norms, const C* col_norms, const Matrix& x,
               int64_t first_row, int64_t first_col, double* out, int threads) {
  const int64_t columns = tile.cols;
  Scratch<double> smallest(2 * threads);
  smallest.fill(threads, kFar);
  Scratch<int> marked(threads);
  marked.fill(threads, 0);
  parallel(threads, tile.rows * columns, [&](Team team) {
    using V = Vec<C>;
    Scratch<C> scratch(converts<C>(x) ? 2 * x.cols : 0);
    C least = (C)kFar;
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows); i++) {
      C* row = tile_row<C>(tile, i);
      const int64_t self = first_row + i - first_col;
      const bool has_self = self >= 0 && self < columns;
      if (has_self) row[self] = -(C)kFar;  // its square comes out as 2 kFar
      const V norm(row_norms[i]), zero(0), two((C)-2), threshold((C)-kNear);
      V near((C)kFar), closest((C)kFar);
      sweep<C>(columns, [&](int64_t j, auto lanes) {
        V sum = norm + V::load(col_norms + j, lanes);
        V d = max(fma(two, V::load(row + j, lanes), sum), zero);
        near = min(near, fma(threshold, sum, d).or_else((C)kFar, lanes));
        closest = min(closest, d.or_else((C)kFar, lanes));
        d.store(row + j, lanes);
      });
      C smallest_here = closest.smallest();
      if (near.smallest() < 0) {
        smallest_here = near_again(row, columns, row_norms[i], col_norms, x, first_row + i,
                                   first_col, (C*)scratch);
        marked[team.thread] = 1;
      }
      least = smallest_here < least ? smallest_here : least;
    }
    smallest[team.thread] = least;
  });
  out[0] = kFar;
  out[1] = 0;
  for (int t = 0; t < threads; t++) {
    if (smallest[t] < out[0]) out[0] = smallest[t];
    if (marked[t]) out[1] = 1;
  }
}

// Squares to weights exp2((shift - d) k2); returns their sum. Near pairs keep their sign.
template <typename C>
double weights_of_row(C* row, int64_t columns, C shift, C k2, bool marked) {
  using V = Vec<C>;
  if (marked) {
    double total = 0;
    for (int64_t j = 0; j < columns; j++) {
      const C d = row[j];
      const C w = (C)exp2((double)((shift - (d < 0 ? -d : d)) * k2));
      total += (double)w;
      row[j] = d < 0 ? -w : w;
    }
    return total;
  }
  const V origin(shift), scale(k2);
  V sum;
  sweep<C>(columns, [&](int64_t j, auto lanes) {
    V w = exp2((origin - V::load(row + j, lanes)) * scale).or_else(0, lanes);
    sum = sum + w;
    w.store(row + j, lanes);
  });
  return (double)sum.sum();
}

template <typename C>
double weights(const Matrix& tile, double t, double shift, bool marked, int threads) {
  Scratch<double> totals(threads);
  totals.fill(threads, 0);
  parallel(threads, tile.rows * tile.cols, [&](Team team) {
    double total = 0;
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows); i++)
      total +=
          weights_of_row<C>(tile_row<C>(tile, i), tile.cols, (C)shift, (C)(t * kLog2e), marked);
    totals[team.thread] = total;
  });
  double total = 0;
  for (int i = 0; i < threads; i++) total += totals[i];
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
      const C *row = tile_row<C>(tile, i), *xi = read_row<C>(x, first_row + i, (C*)scratch);
      for (int64_t j = 0; j < tile.cols; j++)
        if (row[j] < 0)
          move(tile_row<C>(rows, i), -row[j], xi, read_row<C>(x, first_col + j, other), x.cols);
    }
    for (int64_t j = team.begin(tile.cols); j < team.end(tile.cols) && cols.data; j++) {
      const C* xj = read_row<C>(x, first_col + j, (C*)scratch);
      for (int64_t i = 0; i < tile.rows; i++) {
        const C w = tile_row<C>(tile, i)[j];
        if (w < 0) move(tile_row<C>(cols, j), -w, xj, read_row<C>(x, first_row + i, other), x.cols);
      }
    }
    team.barrier();
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows); i++) {
      C* row = tile_row<C>(tile, i);
      sweep<C>(tile.cols, [&](int64_t j, auto lanes) {
        max(Vec<C>::load(row + j, lanes), Vec<C>(0)).store(row + j, lanes);
      });
    }
  });
}

}  // namespace ssl_fast::SSL_FAST_ISA
