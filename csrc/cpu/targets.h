// Rows of logits beside rows of their targets, for the losses that compare them.
#pragma once
#include "cpu/ops.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {

// Rows of logits and targets as one thread sees them.
template <typename C>
class Reader {
 public:
  Reader(const Matrix& logits, const Targets& targets)
      : logits_(logits),
        targets_(targets),
        logits_row_(converts<C>(logits) ? logits.cols : 0),
        target_row_(converts<C>(targets.values) ? logits.cols : 0),
        zeros_(targets.row && !targets.col ? logits.cols : 0) {
    if (zeros_) zeros_.fill(logits.cols, 0);
  }
  const C* logits(int64_t i) const { return read_row<C>(logits_, i, logits_row_); }

  // f(target row i), for the kind of target at hand.
  template <typename F>
  void with_target(int64_t i, F f) const {
    const C* values = read_row<C>(targets_.values, i, target_row_);
    if (targets_.row)
      f(Potentials<C>{values, targets_.col ? targets_.col : (double*)zeros_, targets_.scale,
                      targets_.row[i]});
    else
      f(Given<C>{values});
  }

 private:
  const Matrix& logits_;
  const Targets& targets_;
  Scratch<C> logits_row_, target_row_;
  Scratch<double> zeros_;
};

// row_stats[:, i]; dot = sum_k q_k (l_k - shift) / ln 2.
inline void store_row(const Stats& stats, int64_t i, double shift, double log, double mass,
                      double dot) {
  double* out = stats.row + i;
  out[0] = shift;
  out[stats.row_stride] = log;
  out[2 * stats.row_stride] = mass;
  out[3 * stats.row_stride] = mass * log - dot * kLn2;
}

}  // namespace ssl_fast::SSL_FAST_ISA
