// What contrastive kernels share: exponentials of a row of logits, and what is left out of them.
#pragma once
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {

// Columns first <= j < last of a tile that begins at column `begin` take no part: -inf.
template <typename C>
void exclude(C* t, int64_t columns, double scale, int64_t begin, int64_t first, int64_t last) {
  for (int64_t j = first > begin ? first - begin : 0; j < columns && j < last - begin; j++)
    t[j] = (C)(scale > 0 ? -INFINITY : INFINITY);
}

// sum_j exp((t_j - shift) * scale); with Store, t becomes these terms, times b.
template <bool Store, typename C>
double sum_exp(C* t, int64_t columns, double scale, double shift, const C* b) {
  using V = Vec<C>;
  const V k2((C)(scale * kLog2e)), c((C)shift);
  V sum;
  sweep<C>(columns, [&](int64_t j, auto lanes) {
    V e = exp2((V::load(t + j, lanes) - c) * k2).or_else(0, lanes);
    sum = sum + e;
    if (Store) (b ? e * V::load(b + j, lanes) : e).store(t + j, lanes);
  });
  return (double)sum.sum();
}

// A row's log-sum-exp in two parts: one in units of t, subtracted where nothing rounds, and the
// rest for base-2 exponents.
template <typename C>
struct Split {
  C whole = 0, rest = 0;
  Split(double lse, double scale) {
    if (!isfinite(lse)) return;  // no negatives: every term is left out
    whole = (C)(lse / scale);
    rest = (C)((lse - (double)whole * scale) * kLog2e);
  }
};

}  // namespace ssl_fast::SSL_FAST_ISA
