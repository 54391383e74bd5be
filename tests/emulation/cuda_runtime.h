// Runs .cu sources on the CPU: put this folder on the include path ahead of the toolkit's
// cuda_runtime.h. One fibre a CUDA thread. A block's fibres run one at a time and switch at
// barriers and shuffles only, in an order that tests can turn round; a cooperative launch keeps all
// blocks alive, an ordinary one runs them in turn. Seen: wrong indices (with ASan), barriers that
// some threads miss, results that depend on the order of threads. Not seen: races inside one
// stretch between switches, memory ordering, registers, speed.
#pragma once
#define SSL_FAST_EMULATE

#include <ucontext.h>

#include <algorithm>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fibre that runs

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrL2CacheSize,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
using cudaStream_t = void*;

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace emulation {

// The machine that kernels believe to run on; tests change it.
struct Device {
  int processors = 3;
  int shared_per_processor = 64 * 1024;
  bool has_driver = true;
  bool backwards = false;  // threads run in reverse order
};
inline Device device;

constexpr int kWarp = 32;
constexpr size_t kStack = 128 * 1024;

// Released when all of `expected` have arrived.
struct Barrier {
  unsigned expected = 0, arrived = 0, generation = 0;
};

struct Warp {
  Barrier barrier;
  uint64_t slots[2][kWarp];
};

struct Block {
  dim3 index;
  Barrier barrier;
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> shared;
};

struct Fibre {
  ucontext_t context;
  dim3 thread;
  Block* block;
  const Barrier* waiting = nullptr;
  unsigned generation = 0;  // of the barrier waited for
  bool done = false;
  void* stack = nullptr;
  void* fake_stack = nullptr;

  bool ready() const { return !done && (waiting == nullptr || waiting->generation != generation); }
};

struct Grid {
  dim3 grid, block;
  size_t shared = 0;
  std::function<void()> kernel;
};

inline Fibre* current = nullptr;
inline const Grid* running = nullptr;
inline ucontext_t scheduler;
inline std::vector<void*> free_stacks;

#if defined(__SANITIZE_ADDRESS__)
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_size = 0;
inline void leave(void** fake, const void* stack, size_t size) {
  __sanitizer_start_switch_fiber(fake, stack, size);
}
inline void enter(void* fake, const void** stack, size_t* size) {
  __sanitizer_finish_switch_fiber(fake, stack, size);
}
#else
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_size = 0;
inline void leave(void**, const void*, size_t) {}
inline void enter(void*, const void**, size_t*) {}
#endif

inline void yield() {
  Fibre* const self = current;
  leave(&self->fake_stack, scheduler_stack, scheduler_size);
  swapcontext(&self->context, &scheduler);
  enter(self->fake_stack, &scheduler_stack, &scheduler_size);
}

inline void arrive(Barrier& barrier) {
  current->generation = barrier.generation;
  current->waiting = &barrier;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
  } else {
    yield();
  }
  current->waiting = nullptr;
}

inline void fibre_main() {
  enter(nullptr, &scheduler_stack, &scheduler_size);
  running->kernel();
  current->done = true;
  leave(nullptr, scheduler_stack, scheduler_size);  // null: this fibre's fake stack may go
  swapcontext(&current->context, &scheduler);
}

inline void resume(Fibre& fibre) {
  void* fake = nullptr;
  current = &fibre;
  threadIdx = fibre.thread, blockIdx = fibre.block->index;
  leave(&fake, fibre.stack, kStack);
  swapcontext(&scheduler, &fibre.context);
  enter(fake, nullptr, nullptr);
  current = nullptr;
}

inline void add_fibres(Block& block, std::vector<std::unique_ptr<Fibre>>& fibres) {
  for (unsigned t = 0; t < running->block.x; ++t) {
    auto fibre = std::make_unique<Fibre>();
    fibre->thread = dim3(t, 0, 0);
    fibre->block = &block;
    if (free_stacks.empty()) free_stacks.push_back(std::malloc(kStack));
    fibre->stack = free_stacks.back();
    free_stacks.pop_back();
    getcontext(&fibre->context);
    fibre->context.uc_stack.ss_sp = fibre->stack;
    fibre->context.uc_stack.ss_size = kStack;
    fibre->context.uc_link = nullptr;
    makecontext(&fibre->context, fibre_main, 0);
    fibres.push_back(std::move(fibre));
  }
}

