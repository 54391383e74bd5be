// The launchers, on raw device pointers of the current device. Every call only enqueues work on
// `stream`.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace ssl_fast {

struct Scores {
  const void* data;  // (n, k), rows `stride` elements apart
  int dtype;         // 0 float32, 2 bfloat16, 3 float16
  int64_t n, k, stride;
};

// q = values where scale is 0, else exp(scale * values + row + col).
struct Targets {
  Scores values;
  double scale;
  const double* row;  // (N)
  const double* col;  // (K), or null: zeros
  bool dense() const { return scale == 0; }
};

// Scratch that sinkhorn_* want for scores of this size on the current device.
int64_t sinkhorn_scratch_bytes(int64_t n, int64_t k, int dtype);

void sinkhorn_step(const Scores& scores, double scale, const double* col /*(K) or null*/,
                   double* row /*(N)*/, double* column_lse /*(K)*/, void* scratch,
                   cudaStream_t stream);

void sinkhorn_row_potential(const Scores& scores, double scale, const double* col /*(K) or null*/,
                            double* row /*(N)*/, void* scratch, cudaStream_t stream);

// q null: potentials only. `on_chip` allows the cooperative form; the result says whether it ran.
bool sinkhorn_potentials(const Scores& scores, double scale,
                         const double* log_prior /*(K) or null*/, int iterations,
                         bool softmax_start, double* row /*(N)*/, double* col /*(K)*/,
                         float* q /*(N, K) or null*/, bool on_chip, void* scratch,
                         cudaStream_t stream);

// Scratch that evaluate, forward and backward want.
int64_t cross_entropy_scratch_bytes(int64_t n, int64_t k, bool symmetric);

void evaluate(const Targets& targets, float* q /*(N, K)*/, void* scratch, cudaStream_t stream);

void cross_entropy_forward(const Scores& logits, double inv_temperature, const Targets& targets,
                           double factor, double* row_stats /*(4, N)*/,
                           double* col_stats /*(3, K) or null*/, float* loss /*()*/, void* scratch,
                           cudaStream_t stream);

// d_loss: null, or float32 with stride 0 (a scalar) or more (a row each).
void cross_entropy_backward(const Scores& logits, double inv_temperature, const Targets& targets,
                            const double* row_stats /*(4, N)*/, int64_t row_stats_stride,
                            const double* col_stats /*(3, K) or null*/,
                            const float* d_loss /*() or (N)*/, int64_t d_loss_stride, double factor,
                            void* d_logits /*(N, K) as logits*/, int64_t d_logits_stride,
                            void* scratch, cudaStream_t stream);

// A float32 tile is overwritten. lo, hi: null, or row i leaves out columns lo_i <= j < hi_i,
// counted from the matrix's first column; the tile begins at `begin`. rescale null: terms are not
// wanted.
void contrastive_rows_forward(const Scores& tile, const float* b /*(K) or null*/, double scale,
                              const int64_t* lo /*(N)*/, const int64_t* hi, int64_t begin,
                              double* stats /*(2, N)*/, float* rescale /*(N) or null*/,
                              cudaStream_t stream);

void contrastive_rows_backward(const Scores& tile, const float* b /*(K) or null*/, double scale,
                               const int64_t* lo /*(N)*/, const int64_t* hi, int64_t begin,
                               const double* lse /*(N)*/, const double* weight /*(N)*/,
                               cudaStream_t stream);

// row, col: the tile's place in the symmetric (M, M).
void contrastive_pairs_forward(const Scores& tile, double scale, double shift, int64_t row,
                               int64_t col, int64_t views, double* sums /*(M)*/,
                               cudaStream_t stream);

void contrastive_pairs_backward(const Scores& tile, double scale, double shift, int64_t row,
                                int64_t col, int64_t views, const double* lse /*(M)*/,
                                const float* blocks /*(M, views)*/, bool narrow,
                                cudaStream_t stream);

