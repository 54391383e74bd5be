// Sinkhorn-Knopp in potentials (Caron et al. 2020, SwAV; Cuturi 2013), prototypes first, samples last:
//     col_k = log prior_k - log sum_i exp(scale s_ik + row_i);   row_i = -log sum_k exp(scale s_ik + col_k)
// Not stored: exp(scale s), the assignment itself unless asked for.
// Streaming: one read of the scores an iteration and one for the last rows, T + 1 reads, plus 4 N K bytes
// when dense. On chip, when the scores fit in shared memory: one read in all.
// An element and iteration: one exp2 and about ten float32 operations (T = 1 of them: two exp2).
#include <algorithm>
#include <utility>

#include "evaluate.cuh"
#include "sinkhorn.cuh"

namespace ssl_fast {
namespace {

constexpr int kStartThreads = 128;
constexpr int kCombineThreads = 256;
constexpr int kCombineShared = kReduceBytes + kCombineThreads * sizeof(LogSum<double>);

template <typename T>
__device__ __forceinline__ Tile<T> strided_rows(const T* scores, int64_t stride, int64_t n, int columns, int64_t block,
                                                int64_t blocks) {
  return {scores + block * stride, blocks * stride, (n - block + blocks - 1) / blocks, block, blocks, columns};
}

template <typename T, int V>
__global__ void __launch_bounds__(kStartThreads)
    sinkhorn_start(const T* scores /*(N, K)*/, int64_t stride, int64_t n, int columns, Pass pass) {
  pass.part = blockIdx.y;
  const auto tile = strided_rows(scores, stride, n, columns, blockIdx.y, gridDim.y);
  const int begin = blockIdx.x * kStartThreads * V, end = begin + kStartThreads * V;
  Range range;
  start_pass<T, V>(tile, pass, begin, end < columns ? end : columns, range);
  BlockReduce reduce;
  range = reduce(range, MergeRanges());
  if (threadIdx.x == 0) pass.ranges[static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] = range;
}

__device__ __forceinline__ bool is_wide(Form form, const State* state) {
  return form == Form::kWide || (form != Form::kNarrow && state->wide);
}

// Unaligned rows (V = 1) always take the loop; on chip, aligned ones never do.
template <typename T, int V, Finish finish, bool kOnChip>
__device__ __forceinline__ void step_pass(const Tile<T>& tile, const Pass& pass, bool wide, BlockReduce& reduce) {
  if (wide) {
    wide_pass<T, V, finish>(tile, pass, reduce);
    return;
  }
  if constexpr (V > 1) {
    if (kOnChip || tile.columns <= kColumns * static_cast<int>(blockDim.x)) {
      narrow_pass<T, V, finish>(tile, pass, reduce);
      return;
    }
  }
  if constexpr (V == 1 || !kOnChip) narrow_loop_pass<T, V, finish>(tile, pass, reduce);
}

template <typename T, int V, Finish finish>
__global__ void __launch_bounds__(kMaxThreads, 1)
    sinkhorn_step(const T* scores /*(N, K)*/, int64_t stride, int64_t n, int columns, Pass pass, Form form) {
  const bool wide = is_wide(form, pass.state);
  if (form == Form::kIfWide && !wide) return;  // the narrow pass before this one stands
  pass.part = blockIdx.x;
  BlockReduce reduce;
  step_pass<T, V, finish, false>(strided_rows(scores, stride, n, columns, blockIdx.x, gridDim.x), pass, wide, reduce);
}

__global__ void __launch_bounds__(kCombineThreads)
    sinkhorn_combine(Pass pass, Form form, int64_t parts, int64_t ranges, int columns, double sign,
                     const double* log_prior /*(K)*/, double* out /*(K)*/) {
  BlockReduce reduce;
  const bool wide = is_wide(form, pass.state);
  if (form == Form::kIfWide && !wide) return;
  combine_tile(pass, wide, parts, columns, blockIdx.x * kTile, sign, log_prior, out,
               reinterpret_cast<LogSum<double>*>(dynamic_shared() + kReduceBytes));
  if (ranges == 0 || blockIdx.x != 0) return;  // the other blocks must not need what is found here
  const bool spans = is_wide(pass.ranges, ranges, pass.scale, reduce);
  if (threadIdx.x == 0) pass.state->wide = spans;
}

// Everything in one cooperative launch, the scores in the multiprocessors' shared memory.
template <typename T, int V>
__global__ void __launch_bounds__(kMaxThreads, 1)
    sinkhorn_on_chip(const T* scores /*(N, K)*/, int64_t stride, int64_t n, int columns, Pass pass, double* col /*(K)*/,
                     const double* log_prior /*(K)*/, int iterations, bool softmax_start) {
  auto* combine_shared = reinterpret_cast<LogSum<double>*>(dynamic_shared() + kReduceBytes);
  T* chip = reinterpret_cast<T*>(dynamic_shared() + kReduceBytes + blockDim.x * sizeof(LogSum<double>));
  Tile<T> tile = strided_rows(scores, stride, n, columns, blockIdx.x, gridDim.x);
  const int pitch = (columns + V - 1) / V * V;
  BlockReduce reduce;
  unsigned passed = 0;
  const bool dense = pass.q != nullptr;
  double* const row = pass.row;
  pass.part = blockIdx.x;
  pass.row = nullptr;

  // A thread reads back only what it wrote, except in the transposed visits that follow a barrier.
  for (int64_t r = 0; r < tile.count; r += kRowsAtOnce)
    for (int k = threadIdx.x * V; k < columns; k += blockDim.x * V) {
      Pack<T, V> packs[kRowsAtOnce];
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i)
        if (r + i < tile.count) packs[i] = load<V>(tile.row(r + i) + k);
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i)
        if (r + i < tile.count) *reinterpret_cast<Pack<T, V>*>(chip + (r + i) * pitch + k) = packs[i];
    }
  __syncthreads();
  tile.data = chip;
  tile.pitch = pitch;

