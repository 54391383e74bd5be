// Distances of unit rows to their nearest, n(i), and how the rows move them:
//
//   e_i = u_i - u_n(i) + eps,   r_i = |e_i|_p,   loss = -1/N sum_i log(r_i + eps)
//   push_i = -1 / (N (r_i + eps)) dr_i / de_i,   d_u_i = push_i - sum_{n(j) = i} push_j
//   dr / de_k = sign(e_k) (|e_k| / r)^(p - 1);   p infinite: shared by the entries of the largest
//
// Not stored: differences. Bytes: rows are read twice from the cache, gradients written once; a
// thread owns columns of d_u, so that its order is that of the rows.
// Sablayrolles et al. 2019.
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <typename C>
struct Differences {
  const Matrix& u;
  const int64_t* index;
  C eps;
  // f(e_ik) for k from `begin` to `end`
  template <typename F>
  void each(int64_t i, int64_t begin, int64_t end, F f) const {
    const C *own = row_of<C>(u, i), *other = row_of<C>(u, index[i]);
    for (int64_t k = begin; k < end; k++) f(k, (double)(own[k] - other[k] + eps));
  }
};

template <typename C>
double norm_of(const Differences<C>& differences, int64_t i, double p) {
  double sum = 0;
  differences.each(i, 0, differences.u.cols, [&](int64_t, double e) {
    if (p == 2)
      sum += e * e;
    else if (isinf(p))
      sum = isnan(sum) || fabs(e) <= sum ? sum : fabs(e);  // NaN stays
    else
      sum += p == 1 ? fabs(e) : pow(fabs(e), p);
  });
  return p == 2 ? sqrt(sum) : isinf(p) || p == 1 ? sum : pow(sum, 1 / p);
}

inline double slope(double e, double r, double p) {
  if (p == 2) return e / r;
  if (isinf(p)) return fabs(e) == r ? copysign(1, e) : 0;
  return e == 0 ? 0 : copysign(p == 1 ? 1 : pow(fabs(e) / r, p - 1), e);
}

template <typename C>
double distances(const Matrix& u, const int64_t* index, double p, double eps, C* d_u, int threads) {
  const int64_t rows = u.rows, width = u.cols;
  const Differences<C> differences{u, index, (C)eps};
  Scratch<double> norm(rows), share(rows);
  parallel(threads, rows * width, [&](Team team) {
    for (int64_t i = team.begin(rows); i < team.end(rows); i++) {
      norm[i] = norm_of(differences, i, p);
      int64_t ties = 1;
      if (isinf(p)) {
        ties = 0;
        differences.each(i, 0, width, [&](int64_t, double e) { ties += fabs(e) == norm[i]; });
      }
      share[i] = norm[i] == 0 ? 0 : -1 / ((double)(rows * ties) * (norm[i] + eps));
    }
  });
  double total = 0;
  for (int64_t i = 0; i < rows; i++) total -= log(norm[i] + eps);
  if (!d_u) return total / (double)rows;
  parallel(threads, rows * width, [&](Team team) {
    const int64_t begin = team.begin(width), end = team.end(width);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t k = begin; k < end; k++) d_u[i * width + k] = 0;
    for (int64_t i = 0; i < rows; i++) {
      C *own = d_u + i * width, *other = d_u + index[i] * width;
      if (share[i] == 0) continue;
      differences.each(i, begin, end, [&](int64_t k, double e) {
        const C push = (C)(share[i] * slope(e, norm[i], p));
        own[k] += push;
        other[k] -= push;
      });
    }
  });
  return total / (double)rows;
}

}  // namespace

double koleo(const Matrix& u, const int64_t* index, double p, double eps, void* d_u, int threads) {
  return u.dtype == kFloat64 ? distances<double>(u, index, p, eps, (double*)d_u, threads)
                             : distances<float>(u, index, p, eps, (float*)d_u, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
