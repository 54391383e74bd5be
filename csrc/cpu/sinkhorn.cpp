// Sinkhorn-Knopp over prototypes (Cuturi 2013; order and start of Caron et al. 2020, SwAV):
//
//   q_ik = exp(scale * s_ik + row_i + col_k)
//   col_k = log prior_k - LSE_i(scale * s_ik + row_i),   row_i = -LSE_k(scale * s_ik + col_k)
//
// The scaling form (scaling.h) first; scores that it cannot take go through the log domain here,
// with exponents in float64: T + 1 reads of N K scores, one more and a write if dense, three exps
// an element and iteration. Not stored: anything of size N K but q.
//
// A centred softmax is col = -scale * center and the last half step: two reads, the second for the
// mean that the center moves to.
#include "cpu/columns.h"
#include "cpu/scaling.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

// row_i = -LSE_k(scale * s + col), or zeros for the start; column_lse_k = LSE_i(scale * s + row).
template <typename C>
void step(const Matrix& scores, double scale, const double* col, double* row, double* column_lse,
          int threads) {
  using V = Vec<C>;
  const int64_t rows = scores.rows, columns = scores.cols;
  Scratch<double> most(threads * columns), sums(threads * columns);
  int team_size = 1;
  parallel(threads, rows * columns, [&](Team team) {
    if (team.thread == 0) team_size = team.threads;
    double* my_most = most + team.thread * columns;
    double* my_sums = sums + team.thread * columns;
    Scratch<C> scratch(converts<C>(scores) ? columns : 0), grow(columns), term(columns);
    for (int64_t k = 0; k < columns; k++) my_most[k] = -INFINITY, my_sums[k] = 0;
    for (int64_t i = team.begin(rows); i < team.end(rows); i++) {
      const C* s = read_row(scores, i, (C*)scratch);
      row[i] = col ? row_potential_of<C>(s, columns, scale, col) : 0;
      // sum <- sum * exp(most - new) + exp(x - new),  new = max(most, x)
      for (int64_t k = 0; k < columns; k++) {
        const double x = s[k] * scale + row[i], old = my_most[k], now = x > old ? x : old;
        my_most[k] = now;
        grow[k] = (C)(old - now);
        term[k] = (C)(x - now);
      }
      const V log2e((C)kLog2e);
      sweep<C>(columns, [&](int64_t k, auto lanes) {
        exp2(V::load(grow + k, lanes) * log2e).store(grow + k, lanes);
        exp2(V::load(term + k, lanes) * log2e).store(term + k, lanes);
      });
      for (int64_t k = 0; k < columns; k++) my_sums[k] = my_sums[k] * grow[k] + term[k];
    }
  });
  for (int64_t k = 0; k < columns; k++) {
    double largest = -INFINITY, sum = 0;
    for (int t = 0; t < team_size; t++) largest = fmax(largest, most[t * columns + k]);
    for (int t = 0; t < team_size; t++)
      sum += sums[t * columns + k] * exp(most[t * columns + k] - largest);
    column_lse[k] = largest + log(sum);
  }
}

template <typename C>
void row_potentials(const Matrix& scores, double scale, const double* col, double* row,
                    int threads) {
  Scratch<double> zeros(col ? 0 : scores.cols);
  if (!col) zeros.fill(scores.cols, 0);
  parallel(threads, scores.rows * scores.cols, [&](Team team) {
    Scratch<C> scratch(converts<C>(scores) ? scores.cols : 0);
    for (int64_t i = team.begin(scores.rows); i < team.end(scores.rows); i++)
      row[i] = row_potential_of<C>(read_row(scores, i, (C*)scratch), scores.cols, scale,
                                   col ? col : (double*)zeros);
  });
}

// mean [K] of all views' rows
template <typename C>
void column_means(const Matrix* views, int64_t count, double* mean, int threads) {
  const double rows = (double)(count * views->rows);
  column_blocks(*views, threads, [&](int64_t first, int64_t cols) {
    ColumnSums<C> sums;
    C scratch[kColumns];
    for (int64_t v = 0; v < count; v++) {
      const Matrix part = columns_of(views[v], first, cols);
      for (int64_t i = 0; i < part.rows; i++) {
        const C* s = read_row<C>(part, i, scratch);
        sums.add(cols, [&](int64_t j, auto lanes) { return Vec<C>::load(s + j, lanes); });
      }
    }
    const double* total = sums.total();
    for (int64_t j = 0; j < cols; j++) mean[first + j] = total[j] / rows;
  });
}