  Range range;
  start_pass<T, V>(tile, pass, 0, columns, range);
  range = reduce(range, MergeRanges());
  if (threadIdx.x == 0) pass.ranges[blockIdx.x] = range;
  grid_barrier(&pass.state->barrier, passed);
  const bool wide = is_wide(pass.ranges, gridDim.x, pass.scale, reduce);

  bool log_sums = true;
  pass.col = nullptr;
  for (int t = 0; t < iterations; ++t) {
    if (t > 0 || softmax_start) {
      step_pass<T, V, Finish::kColumnSums, true>(tile, pass, wide, reduce);
      log_sums = wide;
      grid_barrier(&pass.state->barrier, passed);
    }
    for (int k0 = blockIdx.x * kTile; k0 < columns; k0 += gridDim.x * kTile)
      combine_tile(pass, log_sums, gridDim.x, columns, k0, -1, log_prior, col, combine_shared);
    grid_barrier(&pass.state->barrier, passed);
    pass.col = col;
  }
  pass.row = row;
  if (dense)
    step_pass<T, V, Finish::kDense, true>(tile, pass, wide, reduce);
  else
    step_pass<T, V, Finish::kRows, true>(tile, pass, wide, reduce);
}

template <typename T, int V>
__global__ void __launch_bounds__(128) sinkhorn_evaluate(TargetView<T> targets, int64_t n, int columns, float* q /*(N, K)*/) {
  const int k = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (k >= columns) return;
  float col2[V];
  load_col2<V>(targets, k, col2);
  for (int64_t i0 = blockIdx.y; i0 < n; i0 += static_cast<int64_t>(gridDim.y) * kRowsAtOnce) {
    Pack<T, V> packs[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int64_t i = i0 + static_cast<int64_t>(r) * gridDim.y;
      if (i < n) packs[r] = load<V>(targets.values + i * targets.stride + k);
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int64_t i = i0 + static_cast<int64_t>(r) * gridDim.y;
      if (i >= n) return;
      float out[V];
      evaluate_pack<V>(targets, row_term(targets, i), packs[r], col2, k, out);
      store<V>(q + i * columns + k, out);
    }
  }
}

// How one call is cut into blocks, and where its scratch lies.
struct Plan {
  int64_t columns;
  int threads;         // of a row pass
  int64_t parts;       // its blocks
  int64_t chunks;      // of rows, start pass
  int on_chip_threads = 0;
  int64_t on_chip_blocks = 0;  // 0: the scores do not fit
  size_t on_chip_shared = 0;

  int64_t slices() const { return std::max({parts, chunks, on_chip_blocks}); }
  int64_t start_tiles_of(int width) const { return ceil_div(columns, kStartThreads * width); }
  int64_t ranges() const { return std::max(slices(), chunks * start_tiles_of(1)); }
};

int threads_for(int64_t k, int least) {
  const int64_t threads = ceil_div(ceil_div(k, kColumns), kWarp) * kWarp;
  return static_cast<int>(std::min<int64_t>(std::max<int64_t>(threads, least), kMaxThreads));
}

