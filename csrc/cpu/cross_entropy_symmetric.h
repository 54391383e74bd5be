// The columns of the symmetric form, beside its rows. Where the logits span at most 64 nats, one
// shift and one exponential serve both: P_ik = e_ik / sum, with e = exp2((l - shift) * k2).
#pragma once
#include "cpu/cross_entropy_rows.h"
#include "cpu/parallel.h"

namespace ssl_fast::SSL_FAST_ISA {

// Sums of a tile at one shift: of each row as it is read, of all columns at the end. The first
// row's maximum stands for the tile's.
template <typename C>
class NarrowTile {
 public:
  NarrowTile(const Matrix& logits, double inv_temperature, const Targets& targets, int threads)
      : logits_(logits),
        targets_(targets),
        k2_((C)(inv_temperature * kLog2e)),
        sums_(2 * threads * logits.cols),
        totals_(2 * threads * logits.cols) {
    Scratch<C> first(converts<C>(logits) ? logits.cols : 0);
    shift_ = largest(read_row<C>(logits, 0, first), logits.cols);
  }

  C shift() const { return shift_; }
  // Whether the logits span little enough; nothing is valid otherwise. Known behind a barrier.
  bool narrow() const { return narrow_; }

  // Reads this thread's rows; result(i, sum of e, mass, dot) gets their sums. Stores e and q, both
  // [N, K] or null.
  template <typename F>
  void read(Team team, C* e_out, C* q_out, F result) {
    using V = Vec<C>;
    constexpr int kFoldRows = 256;  // float32 sums this long, then float64
    const int64_t columns = logits_.cols, begin = team.begin(logits_.rows);
    const int64_t end = team.end(logits_.rows);
    if (team.thread == 0) threads_ = team.threads;
    C *column_sum = sums_ + 2 * team.thread * columns, *column_mass = column_sum + columns;
    double* total = totals_ + 2 * team.thread * columns;
    for (int64_t k = 0; k < 2 * columns; k++) column_sum[k] = 0, total[k] = 0;
    Reader<C> reader(logits_, targets_);
    const V k2(k2_), c(shift_);
    V most(0), least(0);
    for (int64_t i = begin; i < end; i++) {
      const C* l = reader.logits(i);
      C* e_row = e_out ? e_out + i * columns : nullptr;
      C* q_row = q_out ? q_out + i * columns : nullptr;
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
          if (e_row) e.store(e_row + k, lanes);
          if (q_row) q.store(q_row + k, lanes);
          (V::load(column_sum + k, lanes) + e).store(column_sum + k, lanes);
          (V::load(column_mass + k, lanes) + q).store(column_mass + k, lanes);
        });
      });
      result(i, (double)sum.sum(), (double)mass.sum(), (double)dot.sum());
      if ((i - begin) % kFoldRows == kFoldRows - 1 || i == end - 1)
        for (int64_t k = 0; k < 2 * columns; k++) total[k] += column_sum[k], column_sum[k] = 0;
    }
    const double above = most.largest() * kLn2, below = -least.smallest() * kLn2;
    if (!(above <= kNarrowSpan / 2 && above + below <= kNarrowSpan))
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      narrow_ = false;
  }

  // The sum and the mass of column k, once all threads have read their rows.
  struct Column {
    double sum = 0, mass = 0;
  };
  Column column(int64_t k) const {
    Column column;
    for (int t = 0; t < threads_; t++) {
      column.sum += totals_[2 * t * logits_.cols + k];
      column.mass += totals_[(2 * t + 1) * logits_.cols + k];
    }
    return column;
  }

 private:
  const Matrix& logits_;
  const Targets& targets_;
  const C k2_;
  Scratch<C> sums_;         // [threads, 2, K] exponentials and mass
  Scratch<double> totals_;  // the same, of many rows
  C shift_;
  int threads_ = 1;
  bool narrow_ = true;
};

