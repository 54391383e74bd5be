// One row of logits against its target: loss forward, gradient backward.
#pragma once
#include "cpu/targets.h"

namespace ssl_fast::SSL_FAST_ISA {

// log sum exp, mass and loss of one row, relative to `shift`; writes row_stats[:, i].
template <typename C, typename Target>
void row_forward(const C* l, int64_t columns, const Target& target, double inv_temperature, C shift,
                 const Stats& stats, int64_t i) {
  using V = Vec<C>;
  const V k2((C)(inv_temperature * kLog2e)), c(shift);
  double sum = 0, mass = 0, dot = 0;
  stretches<C>(columns, [&](int64_t first, int64_t count) {
    V s, m, d;
    sweep<C>(count, [&](int64_t j, auto lanes) {
      V t = ((V::load(l + first + j, lanes) - c) * k2).or_else(0, lanes);
      V q = target(first + j, lanes);
      s = s + exp2(t).or_else(0, lanes);
      m = m + q;
      d = fma(q, t, d);
    });
    sum += (double)s.sum(), mass += (double)m.sum(), dot += (double)d.sum();
  });
  store_row(stats, i, shift, log(sum), mass, dot);
}

// d l_k = g * (a P_k - q_k)
template <typename C, typename Target>
void row_backward(const C* l, int64_t columns, const Target& target, double inv_temperature,
                  const double stats[3], C g, C* d_l) {
  using V = Vec<C>;
  const V k2((C)(inv_temperature * kLog2e)), shift((C)stats[0]), log2((C)(stats[1] * kLog2e));
  const V a((C)stats[2]), gv(g);
  sweep<C>(columns, [&](int64_t k, auto lanes) {
    V p = exp2((V::load(l + k, lanes) - shift) * k2 - log2);
    ((a * p - target(k, lanes)) * gv).store(d_l + k, lanes);
  });
}

}  // namespace ssl_fast::SSL_FAST_ISA
