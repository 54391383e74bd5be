// Contrastive losses: what happens to a tile of products between one library product and the next.
//
//   rows:   l_ij = scale * b_j * t_ij, without columns lo_i <= j < hi_i;  running maximum and sum
//   in batch: l_ij = scale * t_ij, whole rows, each row's own column its positive;  loss, P - 1
//   pairs:  l_ij = scale * t_ij, t symmetric, without the block of `views` rows that holds i;
//           tiles at and right of the diagonal alone, each feeding the sums of both its sides
//
// Nothing of size N x K outlives a tile. Bytes: a tile stays in cache between the products.
// Operations: one exponential an element; two in the backward pass of pairs whose exponents span
// more than 64 nats.
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

// Columns first <= j < last of a tile that begins at column `begin` take no part: -inf.
template <typename C>
void exclude(C* t, int64_t columns, double scale, int64_t begin, int64_t first, int64_t last) {
  for (int64_t j = first > begin ? first - begin : 0; j < columns && j < last - begin; j++)
    t[j] = (C)(scale > 0 ? -INFINITY : INFINITY);
}

// t_j *= b_j
template <typename C>
void scale_columns(C* t, int64_t columns, const C* b) {
  sweep<C>(columns, [&](int64_t j, auto lanes) {
    (Vec<C>::load(t + j, lanes) * Vec<C>::load(b + j, lanes)).store(t + j, lanes);
  });
}

// sum_j exp((t_j - shift) * scale); with Store, t becomes these terms, times b.
template <bool Store, typename C>
double sum_exp(C* t, int64_t columns, double scale, double shift, const C* b) {
  using V = Vec<C>;
  const V k2((C)(scale * kLog2e)), c((C)shift);
  V sum;
  sweep<C>(columns, [&](int64_t j, auto lanes) {
    V e = exp2((V::load(t + j, lanes) - c) * k2).or_else(0, lanes);
    sum = sum + e;
    if (Store) (b ? e * V::load(b + j, lanes) : e).store(t + j, lanes);
  });
  return (double)sum.sum();
}

template <typename C>
void rows_forward(const Matrix& tile, const C* b, double scale, const Ranges& without,
                  double* stats, C* rescale, int threads) {
  const int64_t n = tile.cols;
  double *shift = stats, *sum = stats + tile.rows;
  parallel(threads, tile.rows * n, [&](Team team) {
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows); i++) {
      C* t = row_of<C>(tile, i);
      if (b) scale_columns(t, n, b);
      if (without.lo) exclude(t, n, scale, without.begin, without.lo[i], without.hi[i]);
      const double old = shift[i], top = largest(t, n), now = old > top ? old : top;  // NaN stays
      if (now == -INFINITY) {  // no negatives so far
        if (rescale) rescale[i] = 1;
        for (int64_t j = 0; rescale && j < n; j++) t[j] = 0;
        continue;
      }
      const double kept = exp((old - now) * scale);
      sum[i] = sum[i] * kept +
               (rescale ? sum_exp<true>(t, n, scale, now, b) : sum_exp<false>(t, n, scale, now, b));
      shift[i] = now;
      if (rescale) rescale[i] = (C)kept;
    }
  });
}

// Rows first + i of all columns; row i's own column is its positive, the others its negatives:
//   gap_i = log sum_{j != i} exp(l_ij) - l_ii,   loss_i = log(1 + exp(gap_i)),   returned summed;
//   with Store, t = weight dloss_i / dl_ij = weight (P - 1).
template <bool Store, typename C>
double in_batch(const Matrix& tile, int64_t first, double scale, double weight, int threads) {
  using V = Vec<C>;
  const int64_t n = tile.cols;
  Scratch<double> losses(tile.rows);
  parallel(threads, tile.rows * n, [&](Team team) {
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows); i++) {
      C* t = row_of<C>(tile, i);
      const double positive = t[first + i];
      t[first + i] = (C)-INFINITY;
      const double top = largest(t, n);
      if (top == -INFINITY) {  // no negatives
        losses[i] = 0;
        for (int64_t j = 0; Store && j < n; j++) t[j] = 0;
        continue;
      }
      const double sum = sum_exp<Store>(t, n, scale, top, (const C*)nullptr);
      const double gap = (top - positive) * scale + log(sum);
      losses[i] = gap > 0 ? gap + log1p(exp(-gap)) : log1p(exp(gap));
      if (!Store) continue;
      const double share = weight / (1 + exp(-gap));
      const V factor((C)(share / sum));
      sweep<C>(
          n, [&](int64_t j, auto lanes) { (V::load(t + j, lanes) * factor).store(t + j, lanes); });
      t[first + i] = (C)-share;
    }
  });
  double total = 0;
  for (int64_t i = 0; i < tile.rows; i++) total += losses[i];
  return total;
}

