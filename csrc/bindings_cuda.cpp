// ssl_fast._cuda. A flat list: a binding does nothing but pass pointers, sizes and the stream on.
// A matrix is (pointer, rows, columns, row stride in elements, dtype code); null pointers are 0.
#include <pybind11/pybind11.h>

#include <string>

#include "cuda/launch.cuh"
#include "cuda/ssl_fast_cuda.h"

namespace py = pybind11;
using namespace ssl_fast;
using Pointer = uintptr_t;
using NoGil = py::call_guard<py::gil_scoped_release>;

template <typename T>
static T* at(Pointer p) {
  return reinterpret_cast<T*>(p);
}

static cudaStream_t stream_at(Pointer p) { return at<std::remove_pointer_t<cudaStream_t>>(p); }

static Scores matrix(Pointer p, int64_t n, int64_t k, int64_t stride, int dtype) {
  if (n > INT32_MAX || k > INT32_MAX - 65536)
    throw std::invalid_argument("ssl_fast: the CUDA kernels take up to 2^31 rows or columns each");
  return {at<const void>(p), dtype, n, k, stride};
}

PYBIND11_MODULE(_cuda, m) {
  // Empty when a GPU can be used; else what the runtime says, such as a missing or old driver.
  m.def("device_error", [] {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    return std::string(status == cudaSuccess ? "" : cudaGetErrorString(status));
  });

  m.def("sinkhorn_scratch_bytes", [](int64_t n, int64_t k, int dtype, int device) {
    DeviceGuard guard(device);
    return sinkhorn_scratch_bytes(n, k, dtype);
  });
  m.def(
      "sinkhorn_step",
      [](Pointer s, int64_t n, int64_t k, int64_t stride, int dtype, double scale, Pointer col,
         Pointer row, Pointer column_lse, Pointer scratch, int device, Pointer stream) {
        DeviceGuard guard(device);
        sinkhorn_step(matrix(s, n, k, stride, dtype), scale, at<double>(col), at<double>(row),
                      at<double>(column_lse), at<void>(scratch), stream_at(stream));
      },
      NoGil());
  m.def(
      "row_potential",
      [](Pointer s, int64_t n, int64_t k, int64_t stride, int dtype, double scale, Pointer col,
         Pointer row, Pointer scratch, int device, Pointer stream) {
        DeviceGuard guard(device);
        sinkhorn_row_potential(matrix(s, n, k, stride, dtype), scale, at<double>(col),
                               at<double>(row), at<void>(scratch), stream_at(stream));
      },
      NoGil());
  // Says whether the on-chip form ran.
  m.def(
      "sinkhorn",
      [](Pointer s, int64_t n, int64_t k, int64_t stride, int dtype, double scale,
         Pointer log_prior, int iterations, bool softmax_start, Pointer q, Pointer row, Pointer col,
         bool on_chip, Pointer scratch, int device, Pointer stream) {
        DeviceGuard guard(device);
        return sinkhorn_potentials(matrix(s, n, k, stride, dtype), scale, at<double>(log_prior),
                                   iterations, softmax_start, at<double>(row), at<double>(col),
                                   at<float>(q), on_chip, at<void>(scratch), stream_at(stream));
      },
      NoGil());

  m.def("cross_entropy_scratch_bytes", [](int64_t n, int64_t k, bool symmetric, int device) {
    DeviceGuard guard(device);
    return cross_entropy_scratch_bytes(n, k, symmetric);
  });
  m.def(
      "evaluate",
      [](Pointer s, int64_t n, int64_t k, int64_t stride, int dtype, double scale, Pointer row,
         Pointer col, Pointer q, Pointer scratch, int device, Pointer stream) {
        DeviceGuard guard(device);
        evaluate({matrix(s, n, k, stride, dtype), scale, at<double>(row), at<double>(col)},
                 at<float>(q), at<void>(scratch), stream_at(stream));
      },
      NoGil());
  m.def(
      "cross_entropy_forward",
      [](Pointer l, int64_t n, int64_t k, int64_t stride, int dtype, double inv_temperature,
         Pointer values, int64_t values_stride, int values_dtype, double scale, Pointer row,
         Pointer col, double factor, Pointer row_stats, Pointer col_stats, Pointer loss,
         Pointer scratch, int device, Pointer stream) {
        DeviceGuard guard(device);
        cross_entropy_forward(matrix(l, n, k, stride, dtype), inv_temperature,
                              {matrix(values, n, k, values_stride, values_dtype), scale,
                               at<double>(row), at<double>(col)},
                              factor, at<double>(row_stats), at<double>(col_stats), at<float>(loss),
                              at<void>(scratch), stream_at(stream));
      },
      NoGil());
  m.def(
      "cross_entropy_backward",
      [](Pointer l, int64_t n, int64_t k, int64_t stride, int dtype, double inv_temperature,
         Pointer values, int64_t values_stride, int values_dtype, double scale, Pointer row,
         Pointer col, Pointer row_stats, int64_t row_stats_stride, Pointer col_stats,
         Pointer d_loss, int64_t d_loss_stride, double factor, Pointer d_logits,
         int64_t d_logits_stride, Pointer scratch, int device, Pointer stream) {
        DeviceGuard guard(device);
        cross_entropy_backward(matrix(l, n, k, stride, dtype), inv_temperature,
                               {matrix(values, n, k, values_stride, values_dtype), scale,
                                at<double>(row), at<double>(col)},
                               at<double>(row_stats), row_stats_stride, at<double>(col_stats),
                               at<float>(d_loss), d_loss_stride, factor, at<void>(d_logits),
                               d_logits_stride, at<void>(scratch), stream_at(stream));
      },
      NoGil());
  m.def(
      "contrastive_rows_forward",
      [](Pointer t, int64_t n, int64_t k, int64_t stride, int dtype, Pointer b, double scale,
         Pointer lo, Pointer hi, int64_t begin, Pointer stats, Pointer rescale, int device,
         Pointer stream) {
        DeviceGuard guard(device);
        contrastive_rows_forward(matrix(t, n, k, stride, dtype), at<float>(b), scale,
                                 at<int64_t>(lo), at<int64_t>(hi), begin, at<double>(stats),
                                 at<float>(rescale), stream_at(stream));
      },
      NoGil());
  m.def(
      "contrastive_rows_backward",
      [](Pointer t, int64_t n, int64_t k, int64_t stride, int dtype, Pointer b, double scale,
         Pointer lo, Pointer hi, int64_t begin, Pointer lse, Pointer weight, int device,
         Pointer stream) {
        DeviceGuard guard(device);
        contrastive_rows_backward(matrix(t, n, k, stride, dtype), at<float>(b), scale,
                                  at<int64_t>(lo), at<int64_t>(hi), begin, at<double>(lse),
                                  at<double>(weight), stream_at(stream));
      },
      NoGil());
  m.def(
      "contrastive_pairs_forward",
      [](Pointer t, int64_t n, int64_t k, int64_t stride, int dtype, double scale, double shift,
         int64_t row, int64_t col, int64_t views, Pointer sums, int device, Pointer stream) {
        DeviceGuard guard(device);
        contrastive_pairs_forward(matrix(t, n, k, stride, dtype), scale, shift, row, col, views,
                                  at<double>(sums), stream_at(stream));
      },
      NoGil());
  m.def(
      "contrastive_pairs_backward",
      [](Pointer t, int64_t n, int64_t k, int64_t stride, int dtype, double scale, double shift,
         int64_t row, int64_t col, int64_t views, Pointer lse, Pointer blocks, bool narrow,
         int device, Pointer stream) {
        DeviceGuard guard(device);
        contrastive_pairs_backward(matrix(t, n, k, stride, dtype), scale, shift, row, col, views,
                                   at<double>(lse), at<float>(blocks), narrow, stream_at(stream));
      },
      NoGil());

  m.def("prior_scratch_bytes", [](int64_t n, int64_t k, int device) {
    DeviceGuard guard(device);
    return prior_scratch_bytes(n, k);
  });
  m.def(
      "prior_columns",
      [](Pointer l, int64_t n, int64_t k, int64_t stride, int dtype, double inv_temperature,
         Pointer row_stats, int64_t row_stats_stride, Pointer log_mass, Pointer scratch, int device,
         Pointer stream) {
        DeviceGuard guard(device);
        prior_columns(matrix(l, n, k, stride, dtype), inv_temperature, at<double>(row_stats),
                      row_stats_stride, at<double>(log_mass), at<void>(scratch), stream_at(stream));
      },
      NoGil());
  m.def(
      "prior_backward",
      [](Pointer l, int64_t n, int64_t k, int64_t stride, int dtype, double inv_temperature,
         Pointer values, int64_t values_stride, int values_dtype, double scale, Pointer row,
         Pointer col, Pointer row_stats, int64_t row_stats_stride, Pointer prior, Pointer d_loss,
         double factor, Pointer d_logits, int64_t d_logits_stride, Pointer scratch, int device,
         Pointer stream) {
        DeviceGuard guard(device);
        prior_backward(matrix(l, n, k, stride, dtype), inv_temperature,
                       {matrix(values, n, k, values_stride, values_dtype), scale, at<double>(row),
                        at<double>(col)},
                       at<double>(row_stats), row_stats_stride, at<double>(prior),
                       at<float>(d_loss), factor, at<void>(d_logits), d_logits_stride,
                       at<void>(scratch), stream_at(stream));
      },
      NoGil());

  m.def(
      "column_sums",
      [](Pointer z, int64_t n, int64_t d, int64_t stride, int dtype, int64_t parts, Pointer partial,
         Pointer sums, int device, Pointer stream) {
        DeviceGuard guard(device);
        column_sums(matrix(z, n, d, stride, dtype), parts, at<double>(partial), at<double>(sums),
                    stream_at(stream));
      },
      NoGil());
  m.def(
      "center",
      [](Pointer z, int64_t n, int64_t d, int64_t stride, int dtype, Pointer mean, Pointer x,
         int device, Pointer stream) {
        DeviceGuard guard(device);
        center(matrix(z, n, d, stride, dtype), at<double>(mean), at<double>(x), stream_at(stream));
      },
      NoGil());
  m.def(
      "polynomial",
      [](Pointer r, Pointer square, int64_t n, double a, double b, double c, Pointer out,
         int device, Pointer stream) {
        DeviceGuard guard(device);
        polynomial(at<double>(r), at<double>(square), n, a, b, c, at<double>(out),
                   stream_at(stream));
      },
      NoGil());
  m.def(
      "finish",
      [](Pointer product, int64_t n, int64_t d, Pointer row, Pointer factor, Pointer out,
         int device, Pointer stream) {
        DeviceGuard guard(device);
        finish(at<double>(product), n, d, at<double>(row), at<double>(factor), at<float>(out),
               stream_at(stream));
      },
      NoGil());

  m.def("covariance_parts", &covariance_parts);
  m.def("covariance_tiles", &covariance_tiles);
  m.def(
      "covariance_moments",
      [](Pointer z, int64_t z_n, int64_t z_d, int64_t z_stride, int z_dtype, int64_t parts,
         Pointer partial, int device, Pointer stream) {
        DeviceGuard guard(device);
        covariance_moments(matrix(z, z_n, z_d, z_stride, z_dtype), parts, at<double>(partial),
                           stream_at(stream));
      },
      NoGil());
  m.def(
      "covariance_center",
      [](Pointer z, int64_t z_n, int64_t z_d, int64_t z_stride, int z_dtype, Pointer mean,
         Pointer scale, Pointer out, int64_t, int64_t, int64_t out_stride, int out_dtype,
         int device, Pointer stream) {
        DeviceGuard guard(device);
        covariance_center(matrix(z, z_n, z_d, z_stride, z_dtype), at<double>(mean),
                          at<double>(scale), Output{at<void>(out), out_dtype, out_stride},
                          stream_at(stream));
      },
      NoGil());
  m.def(
      "covariance_inner",
      [](Pointer a, int64_t a_n, int64_t a_d, int64_t a_stride, int a_dtype, Pointer b, int64_t b_n,
         int64_t b_d, int64_t b_stride, int b_dtype, Pointer partial, int device, Pointer stream) {
        DeviceGuard guard(device);
        covariance_inner(matrix(a, a_n, a_d, a_stride, a_dtype),
                         matrix(b, b_n, b_d, b_stride, b_dtype), at<double>(partial),
                         stream_at(stream));
      },
      NoGil());
  m.def(
      "covariance_distance",
      [](Pointer a, int64_t a_n, int64_t a_d, int64_t a_stride, int a_dtype, Pointer b, int64_t b_n,
         int64_t b_d, int64_t b_stride, int b_dtype, Pointer partial, int device, Pointer stream) {
        DeviceGuard guard(device);
        covariance_distance(matrix(a, a_n, a_d, a_stride, a_dtype),
                            matrix(b, b_n, b_d, b_stride, b_dtype), at<double>(partial),
                            stream_at(stream));
      },
      NoGil());
  m.def(
      "covariance_strip",
      [](Pointer t, int64_t t_n, int64_t t_d, int64_t t_stride, int t_dtype, double scale,
         Pointer partial, int device, Pointer stream) {
        DeviceGuard guard(device);
        covariance_strip(Output{at<void>(t), t_dtype, t_stride}, t_n, t_d, scale,
                         at<double>(partial), stream_at(stream));
      },
      NoGil());
  m.def(
      "covariance_squares",
      [](Pointer z, int64_t z_n, int64_t z_d, int64_t z_stride, int z_dtype, Pointer mean,
         double scale, Pointer flag, Pointer partial, int device, Pointer stream) {
        DeviceGuard guard(device);
        covariance_squares(matrix(z, z_n, z_d, z_stride, z_dtype), at<double>(mean), scale,
                           at<bool>(flag), at<double>(partial), stream_at(stream));
      },
      NoGil());
  m.def(
      "covariance_rescue",
      [](Pointer z, int64_t z_n, int64_t z_d, int64_t z_stride, int z_dtype, Pointer own,
         int64_t own_n, int64_t own_d, int64_t own_stride, int own_dtype, Pointer other,
         int64_t other_n, int64_t other_d, int64_t other_stride, int other_dtype, Pointer mean,
         Pointer beta, Pointer factors, Pointer flag, Pointer out, int64_t, int64_t,
         int64_t out_stride, int out_dtype, int device, Pointer stream) {
        DeviceGuard guard(device);
        covariance_rescue(matrix(z, z_n, z_d, z_stride, z_dtype),
                          matrix(own, own_n, own_d, own_stride, own_dtype),
                          matrix(other, other_n, other_d, other_stride, other_dtype),
                          at<double>(mean), at<double>(beta), at<double>(factors), at<bool>(flag),
                          Output{at<void>(out), out_dtype, out_stride}, stream_at(stream));
      },
      NoGil());
  m.def(
      "covariance_gradient",
      [](Pointer push, int64_t push_n, int64_t push_d, int64_t push_stride, int push_dtype,
         Pointer z, int64_t z_n, int64_t z_d, int64_t z_stride, int z_dtype, Pointer other,
         int64_t other_n, int64_t other_d, int64_t other_stride, int other_dtype, Pointer mean,
         Pointer beta, Pointer factors, Pointer out, int64_t, int64_t, int64_t out_stride,
         int out_dtype, int device, Pointer stream) {
        DeviceGuard guard(device);
        covariance_gradient(matrix(push, push_n, push_d, push_stride, push_dtype),
                            matrix(z, z_n, z_d, z_stride, z_dtype),
                            matrix(other, other_n, other_d, other_stride, other_dtype),
                            at<double>(mean), at<double>(beta), at<double>(factors),
                            Output{at<void>(out), out_dtype, out_stride}, stream_at(stream));
      },
      NoGil());
  m.def(
      "correlation_strip",
      [](Pointer t, int64_t t_n, int64_t t_d, int64_t t_stride, int t_dtype, int64_t first,
         double inverse, double weight, Pointer partial, int device, Pointer stream) {
        DeviceGuard guard(device);
        correlation_strip(Output{at<void>(t), t_dtype, t_stride}, t_n, t_d, first, inverse, weight,
                          at<double>(partial), stream_at(stream));
      },
      NoGil());
  m.def(
      "correlation_dots",
      [](Pointer push, int64_t push_n, int64_t push_d, int64_t push_stride, int push_dtype,
         Pointer own, int64_t own_n, int64_t own_d, int64_t own_stride, int own_dtype,
         Pointer other, int64_t other_n, int64_t other_d, int64_t other_stride, int other_dtype,
         double alpha, Pointer beta, Pointer dots, int device, Pointer stream) {
        DeviceGuard guard(device);
        correlation_dots(matrix(push, push_n, push_d, push_stride, push_dtype),
                         matrix(own, own_n, own_d, own_stride, own_dtype),
                         matrix(other, other_n, other_d, other_stride, other_dtype), alpha,
                         at<double>(beta), at<double>(dots), stream_at(stream));
      },
      NoGil());
  m.def(
      "correlation_gradient",
      [](Pointer push, int64_t push_n, int64_t push_d, int64_t push_stride, int push_dtype,
         Pointer own, int64_t own_n, int64_t own_d, int64_t own_stride, int own_dtype,
         Pointer other, int64_t other_n, int64_t other_d, int64_t other_stride, int other_dtype,
         double alpha, Pointer beta, Pointer dots, Pointer scale, Pointer out, int64_t, int64_t,
         int64_t out_stride, int out_dtype, int device, Pointer stream) {
        DeviceGuard guard(device);
        correlation_gradient(matrix(push, push_n, push_d, push_stride, push_dtype),
                             matrix(own, own_n, own_d, own_stride, own_dtype),
                             matrix(other, other_n, other_d, other_stride, other_dtype), alpha,
                             at<double>(beta), at<double>(dots), at<double>(scale),
                             Output{at<void>(out), out_dtype, out_stride}, stream_at(stream));
      },
      NoGil());
}
