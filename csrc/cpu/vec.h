// One vector type per instruction set: AVX-512, AVX2, or four lanes of the compiler's own.
// Included by objects that are built once per instruction set; everything lives in its namespace,
// so that no linker can hand one set's code to another.
#pragma once
#include <math.h>
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/numeric.h"

namespace ssl_fast::SSL_FAST_ISA {

struct Full {};  // all lanes; the other argument is an int, the number of lanes at the end of a row

template <typename C>
struct Vec;

// 2^f on [-1/2, 1/2] to 8e-8 relative, exactly 1 at 0.
constexpr float kExp2[] = {1.f,
                           0.6931471824645996f,
                           0.24022647738456726f,
                           0.055503323674201965f,
                           0.00961843691766262f,
                           0.0013398873852565885f,
                           0.00015353361959569156f};

#if defined(__AVX512F__)

template <>
struct Vec<float> {
  static constexpr int kLanes = 16;
  __m512 v;
  Vec() : v(_mm512_setzero_ps()) {}
  Vec(float x) : v(_mm512_set1_ps(x)) {}
  Vec(__m512 x) : v(x) {}
  static __mmask16 mask(int n) { return (__mmask16)((1u << n) - 1); }
  static Vec load(const float* p, Full) { return _mm512_loadu_ps(p); }
  static Vec load(const float* p, int n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  void store(float* p, Full) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
  // The first n lanes, `other` beyond them.
  Vec or_else(Vec, Full) const { return v; }
  Vec or_else(Vec other, int n) const { return _mm512_mask_mov_ps(other.v, mask(n), v); }
  friend Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.v, b.v); }
  friend Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.v, b.v); }
  friend Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.v, b.v); }
  friend Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
  // NaN in `b` wins, as the instruction has it.
  friend Vec max(Vec a, Vec b) { return _mm512_max_ps(a.v, b.v); }
  friend Vec min(Vec a, Vec b) { return _mm512_min_ps(a.v, b.v); }
  friend Vec sqrt(Vec a) { return _mm512_sqrt_ps(a.v); }
  float sum() const { return _mm512_reduce_add_ps(v); }
  float largest() const { return _mm512_reduce_max_ps(v); }
  float smallest() const { return _mm512_reduce_min_ps(v); }
  friend Vec exp2(Vec t) {
    t = max(Vec(-200.f), t);  // -inf - round(-inf) would be NaN
    __m512 n = _mm512_roundscale_ps(t.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Vec f = t - n, p = kExp2[6];
    for (int i = 5; i >= 0; i--) p = fma(p, f, kExp2[i]);
    return _mm512_scalef_ps(p.v, n);
  }
  // float(scale * s + col + row), summed in double: potentials cancel large scores.
  template <typename Lanes>
  static Vec exponent(const float* s, const double* col, double scale, double row, Lanes n) {
    Vec x = load(s, n);
    __m512d c0 = load_double(col, n, 0), c1 = load_double(col, n, 8);
    __m512d k = _mm512_set1_pd(scale), r = _mm512_set1_pd(row);
    __m512d x0 = _mm512_cvtps_pd(_mm512_castps512_ps256(x.v));
    __m512d x1 = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1));
    __m256 lo = _mm512_cvtpd_ps(_mm512_add_pd(_mm512_fmadd_pd(x0, k, c0), r));
    __m256 hi = _mm512_cvtpd_ps(_mm512_add_pd(_mm512_fmadd_pd(x1, k, c1), r));
    return _mm512_insertf32x8(_mm512_castps256_ps512(lo), hi, 1);
  }
  static __m512d load_double(const double* p, Full, int first) {
    return _mm512_loadu_pd(p + first);
  }
  static __m512d load_double(const double* p, int n, int first) {
    return _mm512_maskz_loadu_pd((__mmask8)(mask(n) >> first), p + first);
  }
};

#elif defined(__AVX2__)

