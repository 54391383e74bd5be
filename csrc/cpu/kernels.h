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
  // squares [count] of the singular values of X / scale, `stranger` among them if not 0; mean [D]
  // or null; value [1], weight [count], row [D] or null.
  void (*spectral_weights)(const double* squares, int64_t count, double scale, double stranger,
                           const double* mean, int64_t rows, int64_t width, double eps,
                           bool distance, double* value, double* weight, double* row);
  // sums [D] of z [N, D].
  void (*column_sums)(const Matrix& z, double* sums, int threads);
  // x [N, D] = z - mean, contiguous, float32 or float64.
  void (*center)(const Matrix& z, const double* mean, void* x, int dtype, int threads);
};

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

}  // namespace ssl_fast