// False when the logits span too much: nothing is valid then.
template <typename C>
bool both_forward(const Matrix& logits, double inv_temperature, const Targets& targets,
                  const Stats& stats, int threads) {
  NarrowTile<C> tile(logits, inv_temperature, targets, threads);
  parallel(threads, logits.rows * logits.cols, [&](Team team) {
    tile.read(team, nullptr, nullptr, [&](int64_t i, double sum, double mass, double dot) {
      store_row(stats, i, tile.shift(), log(sum), mass, dot);
    });
  });
  for (int64_t k = 0; k < logits.cols && tile.narrow(); k++) {
    const auto column = tile.column(k);
    stats.col[k] = tile.shift();
    stats.col[logits.cols + k] = log(column.sum);
    stats.col[2 * logits.cols + k] = column.mass;
  }
  return tile.narrow();
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

// e_k of a row, formed from its logits.
template <typename C>
struct Exponentials {
  const C* l;  // [K]
  const Vec<C> k2, shift;
  Exponentials(const C* l, double inv_temperature, C shift)
      : l(l), k2((C)(inv_temperature * kLog2e)), shift(shift) {}
  template <typename Lanes>
  Vec<C> operator()(int64_t k, Lanes n) const {
    return exp2((Vec<C>::load(l + k, n) - shift) * k2);
  }
};

// The same where all rows and columns share a shift: P = e * weight, one exponential.
template <typename C, typename Exponential, typename Target>
void shared_backward(const Exponential& exponential, int64_t n, const Target& target, C row_weight,
                     const C* col_weight, C g, C* d_l) {
  using V = Vec<C>;
  const V w(row_weight), gv(g);
  sweep<C>(n, [&](int64_t k, auto lanes) {
    V e = exponential(k, lanes), q = target(k, lanes);
    V both = e * (w + V::load(col_weight + k, lanes));
    ((both - (q + q)) * gv).store(d_l + k, lanes);
  });
}

// Whether one exponential serves rows and columns; the logs leave room for those of N and K, and
// exp(-log) stays inside float32.
inline bool one_shift(const Stats& stats, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i++)
    if (stats.row[i] != stats.row[0] || fabs(stats.row[stats.row_stride + i]) > kNarrowSpan + 16)
      return false;
  for (int64_t k = 0; k < columns; k++)
    if (stats.col[k] != stats.row[0] || fabs(stats.col[columns + k]) > kNarrowSpan + 16)
      return false;
  return true;
}

// An e and a q this small are stored between the passes: forming them again takes longer.
constexpr int64_t kStoredPairBytes = 2 << 20;

// The loss, and d_logits in place of the logits, in one parallel region. False when the logits span
// too much: they are as they were then.
template <typename C>
bool narrow_at_once(const Matrix& logits, double inv_temperature, const Targets& targets,
                    double factor, C* loss, int threads) {
  const int64_t rows = logits.rows, columns = logits.cols, bytes = 2 * rows * columns * sizeof(C);
  NarrowTile<C> tile(logits, inv_temperature, targets, threads);
  Scratch<C> row_weight(rows), col_weight(columns);  // mass / sum
  C* e = bytes <= kStoredPairBytes ? static_cast<C*>(kept(bytes)) : nullptr;
  C* q = e ? e + rows * columns : nullptr;
  const C g = (C)(factor * inv_temperature);
  const double total = sum_of_parts(threads, rows * columns, [&](Team team) {
    double part = 0;
    tile.read(team, e, q, [&](int64_t i, double sum, double mass, double dot) {
      row_weight[i] = (C)(mass / sum);
      part += mass * log(sum) - 2 * kLn2 * dot;
    });
    team.barrier();
    if (!tile.narrow()) return part;
    for (int64_t k = team.begin(columns); k < team.end(columns); k++) {
      const auto column = tile.column(k);
      col_weight[k] = (C)(column.mass / column.sum);
      part += column.mass * log(column.sum);
    }
    team.barrier();
    Reader<C> reader(logits, targets);
    for (int64_t i = team.begin(rows); i < team.end(rows); i++) {
      C* l = row_of<C>(logits, i);
      if (e)
        shared_backward(Given<C>{e + i * columns}, columns, Given<C>{q + i * columns},
                        row_weight[i], (C*)col_weight, g, l);
      else
        reader.with_target(i, [&](auto target) {
          shared_backward(Exponentials<C>(l, inv_temperature, tile.shift()), columns, target,
                          row_weight[i], (C*)col_weight, g, l);
        });
    }
    return part;
  });
  *loss = (C)(factor * total);
  return tile.narrow();
}

}  // namespace ssl_fast::SSL_FAST_ISA
