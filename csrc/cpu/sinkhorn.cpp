// Sinkhorn-Knopp over prototypes:  q_ik = exp(scale * s_ik + row_i + col_k).
//
// Scores that span at most 64 nats take the scaling form, float32 throughout: E = exp(scale*(s -
// c)), then alternately alpha_k = prior_k / sum_i E_ik beta_i and beta_i = 1 / sum_k E_ik alpha_k.
// A pass over a block of rows yields beta and, while the block is in cache, the next column sums: T
// + 1 passes. A dense q stores E once and rescales it; potentials alone recompute E where it is
// large. Wider scores go through the log domain with exponents in float64.
//
// Bytes: (T + 1) reads of N K scores, one write if dense. Operations: one exp an element (dense) or
// T + 1 (potentials). Cuturi 2013; order and start of Caron et al. 2020 (SwAV).
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

constexpr int kBlockRows = 4;
constexpr int64_t kBlockBytes = 256 << 10;  // of E, so that a block stays in the second-level cache
constexpr int kFoldBlocks = 64;             // float32 sums this long, then float64
constexpr int64_t kStoredBytes = 4 << 20;   // an E this small is stored although no q is wanted
constexpr double kTinySum = 1e-30;          // below, float32 sums lose digits: log domain

// The scaling form's state, shared by a team.
template <typename C>
struct Scaling {
  const Matrix& scores;
  C scale2, shift;  // E = exp2((s - shift) * scale2)
  C* alpha;         // [K]
  const C* prior;   // [K] or null for ones
};

// E of `n` rows from `first` on, into e [n, ld]; with `sums`, also their column sums.
template <typename C>
void exponentials(const Scaling<C>& state, int64_t first, int n, C* e, int64_t ld, C* sums,
                  Vec<C>& most, Vec<C>& least, C* scratch) {
  using V = Vec<C>;
  const V k(state.scale2), c(state.shift);
  const int64_t columns = state.scores.cols;
  const C* s[kBlockRows];
  for (int b = 0; b < n; b++) s[b] = read_row(state.scores, first + b, scratch + b * columns);
  sweep<C>(columns, [&](int64_t j, auto lanes) {
    V sum = sums ? V::load(sums + j, lanes) : V();
    for (int b = 0; b < n; b++) {
      V x = V::load(s[b] + j, lanes);
      V d = (x - c).or_else(0, lanes);
      most = max(d, most);
      least = min(d, least);
      V value = exp2(d * k);
      value.store(e + b * ld + j, lanes);
      sum = sum + value;
    }
    if (sums) sum.store(sums + j, lanes);
  });
}

// 1 / sum_k e_bk alpha_k of `n` rows.
template <typename C>
void row_scalings(const C* e, int64_t ld, int n, const C* alpha, int64_t columns, C* beta) {
  using V = Vec<C>;
  V sums[kBlockRows];
  sweep<C>(columns, [&](int64_t j, auto lanes) {
    V a = V::load(alpha + j, lanes);
    for (int b = 0; b < n; b++) sums[b] = fma(V::load(e + b * ld + j, lanes), a, sums[b]);
  });
  for (int b = 0; b < n; b++) beta[b] = 1 / sums[b].sum();
}

// sums_k += sum_b e_bk beta_b
template <typename C>
void add_columns(const C* e, int64_t ld, int n, const C* beta, int64_t columns, C* sums) {
  using V = Vec<C>;
  sweep<C>(columns, [&](int64_t j, auto lanes) {
    V sum = V::load(sums + j, lanes);
    for (int b = 0; b < n; b++) sum = fma(V(beta[b]), V::load(e + b * ld + j, lanes), sum);
    sum.store(sums + j, lanes);
  });
}

template <typename C>
void fold(C* sums, double* total, int64_t columns) {
  for (int64_t k = 0; k < columns; k++) total[k] += sums[k], sums[k] = 0;
}

// q = e * beta_b * alpha_k, in place.
template <typename C>
void rescale(C* e, int64_t ld, int n, const C* beta, const C* alpha, int64_t columns) {
  using V = Vec<C>;
  sweep<C>(columns, [&](int64_t j, auto lanes) {
    V a = V::load(alpha + j, lanes);
    for (int b = 0; b < n; b++)
      (V::load(e + b * ld + j, lanes) * a * V(beta[b])).store(e + b * ld + j, lanes);
  });
}

