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

// Columns lo_i <= j < hi_i of row i are left out; the tile begins at column `begin`.
struct Ranges {
  const int64_t *lo, *hi;  // [N], or null: none are
  int64_t begin;
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
  // tile [N, K] is overwritten; b [K] or null; stats [2, N] shift (in units of tile times b), sum;
  // rescale [N], or null where the terms are not wanted.
  void (*contrastive_rows_forward)(const Matrix& tile, const void* b, double scale,
                                   const Ranges& without, double* stats, void* rescale,
                                   int threads);
  // lse [N]; weight [N].
  void (*contrastive_rows_backward)(const Matrix& tile, const void* b, double scale,
                                    const Ranges& without, const double* lse, const double* weight,
                                    int threads);
  // The tile's first row and column in the symmetric [M, M]; sums [M].
  void (*contrastive_pairs_forward)(const Matrix& tile, double scale, double shift, int64_t row,
                                    int64_t col, int64_t views, double* sums, int threads);
  // lse [M]; blocks [M, views].
  void (*contrastive_pairs_backward)(const Matrix& tile, double scale, double shift, int64_t row,
                                     int64_t col, int64_t views, const double* lse,
                                     const void* blocks, bool narrow, int threads);
};

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

}  // namespace ssl_fast
