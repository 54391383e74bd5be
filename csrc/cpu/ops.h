// The kernels of one instruction set, and the row pieces that the stems share.
#pragma once
#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace ssl_fast::SSL_FAST_ISA {

void sinkhorn(const Matrix& scores, double scale, const double* log_prior, int iterations,
              bool softmax_start, void* q, double* row, double* col, int threads);
void sinkhorn_step(const Matrix& scores, double scale, const double* col, double* row,
                   double* column_lse, int threads);
void row_potential(const Matrix& scores, double scale, const double* col, double* row, int threads);
void centered(const Matrix* views, int64_t count, const Matrix& center, double scale, double* row,
              double* col, const Matrix& mean, int threads);
void evaluate(const Matrix& scores, double scale, const double* row, const double* col, void* q,
              int threads);
void cross_entropy_forward(const Matrix& logits, double inv_temperature, const Targets& targets,
                           const Stats& stats, double factor, void* loss, int threads);
void cross_entropy_backward(const Matrix& logits, double inv_temperature, const Targets& targets,
                            const Stats& stats, const void* d_loss, int64_t d_loss_stride,
                            double factor, const Matrix& out, int threads);
void cross_entropy_at_once(const Matrix& logits, double inv_temperature, const Targets& targets,
                           double factor, void* loss, int threads);
int64_t token_weights(const void* mask, int64_t images, int64_t tokens, double factor,
                      const Matrix& out);
void prior_forward(const Matrix& logits, double inv_temperature, const Targets& targets,
                   const Stats& stats, double* log_mass, int threads);
void prior_backward(const Matrix& logits, double inv_temperature, const Targets& targets,
                    const Stats& stats, const double* prior, const void* d_loss, double factor,
                    const Matrix& out, int threads);
void column_moments(const Matrix& z, double* stats, int64_t stats_stride, const Matrix& out,
                    bool standardise, double eps, int threads);
void center(const Matrix& z, const double* mean, const double* scale, const Matrix& out,
            int threads);
double inner(const Matrix& a, const Matrix& b, int threads);
double squared_distance(const Matrix& a, const Matrix& b, int threads);
double triangle(const Matrix& tile, double scale, int threads);
void covariance_gradient(const Matrix& push, const Matrix& z, const Matrix& other,
                         const double* mean, const double* beta, const double* factors,
                         const Matrix& out, int threads);
double cross_correlation_penalty(const Matrix& tile, int64_t first, double count, double weight,
                                 int threads);
void cross_correlation_dots(const Matrix& push, const Matrix& own, const Matrix& other,
                            double alpha, const double* beta, double* dots, int threads);
void cross_correlation_gradient(const Matrix& push, const Matrix& own, const Matrix& other,
                                double alpha, const double* beta, const double* dots,
                                const double* scale, const Matrix& out, int threads);
Diagonal cross_correlation_diagonal(const Matrix& first, const Matrix& second, double weight,
                                    double* beta, int threads);
void cross_correlation_standardised(const Matrix& push, const Matrix& own, const Matrix& other,
                                    double alpha, const double* beta, const double* squares,
                                    double eps, const Matrix& out, int threads);
void contrastive_rows_forward(const Matrix& tile, const void* b, double scale,
                              const Ranges& without, double* stats, void* rescale, int threads);
void contrastive_rows_backward(const Matrix& tile, const void* b, double scale,
                               const Ranges& without, const double* lse, const double* weight,
                               int threads);
double contrastive_queue(const Matrix& u, const Matrix& v, const double* stats, double scale,
                         double weight, const Matrix& pull, const Matrix& d_v, int threads);
double contrastive_in_batch(const Matrix& tile, int64_t first, double scale, double weight,
                            bool store, int threads);
void contrastive_pairs_forward(const Matrix& tile, double scale, double shift, int64_t row,
                               int64_t col, int64_t views, double* sums, int threads);
void contrastive_pairs_backward(const Matrix& tile, double scale, double shift, int64_t row,
                                int64_t col, int64_t views, const double* lse, const void* blocks,
                                bool narrow, int threads);
double contrastive_pairs_at_once(const Matrix& tile, double scale, double shift, int64_t views,
                                 const double* weights, bool decoupled, bool narrow, bool store,
                                 int threads);
void pair_rows(const Matrix& x, const Matrix& z, void* norms, int threads);
PairSums pair_weights(const Matrix& tile, const Matrix& x, const void* norms, int64_t first_row,
                      int64_t first_col, bool mirrored, double t, const PairSums& sums, int64_t own,
                      const Matrix& moments, void* counts, int threads);
void pair_moments(const Matrix& moments, const Matrix& z, int64_t own, const void* counts,
                  double factor, int threads);
double few_pairs(const Matrix& x, int64_t first, int64_t last, double t, const Matrix& moved);
double distance_power(const Matrix& x, const Matrix& y, double alpha, int threads);
void distance_power_backward(const Matrix& x, const Matrix& y, double alpha, double g, void* d_x,
                             void* d_y, int threads);
double correlation(const Matrix& c, double inv_temperature, double* row, double* col, int threads);
void correlation_backward(const Matrix& c, double inv_temperature, const double* col, double g,
                          void* d_c, int threads);
