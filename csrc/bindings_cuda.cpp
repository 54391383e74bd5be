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
}
