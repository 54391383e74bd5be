// ssl_fast._cuda. A flat list: a binding does nothing but pass pointers, sizes and the stream on.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <string>

namespace py = pybind11;

PYBIND11_MODULE(_cuda, m) {
  // Empty when a GPU can be used; else what the runtime says, such as a missing or old driver.
  m.def("device_error", [] {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    return std::string(status == cudaSuccess ? "" : cudaGetErrorString(status));
  });
}
