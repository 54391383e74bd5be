// Pairs of rows of one batch, as tiles of the symmetric matrix of their products.
//
//   l_ij = scale * t_ij, without the block of `views` rows that holds i, the views of one sample;
//
//   forward, backward: tiles at and below the diagonal, each feeding the sums of both sides.
//   at once: the whole matrix; t becomes the gradient by l, both sides of a pair together.
//
//     lse_i = log sum_j exp(l_ij),   pos_i = log sum_p exp(l_ip),  p the sample's other views
//     loss_i = log(1 + exp(lse_i - pos_i)),   D_i = log(exp(lse_i) + exp(pos_i)),
//     c_i = exp(lse_i - D_i);    decoupled: loss_i = lse_i - w_i pos_i,   D_i = lse_i,   c_i = w_i
//     t_ij = exp(l_ij - D_i) + exp(l_ij - D_j);   t_ip = -c_i exp(l_ip - pos_i) - the same of p
//
// Operations: one exponential an element and pass; two where exponents span more than 64 nats.
#include "cpu/contrastive.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

// A tile's place in the symmetric matrix; blocks of `views` never straddle the diagonal square.
struct Place {
  int64_t row, col, views;
  int64_t block(int64_t i) const { return (row + i) / views * views; }
  // Rows of the square on the diagonal, which serve both its sides.
  int64_t square(const Matrix& tile) const {
    const int64_t n = col + tile.cols - row;
    return n < 0 ? 0 : n < tile.rows ? n : tile.rows;
  }
};

// sums += row sums, and column sums below the diagonal square, of exp((t - shift) * scale)
template <typename C>
void pairs_forward(const Matrix& tile, double scale, double shift, const Place& at, double* sums,
                   int threads) {
  using V = Vec<C>;
  const int64_t n = tile.cols, square = at.square(tile), padded = (n + 15) / 16 * 16;
  Scratch<C> columns(threads * padded);
  int team_size = 1;
  parallel(threads, tile.rows * n, [&](Team team) {
    if (team.thread == 0) team_size = team.threads;
    const V k2((C)(scale * kLog2e)), c((C)shift);
    C* mine = columns + team.thread * padded;
    for (int64_t j = 0; j < n; j++) mine[j] = 0;
    for (int64_t i = team.begin(tile.rows); i < team.end(tile.rows); i++) {
      C* t = row_of<C>(tile, i);
      exclude(t, n, scale, at.col, at.block(i), at.block(i) + at.views);
      if (i < square) {
        sums[at.row + i] += sum_exp<false>(t, n, scale, shift, (C*)nullptr);
        continue;
      }
      V sum;
      sweep<C>(n, [&](int64_t j, auto lanes) {
        V e = exp2((V::load(t + j, lanes) - c) * k2).or_else(0, lanes);
        sum = sum + e;
        (V::load(mine + j, lanes) + e).store(mine + j, lanes);
      });
      sums[at.row + i] += (double)sum.sum();
    }
    team.barrier();
    for (int64_t j = team.begin(n); j < team.end(n); j++)
      for (int64_t k = 0; k < team_size; k++) sums[at.col + j] += (double)columns[k * padded + j];
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

// A row's positives: pos_i, and in shares [views] exp(l_ip - pos_i), 0 for itself.
template <typename C>
double positives(const C* block, double scale, int64_t views, int64_t own, double* shares) {
  double top = -INFINITY, sum = 0;
  for (int64_t v = 0; v < views; v++) {
    const double l = scale * (double)block[v];
    if (v != own && !(l <= top)) top = l;  // NaN stays
  }
  for (int64_t v = 0; v < views; v++) {
    shares[v] = v == own ? 0 : exp(scale * (double)block[v] - top);
    sum += shares[v];
  }
  for (int64_t v = 0; v < views; v++) shares[v] /= sum;
  return top + log(sum);
}

// A row's loss; pulls [views] = -c_i exp(l_ip - pos_i), and D_i.
template <typename C>
double loss_of_row(C* t, const Matrix& tile, double scale, int64_t views, int64_t i,
                   const double* weights, bool decoupled, double* pulls, double& denominator) {
  const int64_t n = tile.cols, first = i / views * views;
  const double pos = positives(t + first, scale, views, i - first, pulls);
  exclude(t, n, scale, 0, first, first + views);
  const double top = largest(t, n);
  const double lse = top * scale + log(sum_exp<false>(t, n, scale, top, (C*)nullptr));
  const double gap = lse - pos, weight = weights ? weights[i] : 1;
  const double more = log1p(exp(gap > 0 ? -gap : gap)), softplus = gap > 0 ? gap + more : more;
  const double pull = decoupled ? weight : 1 / (1 + exp(-gap));
  for (int64_t v = 0; v < views; v++) pulls[v] *= -pull;
  denominator = decoupled ? lse : pos + softplus;
  return decoupled ? lse - weight * pos : softplus;
}

template <typename C>
double at_once(const Matrix& tile, double scale, double shift, int64_t views, const double* weights,
               bool decoupled, bool narrow, bool store, int threads) {
  const int64_t rows = tile.rows;
  Scratch<double> losses(rows), denominators(rows), pulls(rows * views);
  parallel(threads, rows * rows, [&](Team team) {
    for (int64_t i = team.begin(rows); i < team.end(rows); i++)
      losses[i] = loss_of_row(row_of<C>(tile, i), tile, scale, views, i, weights, decoupled,
                              pulls + i * views, denominators[i]);
  });
  double total = 0;
  for (int64_t i = 0; i < rows; i++) total += losses[i];
  if (!store) return total;
  Scratch<C> blocks(rows * views);
  for (int64_t i = 0; i < rows; i++) {
    const int64_t first = i / views * views;
    for (int64_t v = 0; v < views; v++)
      blocks[i * views + v] = (C)(pulls[i * views + v] + pulls[(first + v) * views + i - first]);
  }
  pairs_backward<C>(tile, scale, shift, {0, 0, views}, denominators, blocks, narrow, threads);
  return total;
}

}  // namespace

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

double contrastive_pairs_at_once(const Matrix& tile, double scale, double shift, int64_t views,
                                 const double* weights, bool decoupled, bool narrow, bool store,
                                 int threads) {
  const auto kernel = tile.dtype == kFloat64 ? at_once<double> : at_once<float>;
  return kernel(tile, scale, shift, views, weights, decoupled, narrow, store, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
