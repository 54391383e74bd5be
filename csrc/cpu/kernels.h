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
  double* row;              // [4, N] shift, log, mass, loss
  int64_t row_stride;       // between the four
  double* col;              // [3, K] shift, log, mass, or null
  int64_t view_stride = 0;  // of `Crops`: between the first rows of two views
};

// A tile of logits with prototypes as rows, [K, views * samples], and each view's targets.
struct Crops {
  void* x;
  int64_t prototypes, views, samples;
  int dtype;             // float32 or float64, of x and q
  const void* const* q;  // [views], each [K, samples]
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
  // targets.values.data null for none; log_mass [K].
  void (*prior_forward)(const Matrix& logits, double inv_temperature, const Targets& targets,
                        const Stats& stats, double* log_mass, int threads);
  // prior [2, K]; d_loss [1] or null; out [N, K] may be the logits.
  void (*prior_backward)(const Matrix& logits, double inv_temperature, const Targets& targets,
                         const Stats& stats, const double* prior, const void* d_loss, double factor,
                         const Matrix& out, int threads);
  // x becomes exp(l - shift). mass [K] += column sums of P in float32, or null.
  void (*crops_forward)(const Crops& crops, double inv_temperature, const Stats& stats,
                        double* mass, int threads);
  // x, logits or what forward left (`has_exp`), becomes d_logits; prior [2, K] or null.
  void (*crops_backward)(const Crops& crops, double inv_temperature, bool has_exp,
                         const Stats& stats, const double* prior, int threads);
};

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

}  // namespace ssl_fast