inline std::unique_ptr<Block> make_block(dim3 index) {
  auto block = std::make_unique<Block>();
  const unsigned threads = running->block.x;
  block->index = index;
  block->barrier.expected = threads;
  block->warps.resize((threads + kWarp - 1) / kWarp);
  for (size_t w = 0; w < block->warps.size(); ++w)
    block->warps[w].barrier.expected = std::min<unsigned>(kWarp, threads - w * kWarp);
  block->shared.reset(
      new unsigned char[running->shared + 1]);  // exact, so that ASan sees what lies beyond
  std::memset(block->shared.get(), 0xff, running->shared);  // NaN
  return block;
}

inline void run_to_end(std::vector<std::unique_ptr<Fibre>>& fibres) {
  if (device.backwards) std::reverse(fibres.begin(), fibres.end());
  for (size_t left = fibres.size(); left > 0;) {
    bool moved = false;
    for (auto& fibre : fibres) {
      if (!fibre->ready()) continue;
      moved = true;
      resume(*fibre);
      left -= fibre->done;
    }
    if (!moved) {
      std::fprintf(stderr,
                   "emulation: %zu threads wait at a barrier that others left or never reach\n",
                   left);
      std::abort();
    }
  }
  for (auto& fibre : fibres) free_stacks.push_back(fibre->stack);
  fibres.clear();
}

inline void run(const Grid& grid, bool cooperative) {
  running = &grid;
  gridDim = grid.grid, blockDim = grid.block;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Fibre>> fibres;
  for (unsigned y = 0; y < grid.grid.y; ++y)
    for (unsigned x = 0; x < grid.grid.x; ++x) {
      blocks.push_back(make_block(dim3(x, y, 0)));
      add_fibres(*blocks.back(), fibres);
      if (cooperative) continue;
      run_to_end(fibres);
      blocks.clear();
    }
  run_to_end(fibres);
}

template <typename T>
T shuffle_xor(T value, int mask) {
  Warp& warp = current->block->warps[current->thread.x / kWarp];
  const unsigned parity = warp.barrier.generation & 1, lane = current->thread.x % kWarp;
  std::memcpy(&warp.slots[parity][lane], &value, sizeof value);
  arrive(warp.barrier);
  std::memcpy(&value, &warp.slots[parity][lane ^ mask], sizeof value);
  return value;
}

inline int blocks_that_fit(int threads, size_t shared) {
  return std::min<int>(2048 / threads,
                       device.shared_per_processor / static_cast<int>(shared + 1024));
}

}  // namespace emulation

inline void __syncthreads() { emulation::arrive(emulation::current->block->barrier); }
inline void __threadfence() {}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::shuffle_xor(value, mask);
}
inline unsigned atomicAdd(unsigned* p, unsigned x) { return std::exchange(*p, *p + x); }

namespace ssl_fast {
inline unsigned char* dynamic_shared() { return emulation::current->block->shared.get(); }
inline void spin() { emulation::yield(); }
}  // namespace ssl_fast

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInsufficientDriver
             ? "CUDA driver version is insufficient for CUDA runtime version"
             : "emulated error";
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return emulation::device.has_driver ? cudaSuccess : cudaErrorInsufficientDriver;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return emulation::device.has_driver ? cudaSuccess : cudaErrorInsufficientDriver;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = emulation::device.processors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulation::device.shared_per_processor - 1024;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = emulation::device.shared_per_processor;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 1 << 20;
      break;
  }
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  return bytes <= emulation::device.shared_per_processor - 1024 ? cudaSuccess
                                                                : cudaErrorInvalidConfiguration;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int threads,
                                                          size_t shared) {
  *blocks = emulation::blocks_that_fit(threads, shared);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const bool cooperative = config->numAttrs > 0 && config->attrs[0].val.cooperative;
  const int resident =
      emulation::blocks_that_fit(block.x, config->dynamicSmemBytes) * emulation::device.processors;
  if (!emulation::device.has_driver) return cudaErrorInsufficientDriver;
  if (grid.x == 0 || grid.y == 0 || grid.y > 65535 || block.x == 0 || block.x > 1024 ||
      block.x % 32 || resident == 0)
    return cudaErrorInvalidConfiguration;
  if (cooperative && static_cast<int>(grid.x * grid.y) > resident)
    return cudaErrorCooperativeLaunchTooLarge;
  emulation::run({grid, block, config->dynamicSmemBytes, [&] { kernel(Parameters(arguments)...); }},
                 cooperative);
  return cudaSuccess;
}