// A row's log-sum-exp in two parts: one in units of t, subtracted where nothing rounds, and the
// rest for base-2 exponents.
template <typename C>
struct Split {
  C whole = 0, rest = 0;
  Split(double lse, double scale) {
    if (!isfinite(lse)) return;  // no negatives: every term is left out
    whole = (C)(lse / scale);
    rest = (C)((lse - (double)whole * scale) * kLog2e);
  }
};

// t_ij = weight_i exp(scale b_j t_ij - lse_i)
template <typename C>
void rows_backward(const Matrix& tile, const C* b, double scale, const Ranges& without,
                   const double* lse, const double* weight, int threads) {
  using V = Vec<C>;
  const int64_t n = tile.cols;
  const V k2((C)(scale * kLog2e));
  parallel(threads, tile.rows * n, [&](Team team) {
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows); i++) {
      C* t = row_of<C>(tile, i);
      if (b) scale_columns(t, n, b);
      if (without.lo) exclude(t, n, scale, without.begin, without.lo[i], without.hi[i]);
      const Split<C> own(lse[i], scale);
      const V whole(own.whole), rest(own.rest), w((C)weight[i]);
      sweep<C>(n, [&](int64_t j, auto lanes) {
        (w * exp2((V::load(t + j, lanes) - whole) * k2 - rest)).store(t + j, lanes);
      });
    }
  });
}

// A tile's place in the symmetric matrix; blocks of `views` never straddle the diagonal square.
struct Place {
  int64_t row, col, views;
  int64_t block(int64_t i) const { return (row + i) / views * views; }
  // Columns that belong to the square on the diagonal, whose rows serve both its sides.
  int64_t square(const Matrix& tile) const {
    const int64_t n = row + tile.rows - col;
    return n < 0 ? 0 : n < tile.cols ? n : tile.cols;
  }
};

// sums += row sums, and column sums beyond the diagonal square, of exp((t - shift) * scale)
template <typename C>
void pairs_forward(const Matrix& tile, double scale, double shift, const Place& at, double* sums,
                   int threads) {
  using V = Vec<C>;
  const int64_t n = tile.cols, square = at.square(tile), right = n - square;
  const int64_t padded = (right + 15) / 16 * 16;
  Scratch<C> columns(threads * padded);
  int team_size = 1;
  parallel(threads, tile.rows * n, [&](Team team) {
    if (team.thread == 0) team_size = team.threads;
    const V k2((C)(scale * kLog2e)), c((C)shift);
    C* mine = columns + team.thread * padded;
    for (int64_t j = 0; j < right; j++) mine[j] = 0;
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows); i++) {
      C* t = row_of<C>(tile, i);
      exclude(t, n, scale, at.col, at.block(i), at.block(i) + at.views);
      double total = sum_exp<false>(t, square, scale, shift, (C*)nullptr);
      V sum;
      sweep<C>(right, [&](int64_t j, auto lanes) {
        V e = exp2((V::load(t + square + j, lanes) - c) * k2).or_else(0, lanes);
        sum = sum + e;
        (V::load(mine + j, lanes) + e).store(mine + j, lanes);
      });
      sums[at.row + i] += total + (double)sum.sum();
    }
    team.barrier();
    for (int64_t j = team.begin(right); j < team.end(right); j++)
      for (int64_t k = 0; k < team_size; k++)
        sums[at.col + square + j] += (double)columns[k * padded + j];
  });
}

// t = exp(l_ij - top) * (weight_i + weight_j), weight = exp(top - lse): where exponents are narrow.
template <typename C>
struct Narrow {
  using V = Vec<C>;
  const C* weights;  // [columns of the tile]
  V k2, shift, own;
  template <typename Lanes>
  V operator()(V t, int64_t j, Lanes lanes) const {
    return exp2((t - shift) * k2) * (own + V::load(weights + j, lanes));
  }
};