double lift(const Matrix& gram, double trace);
int64_t eigen_squares(const void* values, int dtype, int64_t count, const double* largest,
                      double ratio, double* squares);
void weigh_rows(const Matrix& v, const double* weight, void* out);
void spectral_weights(const double* squares, int64_t count, double scale, double stranger,
                      const double* mean, int64_t rows, int64_t width, double eps, bool distance,
                      void* value, int value_dtype, double* weight, void* row, int row_dtype);
void column_means(const Matrix& z, int64_t rows, double* means, int threads);
void subtract_mean(const Matrix& z, const double* mean, void* x, int dtype, int threads);
void crops_forward(const Crops& crops, double inv_temperature, const ViewStats& stats, double* mass,
                   int threads);
void crops_backward(const Crops& crops, double inv_temperature, bool has_exp,
                    const ViewStats& stats, const double* prior, int threads);
void logit_crops_forward(const Matrix* students, int64_t views, double inv_temperature,
                         const Teachers& teachers, const ViewStats& stats, int threads);
void logit_crops_backward(const Matrix* students, int64_t views, double inv_temperature,
                          const Teachers& teachers, const ViewStats& stats, const void* d_loss,
                          double factor, const Matrix* out, int threads);
void unit_rows_forward(const Matrix& x, double eps, const Matrix& unit, void* norm, int threads);
void unit_rows_backward(const Matrix& d_unit, double eps, const Matrix& unit, const void* norm,
                        const Matrix& out, int threads);
double transport(const Points& x, const Points& y, double epsilon, int p, int iterations,
                 double tolerance, void* f, void* g, void* u, void* v, double d_value, void* d_x,
                 void* d_y, int threads);
void transport_pairs(const Points& points, const int64_t* starts, const int64_t* pairs,
                     int64_t count, double epsilon, int p, int iterations, double tolerance,
                     double* out, int threads);

double cosine_forward(const Matrix& x, const Matrix& y, double eps, double* stats, int threads);
void cosine_backward(const Matrix& x, const Matrix& y, double eps, const double* stats, double g,
                     void* d_x, void* d_y, int threads);
double koleo(const Matrix& u, const int64_t* index, double p, double eps, void* d_u, int threads);
void nearest(const Matrix& tile, const int64_t* own, int64_t* index, int threads);

// max_k l_k; NaN may give way to numbers, but not to -inf
template <typename C>
inline C largest(const C* l, int64_t columns) {
  using V = Vec<C>;
  constexpr int kUnroll = 4 * V::kLanes;
  V a((C)-INFINITY), b = a, c = a, d = a;  // four chains: one is bound by the latency of max
  int64_t k = 0;
  for (; k + kUnroll <= columns; k += kUnroll) {
    a = max(a, V::load(l + k, Full{}));
    b = max(b, V::load(l + k + V::kLanes, Full{}));
    c = max(c, V::load(l + k + 2 * V::kLanes, Full{}));
    d = max(d, V::load(l + k + 3 * V::kLanes, Full{}));
  }
  sweep<C>(columns - k,
           [&](int64_t j, auto n) { a = max(a, V::load(l + k + j, n).or_else(a, n)); });
  const C most = max(max(a, b), max(c, d)).largest();
  for (k = 0; most == -INFINITY && k < columns; k++)
    if (l[k] != l[k]) return l[k];
  return most;
}

// The two kinds of target row: probabilities at hand, or formed from potentials.
template <typename C>
struct Given {
  const C* q;  // [K]
  template <typename Lanes>
  Vec<C> operator()(int64_t k, Lanes n) const {
    return Vec<C>::load(q + k, n);
  }
};

template <typename C>
struct Potentials {
  const C* s;         // [K] scores
  const double* col;  // [K]
  double scale, row;
  template <typename Lanes>
  Vec<C> operator()(int64_t k, Lanes n) const {
    return exp2(Vec<C>::exponent(s + k, col + k, scale, row, n) * Vec<C>((C)kLog2e)).or_else(0, n);
  }
};

// max_k(scale * s_k + col_k + row), rounded to C
template <typename C>
inline double largest_exponent(const C* s, int64_t columns, double scale, const double* col,
                               double row) {
  using V = Vec<C>;
  V most((C)-INFINITY);
  sweep<C>(columns, [&](int64_t k, auto lanes) {
    most = max(V::exponent(s + k, col + k, scale, row, lanes).or_else(most, lanes), most);
  });
  return most.largest();
}

// -LSE_k(scale * s_k + col_k)
template <typename C>
inline double row_potential_of(const C* s, int64_t columns, double scale, const double* col) {
  using V = Vec<C>;
  V sum;
  double shift = largest_exponent(s, columns, scale, col, 0);
  if (fabs(shift) > 1e8)  // float32 is off by some nats there
    shift += largest_exponent(s, columns, scale, col, -shift);
  sweep<C>(columns, [&](int64_t k, auto lanes) {
    sum = sum + Potentials<C>{s, col, scale, -shift}(k, lanes);
  });
  return -(shift + log((double)sum.sum()));
}

}  // namespace ssl_fast::SSL_FAST_ISA
