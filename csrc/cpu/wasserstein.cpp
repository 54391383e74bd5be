// What surrounds the decomposition of a batch Z [N, D], each in one pass over memory:
//
//   mean_d = sum_i Z_id / N      column_means: float64, so that equal rows cancel exactly
//   X      = Z - mean            subtract_mean: subtracted in float64, rounded to X's type once
//   X X^T + stranger / N         lift: the eigenvalue 0 of a centred batch becomes `stranger`
//   s^2    = max(lambda, 0)      eigen_squares: and how many are small
//
//   value, weight and row from the singular values s of X        spectral_weights
//   diag(weight) V^T             weigh_rows
//
//     nuclear norm  sum_i s_i                                        weight_i = 1 / s_i
//     distance      W2^2 = |mean|^2 + sum_i (s_i / sqrt(N) - 1 / sqrt(D))^2
//                   weight_i = (1 - sqrt(N / D) / s_i) / (N W2),     row = mean / (N W2)
//
// so that d value / dZ = sum_i weight_i s_i u_i v_i^T + row. A null direction, s_i at most
// max(eps s_1, 1e-13 |Z|_F), has 0 for 1 / s_i.
//
// Not stored: a float64 copy of Z. The products and the decomposition are the library's.
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

inline double widen(double x) { return x; }
template <typename T>
inline double widen(T x) {
  return (double)to_float(x);
}

// A thread owns columns, so that the sums do not depend on the number of threads.
template <typename T>
void average_columns(const Matrix& z, double count, double* means, int threads) {
  parallel(threads, z.rows * z.cols, [&](Team team) {
    const int64_t begin = team.begin(z.cols), end = team.end(z.cols);
    for (int64_t j = begin; j < end; j++) means[j] = 0;
    for (int64_t i = 0; i < z.rows; i++) {
      const T* row = row_of<T>(z, i);
      for (int64_t j = begin; j < end; j++) means[j] += widen(row[j]);
    }
    for (int64_t j = begin; j < end; j++) means[j] /= count;
  });
}

template <typename T, typename C>
void subtract(const Matrix& z, const double* mean, C* x, int threads) {
  parallel(threads, z.rows * z.cols, [&](Team team) {
    for (int64_t i = team.begin(z.rows); i < team.end(z.rows); i++) {
      const T* row = row_of<T>(z, i);
      C* out = x + i * z.cols;
      for (int64_t j = 0; j < z.cols; j++) out[j] = (C)(widen(row[j]) - mean[j]);
    }
  });
}

template <typename C>
void center_as(const Matrix& z, const double* mean, C* x, int threads) {
  if (z.dtype == kFloat64) subtract<double>(z, mean, x, threads);
  if (z.dtype == kFloat32) subtract<float>(z, mean, x, threads);
  if (z.dtype == kBfloat16) subtract<bf16>(z, mean, x, threads);
  if (z.dtype == kFloat16) subtract<f16>(z, mean, x, threads);
}

// The eigenvalues' mean, each weighed by its size, is among the large ones.
template <typename C>
double lift_as(const Matrix& gram, double trace) {
  using V = Vec<C>;
  const V share((C)(1 / trace));
  V squares;
  for (int64_t i = 0; i < gram.rows; i++) {
    const C* row = row_of<C>(gram, i);
    sweep<C>(gram.cols, [&](int64_t j, auto lanes) {
      const V g = V::load(row + j, lanes);  // 0 beyond the end
      squares = fma(g * share, g, squares);
    });
  }
  const double mean = (double)squares.sum();
  const V each((C)(mean / (double)gram.rows));
  for (int64_t i = 0; i < gram.rows; i++) {
    C* row = row_of<C>(gram, i);
    sweep<C>(gram.cols, [&](int64_t j, auto lanes) {
      (V::load(row + j, lanes) + each).store(row + j, lanes);
    });
  }
  return mean;
}

template <typename C>
int64_t squares_of(const C* values, int64_t count, const double* largest, double ratio,
                   double* squares) {
  for (int64_t i = 0; i < count; i++) squares[i] = values[i] > 0 ? (double)values[i] : 0;
  int64_t small = 0;
  while (small < count && squares[small] < ratio * *largest) small++;
  return small;
}

