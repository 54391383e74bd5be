// Cross-entropy of P = softmax(l), l = logits * inv_temperature, against targets q.
//
//   loss_i = a_i LSE_k(l_ik) - sum_k q_ik l_ik,  a_i = sum_k q_ik
//   dloss_i / dl_ik = a_i P_ik - q_ik
//
// Everything is taken relative to a shift near the row's maximum, so that nothing cancels at logits
// of 1e4. Symmetric adds the columns: where the logits span at most 64 nats one shift, and one
// exponential, serves rows and columns; else each column keeps a running maximum.
// Targets in potential form are evaluated on the fly; P and q are never stored.
//
// Bytes: forward reads logits and targets once (the second sweep over a row finds it in cache),
// backward reads them and writes the gradient. Operations: one or two exps an element each way.
#include "cpu/cross_entropy_rows.h"
#include "cpu/parallel.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <typename C>
void rows_forward(const Matrix& logits, double inv_temperature, const Targets& targets,
                  const Stats& stats, int threads) {
  parallel(threads, logits.rows * logits.cols, [&](Team team) {
    Reader<C> reader(logits, targets);
    for (int64_t i = team.begin(logits.rows); i < team.end(logits.rows); i++) {
      const C* l = reader.logits(i);
      const C shift = largest(l, logits.cols);
      reader.with_target(i, [&](auto target) {
        row_forward(l, logits.cols, target, inv_temperature, shift, stats, i);
      });
    }
  });
}

// col_stats from all threads' totals [threads, 2, K]: exponentials and mass.
inline void store_columns(const Stats& stats, int64_t columns, double shift, const double* totals,
                          int threads) {
  for (int64_t k = 0; k < columns; k++) {
    double sum = 0, mass = 0;
    for (int t = 0; t < threads; t++) {
      sum += totals[2 * t * columns + k];
      mass += totals[(2 * t + 1) * columns + k];
    }
    stats.col[k] = shift;
    stats.col[columns + k] = log(sum);
    stats.col[2 * columns + k] = mass;
  }
}

// Rows and columns of a narrow tile in one sweep: exp2((l - shift) * k2) feeds both sums. The first
// row's maximum stands for the tile's. False when the logits span too much: nothing is valid then.
template <typename C>
bool both_forward(const Matrix& logits, double inv_temperature, const Targets& targets,
                  const Stats& stats, int threads) {
  const int64_t columns = logits.cols;
  Scratch<C> sums(2 * threads * columns);  // [threads, 2, K] exponentials and mass
  Scratch<double> totals(2 * threads * columns);
  Scratch<C> first(columns);
  const C shift = largest(read_row<C>(logits, 0, first), columns);
  bool narrow = true;
  int team_size = 1;
  parallel(threads, logits.rows * columns, [&](Team team) {
    using V = Vec<C>;
    constexpr int kFoldRows = 256;
    if (team.thread == 0) team_size = team.threads;
    C *column_sum = sums + 2 * team.thread * columns, *column_mass = column_sum + columns;
    double* total = totals + 2 * team.thread * columns;
    for (int64_t k = 0; k < 2 * columns; k++) column_sum[k] = 0, total[k] = 0;
    Reader<C> reader(logits, targets);
    const V k2((C)(inv_temperature * kLog2e)), c(shift);
    V most(0), least(0);
    const int64_t end = team.end(logits.rows);
    for (int64_t i = team.begin(logits.rows); i < end; i++) {
      const C* l = reader.logits(i);
      V sum, mass, dot;
      reader.with_target(i, [&](auto target) {
        sweep<C>(columns, [&](int64_t k, auto lanes) {
          V t = ((V::load(l + k, lanes) - c) * k2).or_else(0, lanes);
          most = max(t, most);
          least = min(t, least);
          V e = exp2(t).or_else(0, lanes), q = target(k, lanes);
          sum = sum + e;
          mass = mass + q;
          dot = fma(q, t, dot);
          (V::load(column_sum + k, lanes) + e).store(column_sum + k, lanes);
          (V::load(column_mass + k, lanes) + q).store(column_mass + k, lanes);
        });
      });
      store_row(stats, i, shift, log((double)sum.sum()), (double)mass.sum(), (double)dot.sum());
      if (i % kFoldRows == 0 || i == end - 1)
        for (int64_t k = 0; k < 2 * columns; k++) total[k] += column_sum[k], column_sum[k] = 0;
    }
    const double above = most.largest() * kLn2, below = -least.smallest() * kLn2;
    if (!(above <= kNarrowSpan / 2 && above + below <= kNarrowSpan))
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      narrow = false;
  });
  if (narrow) store_columns(stats, columns, shift, totals, team_size);
  return narrow;
}

