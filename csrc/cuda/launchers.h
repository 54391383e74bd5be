// The launchers, on raw device pointers of the current device. Every call only enqueues work on
// `stream`; `scratch` holds as many bytes as the stem's *_scratch_bytes says.
#pragma once
#include <cuda_runtime.h>

#include "../common/matrix.h"

namespace ssl_fast {

int64_t sinkhorn_scratch_bytes(int64_t n, int64_t k, int dtype);

void sinkhorn_step(const Matrix& scores, double scale, const double* col /*(K) or null*/,
                   double* row /*(N)*/, double* column_lse /*(K)*/, void* scratch,
                   cudaStream_t stream);

void row_potential(const Matrix& scores, double scale, const double* col /*(K) or null*/,
                   double* row /*(N)*/, void* scratch, cudaStream_t stream);

// q null: potentials only. `on_chip` allows the cooperative form; the result says whether it ran.
bool sinkhorn(const Matrix& scores, double scale, const double* log_prior /*(K) or null*/,
              int iterations, bool softmax_start, float* q /*(N, K) or null*/, double* row /*(N)*/,
              double* col /*(K)*/, bool on_chip, void* scratch, cudaStream_t stream);

void evaluate(const Matrix& scores, double scale, const double* row /*(N)*/,
              const double* col /*(K) or null*/, float* q /*(N, K)*/, void* scratch,
              cudaStream_t stream);

int64_t cross_entropy_scratch_bytes(int64_t n, int64_t k, bool symmetric);

void cross_entropy_forward(const Matrix& logits, double inv_temperature, const Targets& targets,
                           const Stats& stats, double factor, float* loss /*()*/, void* scratch,
                           cudaStream_t stream);

// d_loss: null, or float32 with stride 0 (a scalar) or more (a row each). `out` may be the logits.
void cross_entropy_backward(const Matrix& logits, double inv_temperature, const Targets& targets,
                            const Stats& stats, const float* d_loss /*() or (N)*/,
                            int64_t d_loss_stride, double factor, const Matrix& out, void* scratch,
                            cudaStream_t stream);

// A float32 tile is overwritten. rescale null: terms are not wanted.
void contrastive_rows_forward(const Matrix& tile, const float* b /*(K) or null*/, double scale,
                              const Ranges& without, double* stats /*(2, N)*/,
                              float* rescale /*(N) or null*/, cudaStream_t stream);

void contrastive_rows_backward(const Matrix& tile, const float* b /*(K) or null*/, double scale,
                               const Ranges& without, const double* lse /*(N)*/,
                               const double* weight /*(N)*/, cudaStream_t stream);

// row, col: the tile's place in the symmetric (M, M).
void contrastive_pairs_forward(const Matrix& tile, double scale, double shift, int64_t row,
                               int64_t col, int64_t views, double* sums /*(M)*/,
                               cudaStream_t stream);

void contrastive_pairs_backward(const Matrix& tile, double scale, double shift, int64_t row,
                                int64_t col, int64_t views, const double* lse /*(M)*/,
                                const float* blocks /*(M, views)*/, bool narrow,
                                cudaStream_t stream);

int64_t prior_scratch_bytes(int64_t n, int64_t k);

void prior_columns(const Matrix& logits, double inv_temperature, const Stats& stats,
                   double* log_mass /*(K)*/, void* scratch, cudaStream_t stream);

// Targets without values: none. d_loss: null or one float32. `out` may be the logits.
void prior_backward(const Matrix& logits, double inv_temperature, const Targets& targets,
                    const Stats& stats, const double* prior /*(2, K)*/, const float* d_loss /*()*/,
                    double factor, const Matrix& out, void* scratch, cudaStream_t stream);

// The steps between the products of a polar iteration. `partial` holds (parts, D).
void column_sums(const Matrix& z, int64_t parts, double* partial, double* sums /*(D)*/,
                 cudaStream_t stream);

void center(const Matrix& z, const double* mean /*(D) or null*/, double* x /*(N, D)*/,
            cudaStream_t stream);

// out = a I + b r + c square, (n, n) each.
void polynomial(const double* r, const double* square, int64_t n, double a, double b, double c,
                double* out, cudaStream_t stream);

// out (n, d) = (product + row) * factor.
void finish(const double* product, int64_t n, int64_t d, const double* row /*(d) or null*/,
            const double* factor /*() or null*/, float* out, cudaStream_t stream);

// Around the products of the covariance losses. `partial` holds covariance_parts(n, d) sums,
// covariance_tiles(D) for the triangle, (parts, 3, D) for moments. Absent matrices have no data.
// A matrix that is no view z is float32.
int64_t covariance_parts(int64_t n, int64_t d);
int64_t covariance_tiles(int64_t d);
void covariance_moments(const Matrix& z, int64_t parts, double* partial, cudaStream_t stream);
void covariance_center(const Matrix& z, const double* mean /*(D)*/,
                       const double* scale /*(D) or null*/, const Matrix& out /*(N, D)*/,
                       cudaStream_t stream);
void covariance_inner(const Matrix& a, const Matrix& b, double* partial, cudaStream_t stream);
void covariance_distance(const Matrix& a, const Matrix& b, double* partial, cudaStream_t stream);
void covariance_strip(const Matrix& tile, double scale, double* partial, cudaStream_t stream);
void covariance_squares(const Matrix& z, const double* mean /*(D)*/, double scale,
                        const bool* flag /*() or null*/, double* partial, cudaStream_t stream);
void covariance_rescue(const Matrix& z, const Matrix& own /*(M, D)*/, const Matrix& other,
                       const double* mean /*(D)*/, const double* beta /*(D)*/,
                       const double* factors /*(2)*/, const bool* flag, const Matrix& out,
                       cudaStream_t stream);
void covariance_gradient(const Matrix& push, const Matrix& z, const Matrix& other,
                         const double* mean /*(D)*/, const double* beta /*(D)*/,
                         const double* factors /*(2)*/, const Matrix& out, cudaStream_t stream);
void cross_correlation_penalty(const Matrix& tile, int64_t first, double inverse, double weight,
                               double* partial, cudaStream_t stream);
void cross_correlation_dots(const Matrix& push, const Matrix& own, const Matrix& other,
                            double alpha, const double* beta /*(D) or null*/, double* dots /*(D)*/,
                            cudaStream_t stream);
void cross_correlation_gradient(const Matrix& push, const Matrix& own, const Matrix& other,
                                double alpha, const double* beta /*(D) or null*/,
                                const double* dots /*(D)*/, const double* scale /*(D)*/,
                                const Matrix& out, cudaStream_t stream);

}  // namespace ssl_fast
