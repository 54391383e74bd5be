// Column sums of P = softmax(l), l = logits * inv_temperature, for priors on prototypes, alone or
// in the pass of the cross-entropy (MSN; PMSN, Eq. 9).
//
//   p_k = sum_i P_ik;   G = N dKL/dp, given as w and c with P_ik G_k = w_k exp(log P_ik - c_k)
//   dloss / dl_ik = P_ik (a_i + G_k - h_i) - q_ik,   h_i = sum_j P_ij G_j
//
// Sums leave as logarithms: columns whose float32 sum has no digits are summed again in float64.
// P and q are never stored. Bytes: forward reads logits and targets once, backward reads them and
// writes the gradient. Operations: one exp an element each way.
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/targets.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

constexpr int64_t kFoldRows = 256;   // float32 sums this long, then float64
constexpr double kTinySum = 1e-30;   // below, a float32 sum has lost terms
constexpr double kNarrowLog = 60.0;  // |c| up to which G = w exp(-c) stays inside float32

// exp(l - shift) of one row into e, and the row's statistics; returns 1 / sum.
template <typename C, typename Target>
C row_forward(const C* l, int64_t columns, const Target& target, double inv_temperature, C shift,
              const Stats& stats, int64_t i, C* e) {
  using V = Vec<C>;
  const V k2((C)(inv_temperature * kLog2e)), c(shift);
  V sum, mass, dot;
  sweep<C>(columns, [&](int64_t k, auto lanes) {
    V t = ((V::load(l + k, lanes) - c) * k2).or_else(0, lanes);
    V x = exp2(t).or_else(0, lanes), q = target(k, lanes);
    x.store(e + k, lanes);
    sum = sum + x;
    mass = mass + q;
    dot = fma(q, t, dot);
  });
  const double total = (double)sum.sum();
  store_row(stats, i, shift, log(total), (double)mass.sum(), (double)dot.sum());
  return (C)(1 / total);
}

// The target of a row that has none: nothing.
template <typename C>
struct Nothing {
  template <typename Lanes>
  Vec<C> operator()(int64_t, Lanes) const {
    return Vec<C>();
  }
};

// f(target row i), or f(Nothing) without targets.
template <typename C, typename F>
void with_target(const Reader<C>& reader, const Targets& targets, int64_t i, F f) {
  if (targets.values.data)
    reader.with_target(i, f);
  else
    f(Nothing<C>{});
}

// log sum_i P_ik in float64, of the columns where log_mass is NaN. A thread owns a range of them.
template <typename C>
void column_logs(const Matrix& logits, double inv_temperature, const Stats& stats, double* log_mass,
                 int threads) {
  const int64_t columns = logits.cols;
  Scratch<double> most(columns), sum(columns);
  for (int64_t k = 0; k < columns; k++) most[k] = -INFINITY, sum[k] = 0;
  parallel(threads, logits.rows * columns, [&](Team team) {
    Scratch<C> row(converts<C>(logits) ? columns : 0);
    const int64_t begin = team.begin(columns), end = team.end(columns);
    for (int64_t i = 0; i < logits.rows; i++) {
      const C* l = read_row<C>(logits, i, row);
      const double shift = stats.row[i], log = stats.row[stats.row_stride + i];
      for (int64_t k = begin; k < end; k++) {
        if (!isnan(log_mass[k])) continue;
        const double x = (l[k] - shift) * inv_temperature - log, now = x > most[k] ? x : most[k];
        sum[k] = sum[k] * exp(most[k] - now) + exp(x - now);
        most[k] = now;
      }
    }
    for (int64_t k = begin; k < end; k++)
      if (isnan(log_mass[k])) log_mass[k] = most[k] + log(sum[k]);
  });
}

template <typename C>
void forward(const Matrix& logits, double inv_temperature, const Targets& targets,
             const Stats& stats, double* log_mass, int threads) {
  using V = Vec<C>;
  const int64_t columns = logits.cols;
  Scratch<C> sums(2 * threads * columns);  // [threads, 2, K]: column sums, a row of exp
  Scratch<double> totals(threads * columns);
  int team_size = 1;
  parallel(threads, logits.rows * columns, [&](Team team) {
    if (team.thread == 0) team_size = team.threads;
    C *sum = sums + 2 * team.thread * columns, *e = sum + columns;
    double* total = totals + team.thread * columns;
    for (int64_t k = 0; k < columns; k++) sum[k] = 0, total[k] = 0;
    Reader<C> reader(logits, targets);
    const int64_t end = team.end(logits.rows);
    for (int64_t i = team.begin(logits.rows); i < end; i++) {
      const C* l = reader.logits(i);
      const C shift = largest(l, columns);
      C inverse = 0;
      with_target(reader, targets, i, [&](auto target) {
        inverse = row_forward(l, columns, target, inv_temperature, shift, stats, i, e);
      });
      const V weight(inverse);
      sweep<C>(columns, [&](int64_t k, auto lanes) {
        fma(weight, V::load(e + k, lanes), V::load(sum + k, lanes)).store(sum + k, lanes);
      });
      if (i % kFoldRows == 0 || i == end - 1)
        for (int64_t k = 0; k < columns; k++) total[k] += sum[k], sum[k] = 0;
    }
  });
  bool tiny = false;
  for (int64_t k = 0; k < columns; k++) {
    double total = 0;
    for (int t = 0; t < team_size; t++) total += totals[t * columns + k];
    log_mass[k] = total > kTinySum ? log(total) : NAN;
    tiny |= !(total > kTinySum);
  }
  if (tiny) column_logs<C>(logits, inv_temperature, stats, log_mass, threads);
}

