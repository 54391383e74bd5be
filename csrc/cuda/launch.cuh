// Launching: one helper for plain and cooperative kernels, checked; and what a block needs from its
// launch.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../common/numeric.h"

namespace ssl_fast {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  const std::string text =
      std::string("ssl_fast: ") + what + ": " + cudaGetErrorString(error) + ". ";
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice)
    throw std::runtime_error(
        text +
        "The CUDA backend needs an NVIDIA GPU and a driver at least as new as its CUDA "
        "runtime: update the driver, or use set_backend('triton' or 'reference').");
  if (error == cudaErrorNoKernelImageForDevice)
    throw std::runtime_error(text +
                             "Rebuild with this GPU's architecture in TORCH_CUDA_ARCH_LIST.");
  throw std::runtime_error(text);
}

// Makes `device` current for one call.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { (void)cudaSetDevice(previous_); }

 private:
  int previous_ = 0;
};

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

constexpr int kMaxGridY = 65535;

struct Launch {
  dim3 grid, block;
  size_t shared = 0;
  cudaStream_t stream = nullptr;
  bool cooperative = false;
};

// Dynamic shared memory beyond 48 KiB has to be asked for, kernel by kernel.
template <typename Kernel>
void allow_shared(Kernel kernel, size_t bytes) {
  if (bytes > 48 * 1024)
    check(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
}

template <typename Kernel>
int blocks_per_multiprocessor(Kernel kernel, int threads, size_t shared) {
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared),
        "occupancy");
  return blocks;
}

template <typename... Parameters, typename... Arguments>
void launch(const char* name, const Launch& how, void (*kernel)(Parameters...),
            Arguments... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared;
  config.stream = how.stream;
  config.attrs = &attribute;
  config.numAttrs = how.cooperative ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

#if defined(__CUDACC__) && !defined(SSL_FAST_EMULATE)
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}
__device__ __forceinline__ void spin() {}
#endif

#if defined(__CUDACC__) || defined(SSL_FAST_EMULATE)  // not for the bindings, which g++ compiles
// All blocks of a cooperative launch meet here. `counter` starts at zero and only grows: no reset
// race. The fences order what was written before against what is read after, on every
// multiprocessor.
__device__ __forceinline__ void grid_barrier(unsigned* counter, unsigned& passed) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1u);
    const unsigned target = ++passed * gridDim.x;
    while (*reinterpret_cast<volatile unsigned*>(counter) < target) spin();
    __threadfence();
  }
  __syncthreads();
}
#endif

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Bytes of a piece of scratch, so that the next one begins as aligned as an allocation of its own.
inline int64_t aligned(int64_t bytes) { return ceil_div(bytes, 256) * 256; }

}  // namespace ssl_fast
