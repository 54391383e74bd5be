// ssl_fast._cpu. A flat list: a binding does nothing but pass pointers and sizes on.
// A matrix is (pointer, rows, columns, row stride in elements, dtype code); null pointers are 0.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/dispatch.h"

namespace py = pybind11;
using ssl_fast::active;
using ssl_fast::Matrix;
using Pointer = uintptr_t;
using NoGil = py::call_guard<py::gil_scoped_release>;

template <typename T>
static T* at(Pointer p) {
  return reinterpret_cast<T*>(p);
}

static Matrix matrix(Pointer p, int64_t rows, int64_t cols, int64_t stride, int dtype) {
  return {at<void>(p), rows, cols, stride, dtype};
}

static ssl_fast::Crops crops(Pointer x, int64_t prototypes, int64_t samples, int dtype,
                             const std::vector<Pointer>& q) {
  static_assert(sizeof(Pointer) == sizeof(void*));
  return {at<void>(x), prototypes, (int64_t)q.size(),
          samples,     dtype,      reinterpret_cast<const void* const*>(q.data())};
}

PYBIND11_MODULE(_cpu, m) {
  m.def("instruction_sets", &ssl_fast::instruction_sets);
  m.def("select", &ssl_fast::select);
  m.def("selected", &ssl_fast::selected);

  m.def(
      "sinkhorn",
      [](Pointer s, int64_t n, int64_t k, int64_t stride, int dtype, double scale,
         Pointer log_prior, int iterations, bool softmax_start, Pointer q, Pointer row, Pointer col,
         int threads) {
        active().sinkhorn(matrix(s, n, k, stride, dtype), scale, at<double>(log_prior), iterations,
                          softmax_start, at<void>(q), at<double>(row), at<double>(col), threads);
      },
      NoGil());
  m.def(
      "sinkhorn_step",
      [](Pointer s, int64_t n, int64_t k, int64_t stride, int dtype, double scale, Pointer col,
         Pointer row, Pointer column_lse, int threads) {
        active().sinkhorn_step(matrix(s, n, k, stride, dtype), scale, at<double>(col),
                               at<double>(row), at<double>(column_lse), threads);
      },
      NoGil());
  m.def(
      "row_potential",
      [](Pointer s, int64_t n, int64_t k, int64_t stride, int dtype, double scale, Pointer col,
         Pointer row, int threads) {
        active().row_potential(matrix(s, n, k, stride, dtype), scale, at<double>(col),
                               at<double>(row), threads);
      },
      NoGil());
  m.def(
      "evaluate",
      [](Pointer s, int64_t n, int64_t k, int64_t stride, int dtype, double scale, Pointer row,
         Pointer col, Pointer q, int threads) {
        active().evaluate(matrix(s, n, k, stride, dtype), scale, at<double>(row), at<double>(col),
                          at<void>(q), threads);
      },
      NoGil());
  m.def(
      "cross_entropy_forward",
      [](Pointer l, int64_t n, int64_t k, int64_t stride, int dtype, double inv_temperature,
         Pointer values, int64_t values_stride, int values_dtype, double scale, Pointer row,
         Pointer col, Pointer row_stats, int64_t row_stats_stride, Pointer col_stats, double factor,
         Pointer loss, int threads) {
        active().cross_entropy_forward(
            matrix(l, n, k, stride, dtype), inv_temperature,
            {matrix(values, n, k, values_stride, values_dtype), scale, at<double>(row),
             at<double>(col)},
            {at<double>(row_stats), row_stats_stride, at<double>(col_stats)}, factor,
            at<void>(loss), threads);
      },
      NoGil());
  m.def(
      "cross_entropy_backward",
      [](Pointer l, int64_t n, int64_t k, int64_t stride, int dtype, double inv_temperature,
         Pointer values, int64_t values_stride, int values_dtype, double scale, Pointer row,
         Pointer col, Pointer row_stats, int64_t row_stats_stride, Pointer col_stats,
         Pointer d_loss, int64_t d_loss_stride, double factor, Pointer out, int64_t out_stride,
         int out_dtype, int threads) {
        active().cross_entropy_backward(
            matrix(l, n, k, stride, dtype), inv_temperature,
            {matrix(values, n, k, values_stride, values_dtype), scale, at<double>(row),
             at<double>(col)},
            {at<double>(row_stats), row_stats_stride, at<double>(col_stats)}, at<void>(d_loss),
            d_loss_stride, factor, matrix(out, n, k, out_stride, out_dtype), threads);
      },
      NoGil());
  m.def(
      "prior_forward",
      [](Pointer l, int64_t n, int64_t k, int64_t stride, int dtype, double inv_temperature,
         Pointer values, int64_t values_stride, int values_dtype, double scale, Pointer row,
         Pointer col, Pointer row_stats, int64_t row_stats_stride, Pointer log_mass, int threads) {
        active().prior_forward(matrix(l, n, k, stride, dtype), inv_temperature,
                               {matrix(values, n, k, values_stride, values_dtype), scale,
                                at<double>(row), at<double>(col)},
                               {at<double>(row_stats), row_stats_stride, nullptr},
                               at<double>(log_mass), threads);
      },
      NoGil());
  m.def(
      "prior_backward",
      [](Pointer l, int64_t n, int64_t k, int64_t stride, int dtype, double inv_temperature,
         Pointer values, int64_t values_stride, int values_dtype, double scale, Pointer row,
         Pointer col, Pointer row_stats, int64_t row_stats_stride, Pointer prior, Pointer d_loss,
         double factor, Pointer out, int64_t out_stride, int out_dtype, int threads) {
        active().prior_backward(matrix(l, n, k, stride, dtype), inv_temperature,
                                {matrix(values, n, k, values_stride, values_dtype), scale,
                                 at<double>(row), at<double>(col)},
                                {at<double>(row_stats), row_stats_stride, nullptr},
                                at<double>(prior), at<void>(d_loss), factor,
                                matrix(out, n, k, out_stride, out_dtype), threads);
      },
      NoGil());
  m.def(
      "column_moments",
      [](Pointer z, int64_t n, int64_t d, int64_t stride, int dtype, Pointer stats,
         int64_t stats_stride, Pointer out, int64_t out_n, int64_t out_d, int64_t out_stride,
         int out_dtype, bool standardise, double eps, int threads) {
        active().column_moments(matrix(z, n, d, stride, dtype), at<double>(stats), stats_stride,
                                matrix(out, out_n, out_d, out_stride, out_dtype), standardise, eps,
                                threads);
      },
      NoGil());
  m.def(
      "spectral_weights",
      [](Pointer squares, int64_t count, double scale, double stranger, Pointer mean, int64_t rows,
         int64_t width, double eps, bool distance, Pointer value, Pointer weight, Pointer row) {
        active().spectral_weights(at<double>(squares), count, scale, stranger, at<double>(mean),
                                  rows, width, eps, distance, at<double>(value), at<double>(weight),
                                  at<double>(row));
      },
      NoGil());
  m.def(
      "column_sums",
      [](Pointer z, int64_t n, int64_t d, int64_t stride, int dtype, Pointer sums, int threads) {
        active().column_sums(matrix(z, n, d, stride, dtype), at<double>(sums), threads);
      },
      NoGil());
  m.def(
      "center",
      [](Pointer z, int64_t n, int64_t d, int64_t stride, int dtype, Pointer mean, Pointer scale,
         Pointer out, int64_t out_n, int64_t out_d, int64_t out_stride, int out_dtype,
         int threads) {
        active().center(matrix(z, n, d, stride, dtype), at<double>(mean), at<double>(scale),
                        matrix(out, out_n, out_d, out_stride, out_dtype), threads);
      },
      NoGil());
  m.def(
      "inner",
      [](Pointer a, int64_t n, int64_t k, int64_t stride, int dtype, Pointer b, int64_t b_n,
         int64_t b_k, int64_t b_stride, int b_dtype, int threads) {
        return active().inner(matrix(a, n, k, stride, dtype),
                              matrix(b, b_n, b_k, b_stride, b_dtype), threads);
      },
      NoGil());
  m.def(
      "squared_distance",
      [](Pointer a, int64_t n, int64_t k, int64_t stride, int dtype, Pointer b, int64_t b_n,
         int64_t b_k, int64_t b_stride, int b_dtype, int threads) {
        return active().squared_distance(matrix(a, n, k, stride, dtype),
                                         matrix(b, b_n, b_k, b_stride, b_dtype), threads);
      },
      NoGil());
  m.def(
      "triangle",
      [](Pointer t, int64_t n, int64_t k, int64_t stride, int dtype, double scale, int threads) {
        return active().triangle(matrix(t, n, k, stride, dtype), scale, threads);
      },
      NoGil());
  m.def(
      "covariance_gradient",
      [](Pointer push, int64_t push_n, int64_t push_d, int64_t push_stride, int push_dtype,
         Pointer z, int64_t n, int64_t d, int64_t stride, int dtype, Pointer other, int64_t other_n,
         int64_t other_d, int64_t other_stride, int other_dtype, Pointer mean, Pointer beta,
         Pointer factors, Pointer out, int64_t out_n, int64_t out_d, int64_t out_stride,
         int out_dtype, int threads) {
        active().covariance_gradient(matrix(push, push_n, push_d, push_stride, push_dtype),
                                     matrix(z, n, d, stride, dtype),
                                     matrix(other, other_n, other_d, other_stride, other_dtype),
                                     at<double>(mean), at<double>(beta), at<double>(factors),
                                     matrix(out, out_n, out_d, out_stride, out_dtype), threads);
      },
      NoGil());
  m.def(
      "correlation_tile",
      [](Pointer t, int64_t n, int64_t k, int64_t stride, int dtype, int64_t first, double count,
         double weight, int threads) {
        return active().correlation_tile(matrix(t, n, k, stride, dtype), first, count, weight,
                                         threads);
      },
      NoGil());
  m.def(
      "correlation_dots",
      [](Pointer push, int64_t push_n, int64_t push_d, int64_t push_stride, int push_dtype,
         Pointer own, int64_t n, int64_t d, int64_t stride, int dtype, Pointer other,
         int64_t other_n, int64_t other_d, int64_t other_stride, int other_dtype, double alpha,
         Pointer beta, Pointer dots, int threads) {
        active().correlation_dots(matrix(push, push_n, push_d, push_stride, push_dtype),
                                  matrix(own, n, d, stride, dtype),
                                  matrix(other, other_n, other_d, other_stride, other_dtype), alpha,
                                  at<double>(beta), at<double>(dots), threads);
      },
      NoGil());
  m.def(
      "correlation_gradient",
      [](Pointer push, int64_t push_n, int64_t push_d, int64_t push_stride, int push_dtype,
         Pointer own, int64_t n, int64_t d, int64_t stride, int dtype, Pointer other,
         int64_t other_n, int64_t other_d, int64_t other_stride, int other_dtype, double alpha,
         Pointer beta, Pointer dots, Pointer scale, Pointer out, int64_t out_n, int64_t out_d,
         int64_t out_stride, int out_dtype, int threads) {
        active().correlation_gradient(matrix(push, push_n, push_d, push_stride, push_dtype),
                                      matrix(own, n, d, stride, dtype),
                                      matrix(other, other_n, other_d, other_stride, other_dtype),
                                      alpha, at<double>(beta), at<double>(dots), at<double>(scale),
                                      matrix(out, out_n, out_d, out_stride, out_dtype), threads);
      },
      NoGil());
  m.def(
      "contrastive_rows_forward",
      [](Pointer t, int64_t n, int64_t k, int64_t stride, int dtype, Pointer b, double scale,
         Pointer lo, Pointer hi, int64_t begin, Pointer stats, Pointer rescale, int threads) {
        active().contrastive_rows_forward(matrix(t, n, k, stride, dtype), at<void>(b), scale,
                                          {at<int64_t>(lo), at<int64_t>(hi), begin},
                                          at<double>(stats), at<void>(rescale), threads);
      },
      NoGil());
  m.def(
      "contrastive_rows_backward",
      [](Pointer t, int64_t n, int64_t k, int64_t stride, int dtype, Pointer b, double scale,
         Pointer lo, Pointer hi, int64_t begin, Pointer lse, Pointer weight, int threads) {
        active().contrastive_rows_backward(matrix(t, n, k, stride, dtype), at<void>(b), scale,
                                           {at<int64_t>(lo), at<int64_t>(hi), begin},
                                           at<double>(lse), at<double>(weight), threads);
      },
      NoGil());
  m.def(
      "contrastive_in_batch",
      [](Pointer t, int64_t n, int64_t k, int64_t stride, int dtype, int64_t first, double scale,
         double weight, bool store, int threads) {
        return active().contrastive_in_batch(matrix(t, n, k, stride, dtype), first, scale, weight,
                                             store, threads);
      },
      NoGil());
  m.def(
      "contrastive_pairs_forward",
      [](Pointer t, int64_t n, int64_t k, int64_t stride, int dtype, double scale, double shift,
         int64_t row, int64_t col, int64_t views, Pointer sums, int threads) {
        active().contrastive_pairs_forward(matrix(t, n, k, stride, dtype), scale, shift, row, col,
                                           views, at<double>(sums), threads);
      },
      NoGil());
  m.def(
      "contrastive_pairs_backward",
      [](Pointer t, int64_t n, int64_t k, int64_t stride, int dtype, double scale, double shift,
         int64_t row, int64_t col, int64_t views, Pointer lse, Pointer blocks, bool narrow,
         int threads) {
        active().contrastive_pairs_backward(matrix(t, n, k, stride, dtype), scale, shift, row, col,
                                            views, at<double>(lse), at<void>(blocks), narrow,
                                            threads);
      },
      NoGil());
  m.def(
      "pair_distances",
      [](Pointer tile, int64_t r, int64_t c, int64_t stride, int dtype, Pointer row_norms,
         Pointer col_norms, Pointer x, int64_t n, int64_t d, int64_t x_stride, int x_dtype,
         int64_t first_row, int64_t first_col, int threads) {
        double out[2];
        active().pair_distances(matrix(tile, r, c, stride, dtype), at<void>(row_norms),
                                at<void>(col_norms), matrix(x, n, d, x_stride, x_dtype), first_row,
                                first_col, out, threads);
        return std::pair<double, bool>(out[0], out[1] != 0);
      },
      NoGil());
  m.def(
      "pair_weights",
      [](Pointer tile, int64_t r, int64_t c, int64_t stride, int dtype, double t, double shift,
         bool marked, Pointer rows, Pointer cols, int threads) {
        return active().pair_weights(matrix(tile, r, c, stride, dtype), t, shift, marked,
                                     at<void>(rows), at<void>(cols), threads);
      },
      NoGil());
  m.def(
      "pair_close",
      [](Pointer tile, int64_t r, int64_t c, int64_t stride, int dtype, Pointer x, int64_t n,
         int64_t d, int64_t x_stride, int x_dtype, int64_t first_row, int64_t first_col,
         Pointer rows, Pointer cols, int64_t sums_stride, int threads) {
        active().pair_close(matrix(tile, r, c, stride, dtype), matrix(x, n, d, x_stride, x_dtype),
                            first_row, first_col, matrix(rows, r, d, sums_stride, dtype),
                            matrix(cols, c, d, sums_stride, dtype), threads);
      },
      NoGil());
  m.def(
      "distance_power",
      [](Pointer x, int64_t n, int64_t d, int64_t x_stride, int dtype, Pointer y, int64_t y_stride,
         double alpha, int threads) {
        return active().distance_power(matrix(x, n, d, x_stride, dtype),
                                       matrix(y, n, d, y_stride, dtype), alpha, threads);
      },
      NoGil());
  m.def(
      "distance_power_backward",
      [](Pointer x, int64_t n, int64_t d, int64_t x_stride, int dtype, Pointer y, int64_t y_stride,
         double alpha, double g, Pointer d_x, Pointer d_y, int threads) {
        active().distance_power_backward(
            matrix(x, n, d, x_stride, dtype), matrix(y, n, d, y_stride, dtype), alpha, g,
            matrix(d_x, n, d, d, dtype), matrix(d_y, n, d, d, dtype), threads);
      },
      NoGil());
  m.def(
      "correlation",
      [](Pointer c, int64_t k, int64_t d, int64_t stride, int dtype, double inv_temperature,
         Pointer row, Pointer col, int threads) {
        return active().correlation(matrix(c, k, d, stride, dtype), inv_temperature,
                                    at<double>(row), at<double>(col), threads);
      },
      NoGil());
  m.def(
      "correlation_backward",
      [](Pointer c, int64_t k, int64_t d, int64_t stride, int dtype, double inv_temperature,
         Pointer col, double g, Pointer d_c, int threads) {
        active().correlation_backward(matrix(c, k, d, stride, dtype), inv_temperature,
                                      at<double>(col), g, matrix(d_c, k, d, d, dtype), threads);
      },
      NoGil());
  m.def(
      "subtract_mean",
      [](Pointer z, int64_t n, int64_t d, int64_t stride, int dtype, Pointer mean, Pointer x,
         int x_dtype, int threads) {
        active().subtract_mean(matrix(z, n, d, stride, dtype), at<double>(mean), at<void>(x),
                               x_dtype, threads);
      },
      NoGil());
  m.def(
      "crops_forward",
      [](Pointer x, int64_t prototypes, int64_t samples, int dtype, const std::vector<Pointer>& q,
         double inv_temperature, Pointer row_stats, int64_t row_stats_stride, int64_t view_stride,
         Pointer mass, int threads) {
        active().crops_forward(crops(x, prototypes, samples, dtype, q), inv_temperature,
                               {at<double>(row_stats), row_stats_stride, nullptr, view_stride},
                               at<double>(mass), threads);
      },
      NoGil());
  m.def(
      "crops_backward",
      [](Pointer x, int64_t prototypes, int64_t samples, int dtype, const std::vector<Pointer>& q,
         double inv_temperature, bool has_exp, Pointer row_stats, int64_t row_stats_stride,
         int64_t view_stride, Pointer prior, int threads) {
        active().crops_backward(crops(x, prototypes, samples, dtype, q), inv_temperature, has_exp,
                                {at<double>(row_stats), row_stats_stride, nullptr, view_stride},
                                at<double>(prior), threads);
      },
      NoGil());
  m.def(
      "unit_rows_forward",
      [](Pointer x, int64_t n, int64_t d, int64_t stride, int dtype, Pointer unit, Pointer norm,
         int threads) {
        active().unit_rows_forward(matrix(x, n, d, stride, dtype), at<void>(unit), at<void>(norm),
                                   threads);
      },
      NoGil());
  m.def(
      "unit_rows_backward",
      [](Pointer d_unit, int64_t n, int64_t d, int64_t stride, int dtype, Pointer unit,
         Pointer norm, Pointer out, int64_t out_stride, int out_dtype, int threads) {
        active().unit_rows_backward(matrix(d_unit, n, d, stride, dtype), at<void>(unit),
                                    at<void>(norm), matrix(out, n, d, out_stride, out_dtype),
                                    threads);
      },
      NoGil());
  // For memory that is written at once: fewer page faults.
  m.def("advise_huge_pages", [](Pointer p, int64_t bytes, int64_t least) {
    ssl_fast::advise_huge_pages(at<void>(p), bytes, least);
  });
  m.def(
      "transport",
      [](Pointer x, Pointer x_columns, int64_t n, Pointer y, Pointer y_columns, int64_t k,
         int64_t d, int dtype, double epsilon, int p, int iterations, double tolerance, Pointer f,
         Pointer g, Pointer u, Pointer v, double d_value, Pointer d_x, Pointer d_y, int threads) {
        return active().transport({at<void>(x), at<void>(x_columns), n, d, dtype},
                                  {at<void>(y), at<void>(y_columns), k, d, dtype}, epsilon, p,
                                  iterations, tolerance, at<void>(f), at<void>(g), at<void>(u),
                                  at<void>(v), d_value, at<void>(d_x), at<void>(d_y), threads);
      },
      NoGil());
  m.def(
      "transport_pairs",
      [](Pointer points, Pointer columns, int64_t n, int64_t d, int dtype, Pointer starts,
         Pointer pairs, int64_t count, double epsilon, int p, int iterations, double tolerance,
         Pointer out, int threads) {
        active().transport_pairs({at<void>(points), at<void>(columns), n, d, dtype},
                                 at<int64_t>(starts), at<int64_t>(pairs), count, epsilon, p,
                                 iterations, tolerance, at<double>(out), threads);
      },
      NoGil());
  m.def(
      "cosine_forward",
      [](Pointer x, int64_t n, int64_t d, int64_t stride, int dtype, Pointer y, int64_t y_stride,
         double eps, Pointer stats, int threads) {
        return active().cosine_forward(matrix(x, n, d, stride, dtype),
                                       matrix(y, n, d, y_stride, dtype), eps, at<double>(stats),
                                       threads);
      },
      NoGil());
  m.def(
      "cosine_backward",
      [](Pointer x, int64_t n, int64_t d, int64_t stride, int dtype, Pointer y, int64_t y_stride,
         double eps, Pointer stats, double g, Pointer d_x, Pointer d_y, int threads) {
        active().cosine_backward(matrix(x, n, d, stride, dtype), matrix(y, n, d, y_stride, dtype),
                                 eps, at<double>(stats), g, matrix(d_x, n, d, d, dtype),
                                 matrix(d_y, n, d, d, dtype), threads);
      },
      NoGil());
  m.def(
      "nearest",
      [](Pointer tile, int64_t r, int64_t c, int64_t stride, int dtype, Pointer own, Pointer index,
         int threads) {
        active().nearest(matrix(tile, r, c, stride, dtype), at<int64_t>(own), at<int64_t>(index),
                         threads);
      },
      NoGil());
}
