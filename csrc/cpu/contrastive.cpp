// Contrastive losses: what happens to a tile of products between one library product and the next.
//
//   rows:   l_ij = scale * b_j * t_ij, without columns lo_i <= j < hi_i;  running maximum and sum
//   in batch: l_ij = scale * t_ij, whole rows, each row's own column its positive;  loss, P - 1
//
// Nothing of size N x K outlives a tile. Bytes: a tile stays in cache between the products.
// Operations: one exponential an element.
#include "cpu/contrastive.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

// t_j *= b_j
template <typename C>
void scale_columns(C* t, int64_t columns, const C* b) {
  sweep<C>(columns, [&](int64_t j, auto lanes) {
    (Vec<C>::load(t + j, lanes) * Vec<C>::load(b + j, lanes)).store(t + j, lanes);
  });
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

}  // namespace ssl_fast::SSL_FAST_ISA
