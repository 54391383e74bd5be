// The table of CPU kernels: kernels.cpp fills one per instruction set. No STL here: the linker may
// keep one object's copy of an inline function for all, and that copy may be the AVX-512 one.
#pragma once
#include <stdint.h>

namespace ssl_fast {

enum Dtype : int { kFloat32 = 0, kFloat64 = 1, kBfloat16 = 2, kFloat16 = 3 };

struct Matrix {
  void* data;
  int64_t rows, cols;
  int64_t stride;  // elements between rows; columns are adjacent
  int dtype;
};

// q = values where row is null, else exp(scale * values + row + col).
struct Targets {
  Matrix values;  // [N, K]
  double scale;
  const double* row;  // [N] or null
  const double* col;  // [K] or null for zeros
};

// The statistics that forward leaves for backward; LSE = shift * inv_temperature + log.
struct Stats {
  double* row;         // [4, N] shift, log, mass, loss
  int64_t row_stride;  // between the four
  double* col;         // [3, K] shift, log, mass, or null
};

struct Kernels {
  // q [N, K] or null; row [N]; col [K]; log_prior [K] or null.
  void (*sinkhorn)(const Matrix& scores, double scale, const double* log_prior, int iterations,
                   bool softmax_start, void* q, double* row, double* col, int threads);
  // col [K] or null for the start; row [N]; column_lse [K].
  void (*sinkhorn_step)(const Matrix& scores, double scale, const double* col, double* row,
                        double* column_lse, int threads);
  void (*row_potential)(const Matrix& scores, double scale, const double* col, double* row,
                        int threads);
  void (*evaluate)(const Matrix& scores, double scale, const double* row, const double* col,
                   void* q, int threads);
  // loss [1], float32 or float64.
  void (*cross_entropy_forward)(const Matrix& logits, double inv_temperature,
                                const Targets& targets, const Stats& stats, double factor,
                                void* loss, int threads);
  // d_loss [1] (stride 0) or [N] (stride 1), or null for ones; out [N, K] may be the logits.
  void (*cross_entropy_backward)(const Matrix& logits, double inv_temperature,
                                 const Targets& targets, const Stats& stats, const void* d_loss,
                                 int64_t d_loss_stride, double factor, const Matrix& out,
                                 int threads);
  // tile [R, C] of products to squares of distances; norms squared, of the tile's type; x [N, D]
  // any type. out [2]: the smallest square but those of a row to itself; whether any pair is near.
  void (*pair_distances)(const Matrix& tile, const void* row_norms, const void* col_norms,
                         const Matrix& x, int64_t first_row, int64_t first_col, double* out,
                         int threads);
  // squares to weights exp(t (shift - square)), negative for near pairs; returns their sum. rows
  // [R] and cols [C], of the tile's type, either may be null, gain the sums of those that are not
  // near.
  double (*pair_weights)(const Matrix& tile, double t, double shift, bool marked, void* rows,
                         void* cols, int threads);
  // rows [R, >= D] and cols [C, >= D], either may be null, gain the near pairs' w (other - own).
  void (*pair_close)(const Matrix& tile, const Matrix& x, int64_t first_row, int64_t first_col,
                     const Matrix& rows, const Matrix& cols, int threads);
  // x, y, d_x, d_y [N, D] of one type.
  double (*distance_power)(const Matrix& x, const Matrix& y, double alpha, int threads);
  void (*distance_power_backward)(const Matrix& x, const Matrix& y, double alpha, double g,
                                  const Matrix& d_x, const Matrix& d_y, int threads);
  // c [K, D]; row [2, K] shift, log; col [2, D] means.
  double (*correlation)(const Matrix& c, double inv_temperature, double* row, double* col,
                        int threads);
  void (*correlation_backward)(const Matrix& c, double inv_temperature, const double* col, double g,
                               const Matrix& d_c, int threads);
};

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

}  // namespace ssl_fast