Plan make_plan(int64_t n, int64_t k, int size) {
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount);
  Plan plan;
  plan.columns = k;
  plan.threads = threads_for(k, kWarp);
  // Unmeasured: as many blocks as keep 512 threads a multiprocessor busy, but 16 rows or more each, so that the
  // partial sums stay small beside the scores.
  const int64_t most = processors * std::min(kMaxThreads / plan.threads, 16);
  plan.parts = std::min(n, std::min(most, std::max(processors, n / 16)));
  plan.chunks = std::min(ceil_div(n, 16), std::max<int64_t>(1, processors * 8 / plan.start_tiles_of(16 / size)));

  if (k > kMaxColumns) return plan;
  // Two words before the scores: the reductions' buffers and one log-sum a thread.
  plan.on_chip_threads = threads_for(k, 128);
  const int64_t per_processor = kMaxThreads / plan.on_chip_threads;
  const int64_t limit =
      std::min<int64_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                        device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / per_processor - 1024);
  const int64_t blocks = std::min(n, processors * per_processor);
  const int64_t bytes = kReduceBytes + plan.on_chip_threads * static_cast<int64_t>(sizeof(LogSum<double>)) +
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

Scratch lay_out(const Plan& plan, int64_t k, void* memory) {
  char* p = static_cast<char*>(memory);
  int64_t used = 0;
  auto take = [&](int64_t bytes) { return p + std::exchange(used, used + ceil_div(bytes, 256) * 256); };
  Scratch scratch;
  scratch.state = reinterpret_cast<State*>(take(sizeof(State)));
  scratch.ranges = reinterpret_cast<Range*>(take(plan.ranges() * sizeof(Range)));
  scratch.maxima = reinterpret_cast<double*>(take(plan.slices() * k * sizeof(double)));
  scratch.sums = reinterpret_cast<float*>(take(plan.slices() * k * sizeof(float)));
  scratch.bytes = used;
  return scratch;
}

// One call: the plan, the scratch and the launches that share them.
template <typename T, int V>
class Sinkhorn {
 public:
  Sinkhorn(const Scores& scores, double scale, void* memory, cudaStream_t stream)
      : s_(scores), plan_(make_plan(s_.n, s_.k, sizeof(T))), stream_(stream) {
    const Scratch scratch = lay_out(plan_, s_.k, memory);
    pass_ = {scale, nullptr, nullptr, scratch.maxima, scratch.sums, scratch.ranges, scratch.state, nullptr, 0};
  }

  void start() {
    const dim3 grid(plan_.start_tiles_of(V), static_cast<unsigned>(plan_.chunks));
    launch("sinkhorn_start", {grid, kStartThreads, kReduceBytes, stream_}, sinkhorn_start<T, V>, data(), s_.stride, s_.n,
           columns(), pass_);
  }

  template <Finish finish>
  void rows(Form form, const double* col, double* row, float* q) {
    Pass pass = pass_;
    pass.col = col, pass.row = row, pass.q = q;
    launch("sinkhorn_step", {static_cast<unsigned>(plan_.parts), plan_.threads, kReduceBytes, stream_},
           sinkhorn_step<T, V, finish>, data(), s_.stride, s_.n, columns(), pass, form);
  }

  // `ranges` > 0: also finds whether the scores span too much for float32.
  void combine(Form form, int64_t parts, int64_t ranges, double sign, const double* log_prior, double* out) {
    const auto grid = static_cast<unsigned>(ceil_div(s_.k, kTile));
    launch("sinkhorn_combine", {grid, kCombineThreads, kCombineShared, stream_}, sinkhorn_combine, pass_, form, parts,
           ranges, columns(), sign, log_prior, out);
  }

  // out = sign * (column log-sums at row = 0) + log_prior
  void start_columns(double sign, const double* log_prior, double* out) {
    start();
    combine(Form::kWide, plan_.chunks, plan_.chunks * plan_.start_tiles_of(V), sign, log_prior, out);
  }

  // The span is unknown: float32 first, which finds it, then float64 if it must be.
  void first_step(const double* col, double* row, double sign, const double* log_prior, double* out) {
    for (Form form : {Form::kNarrow, Form::kIfWide}) {
      rows<Finish::kColumnSums>(form, col, row, nullptr);
      combine(form, plan_.parts, form == Form::kNarrow ? plan_.parts : 0, sign, log_prior, out);
    }
  }

