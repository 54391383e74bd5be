// Rows whose negatives were visited, joined with their positives:
//
//   lse_i = shift_i scale + log sum_i,   gap_i = lse_i - scale <u_i, v_i>
//   loss_i = log(1 + exp(gap_i)),        share_i = weight / (1 + exp(-gap_i))
//   d_u_i = share_i (pull_i / sum_i - v_i),   d_v_i = -share_i u_i
//
// Bytes: u, v and pull are read once, the gradients written once, d_u where pull was.
// van den Oord et al. 2018; He et al. 2020 (MoCo).
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <typename C>
double join(const Matrix& u, const Matrix& v, const double* stats, double scale, double weight,
            const Matrix& pull, const Matrix& d_v, int threads) {
  using V = Vec<C>;
  const int64_t rows = u.rows, width = u.cols;
  Scratch<double> losses(rows);
  parallel(threads, rows * width, [&](Team team) {
    for (int64_t i = team.begin(rows); i < team.end(rows); i++) {
      const C *own = row_of<C>(u, i), *positive = row_of<C>(v, i);
      V dot;
      sweep<C>(width, [&](int64_t j, auto lanes) {
        dot = fma(V::load(own + j, lanes), V::load(positive + j, lanes), dot);
      });
      const double sum = stats[rows + i];
      const double gap = (stats[i] - (double)dot.sum()) * scale + log(sum);
      losses[i] = gap > 0 ? gap + log1p(exp(-gap)) : log1p(exp(gap));
      const double share = weight / (1 + exp(-gap));
      if (pull.data) {
        C* d = row_of<C>(pull, i);
        const V along((C)(sum > 0 ? share / sum : 0)), away((C)share);
        sweep<C>(width, [&](int64_t j, auto lanes) {
          (V::load(d + j, lanes) * along - V::load(positive + j, lanes) * away).store(d + j, lanes);
        });
      }
      if (d_v.data) {
        C* d = row_of<C>(d_v, i);
        const V away((C)-share);
        sweep<C>(width, [&](int64_t j, auto lanes) {
          (V::load(own + j, lanes) * away).store(d + j, lanes);
        });
      }
    }
  });
  double total = 0;
  for (int64_t i = 0; i < rows; i++) total += losses[i];
  return total;
}

}  // namespace

double contrastive_queue(const Matrix& u, const Matrix& v, const double* stats, double scale,
                         double weight, const Matrix& pull, const Matrix& d_v, int threads) {
  const auto kernel = u.dtype == kFloat64 ? join<double> : join<float>;
  return kernel(u, v, stats, scale, weight, pull, d_v, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