template <>
struct Vec<float> {
  static constexpr int kLanes = 8;
  __m256 v;
  Vec() : v(_mm256_setzero_ps()) {}
  Vec(float x) : v(_mm256_set1_ps(x)) {}
  Vec(__m256 x) : v(x) {}
  static __m256i mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vec load(const float* p, Full) { return _mm256_loadu_ps(p); }
  static Vec load(const float* p, int n) { return _mm256_maskload_ps(p, mask(n)); }
  void store(float* p, Full) const { _mm256_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm256_maskstore_ps(p, mask(n), v); }
  Vec or_else(Vec, Full) const { return v; }
  Vec or_else(Vec other, int n) const {
    return _mm256_blendv_ps(other.v, v, _mm256_castsi256_ps(mask(n)));
  }
  friend Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.v, b.v); }
  friend Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
  friend Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
  friend Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
  friend Vec max(Vec a, Vec b) { return _mm256_max_ps(a.v, b.v); }
  friend Vec min(Vec a, Vec b) { return _mm256_min_ps(a.v, b.v); }
  friend Vec sqrt(Vec a) { return _mm256_sqrt_ps(a.v); }
  float sum() const {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  float largest() const {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }
  float smallest() const {
    __m128 x = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_min_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_min_ss(x, _mm_movehdup_ps(x)));
  }
  friend Vec exp2(Vec t) {
    t = min(Vec(127.f), t);
    __m256 tiny = _mm256_cmp_ps(t.v, _mm256_set1_ps(-126.f), _CMP_LT_OQ);
    __m256 n = _mm256_round_ps(t.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Vec f = t - n, p = kExp2[6];
    for (int i = 5; i >= 0; i--) p = fma(p, f, kExp2[i]);
    __m256i bits = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    Vec power = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
    return _mm256_andnot_ps(tiny, (p * power).v);
  }
  template <typename Lanes>
  static Vec exponent(const float* s, const double* col, double scale, double row, Lanes n) {
    Vec x = load(s, n);
    __m256d c0 = load_double(col, n, 0), c1 = load_double(col, n, 4);
    __m256d k = _mm256_set1_pd(scale), r = _mm256_set1_pd(row);
    __m256d x0 = _mm256_cvtps_pd(_mm256_castps256_ps128(x.v));
    __m256d x1 = _mm256_cvtps_pd(_mm256_extractf128_ps(x.v, 1));
    __m128 lo = _mm256_cvtpd_ps(_mm256_add_pd(_mm256_fmadd_pd(x0, k, c0), r));
    __m128 hi = _mm256_cvtpd_ps(_mm256_add_pd(_mm256_fmadd_pd(x1, k, c1), r));
    return _mm256_insertf128_ps(_mm256_castps128_ps256(lo), hi, 1);
  }
  static __m256d load_double(const double* p, Full, int first) {
    return _mm256_loadu_pd(p + first);
  }
  static __m256d load_double(const double* p, int n, int first) {
    __m256i lanes =
        _mm256_cmpgt_epi64(_mm256_set1_epi64x(n - first), _mm256_setr_epi64x(0, 1, 2, 3));
    return _mm256_maskload_pd(p + first, lanes);
  }
};

#else

