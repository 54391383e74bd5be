// Rows of any element type, read and written in the type that is computed in.
#pragma once
#include <stdlib.h>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/vec.h"

namespace ssl_fast::SSL_FAST_ISA {

// Aligned memory for the length of a call.
template <typename C>
class Scratch {
 public:
  explicit Scratch(int64_t n) : p_(n ? allocate(n) : nullptr) {}
  ~Scratch() { free(p_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator C*() const { return p_; }
  void fill(int64_t n, C value) const {
    for (int64_t i = 0; i < n; i++) p_[i] = value;
  }

 private:
  static C* allocate(int64_t n) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, n * sizeof(C))) abort();  // as the system does when memory is out
    return static_cast<C*>(p);
  }
  C* p_;
};

// Whether float32 sums a row's squares well, whose sum this is; else float64 does.
inline bool fits_float32(double square) { return square > 1e-30 && square < 1e30; }

// The sum of the threads' parts f(team), in their order.
template <typename F>
double sum_of_parts(int threads, int64_t elements, F f) {
  Scratch<double> parts(threads);
  parts.fill(threads, 0);
  parallel(threads, elements, [&](Team team) { parts[team.thread] = f(team); });
  double total = 0;
  for (int i = 0; i < threads; i++) total += parts[i];
  return total;
}

// Memory that a thread keeps between calls: freeing megabytes and asking for them again costs more
// in page faults than a small problem costs altogether. For sizes with a bound only.
inline void* kept(int64_t bytes) {
  struct Owner {
    void* p = nullptr;
    int64_t bytes = 0;
    ~Owner() { free(p); }
  };
  static thread_local Owner owner;
  if (owner.bytes < bytes) {
    free(owner.p);
    owner.bytes = bytes;
    if (posix_memalign(&owner.p, 64, bytes)) abort();
  }
  return owner.p;
}

template <typename C>
struct TypeOf;
template <>
struct TypeOf<float> {
  static constexpr int value = kFloat32;
};
template <>
struct TypeOf<double> {
  static constexpr int value = kFloat64;
};

// Whether a row needs converting, and so a scratch row.
template <typename C>
inline bool converts(const Matrix& m) {
  return m.dtype != TypeOf<C>::value;
}

// A contiguous matrix of m's shape and type.
inline Matrix dense_like(const Matrix& m, void* data) {
  return {data, m.rows, m.cols, m.cols, m.dtype};
}

inline int element_size(const Matrix& m) {
  return m.dtype == kFloat64 ? 8 : m.dtype == kFloat32 ? 4 : 2;
}

inline char* row_address(const Matrix& m, int64_t i) {
  return static_cast<char*>(m.data) + i * m.stride * element_size(m);
}

// Row i [K] of a matrix of C.
template <typename C>
inline C* row_of(const Matrix& m, int64_t i) {
  return static_cast<C*>(m.data) + i * m.stride;
}

template <typename C, typename Half>
inline void upcast(const void* from, C* to, int64_t n) {
  const Half* half = static_cast<const Half*>(from);
  for (int64_t j = 0; j < n; j++) to[j] = to_float(half[j]);
}

template <typename C, typename Half>
inline void downcast(const C* from, void* to, int64_t n) {
  Half* half = static_cast<Half*>(to);
  for (int64_t j = 0; j < n; j++) from_float((float)from[j], half[j]);
}

// Row i [K]: in place where the type fits, else upcast into `scratch` [K].
template <typename C>
inline const C* read_row(const Matrix& m, int64_t i, C* scratch) {
  if (!converts<C>(m)) return row_of<C>(m, i);
  const char* p = row_address(m, i);
  if (m.dtype == kBfloat16)
    upcast<C, bf16>(p, scratch, m.cols);
  else if (m.dtype == kFloat16)
    upcast<C, f16>(p, scratch, m.cols);
  else if (m.dtype == kFloat32)
    for (int64_t j = 0; j < m.cols; j++) scratch[j] = reinterpret_cast<const float*>(p)[j];
  else
    for (int64_t j = 0; j < m.cols; j++) scratch[j] = (C) reinterpret_cast<const double*>(p)[j];
  return scratch;
}

// Where row i is to be computed: in place, or in `scratch`, from which finish_row() converts it.
template <typename C>
inline C* write_row(const Matrix& m, int64_t i, C* scratch) {
  return converts<C>(m) ? scratch : row_of<C>(m, i);
}

template <typename C>
inline void finish_row(const Matrix& m, int64_t i, const C* scratch) {
  if (m.dtype == kBfloat16) downcast<C, bf16>(scratch, row_address(m, i), m.cols);
  if (m.dtype == kFloat16) downcast<C, f16>(scratch, row_address(m, i), m.cols);
  if (m.dtype == kFloat32 && converts<C>(m)) {
    float* p = row_of<float>(m, i);
    for (int64_t j = 0; j < m.cols; j++) p[j] = (float)scratch[j];
  }
}

}  // namespace ssl_fast::SSL_FAST_ISA