// t = exp(l_ij - lse_i) + exp(l_ij - lse_j)
template <typename C>
struct Wide {
  using V = Vec<C>;
  const C *whole, *rest;  // [columns of the tile], as in Split
  V k2, own_whole, own_rest;
  template <typename Lanes>
  V operator()(V t, int64_t j, Lanes lanes) const {
    V mine = exp2((t - own_whole) * k2 - own_rest);
    return mine + exp2((t - V::load(whole + j, lanes)) * k2 - V::load(rest + j, lanes));
  }
};

// Every element by `term`, blocks as given.
template <typename C, typename Term>
void pairs_row(C* t, const Matrix& tile, double scale, const Place& at, int64_t i, const C* blocks,
               Term term) {
  const int64_t first = at.block(i) - at.col;
  exclude(t, tile.cols, scale, at.col, at.block(i), at.block(i) + at.views);
  sweep<C>(tile.cols, [&](int64_t j, auto lanes) {
    term(Vec<C>::load(t + j, lanes), j, lanes).store(t + j, lanes);
  });
  for (int64_t v = 0; v < at.views; v++)
    if (first + v >= 0 && first + v < tile.cols) t[first + v] = blocks[(at.row + i) * at.views + v];
}

template <typename C>
void pairs_backward(const Matrix& tile, double scale, double shift, const Place& at,
                    const double* lse, const C* blocks, bool narrow, int threads) {
  using V = Vec<C>;
  const int64_t n = tile.cols;
  const V k2((C)(scale * kLog2e));
  Scratch<C> columns(2 * n);
  for (int64_t j = 0; j < n; j++) {
    const Split<C> split(lse[at.col + j], scale);
    columns[j] = narrow ? (C)exp(shift * scale - lse[at.col + j]) : split.whole;
    columns[n + j] = split.rest;
  }
  parallel(threads, tile.rows * n, [&](Team team) {
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows); i++) {
      C* t = row_of<C>(tile, i);
      const double own = lse[at.row + i];
      const Split<C> split(own, scale);
      if (narrow)
        pairs_row(t, tile, scale, at, i, blocks,
                  Narrow<C>{columns, k2, V((C)shift), V((C)exp(shift * scale - own))});
      else
        pairs_row(t, tile, scale, at, i, blocks,
                  Wide<C>{columns, columns + n, k2, V(split.whole), V(split.rest)});
    }
  });
}

}  // namespace

void contrastive_rows_forward(const Matrix& tile, const void* b, double scale,
                              const Ranges& without, double* stats, void* rescale, int threads) {
  if (tile.dtype == kFloat64)
    rows_forward(tile, (const double*)b, scale, without, stats, (double*)rescale, threads);
  else
    rows_forward(tile, (const float*)b, scale, without, stats, (float*)rescale, threads);
}

void contrastive_rows_backward(const Matrix& tile, const void* b, double scale,
                               const Ranges& without, const double* lse, const double* weight,
                               int threads) {
  if (tile.dtype == kFloat64)
    rows_backward(tile, (const double*)b, scale, without, lse, weight, threads);
  else
    rows_backward(tile, (const float*)b, scale, without, lse, weight, threads);
}

double contrastive_in_batch(const Matrix& tile, int64_t first, double scale, double weight,
                            bool store, int threads) {
  if (tile.dtype == kFloat64)
    return store ? in_batch<true, double>(tile, first, scale, weight, threads)
                 : in_batch<false, double>(tile, first, scale, weight, threads);
  return store ? in_batch<true, float>(tile, first, scale, weight, threads)
               : in_batch<false, float>(tile, first, scale, weight, threads);
}

void contrastive_pairs_forward(const Matrix& tile, double scale, double shift, int64_t row,
                               int64_t col, int64_t views, double* sums, int threads) {
  if (tile.dtype == kFloat64)
    pairs_forward<double>(tile, scale, shift, {row, col, views}, sums, threads);
  else
    pairs_forward<float>(tile, scale, shift, {row, col, views}, sums, threads);
}

void contrastive_pairs_backward(const Matrix& tile, double scale, double shift, int64_t row,
                                int64_t col, int64_t views, const double* lse, const void* blocks,
                                bool narrow, int threads) {
  const Place at{row, col, views};
  if (tile.dtype == kFloat64)
    pairs_backward(tile, scale, shift, at, lse, (const double*)blocks, narrow, threads);
  else
    pairs_backward(tile, scale, shift, at, lse, (const float*)blocks, narrow, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
