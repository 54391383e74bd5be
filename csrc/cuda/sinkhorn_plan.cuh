// How one Sinkhorn call is cut into blocks, and where its scratch lies.
#pragma once
#include <algorithm>
#include <utility>

#include "sinkhorn.cuh"

namespace ssl_fast {

constexpr int kStartThreads = 128;

struct Plan {
  int64_t columns;
  int threads;     // of a row pass
  int64_t parts;   // its blocks
  int64_t chunks;  // of rows, start pass
  int rows_at_once;
  int on_chip_threads = 0;
  int64_t on_chip_blocks = 0;  // 0: the scores do not fit
  size_t on_chip_shared = 0;

  int64_t slices() const { return std::max({parts, chunks, on_chip_blocks}); }
  int64_t start_tiles_of(int width) const { return ceil_div(columns, kStartThreads * width); }
  int64_t ranges() const { return std::max(slices(), chunks * start_tiles_of(1)); }
};

inline int threads_for(int64_t k, int least) {
  return std::max(whole_warps(ceil_div(k, kColumns), kMaxThreads), least);
}

inline Plan make_plan(int64_t n, int64_t k, int size) {
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount);
  Plan plan;
  plan.columns = k;
  plan.threads = threads_for(k, kWarp);
  // Unmeasured: as many blocks as keep 512 threads a multiprocessor busy, but 16 rows or more each,
  // so that the partial sums stay small beside the scores.
  const int64_t most = processors * std::min(kMaxThreads / plan.threads, 16);
  plan.parts = std::min(n, std::min(most, std::max(processors, n / 16)));
  plan.chunks = std::min(ceil_div(n, 16),
                         std::max<int64_t>(1, processors * 8 / plan.start_tiles_of(16 / size)));
  const int64_t held = device_attribute(cudaDevAttrL2CacheSize) / 2 / (plan.parts * k * size);
  plan.rows_at_once = static_cast<int>(std::clamp<int64_t>(held, 1, kRowsAtOnce));

  if (k > kMaxColumns) return plan;
  // Before the scores: the reductions' buffers and one log-sum a thread.
  plan.on_chip_threads = threads_for(k, 128);
  const int64_t per_processor = kMaxThreads / plan.on_chip_threads;
  const int64_t limit = std::min<int64_t>(
      device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
      device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / per_processor - 1024);
  const int64_t blocks = std::min(n, processors * per_processor);
  const int64_t bytes = kReduceBytes +
                        plan.on_chip_threads * static_cast<int64_t>(sizeof(LogSum<double>)) +
                        ceil_div(n, blocks) * ceil_div(k * size, 16) * 16;
  if (bytes > limit || !device_attribute(cudaDevAttrCooperativeLaunch)) return plan;
  plan.on_chip_blocks = blocks;
  plan.on_chip_shared = bytes;
  return plan;
}

struct Scratch {
  State* state;
  Range* ranges;
  double* maxima;
  float* sums;
  int64_t bytes;
};

inline Scratch lay_out(const Plan& plan, int64_t k, void* memory) {
  char* p = static_cast<char*>(memory);
  int64_t used = 0;
  auto take = [&](int64_t bytes) { return p + std::exchange(used, used + aligned(bytes)); };
  Scratch scratch;
  scratch.state = reinterpret_cast<State*>(take(sizeof(State)));
  scratch.ranges = reinterpret_cast<Range*>(take(plan.ranges() * sizeof(Range)));
  scratch.maxima = reinterpret_cast<double*>(take(plan.slices() * k * sizeof(double)));
  scratch.sums = reinterpret_cast<float*>(take(plan.slices() * k * sizeof(float)));
  scratch.bytes = used;
  return scratch;
}

}  // namespace ssl_fast
