// The table of CPU kernels: kernels.cpp fills one per instruction set. No STL here: the linker may
// keep one object's copy of an inline function for all, and that copy may be the AVX-512 one.
#pragma once
#include "common/matrix.h"

namespace ssl_fast {

// A tile of logits with prototypes as rows, [K, views * samples], and each view's targets.
struct Crops {
  void* x;
  int64_t prototypes, views, samples;
  int dtype;             // float32 or float64, of x and q
  const void* const* q;  // [views], each [K, samples]
};

// As `Stats`, of rows in several views.
struct ViewStats {
  double* row;          // [4, views, samples] shift, log, mass, loss
  int64_t row_stride;   // between the four
  int64_t view_stride;  // between two views
};

// The teachers of students that are views of the same samples.
struct Teachers {
  const Targets* targets;
  int64_t count;
  bool skip_same;  // student s does not learn from teacher s
};

// n points, float32 or float64, row by row and transposed.
struct Points {
  const void* rows;     // [n, d]
  const void* columns;  // [d, n]
  int64_t n, d;
  int dtype;
};

// Over the diagonal of C: sum c^2 and sum (c - 1)^2.
struct Diagonal {
  double squares, away;
};

// Of exp(t (shift - |x_i - x_j|^2)) over pairs.
struct PairSums {
  double total, shift;
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
  // views [count], each [N, K]: row [count, N] potentials under col [K] = -scale * center; mean [K]
  // of all rows. center, mean [1, K] of any type.
  void (*centered)(const Matrix* views, int64_t count, const Matrix& center, double scale,
                   double* row, double* col, const Matrix& mean, int threads);
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
  // The symmetric loss [1] times factor, and its gradient in place of the logits: float32, float64.
  void (*cross_entropy_at_once)(const Matrix& logits, double inv_temperature,
                                const Targets& targets, double factor, void* loss, int threads);
  // mask [images, tokens] bool; out [1, M] of any type: factor / (marks of the image) for each of
  // the marks, whose number is returned.
  int64_t (*token_weights)(const void* mask, int64_t images, int64_t tokens, double factor,
                           const Matrix& out);
  // targets.values.data null for none; log_mass [K].
  void (*prior_forward)(const Matrix& logits, double inv_temperature, const Targets& targets,
                        const Stats& stats, double* log_mass, int threads);
  // prior [2, K]; d_loss [1] or null; out [N, K] may be the logits.
  void (*prior_backward)(const Matrix& logits, double inv_temperature, const Targets& targets,
                         const Stats& stats, const double* prior, const void* d_loss, double factor,
                         const Matrix& out, int threads);
  // stats [2, D]: mean, centred squares; out [N, D] (float32 or float64) or no data: z - mean,
  // divided by sqrt(squares / N + eps) to standardise.
  void (*column_moments)(const Matrix& z, double* stats, int64_t stats_stride, const Matrix& out,
                         bool standardise, double eps, int threads);
  // out [N, D] = (z - mean) * scale; scale [D] or null.
  void (*center)(const Matrix& z, const double* mean, const double* scale, const Matrix& out,
                 int threads);
  double (*inner)(const Matrix& a, const Matrix& b, int threads);
  double (*squared_distance)(const Matrix& a, const Matrix& b, int threads);
  // tile [R, M], rows of a symmetric matrix from the diagonal on, which becomes zero: the sum of
  // (scale * tile)^2 with what is beyond the first R columns twice.
  double (*triangle)(const Matrix& tile, double scale, int threads);
  // out [N, D] = factors[0] push + beta (z - mean) + factors[1] (z - other); push, other or no
  // data.
  void (*covariance_gradient)(const Matrix& push, const Matrix& z, const Matrix& other,
                              const double* mean, const double* beta, const double* factors,
                              const Matrix& out, int threads);
  // tile [D, R], columns `first` on of N C, becomes the derivative over N; returns the penalty.
  double (*cross_correlation_penalty)(const Matrix& tile, int64_t first, double count,
                                      double weight, int threads);
  // g = alpha push + beta other, beta [D] or null without other: dots [D] = column sums of g * own,
  void (*cross_correlation_dots)(const Matrix& push, const Matrix& own, const Matrix& other,
                                 double alpha, const double* beta, double* dots, int threads);
  // and out [N, D] = scale (g - dots own).
  void (*cross_correlation_gradient)(const Matrix& push, const Matrix& own, const Matrix& other,
                                     double alpha, const double* beta, const double* dots,
                                     const double* scale, const Matrix& out, int threads);
  // c_d = sum_i first_id second_id / N; beta [D] = (2 (c - 1) - 2 weight c) / N.
  Diagonal (*cross_correlation_diagonal)(const Matrix& first, const Matrix& second, double weight,
                                         double* beta, int threads);
  // dots and gradient at once, where all rows are here: squares [D] of the centred columns.
  void (*cross_correlation_standardised)(const Matrix& push, const Matrix& own, const Matrix& other,
                                         double alpha, const double* beta, const double* squares,
                                         double eps, const Matrix& out, int threads);
  // tile [N, K] is overwritten; b [K] or null; stats [2, N] shift (in units of tile times b), sum;
  // rescale [N], or null where the terms are not wanted.
  void (*contrastive_rows_forward)(const Matrix& tile, const void* b, double scale,
                                   const Ranges& without, double* stats, void* rescale,
                                   int threads);
  // lse [N]; weight [N].
  void (*contrastive_rows_backward)(const Matrix& tile, const void* b, double scale,
                                    const Ranges& without, const double* lse, const double* weight,
                                    int threads);
  // stats [2, N] and pull [N, D] as rows_forward leaves them, v [N, D] positives; pull becomes d_u.
  // pull, d_v may be absent. Returns the sum of the rows' losses.
  double (*contrastive_queue)(const Matrix& u, const Matrix& v, const double* stats, double scale,
                              double weight, const Matrix& pull, const Matrix& d_v, int threads);
  // tile [R, N], rows first..first + R of the batch; returns the sum of the rows' losses. With
  // store the tile becomes weight * d losses / d (scale * tile), else it is overwritten.
  double (*contrastive_in_batch)(const Matrix& tile, int64_t first, double scale, double weight,
                                 bool store, int threads);
  // The tile's first row and column in the symmetric [M, M]; sums [M].
  void (*contrastive_pairs_forward)(const Matrix& tile, double scale, double shift, int64_t row,
                                    int64_t col, int64_t views, double* sums, int threads);
  // lse [M]; blocks [M, views].
  void (*contrastive_pairs_backward)(const Matrix& tile, double scale, double shift, int64_t row,
                                     int64_t col, int64_t views, const double* lse,
                                     const void* blocks, bool narrow, int threads);
  // tile [M, M], scale > 0, weights [M] or null; returns the sum of the rows' losses. With store
  // the tile becomes their gradient by scale * tile, both sides of a pair together.
  double (*contrastive_pairs_at_once)(const Matrix& tile, double scale, double shift, int64_t views,
                                      const double* weights, bool decoupled, bool narrow,
                                      bool store, int threads);
  // z [N, D] = x less its mean, norms [N] = |z|^2, of z's type; x any type.
  void (*pair_rows)(const Matrix& x, const Matrix& z, void* norms, int threads);
  // tile [R, C], products of z from (first_row, first_col) on, to weights exp(t (shift - square)).
  // Returns `sums` with them in, twice where mirrored. counts [M], of the rows from `own` on, gain
  // their rows' sums, and where mirrored their columns'; but near pairs become weights of 0, and
  // moments [M, D] gain their w (other - own). No data, null: not wanted.
  PairSums (*pair_weights)(const Matrix& tile, const Matrix& x, const void* norms,
                           int64_t first_row, int64_t first_col, bool mirrored, double t,
                           const PairSums& sums, int64_t own, const Matrix& moments, void* counts,
                           int threads);
  // moments [M, D] = factor (moments - counts z), z [N, D] from row `own` on.
  void (*pair_moments)(const Matrix& moments, const Matrix& z, int64_t own, const void* counts,
                       double factor, int threads);
  // All pairs of rows first to last of x with all others: the logarithm of the sum of weights, and
  // moved [last - first, D] or no data, float32 or float64: its gradient.
  double (*few_pairs)(const Matrix& x, int64_t first, int64_t last, double t, const Matrix& moved);
  // x, y, d_x, d_y [N, D] of one type.
  double (*distance_power)(const Matrix& x, const Matrix& y, double alpha, int threads);
  void (*distance_power_backward)(const Matrix& x, const Matrix& y, double alpha, double g,
                                  void* d_x, void* d_y, int threads);
  // c [K, D]; row [2, K] shift, log; col [2, D] means.
  double (*correlation)(const Matrix& c, double inv_temperature, double* row, double* col,
                        int threads);
  void (*correlation_backward)(const Matrix& c, double inv_temperature, const double* col, double g,
                               void* d_c, int threads);
  // gram [N, N] of a centred batch, in place, float32 or float64; returns its new eigenvalue.
  double (*lift)(const Matrix& gram, double trace);
  // squares [count] of ascending eigenvalues [count]; returns how many are under ratio * *largest,
  // which may be one of them.
  int64_t (*eigen_squares)(const void* values, int dtype, int64_t count, const double* largest,
                           double ratio, double* squares);
  // out = diag(weight) v [n, width], contiguous, float32 or float64.
  void (*weigh_rows)(const Matrix& v, const double* weight, void* out);
  // squares [count] of the singular values of X / scale, `stranger` among them if not 0; mean [D]
  // or null; value [1], weight [count] times scale, row [D] or null.
  void (*spectral_weights)(const double* squares, int64_t count, double scale, double stranger,
                           const double* mean, int64_t rows, int64_t width, double eps,
                           bool distance, void* value, int value_dtype, double* weight, void* row,
                           int row_dtype);
  // means [D] of z [N, D], all of whose ranks have `rows`.
  void (*column_means)(const Matrix& z, int64_t rows, double* means, int threads);
  // x [N, D] = z - mean, contiguous, float32 or float64.
  void (*subtract_mean)(const Matrix& z, const double* mean, void* x, int dtype, int threads);
  // x becomes exp(l - shift). mass [K] += column sums of P in float32, or null.
  void (*crops_forward)(const Crops& crops, double inv_temperature, const ViewStats& stats,
                        double* mass, int threads);
  // x, logits or what forward left (`has_exp`), becomes d_logits; prior [2, K] or null.
  void (*crops_backward)(const Crops& crops, double inv_temperature, bool has_exp,
                         const ViewStats& stats, const double* prior, int threads);
  // students, out [views], each [N, K]; d_loss [1].
  void (*logit_crops_forward)(const Matrix* students, int64_t views, double inv_temperature,
                              const Teachers& teachers, const ViewStats& stats, int threads);
  void (*logit_crops_backward)(const Matrix* students, int64_t views, double inv_temperature,
                               const Teachers& teachers, const ViewStats& stats, const void* d_loss,
                               double factor, const Matrix* out, int threads);
  // x [N, D] of any type; unit [N, D] and norm [N] float32, or float64 for float64.
  void (*unit_rows_forward)(const Matrix& x, double eps, const Matrix& unit, void* norm,
                            int threads);
  // out [N, D] of x's type may be d_unit.
  void (*unit_rows_backward)(const Matrix& d_unit, double eps, const Matrix& unit, const void* norm,
                             const Matrix& out, int threads);
  // f [n], g [m], u [n], v [m] of the points' type. Without d_x solves for f, g, u, and v = 0; with
  // it, turns u, v into the adjoint's and writes d_x [n, D], d_y [m, D]. Returns the mean of u.
  double (*transport)(const Points& x, const Points& y, double epsilon, int p, int iterations,
                      double tolerance, void* f, void* g, void* u, void* v, double d_value,
                      void* d_x, void* d_y, int threads);
  // Cloud k is the points starts[k] to starts[k + 1]; pairs [count, 2] of clouds; out [count].
  void (*transport_pairs)(const Points& points, const int64_t* starts, const int64_t* pairs,
                          int64_t count, double epsilon, int p, int iterations, double tolerance,
                          double* out, int threads);
  // x, y [N, D] of one type; stats [3, N]: xy, |x|, |y|. Returns the sum of the cosines.
  double (*cosine_forward)(const Matrix& x, const Matrix& y, double eps, double* stats,
                           int threads);
  // d_x, d_y [N, D] of x's type, either may be null.
  void (*cosine_backward)(const Matrix& x, const Matrix& y, double eps, const double* stats,
                          double g, void* d_x, void* d_y, int threads);
  // u [N, D], index [N] of neighbours, d_u [N, D] or null, float32 or float64. Returns the loss.
  double (*koleo)(const Matrix& u, const int64_t* index, double p, double eps, void* d_u,
                  int threads);
  // tile [R, C] is overwritten at own [R]; index [R].
  void (*nearest)(const Matrix& tile, const int64_t* own, int64_t* index, int threads);
};

// Huge pages for a buffer of at least `least` bytes that is about to be written; dispatch.cpp.
void advise_huge_pages(void* data, int64_t bytes, int64_t least = 32 << 20);

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

}  // namespace ssl_fast