// Columns of a wide tile: a running maximum each, float64. One thread owns a range of columns.
template <typename C>
void columns_forward(const Matrix& logits, double inv_temperature, const Targets& targets,
                     const Stats& stats, int threads) {
  const int64_t columns = logits.cols;
  double *shift = stats.col, *sum = shift + columns, *mass = sum + columns;
  for (int64_t k = 0; k < columns; k++) shift[k] = -INFINITY, sum[k] = mass[k] = 0;
  parallel(threads, logits.rows * columns, [&](Team team) {
    Reader<C> reader(logits, targets);
    const int64_t begin = team.begin(columns), end = team.end(columns);
    for (int64_t i = 0; i < logits.rows; i++) {
      const C* l = reader.logits(i);
      for (int64_t k = begin; k < end; k++) {
        const double x = l[k], now = x > shift[k] ? x : shift[k];
        sum[k] =
            sum[k] * exp((shift[k] - now) * inv_temperature) + exp((x - now) * inv_temperature);
        shift[k] = now;
      }
      reader.with_target(i, [&](auto target) {
        for (int64_t k = begin; k < end; k++) mass[k] += (double)target(k, 1).sum();
      });
    }
    for (int64_t k = begin; k < end; k++) sum[k] = log(sum[k]);
  });
}

template <typename C>
void forward(const Matrix& logits, double inv_temperature, const Targets& targets,
             const Stats& stats, double factor, C* loss, int threads) {
  const bool both = stats.col && both_forward<C>(logits, inv_temperature, targets, stats, threads);
  if (!both) rows_forward<C>(logits, inv_temperature, targets, stats, threads);
  if (!both && stats.col) columns_forward<C>(logits, inv_temperature, targets, stats, threads);
  double total = 0;
  const double *row = stats.row, *col = stats.col;
  const int64_t stride = stats.row_stride, columns = logits.cols;
  for (int64_t i = 0; i < logits.rows; i++) total += row[3 * stride + i];
  if (col) {
    // sum_ik q l is in the row losses; the columns have it once more. Row and column masses have
    // one sum, so a common offset drops out before it could cancel digits.
    const double offset = row[0];
    total *= 2;
    for (int64_t i = 0; i < logits.rows; i++)
      total -= row[2 * stride + i] * ((row[i] - offset) * inv_temperature + row[stride + i]);
    for (int64_t k = 0; k < columns; k++)
      total += col[2 * columns + k] * ((col[k] - offset) * inv_temperature + col[columns + k]);
  }
  *loss = (C)(factor * total);
}

// Column statistics in the form that backward reads: all at one shift, or each at its own.
template <typename C>
struct Columns {
  Scratch<C> shift, log2, mass;  // [K]; P_col = exp2((l - shift) * k2 - log2)
  Columns(const double* col, int64_t columns) : shift(columns), log2(columns), mass(columns) {
    for (int64_t k = 0; k < columns; k++) {
      shift[k] = (C)col[k];
      log2[k] = (C)(col[columns + k] * kLog2e);
      mass[k] = (C)col[2 * columns + k];
    }
  }
};

// d l_k = g * (a P_k - q_k + b_k Pcol_k - q_k)
template <typename C, typename Target>
void both_backward(const C* l, int64_t n, const Target& target, double inv_temperature,
                   const double stats[3], const Columns<C>& columns, C g, C* d_l) {
  using V = Vec<C>;
  const V k2((C)(inv_temperature * kLog2e)), shift((C)stats[0]), log2((C)(stats[1] * kLog2e));
  const V a((C)stats[2]), gv(g);
  sweep<C>(n, [&](int64_t k, auto lanes) {
    V x = V::load(l + k, lanes);
    V p = exp2((x - shift) * k2 - log2);
    V p_col = exp2((x - V::load(columns.shift + k, lanes)) * k2 - V::load(columns.log2 + k, lanes));
    V both = fma(V::load(columns.mass + k, lanes), p_col, a * p), q = target(k, lanes);
    ((both - (q + q)) * gv).store(d_l + k, lanes);
  });
}