// d l_k = g (P_k (a + G_k - h) - q_k)
template <typename C, typename Target>
void row_backward(const C* l, int64_t columns, const Target& target, double inv_temperature,
                  const double stats[3], const C* gradient, C g, C* d_l) {
  using V = Vec<C>;
  const V k2((C)(inv_temperature * kLog2e)), shift((C)stats[0]), log2((C)(stats[1] * kLog2e));
  V sum;
  sweep<C>(columns, [&](int64_t k, auto lanes) {
    V p = exp2((V::load(l + k, lanes) - shift) * k2 - log2).or_else(0, lanes);
    p.store(d_l + k, lanes);
    sum = fma(p, V::load(gradient + k, lanes), sum);
  });
  const V base((C)(stats[2] - (double)sum.sum())), gv(g);
  sweep<C>(columns, [&](int64_t k, auto lanes) {
    V p = V::load(d_l + k, lanes), weight = V::load(gradient + k, lanes) + base;
    ((p * weight - target(k, lanes)) * gv).store(d_l + k, lanes);
  });
}

// The same in float64, where G itself may not exist.
template <typename C, typename Target>
void wide_row_backward(const C* l, int64_t columns, const Target& target, double inv_temperature,
                       const double stats[3], const double* prior, double g, C* d_l) {
  const double *w = prior, *c = prior + columns;
  double h = 0;
  const auto log_p = [&](int64_t k) { return (l[k] - stats[0]) * inv_temperature - stats[1]; };
  for (int64_t k = 0; k < columns; k++) h += w[k] * exp(log_p(k) - c[k]);
  for (int64_t k = 0; k < columns; k++) {
    const double x = log_p(k), q = (double)target(k, 1).sum();
    d_l[k] = (C)(g * (exp(x) * (stats[2] - h) + w[k] * exp(x - c[k]) - q));
  }
}

template <typename C>
void backward(const Matrix& logits, double inv_temperature, const Targets& targets,
              const Stats& stats, const double* prior, const C* d_loss, double factor,
              const Matrix& out, int threads) {
  const int64_t columns = logits.cols;
  Scratch<C> gradient(columns);
  bool narrow = true;
  for (int64_t k = 0; k < columns; k++) {
    const double c = prior[columns + k];
    narrow &= c >= -kNarrowLog && c <= kNarrowLog;
    gradient[k] = (C)(prior[k] * exp(-c));
  }
  const double g = (d_loss ? (double)*d_loss : 1) * factor * inv_temperature;
  advise_huge_pages(out.data, converts<C>(out) ? 0 : out.rows * out.stride * sizeof(C));
  parallel(threads, logits.rows * columns, [&](Team team) {
    Reader<C> reader(logits, targets);
    Scratch<C> scratch(converts<C>(out) ? columns : 0);
    for (int64_t i = team.begin(logits.rows); i < team.end(logits.rows); i++) {
      const C* l = reader.logits(i);
      C* d_l = write_row<C>(out, i, scratch);
      const double* row = stats.row + i;
      const double mine[] = {row[0], row[stats.row_stride], row[2 * stats.row_stride]};
      with_target(reader, targets, i, [&](auto target) {
        if (narrow)
          row_backward<C>(l, columns, target, inv_temperature, mine, gradient, (C)g, d_l);
        else
          wide_row_backward<C>(l, columns, target, inv_temperature, mine, prior, g, d_l);
      });
      finish_row<C>(out, i, scratch);
    }
  });
}

}  // namespace

void prior_forward(const Matrix& logits, double inv_temperature, const Targets& targets,
                   const Stats& stats, double* log_mass, int threads) {
  const auto kernel = logits.dtype == kFloat64 ? forward<double> : forward<float>;
  kernel(logits, inv_temperature, targets, stats, log_mass, threads);
}

void prior_backward(const Matrix& logits, double inv_temperature, const Targets& targets,
                    const Stats& stats, const double* prior, const void* d_loss, double factor,
                    const Matrix& out, int threads) {
  if (logits.dtype == kFloat64)
    backward<double>(logits, inv_temperature, targets, stats, prior, (const double*)d_loss, factor,
                     out, threads);
  else
    backward<float>(logits, inv_temperature, targets, stats, prior, (const float*)d_loss, factor,
                    out, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
