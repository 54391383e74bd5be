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
}