// False when the scores or the sums leave float32's comfortable range: nothing is valid then.
template <typename C>
bool scaling_form(const Matrix& scores, double scale, const double* log_prior, int iterations,
                  bool softmax_start, C* q, double* row, double* col, int threads) {
  const int64_t rows = scores.rows, columns = scores.cols;
  int block = (int)(kBlockBytes / (columns * (int64_t)sizeof(C)));
  block = block < 1 ? 1 : block > kBlockRows ? kBlockRows : block;
  const int64_t bytes = rows * columns * sizeof(C);
  const bool stored = q || bytes <= kStoredBytes;
  C* all_e = q ? q : stored ? static_cast<C*>(kept(bytes)) : nullptr;  // [N, K]
  Scratch<C> alpha(columns), prior(log_prior ? columns : 0), first(columns);
  Scratch<C> parts(threads * columns);        // [threads, K] column sums of some blocks
  Scratch<double> totals(threads * columns);  // [threads, K] of all
  if (log_prior)
    for (int64_t k = 0; k < columns; k++) prior[k] = (C)exp(log_prior[k]);
  alpha.fill(columns, 1);
  const C* head = read_row(scores, 0, (C*)first);
  C shift = head[0];
  for (int64_t k = 1; k < columns; k++) shift = head[k] > shift ? head[k] : shift;
  const Scaling<C> state{scores, (C)(scale * kLog2e), shift, alpha,
                         log_prior ? (C*)prior : nullptr};
  // exp(scale * c) went into E; it belongs to the potential that came second.
  const double row_gauge = softmax_start ? -shift * scale : 0,
               col_gauge = -shift * scale - row_gauge;
  bool narrow = true;

  parallel(threads, rows * columns, [&](Team team) {
    C* sums = parts + team.thread * columns;
    double* total = totals + team.thread * columns;
    Scratch<C> scratch(converts<C>(scores) ? block * columns : 0), e(stored ? 0 : block * columns);
    Vec<C> most(0), least(0);
    C beta[kBlockRows], smallest = 1;
    const int64_t begin = team.begin(rows), end = team.end(rows);
    const int64_t blocks = (end - begin + block - 1) / block;
    for (int pass = 0; pass <= iterations; pass++) {
      const bool last = pass == iterations, ones = pass == 0 && !softmax_start;
      for (int64_t k = 0; k < columns; k++) sums[k] = 0, total[k] = 0;
      for (int64_t b = 0; b < blocks; b++) {
        // Every other pass runs backwards: it begins with what is still in cache.
        const int64_t i = begin + (pass % 2 ? blocks - 1 - b : b) * block;
        const int n = (int)(end - i < block ? end - i : block);
        C* rows_e = stored ? all_e + i * columns : (C*)e;
        if (pass == 0 || !stored)
          exponentials<C>(state, i, n, rows_e, columns, ones ? sums : nullptr, most, least,
                          scratch);
        if (!ones) row_scalings<C>(rows_e, columns, n, alpha, columns, beta);
        if (!ones && !last) add_columns<C>(rows_e, columns, n, beta, columns, sums);
        if (!last && (b % kFoldBlocks == kFoldBlocks - 1 || b == blocks - 1))
          fold(sums, total, columns);
        for (int r = 0; r < n && !ones; r++) smallest = beta[r] * (C)kTinySum < 1 ? smallest : 0;
        if (last && q) rescale<C>(rows_e, columns, n, beta, alpha, columns);
        for (int r = 0; r < n && last && row; r++) row[i + r] = log((double)beta[r]) + row_gauge;
      }
      if (last) break;
      team.barrier();
      for (int64_t k = team.begin(columns); k < team.end(columns); k++) {
        double sum = 0;
        for (int t = 0; t < team.threads; t++) sum += totals[t * columns + k];
        if (!(sum > kTinySum && sum < 1 / kTinySum)) smallest = 0;
        alpha[k] = (C)((state.prior ? state.prior[k] : 1) / sum);
      }
      team.barrier();
    }
    const double nats = (most.largest() - least.smallest()) * scale;
    if (!(nats <= kNarrowSpan && most.largest() * scale <= kNarrowSpan / 2) || smallest == 0)
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      narrow = false;
  });
  if (narrow && col)
    for (int64_t k = 0; k < columns; k++) col[k] = log((double)alpha[k]) + col_gauge;
  return narrow;
}

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

void evaluate(const Matrix& scores, double scale, const double* row, const double* col, void* q,
              int threads) {
  if (scores.dtype == kFloat64)
    evaluate<double>(scores, scale, row, col, (double*)q, threads);
  else
    evaluate<float>(scores, scale, row, col, (float*)q, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
