// ssl_fast._cuda: a flat list. arguments.h says how Python passes matrices; the device comes first
// and the stream last.
#include <stdexcept>
#include <string>

#include "arguments.h"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"

namespace py = pybind11;
using namespace ssl_fast;

// Kernels count rows and columns in 32 bits.
static void check_size(const Tensor& t) {
  if (t.shape.first > INT32_MAX || t.shape.second > INT32_MAX - 65536)
    throw std::invalid_argument("ssl_fast: the CUDA kernels take up to 2^31 rows or columns each");
}
template <typename Other>
static void check_size(const Other&) {}

// A launcher on the device that it is to use.
template <typename Result, typename... Arguments>
static auto on_device(Result (*launcher)(Arguments...)) {
  return [launcher](int device, Passed<Arguments>... arguments) {
    (check_size(arguments), ...);
    DeviceGuard guard(device);
    return launcher(arguments...);
  };
}

// Empty when a GPU can be used; else what the runtime says, such as a missing or old driver.
static std::string device_error() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
}

PYBIND11_MODULE(_cuda, m) {
  m.def("device_error", &device_error);
  const auto launcher = [&](const char* name, auto function) {
    m.def(name, on_device(function), py::call_guard<py::gil_scoped_release>());
  };
  launcher("sinkhorn_scratch_bytes", sinkhorn_scratch_bytes);
  launcher("sinkhorn_step", sinkhorn_step);
  launcher("row_potential", row_potential);
  launcher("sinkhorn", sinkhorn);
  launcher("evaluate", evaluate);
  launcher("cross_entropy_scratch_bytes", cross_entropy_scratch_bytes);
  launcher("cross_entropy_forward", cross_entropy_forward);
  launcher("cross_entropy_backward", cross_entropy_backward);
  launcher("contrastive_rows_forward", contrastive_rows_forward);
  launcher("contrastive_rows_backward", contrastive_rows_backward);
  launcher("contrastive_pairs_forward", contrastive_pairs_forward);
  launcher("contrastive_pairs_backward", contrastive_pairs_backward);
  launcher("prior_scratch_bytes", prior_scratch_bytes);
  launcher("prior_columns", prior_columns);
  launcher("prior_backward", prior_backward);
  launcher("column_sums", column_sums);
  launcher("center", center);
  launcher("polynomial", polynomial);
  launcher("finish", finish);
  launcher("covariance_parts", covariance_parts);
  launcher("covariance_tiles", covariance_tiles);
  launcher("covariance_moments", covariance_moments);
  launcher("covariance_center", covariance_center);
  launcher("covariance_inner", covariance_inner);
  launcher("covariance_distance", covariance_distance);
  launcher("covariance_strip", covariance_strip);
  launcher("covariance_squares", covariance_squares);
  launcher("covariance_rescue", covariance_rescue);
  launcher("covariance_gradient", covariance_gradient);
  launcher("cross_correlation_penalty", cross_correlation_penalty);
  launcher("cross_correlation_dots", cross_correlation_dots);
  launcher("cross_correlation_gradient", cross_correlation_gradient);
}