template <typename C>
void centered(const Matrix* views, int64_t count, const Matrix& center, double scale, double* row,
              double* col, const Matrix& mean, int threads) {
  Scratch<double> wide(center.cols);
  const double* c = read_row<double>(center, 0, wide);
  for (int64_t k = 0; k < center.cols; k++) col[k] = -scale * c[k];
  for (int64_t v = 0; v < count; v++)
    row_potentials<C>(views[v], scale, col, row + v * views->rows, threads);
  double* m = write_row<double>(mean, 0, wide);
  column_means<C>(views, count, m, threads);
  finish_row<double>(mean, 0, m);
}

template <typename C>
void evaluate(const Matrix& scores, double scale, const double* row, const double* col, C* q,
              int threads) {
  Scratch<double> zeros(col ? 0 : scores.cols);
  if (!col) zeros.fill(scores.cols, 0);
  parallel(threads, scores.rows * scores.cols, [&](Team team) {
    Scratch<C> scratch(converts<C>(scores) ? scores.cols : 0);
    for (int64_t i = team.begin(scores.rows); i < team.end(scores.rows); i++) {
      const Potentials<C> target{read_row(scores, i, (C*)scratch), col ? col : (double*)zeros,
                                 scale, row[i]};
      sweep<C>(scores.cols, [&](int64_t k, auto lanes) {
        target(k, lanes).store(q + i * scores.cols + k, lanes);
      });
    }
  });
}

template <typename C>
void log_domain(const Matrix& scores, double scale, const double* log_prior, int iterations,
                bool softmax_start, C* q, double* row, double* col, int threads) {
  const int64_t columns = scores.cols;
  Scratch<double> lse(columns), own_row(row ? 0 : scores.rows), own_col(col ? 0 : columns);
  row = row ? row : (double*)own_row;
  col = col ? col : (double*)own_col;
  for (int64_t k = 0; k < columns; k++) col[k] = 0;
  for (int t = 0; t < iterations; t++) {
    step<C>(scores, scale, t == 0 && !softmax_start ? nullptr : col, row, lse, threads);
    for (int64_t k = 0; k < columns; k++) col[k] = (log_prior ? log_prior[k] : 0) - lse[k];
  }
  row_potentials<C>(scores, scale, col, row, threads);
  if (q) evaluate<C>(scores, scale, row, col, q, threads);
}

template <typename C>
void run(const Matrix& scores, double scale, const double* log_prior, int iterations,
         bool softmax_start, C* q, double* row, double* col, int threads) {
  if (q) advise_huge_pages(q, scores.rows * scores.cols * sizeof(C));
  if (!scaling_form<C>(scores, scale, log_prior, iterations, softmax_start, q, row, col, threads))
    log_domain<C>(scores, scale, log_prior, iterations, softmax_start, q, row, col, threads);
}

}  // namespace

void sinkhorn(const Matrix& scores, double scale, const double* log_prior, int iterations,
              bool softmax_start, void* q, double* row, double* col, int threads) {
  if (scores.dtype == kFloat64)
    run(scores, scale, log_prior, iterations, softmax_start, (double*)q, row, col, threads);
  else
    run(scores, scale, log_prior, iterations, softmax_start, (float*)q, row, col, threads);
}

void sinkhorn_step(const Matrix& scores, double scale, const double* col, double* row,
                   double* column_lse, int threads) {
  const auto kernel = scores.dtype == kFloat64 ? step<double> : step<float>;
  kernel(scores, scale, col, row, column_lse, threads);
}

void row_potential(const Matrix& scores, double scale, const double* col, double* row,
                   int threads) {
  const auto kernel = scores.dtype == kFloat64 ? row_potentials<double> : row_potentials<float>;
  kernel(scores, scale, col, row, threads);
}

void centered(const Matrix* views, int64_t count, const Matrix& center, double scale, double* row,
              double* col, const Matrix& mean, int threads) {
  const auto kernel = views->dtype == kFloat64 ? centered<double> : centered<float>;
  kernel(views, count, center, scale, row, col, mean, threads);
}

void evaluate(const Matrix& scores, double scale, const double* row, const double* col, void* q,
              int threads) {
  if (scores.dtype == kFloat64)
    evaluate<double>(scores, scale, row, col, (double*)q, threads);
  else
    evaluate<float>(scores, scale, row, col, (float*)q, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