// The same where all rows and columns share a shift: P = e * exp(-log), one exponential.
template <typename C, typename Target>
void shared_backward(const C* l, int64_t n, const Target& target, double inv_temperature, C shift,
                     C row_weight, const C* col_weight, C g, C* d_l) {
  using V = Vec<C>;
  const V k2((C)(inv_temperature * kLog2e)), c(shift), w(row_weight), gv(g);
  sweep<C>(n, [&](int64_t k, auto lanes) {
    V e = exp2((V::load(l + k, lanes) - c) * k2);
    V both = e * (w + V::load(col_weight + k, lanes)), q = target(k, lanes);
    ((both - (q + q)) * gv).store(d_l + k, lanes);
  });
}

// Whether one exponential serves rows and columns; the logs leave room for those of N and K, and
// exp(-log) stays inside float32.
bool one_shift(const Stats& stats, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i++)
    if (stats.row[i] != stats.row[0] || fabs(stats.row[stats.row_stride + i]) > kNarrowSpan + 16)
      return false;
  for (int64_t k = 0; k < columns; k++)
    if (stats.col[k] != stats.row[0] || fabs(stats.col[columns + k]) > kNarrowSpan + 16)
      return false;
  return true;
}

template <typename C>
void backward(const Matrix& logits, double inv_temperature, const Targets& targets,
              const Stats& stats, const C* d_loss, int64_t d_loss_stride, double factor,
              const Matrix& out, int threads) {
  const int64_t n = logits.cols;
  const bool shared = stats.col && one_shift(stats, logits.rows, n);
  Columns<C> columns(stats.col, stats.col ? n : 0);
  Scratch<C> weight(shared ? n : 0);
  for (int64_t k = 0; k < n && shared; k++)
    weight[k] = (C)(stats.col[2 * n + k] * exp(-stats.col[n + k]));
  advise_huge_pages(out.data, converts<C>(out) ? 0 : out.rows * out.stride * sizeof(C));
  parallel(threads, logits.rows * n, [&](Team team) {
    Reader<C> reader(logits, targets);
    Scratch<C> scratch(converts<C>(out) ? n : 0);
    for (int64_t i = team.begin(logits.rows); i < team.end(logits.rows); i++) {
      const C* l = reader.logits(i);
      C* d_l = write_row<C>(out, i, scratch);
      const double* row = stats.row + i;
      const double mine[] = {row[0], row[stats.row_stride], row[2 * stats.row_stride]};
      const double upstream = d_loss ? (double)d_loss[i * d_loss_stride] : 1;
      const C g = (C)(upstream * factor * inv_temperature);
      reader.with_target(i, [&](auto target) {
        if (shared)
          shared_backward<C>(l, n, target, inv_temperature, (C)mine[0],
                             (C)(mine[2] * exp(-mine[1])), weight, g, d_l);
        else if (stats.col)
          both_backward<C>(l, n, target, inv_temperature, mine, columns, g, d_l);
        else
          row_backward<C>(l, n, target, inv_temperature, mine, g, d_l);
      });
      finish_row<C>(out, i, scratch);
    }
  });
}

}  // namespace

void cross_entropy_forward(const Matrix& logits, double inv_temperature, const Targets& targets,
                           const Stats& stats, double factor, void* loss, int threads) {
  if (logits.dtype == kFloat64)
    forward<double>(logits, inv_temperature, targets, stats, factor, (double*)loss, threads);
  else
    forward<float>(logits, inv_temperature, targets, stats, factor, (float*)loss, threads);
}

int64_t token_weights(const void* mask, int64_t images, int64_t tokens, double factor,
                      const Matrix& out) {
  const auto* marked = static_cast<const uint8_t*>(mask);
  Scratch<double> scratch(out.cols);
  double* weights = write_row<double>(out, 0, scratch);
  int64_t total = 0;
  for (int64_t b = 0; b < images; b++) {
    int64_t count = 0;
    for (int64_t j = 0; j < tokens; j++) count += marked[b * tokens + j];
    for (int64_t j = total; j < total + count && j < out.cols; j++) weights[j] = factor / count;
    total += count;
  }
  finish_row<double>(out, 0, weights);
  return total;
}

void cross_entropy_backward(const Matrix& logits, double inv_temperature, const Targets& targets,
                            const Stats& stats, const void* d_loss, int64_t d_loss_stride,
                            double factor, const Matrix& out, int threads) {
  if (logits.dtype == kFloat64)
    backward<double>(logits, inv_temperature, targets, stats, (const double*)d_loss, d_loss_stride,
                     factor, out, threads);
  else
    backward<float>(logits, inv_temperature, targets, stats, (const float*)d_loss, d_loss_stride,
                    factor, out, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