  void stream_potentials(const double* log_prior, int iterations, bool softmax_start, double* row, double* col, float* q) {
    if (softmax_start)
      first_step(nullptr, nullptr, -1, log_prior, col);
    else
      start_columns(-1, log_prior, col);
    for (int t = 1; t < iterations; ++t) {
      rows<Finish::kColumnSums>(Form::kEither, col, nullptr, nullptr);
      combine(Form::kEither, plan_.parts, 0, -1, log_prior, col);
    }
    if (q != nullptr)
      rows<Finish::kDense>(Form::kEither, col, row, q);
    else
      rows<Finish::kRows>(Form::kEither, col, row, nullptr);
  }

  // False when the scores do not fit on chip.
  bool on_chip_potentials(const double* log_prior, int iterations, bool softmax_start, double* row, double* col, float* q) {
    const auto kernel = sinkhorn_on_chip<T, V>;
    if (plan_.on_chip_blocks == 0) return false;
    allow_shared(kernel, plan_.on_chip_shared);
    const int64_t resident = static_cast<int64_t>(device_attribute(cudaDevAttrMultiProcessorCount)) *
                             blocks_per_multiprocessor(kernel, plan_.on_chip_threads, plan_.on_chip_shared);
    if (resident < plan_.on_chip_blocks) return false;
    Pass pass = pass_;
    pass.row = row, pass.q = q;
    check(cudaMemsetAsync(pass.state, 0, sizeof(State), stream_), "cudaMemsetAsync");
    launch("sinkhorn_on_chip",
           {static_cast<unsigned>(plan_.on_chip_blocks), plan_.on_chip_threads, plan_.on_chip_shared, stream_, true}, kernel,
           data(), s_.stride, s_.n, columns(), pass, col, log_prior, iterations, softmax_start);
    return true;
  }

 private:
  const T* data() const { return static_cast<const T*>(s_.data); }
  int columns() const { return static_cast<int>(s_.k); }

  Scores s_;
  Plan plan_;
  cudaStream_t stream_;
  Pass pass_;
};

// Calls function(Sinkhorn<T, V>) with the type and the width of loads that fit the scores.
template <typename Function>
void with_sinkhorn(const Scores& scores, double scale, void* scratch, cudaStream_t stream, Function function) {
  dispatch(scores.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_width<T>(is_aligned<T>(scores.data, scores.stride, scores.k), [&](auto width) {
      Sinkhorn<T, decltype(width)::value> call(scores, scale, scratch, stream);
      function(call);
    });
  });
}

}  // namespace

int64_t sinkhorn_scratch_bytes(int64_t n, int64_t k, int dtype) {
  return lay_out(make_plan(n, k, element_size(dtype)), k, nullptr).bytes;
}

void sinkhorn_step(const Scores& scores, double scale, const double* col, double* row, double* column_lse, void* scratch,
                   cudaStream_t stream) {
  if (col == nullptr) check(cudaMemsetAsync(row, 0, scores.n * sizeof(double), stream), "cudaMemsetAsync");
  with_sinkhorn(scores, scale, scratch, stream, [&](auto& call) {
    if (col == nullptr)
      call.start_columns(1, nullptr, column_lse);
    else
      call.first_step(col, row, 1, nullptr, column_lse);
  });
}

void sinkhorn_row_potential(const Scores& scores, double scale, const double* col, double* row, void* scratch,
                            cudaStream_t stream) {
  with_sinkhorn(scores, scale, scratch, stream,
                [&](auto& call) { call.template rows<Finish::kRows>(Form::kWide, col, row, nullptr); });
}

bool sinkhorn_potentials(const Scores& scores, double scale, const double* log_prior, int iterations, bool softmax_start,
                         double* row, double* col, float* q, bool on_chip, void* scratch, cudaStream_t stream) {
  bool ran_on_chip = false;
  with_sinkhorn(scores, scale, scratch, stream, [&](auto& call) {
    ran_on_chip = on_chip && call.on_chip_potentials(log_prior, iterations, softmax_start, row, col, q);
    if (!ran_on_chip) call.stream_potentials(log_prior, iterations, softmax_start, row, col, q);
  });
  return ran_on_chip;
}

void evaluate(const Targets& targets, float* q, void* scratch, cudaStream_t stream) {
  const Scores& s = targets.values;
  dispatch(s.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_width<T>(is_aligned<T>(s.data, s.stride, s.k), [&](auto width) {
      constexpr int V = decltype(width)::value;
      launch("sinkhorn_evaluate", column_owner(s.n, s.k, V, stream), sinkhorn_evaluate<T, V>,
             prepare<T>(targets, scratch, stream), s.n, static_cast<int>(s.k), q);
    });
  });
}

}  // namespace ssl_fast
