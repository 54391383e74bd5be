// Sinkhorn-Knopp in the scaling form, float32 throughout, for scores that span at most 64 nats:
//
//   E = exp(scale * (s - c))
//   alpha_k = prior_k / sum_i E_ik beta_i,   beta_i = 1 / sum_k E_ik alpha_k
//
// A pass over a block of rows yields beta and, while the block is in cache, the next column sums:
// T + 1 passes. A dense q stores E once and rescales it; potentials alone recompute E where it is
// large. Bytes: T + 1 reads of N K scores, one write if dense. Operations: one exp an element
// (dense) or T + 1 (potentials).
#pragma once
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {

constexpr int kBlockRows = 4;
constexpr int64_t kBlockBytes = 256 << 10;  // of E, so that a block stays in the second-level cache
constexpr int kFoldBlocks = 64;             // float32 sums this long, then float64
constexpr int64_t kStoredBytes = 4 << 20;   // an E this small is stored although no q is wanted
constexpr double kTinySum = 1e-30;          // below, float32 sums lose digits: log domain

// The scaling form's state, shared by a team.
template <typename C>
struct Scaling {
  const Matrix& scores;
  C scale2, shift;       // E = exp2((s - shift) * scale2)
  C* e;                  // [N, K], or null: recomputed block by block
  C* alpha;              // [K]
  const C* prior;        // [K] or null for ones
  int block;             // rows at a time
  bool dense;            // e becomes q
  double* row;           // [N] or null
  double row_gauge = 0;  // added to log beta
};

// What one thread has of its own.
template <typename C>
struct Local {
  C* sums;                   // [K] column sums of some blocks
  double* total;             // [K] of all
  Vec<C> most{0}, least{0};  // of s - shift
  bool safe = true;          // no sum has left the range where float32 is accurate
};

// E of n rows from `first` on, into e [n, ld]; with `sums`, also their column sums.
template <int n, typename C>
void exponentials(const Scaling<C>& state, int64_t first, C* e, int64_t ld, C* sums,
                  Local<C>& local, C* scratch) {
  using V = Vec<C>;
  const V k(state.scale2), c(state.shift);
  const int64_t columns = state.scores.cols;
  const C* s[n];
  for (int b = 0; b < n; b++) s[b] = read_row(state.scores, first + b, scratch + b * columns);
  V most = local.most, least = local.least;  // in registers: a store of E may alias `local`
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
  local.most = most;
  local.least = least;
}

// 1 / sum_k e_bk alpha_k of n rows.
template <int n, typename C>
void row_scalings(const C* e, int64_t ld, const C* alpha, int64_t columns, C* beta) {
  using V = Vec<C>;
  double totals[n] = {};
  stretches<C>(columns, [&](int64_t first, int64_t count) {
    V sums[n];
    sweep<C>(count, [&](int64_t j, auto lanes) {
      V a = V::load(alpha + first + j, lanes);
      for (int b = 0; b < n; b++) sums[b] = fma(V::load(e + b * ld + first + j, lanes), a, sums[b]);
    });
    for (int b = 0; b < n; b++) totals[b] += (double)sums[b].sum();
  });
  for (int b = 0; b < n; b++) beta[b] = (C)(1 / totals[b]);
}

// sums_k += sum_b e_bk beta_b
template <int n, typename C>
void add_columns(const C* e, int64_t ld, const C* beta, int64_t columns, C* sums) {
  using V = Vec<C>;
  V weight[n];
  for (int b = 0; b < n; b++) weight[b] = V(beta[b]);
  sweep<C>(columns, [&](int64_t j, auto lanes) {
    V sum = V::load(sums + j, lanes);
    for (int b = 0; b < n; b++) sum = fma(weight[b], V::load(e + b * ld + j, lanes), sum);
    sum.store(sums + j, lanes);
  });
}

template <typename C>
void fold(C* sums, double* total, int64_t columns) {
  for (int64_t k = 0; k < columns; k++) total[k] += sums[k], sums[k] = 0;
}

// q = e * beta_b * alpha_k, in place.
template <int n, typename C>
void rescale(C* e, int64_t ld, const C* beta, const C* alpha, int64_t columns) {
  using V = Vec<C>;
  V weight[n];
  for (int b = 0; b < n; b++) weight[b] = V(beta[b]);
  sweep<C>(columns, [&](int64_t j, auto lanes) {
    V a = V::load(alpha + j, lanes);
    for (int b = 0; b < n; b++)
      (V::load(e + b * ld + j, lanes) * a * weight[b]).store(e + b * ld + j, lanes);
  });
}

enum class Pass { kStart, kMiddle, kLast };

// Rows i to i + n of a pass, E of which is or comes into e [n, K].
template <int n, typename C>
void one_block(const Scaling<C>& state, Pass pass, bool fill, int64_t i, C* e, Local<C>& local,
               C* scratch) {
  const int64_t columns = state.scores.cols;
  const bool start = pass == Pass::kStart;
  C beta[n];
  if (fill) exponentials<n>(state, i, e, columns, start ? local.sums : nullptr, local, scratch);
  if (start) return;
  row_scalings<n>(e, columns, state.alpha, columns, beta);
  for (int r = 0; r < n; r++) local.safe &= beta[r] * (C)kTinySum < 1;
  if (pass == Pass::kMiddle) return add_columns<n>(e, columns, beta, columns, local.sums);
  if (state.dense) rescale<n>(e, columns, beta, state.alpha, columns);
  for (int r = 0; r < n && state.row; r++)
    state.row[i + r] = log((double)beta[r]) + state.row_gauge;
}

// One pass over this thread's rows: beta from alpha (all ones at a zero start), then the column
// sums of the next alpha, or the result.
template <typename C>
void one_pass(const Scaling<C>& state, Team team, Pass pass, bool fill, bool backwards,
              Local<C>& local) {
  const int64_t columns = state.scores.cols, block = state.block;
  const int64_t begin = team.begin(state.scores.rows), end = team.end(state.scores.rows);
  const int64_t blocks = (end - begin + block - 1) / block;
  Scratch<C> scratch(fill && converts<C>(state.scores) ? block * columns : 0);
  Scratch<C> own(state.e ? 0 : block * columns);
  for (int64_t k = 0; k < columns; k++) local.sums[k] = 0, local.total[k] = 0;
  for (int64_t b = 0; b < blocks; b++) {
    int64_t i = begin + (backwards ? blocks - 1 - b : b) * block;
    const int64_t last = i + block < end ? i + block : end;
    for (; i + kBlockRows <= last; i += kBlockRows)
      one_block<kBlockRows, C>(state, pass, fill, i, state.e ? state.e + i * columns : own, local,
                               scratch);
    for (; i < last; i++)
      one_block<1, C>(state, pass, fill, i, state.e ? state.e + i * columns : own, local, scratch);
    if (b % kFoldBlocks == kFoldBlocks - 1 || b == blocks - 1)
      fold(local.sums, local.total, columns);
  }
}

// alpha_k = prior_k / sum_i E_ik beta_i, this thread's share of k, from all threads' totals, which
// are summed into the first's. Short loops, each of which the compiler makes vectors of.
template <typename C>
bool update_columns(const Scaling<C>& state, Team team, double* totals) {
  const int64_t columns = state.scores.cols, begin = team.begin(columns), end = team.end(columns);
  for (int t = 1; t < team.threads; t++)
    for (int64_t k = begin; k < end; k++) totals[k] += totals[t * columns + k];
  int64_t unsafe = 0;
  for (int64_t k = begin; k < end; k++)
    unsafe |= totals[k] > kTinySum && totals[k] < 1 / kTinySum ? 0 : 1;
  for (int64_t k = begin; k < end; k++)
    state.alpha[k] = (C)((state.prior ? state.prior[k] : 1) / totals[k]);
  return !unsafe;
}

// False when the scores or the sums leave float32's comfortable range: nothing is valid then.
template <typename C>
bool scaling_form(const Matrix& scores, double scale, const double* log_prior, int iterations,
                  bool softmax_start, C* q, double* row, double* col, int threads) {
  const int64_t rows = scores.rows, columns = scores.cols, bytes = rows * columns * sizeof(C);
  Scratch<C> alpha(columns), prior(log_prior ? columns : 0), first(columns);
  Scratch<C> sums(threads * columns);
  Scratch<double> totals(threads * columns);
  for (int64_t k = 0; k < columns && log_prior; k++) prior[k] = (C)exp(log_prior[k]);
  alpha.fill(columns, 1);

  // The first row's maximum stands for the matrix's; exp(scale * shift) moves into a potential.
  const C shift = largest(read_row(scores, 0, (C*)first), columns);
  const double gauge = -shift * scale;
  C* e = q ? q : bytes <= kStoredBytes ? static_cast<C*>(kept(bytes)) : nullptr;
  const int64_t fit = kBlockBytes / (columns * (int64_t)sizeof(C));
  const int block = fit < kBlockRows ? 1 : kBlockRows;
  const Scaling<C> state{scores, (C)(scale * kLog2e),
                         shift,  e,
                         alpha,  log_prior ? (C*)prior : nullptr,
                         block,  q != nullptr,
                         row,    softmax_start ? gauge : 0};
  bool narrow = true;
  parallel(threads, rows * columns, [&](Team team) {
    Local<C> local{sums + team.thread * columns, totals + team.thread * columns};
    for (int t = 0; t <= iterations; t++) {
      const Pass pass = t == iterations            ? Pass::kLast
                        : t == 0 && !softmax_start ? Pass::kStart
                                                   : Pass::kMiddle;
      // Every other pass runs backwards: it begins with what is still in cache.
      one_pass<C>(state, team, pass, t == 0 || !e, t % 2, local);
      if (pass == Pass::kLast) break;
      team.barrier();
      local.safe &= update_columns<C>(state, team, totals);
      team.barrier();
    }
    const double most = local.most.largest() * scale, least = local.least.smallest() * scale;
    if (!(local.safe && most - least <= kNarrowSpan && most <= kNarrowSpan / 2))
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      narrow = false;
  });
  for (int64_t k = 0; k < columns && narrow && col; k++)
    col[k] = log((double)alpha[k]) + (softmax_start ? 0 : gauge);
  return narrow;
}

}  // namespace ssl_fast::SSL_FAST_ISA
