// What a row or a column of logits gives to its cross-entropy, merged from parts in a fixed order.
#pragma once
#include "reduce.cuh"

namespace ssl_fast {
namespace {

// Softmax and cross terms of a set of elements, relative to their largest logit (in logit units):
//   sum = sum_k exp(l_k - l_max),  mass = sum_k q_k,  cross = sum_k q_k (max - logit_k)
struct Terms {
  float max = kLowest;
  float sum = 0, mass = 0, cross = 0;

  __device__ __forceinline__ void raise(float top, float scale2) {
    sum *= exp2_fast((max - top) * scale2);
    cross = fmaf(mass, top - max, cross);
    max = top;
  }
  __device__ __forceinline__ void add(float logit, float q, float scale2) {
    sum += exp2_fast((logit - max) * scale2);
    cross = fmaf(q, max - logit, cross);
    mass += q;
  }
  __device__ __forceinline__ double log() const { return log_of(sum); }
  __device__ __forceinline__ double loss(double inv_temperature) const {
    return mass * log() + cross * inv_temperature;
  }
};

__device__ __forceinline__ Terms exchange(Terms x, int mask) {
  Terms other;
  other.max = ssl_fast::exchange(x.max, mask);
  other.sum = ssl_fast::exchange(x.sum, mask);
  other.mass = ssl_fast::exchange(x.mass, mask);
  other.cross = ssl_fast::exchange(x.cross, mask);
  return other;
}

struct MergeTerms {
  float scale2;
  __device__ __forceinline__ Terms operator()(Terms a, Terms b) const {
    const float top = fmaxf(a.max, b.max);
    a.raise(top, scale2);
    b.raise(top, scale2);
    a.sum += b.sum;
    a.mass += b.mass;
    a.cross += b.cross;
    return a;
  }
};

}  // namespace
}  // namespace ssl_fast