// Scratch that prior_* want.
int64_t prior_scratch_bytes(int64_t n, int64_t k);

void prior_columns(const Scores& logits, double inv_temperature, const double* row_stats /*(4, N)*/,
                   int64_t row_stats_stride, double* log_mass /*(K)*/, void* scratch,
                   cudaStream_t stream);

// Targets with null values: none. d_loss: null or one float32.
void prior_backward(const Scores& logits, double inv_temperature, const Targets& targets,
                    const double* row_stats /*(4, N)*/, int64_t row_stats_stride,
                    const double* prior /*(2, K)*/, const float* d_loss /*()*/, double factor,
                    void* d_logits /*(N, K) as logits*/, int64_t d_logits_stride, void* scratch,
                    cudaStream_t stream);

// The steps between the products of a polar iteration. `partial` holds (parts, D).
void column_sums(const Scores& z, int64_t parts, double* partial, double* sums /*(D)*/,
                 cudaStream_t stream);

void center(const Scores& z, const double* mean /*(D) or null*/, double* x /*(N, D)*/,
            cudaStream_t stream);

// out = a I + b r + c square, (n, n) each.
void polynomial(const double* r, const double* square, int64_t n, double a, double b, double c,
                double* out, cudaStream_t stream);

// out (n, d) = (product + row) * factor.
void finish(const double* product, int64_t n, int64_t d, const double* row /*(d) or null*/,
            const double* factor /*() or null*/, float* out, cudaStream_t stream);

// A matrix that is written; its shape is that of what is read.
struct Output {
  void* data;
  int dtype;
  int64_t stride;
};

// Around the products of the covariance losses. `partial` holds covariance_parts(n, d) sums,
// covariance_tiles(D) for the triangle, (parts, 3, D) for moments. Absent matrices have no data.
// A Scores that is no view z is float32.
int64_t covariance_parts(int64_t n, int64_t d);
int64_t covariance_tiles(int64_t d);
void covariance_moments(const Scores& z, int64_t parts, double* partial, cudaStream_t stream);
void covariance_center(const Scores& z, const double* mean /*(D)*/,
                       const double* scale /*(D) or null*/, const Output& out /*(N, D)*/,
                       cudaStream_t stream);
void covariance_inner(const Scores& a, const Scores& b, double* partial, cudaStream_t stream);
void covariance_distance(const Scores& a, const Scores& b, double* partial, cudaStream_t stream);
void covariance_strip(const Output& tile /*(n, d)*/, int64_t n, int64_t d, double scale,
                      double* partial, cudaStream_t stream);
void covariance_squares(const Scores& z, const double* mean /*(D)*/, double scale,
                        const bool* flag /*() or null*/, double* partial, cudaStream_t stream);
void covariance_rescue(const Scores& z, const Scores& own /*(M, D)*/, const Scores& other,
                       const double* mean /*(D)*/, const double* beta /*(D)*/,
                       const double* factors /*(2)*/, const bool* flag, const Output& out,
                       cudaStream_t stream);
void covariance_gradient(const Scores& push, const Scores& z, const Scores& other,
                         const double* mean /*(D)*/, const double* beta /*(D)*/,
                         const double* factors /*(2)*/, const Output& out, cudaStream_t stream);
void correlation_strip(const Output& tile /*(n, d)*/, int64_t n, int64_t d, int64_t first,
                       double inverse, double weight, double* partial, cudaStream_t stream);
void correlation_dots(const Scores& push, const Scores& own, const Scores& other, double alpha,
                      const double* beta /*(D) or null*/, double* dots /*(D)*/,
                      cudaStream_t stream);
void correlation_gradient(const Scores& push, const Scores& own, const Scores& other, double alpha,
                          const double* beta /*(D) or null*/, const double* dots /*(D)*/,
                          const double* scale /*(D)*/, const Output& out, cudaStream_t stream);

}  // namespace ssl_fast
