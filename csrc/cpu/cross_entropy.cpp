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
#include "cpu/cross_entropy_symmetric.h"
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
          shared_backward(Exponentials<C>(l, inv_temperature, (C)mine[0]), n, target,
                          (C)(mine[2] * exp(-mine[1])), (C*)weight, g, d_l);
        else if (stats.col)
          both_backward<C>(l, n, target, inv_temperature, mine, columns, g, d_l);
        else
          row_backward<C>(l, n, target, inv_temperature, mine, g, d_l);
      });
      finish_row<C>(out, i, scratch);
    }
  });
}

// The symmetric loss, and d_logits in place of the logits.
template <typename C>
void at_once(const Matrix& logits, double inv_temperature, const Targets& targets, double factor,
             C* loss, int threads) {
  if (narrow_at_once(logits, inv_temperature, targets, factor, loss, threads)) return;
  Scratch<double> row(4 * logits.rows), col(3 * logits.cols);
  const Stats stats{row, logits.rows, col};
  forward(logits, inv_temperature, targets, stats, factor, loss, threads);
  backward<C>(logits, inv_temperature, targets, stats, nullptr, 0, factor, logits, threads);
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

void cross_entropy_at_once(const Matrix& logits, double inv_temperature, const Targets& targets,
                           double factor, void* loss, int threads) {
  if (logits.dtype == kFloat64)
    at_once<double>(logits, inv_temperature, targets, factor, (double*)loss, threads);
  else
    at_once<float>(logits, inv_temperature, targets, factor, (float*)loss, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