template <typename C>
void weigh(const Matrix& v, const double* weight, C* out) {
  using V = Vec<C>;
  for (int64_t i = 0; i < v.rows; i++) {
    const C* row = row_of<C>(v, i);
    C* weighed = out + i * v.cols;
    const V w((C)weight[i]);
    sweep<C>(v.cols, [&](int64_t j, auto lanes) {
      (V::load(row + j, lanes) * w).store(weighed + j, lanes);
    });
  }
}

void store(void* out, int dtype, int64_t i, double x) {
  if (dtype == kFloat64)
    ((double*)out)[i] = x;
  else
    ((float*)out)[i] = (float)x;
}

}  // namespace

double lift(const Matrix& gram, double trace) {
  return gram.dtype == kFloat64 ? lift_as<double>(gram, trace) : lift_as<float>(gram, trace);
}

int64_t eigen_squares(const void* values, int dtype, int64_t count, const double* largest,
                      double ratio, double* squares) {
  if (dtype == kFloat64) return squares_of((const double*)values, count, largest, ratio, squares);
  return squares_of((const float*)values, count, largest, ratio, squares);
}

void weigh_rows(const Matrix& v, const double* weight, void* out) {
  if (v.dtype == kFloat64)
    weigh<double>(v, weight, (double*)out);
  else
    weigh<float>(v, weight, (float*)out);
}

void spectral_weights(const double* squares, int64_t count, double scale, double stranger,
                      const double* mean, int64_t rows, int64_t width, double eps, bool distance,
                      void* value, int value_dtype, double* weight, void* row, int row_dtype) {
  constexpr double kRounding = 1e-13;  // of |Z|_F: what subtracting the mean leaves of equal rows
  const double root_rows = sqrt((double)rows), target = 1 / sqrt((double)width);
  const double odd = scale * sqrt(stranger);
  double largest = 0, sum = -odd, energy = 0;
  double excess = (odd ? target * target : 0) + (double)(width - count) / (double)width;
  if (odd) excess -= (odd / root_rows - target) * (odd / root_rows - target);
  for (int64_t i = 0; i < count; i++) {
    const double s = scale * sqrt(squares[i]), off = s / root_rows - target;
    weight[i] = s;
    largest = s > largest ? s : largest;
    sum += s;
    energy += s * s;
    excess += off * off;
  }
  double squared_mean = 0;
  for (int64_t j = 0; j < width && mean; j++) squared_mean += mean[j] * mean[j];
  const double norm = sqrt(energy + (double)rows * squared_mean);
  const double least = eps * largest > kRounding * norm ? eps * largest : kRounding * norm;
  const double squared = squared_mean + excess, w2 = squared > 0 ? sqrt(squared) : 0;
  const double factor = w2 > 0 ? 1 / ((double)rows * w2) : 0;
  store(value, value_dtype, 0, distance ? w2 : sum);
  for (int64_t i = 0; i < count; i++) {
    const double inverse = weight[i] > least ? 1 / weight[i] : 0;
    weight[i] = scale * (distance ? factor * (1 - root_rows * target * inverse) : inverse);
  }
  for (int64_t j = 0; j < width && row; j++) store(row, row_dtype, j, factor * mean[j]);
}

void column_means(const Matrix& z, int64_t rows, double* means, int threads) {
  const double count = (double)rows;
  if (z.dtype == kFloat64) average_columns<double>(z, count, means, threads);
  if (z.dtype == kFloat32) average_columns<float>(z, count, means, threads);
  if (z.dtype == kBfloat16) average_columns<bf16>(z, count, means, threads);
  if (z.dtype == kFloat16) average_columns<f16>(z, count, means, threads);
}

void subtract_mean(const Matrix& z, const double* mean, void* x, int dtype, int threads) {
  if (dtype == kFloat64)
    center_as<double>(z, mean, (double*)x, threads);
  else
    center_as<float>(z, mean, (float*)x, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