template <>
struct Vec<float> {
  static constexpr int kLanes = 4;
  typedef float Lanes4 __attribute__((vector_size(16)));
  typedef int32_t Bits4 __attribute__((vector_size(16)));
  Lanes4 v;
  Vec() : v{} {}
  Vec(float x) : v{x, x, x, x} {}
  Vec(Lanes4 x) : v(x) {}
  static Vec load(const float* p, Full) { return Lanes4{p[0], p[1], p[2], p[3]}; }
  static Vec load(const float* p, int n) {
    Lanes4 x{};
    for (int i = 0; i < n; i++) x[i] = p[i];
    return x;
  }
  void store(float* p, Full) const { store(p, kLanes); }
  void store(float* p, int n) const {
    for (int i = 0; i < n; i++) p[i] = v[i];
  }
  Vec or_else(Vec, Full) const { return v; }
  Vec or_else(Vec other, int n) const {
    for (int i = 0; i < n; i++) other.v[i] = v[i];
    return other;
  }
  friend Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend Vec fma(Vec a, Vec b, Vec c) { return a.v * b.v + c.v; }
  friend Vec max(Vec a, Vec b) { return a.v > b.v ? a.v : b.v; }
  friend Vec min(Vec a, Vec b) { return a.v < b.v ? a.v : b.v; }
  friend Vec sqrt(Vec a) {
    for (int i = 0; i < kLanes; i++) a.v[i] = sqrtf(a.v[i]);
    return a;
  }
  float sum() const { return (v[0] + v[2]) + (v[1] + v[3]); }
  float largest() const { return fmaxf(fmaxf(v[0], v[2]), fmaxf(v[1], v[3])); }
  float smallest() const { return fminf(fminf(v[0], v[2]), fminf(v[1], v[3])); }
  friend Vec exp2(Vec t) {
    t = min(Vec(127.f), t);
    Lanes4 x = max(Vec(-127.f), t).v;
    const Lanes4 magic = Vec(12582912.f).v;  // 1.5 * 2^23: adding it rounds to an integer
    Lanes4 n = (x + magic) - magic;
    Vec f = x - n, p = kExp2[6];
    for (int i = 5; i >= 0; i--) p = fma(p, f, kExp2[i]);
    Bits4 bits = (__builtin_convertvector(n, Bits4) + 127) << 23;
    Lanes4 power;
    __builtin_memcpy(&power, &bits, sizeof power);
    return t.v < -126.f ? Lanes4{} : p.v * power;
  }
  template <typename Lanes>
  static Vec exponent(const float* s, const double* col, double scale, double row, Lanes n) {
    Lanes4 x = load(s, n).v;
    for (int i = 0; i < count(n); i++) x[i] = (float)((double)x[i] * scale + col[i] + row);
    return x;
  }
  static int count(Full) { return kLanes; }
  static int count(int n) { return n; }
};

#endif

// float64 serves gradient checks and the few who train in it: one lane, the library's exponential.
template <>
struct Vec<double> {
  static constexpr int kLanes = 1;
  double v;
  Vec() : v(0) {}
  Vec(double x) : v(x) {}
  template <typename Lanes>
  static Vec load(const double* p, Lanes) {
    return *p;
  }
  template <typename Lanes>
  void store(double* p, Lanes) const {
    *p = v;
  }
  template <typename Lanes>
  Vec or_else(Vec, Lanes) const {
    return v;
  }
  friend Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend Vec fma(Vec a, Vec b, Vec c) { return a.v * b.v + c.v; }
  friend Vec max(Vec a, Vec b) { return a.v > b.v ? a.v : b.v; }
  friend Vec min(Vec a, Vec b) { return a.v < b.v ? a.v : b.v; }
  friend Vec sqrt(Vec a) { return ::sqrt(a.v); }
  double sum() const { return v; }
  double largest() const { return v; }
  double smallest() const { return v; }
  friend Vec exp2(Vec t) { return ::exp2(t.v); }
  template <typename Lanes>
  static Vec exponent(const double* s, const double* col, double scale, double row, Lanes) {
    return *s * scale + *col + row;
  }
};

// f(j, lanes) for every vector of a row of n elements.
template <typename C, typename F>
inline void sweep(int64_t n, F f) {
  constexpr int lanes = Vec<C>::kLanes;
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes) f(j, Full{});
  if (j < n) f(j, (int)(n - j));
}

// f(first, count) for stretches of a row of n elements that float32 sums well; beyond, float64.
template <typename C, typename F>
inline void stretches(int64_t n, F f) {
  constexpr int64_t run = 128 * Vec<C>::kLanes;
  for (int64_t first = 0; first < n; first += run) f(first, n - first < run ? n - first : run);
}

}  // namespace ssl_fast::SSL_FAST_ISA
