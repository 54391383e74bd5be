// Sinkhorn-Knopp in potentials (Caron et al. 2020, SwAV; Cuturi 2013), prototypes first:
//     col_k = log prior_k - log sum_i exp(scale s_ik + row_i)
//     row_i =             - log sum_k exp(scale s_ik + col_k)
// Not stored: exp(scale s), nor the assignment unless asked for.
// Streaming: one read of the scores an iteration and one for the last rows, T + 1 reads, plus
// 4 N K bytes written when dense. On chip, when the scores fit in shared memory: one read in all.
// An element and iteration: one exp2 (two in unaligned rows and beyond 8192 columns), about ten
// float32 operations.
#include "evaluate.cuh"
#include "sinkhorn.cuh"
#include "sinkhorn_loop.cuh"
#include "sinkhorn_on_chip.cuh"
#include "sinkhorn_plan.cuh"

namespace ssl_fast {
namespace {

constexpr int kCombineThreads = 256;
constexpr int kCombineShared = kReduceBytes + kCombineThreads * sizeof(LogSum<double>);

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
  if (threadIdx.x == 0)
    pass.ranges[static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] = range;
}

template <typename T, int V>
__global__ void __launch_bounds__(kMaxThreads, 1)
    sinkhorn_step(const T* scores /*(N, K)*/, int64_t stride, int64_t n, int columns, Pass pass,
                  Form form) {
  const bool wide = is_wide(form, pass.state);
  if (form == Form::kIfWide && !wide) return;  // the narrow pass before this one stands
  pass.part = blockIdx.x;
  BlockReduce reduce;
  step_pass<T, V, false>(strided_rows(scores, stride, n, columns, blockIdx.x, gridDim.x), pass,
                         wide, reduce);
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

template <typename T, int V>
__global__ void __launch_bounds__(kColumnThreads, 1)
    sinkhorn_evaluate(TargetView<T> targets, int64_t n, int columns, float* q /*(N, K)*/) {
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

// One call: the plan, the scratch and the launches that share them.
template <typename T, int V>
class Sinkhorn {
 public:
  Sinkhorn(const Matrix& scores, double scale, void* memory, cudaStream_t stream)
      : s_(scores), plan_(make_plan(s_.rows, s_.cols, sizeof(T))), stream_(stream) {
    const Scratch scratch = lay_out(plan_, s_.cols, memory);
    pass_ = {};
    pass_.scale = scale, pass_.rows_at_once = plan_.rows_at_once;
    pass_.maxima = scratch.maxima, pass_.sums = scratch.sums;
    pass_.ranges = scratch.ranges, pass_.state = scratch.state;
  }

  void start() {
    const dim3 grid(plan_.start_tiles_of(V), static_cast<unsigned>(plan_.chunks));
    launch("sinkhorn_start", {grid, kStartThreads, kReduceBytes, stream_}, sinkhorn_start<T, V>,
           data(), s_.stride, s_.rows, columns(), pass_);
  }

  void rows(Form form, Finish finish, const double* col, double* row, float* q) {
    Pass pass = pass_;
    pass.col = col, pass.row = row, pass.q = q, pass.finish = finish;
    launch("sinkhorn_step",
           {static_cast<unsigned>(plan_.parts), plan_.threads, kReduceBytes, stream_},
           sinkhorn_step<T, V>, data(), s_.stride, s_.rows, columns(), pass, form);
  }

  // `ranges` > 0: also finds whether the scores span too much for float32.
  void combine(Form form, int64_t parts, int64_t ranges, double sign, const double* log_prior,
               double* out) {
    const auto grid = static_cast<unsigned>(ceil_div(s_.cols, kTile));
    launch("sinkhorn_combine", {grid, kCombineThreads, kCombineShared, stream_}, sinkhorn_combine,
           pass_, form, parts, ranges, columns(), sign, log_prior, out);
  }

  // out = sign * (column log-sums at row = 0) + log_prior
  void start_columns(double sign, const double* log_prior, double* out) {
    start();
    combine(Form::kWide, plan_.chunks, plan_.chunks * plan_.start_tiles_of(V), sign, log_prior,
            out);
  }

  // The span is unknown: float32 first, which finds it, then float64 if it must be.
  void first_step(const double* col, double* row, double sign, const double* log_prior,
                  double* out) {
    for (Form form : {Form::kNarrow, Form::kIfWide}) {
      rows(form, Finish::kColumnSums, col, row, nullptr);
      combine(form, plan_.parts, form == Form::kNarrow ? plan_.parts : 0, sign, log_prior, out);
    }
  }

  void stream_potentials(const double* log_prior, int iterations, bool softmax_start, double* row,
                         double* col, float* q) {
    if (softmax_start)
      first_step(nullptr, nullptr, -1, log_prior, col);
    else
      start_columns(-1, log_prior, col);
    for (int t = 1; t < iterations; ++t) {
      rows(Form::kEither, Finish::kColumnSums, col, nullptr, nullptr);
      combine(Form::kEither, plan_.parts, 0, -1, log_prior, col);
    }
    rows(Form::kEither, q == nullptr ? Finish::kRows : Finish::kDense, col, row, q);
  }

  // False when the scores do not fit on chip.
  bool on_chip_potentials(const double* log_prior, int iterations, bool softmax_start, double* row,
                          double* col, float* q) {
    const auto kernel = sinkhorn_on_chip<T, V>;
    if (plan_.on_chip_blocks == 0) return false;
    allow_shared(kernel, plan_.on_chip_shared);
    const int64_t resident =
        static_cast<int64_t>(device_attribute(cudaDevAttrMultiProcessorCount)) *
        blocks_per_multiprocessor(kernel, plan_.on_chip_threads, plan_.on_chip_shared);
    if (resident < plan_.on_chip_blocks) return false;
    Pass pass = pass_;
    pass.row = row, pass.q = q, pass.finish = q == nullptr ? Finish::kRows : Finish::kDense;
    check(cudaMemsetAsync(pass.state, 0, sizeof(State), stream_), "cudaMemsetAsync");
    launch("sinkhorn_on_chip",
           {static_cast<unsigned>(plan_.on_chip_blocks), plan_.on_chip_threads,
            plan_.on_chip_shared, stream_, true},
           kernel, data(), s_.stride, s_.rows, columns(), pass, col, log_prior, iterations,
           softmax_start);
    return true;
  }

 private:
  const T* data() const { return static_cast<const T*>(s_.data); }
  int columns() const { return static_cast<int>(s_.cols); }

  Matrix s_;
  Plan plan_;
  cudaStream_t stream_;
  Pass pass_;
};

// Calls function(Sinkhorn<T, V>) with the type and the width of loads that fit the scores.
template <typename Function>
void with_sinkhorn(const Matrix& scores, double scale, void* scratch, cudaStream_t stream,
                   Function function) {
  dispatch(scores.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_width<T>(is_aligned<T>(scores.data, scores.stride, scores.cols), [&](auto width) {
      Sinkhorn<T, decltype(width)::value> call(scores, scale, scratch, stream);
      function(call);
    });
  });
}

}  // namespace

int64_t sinkhorn_scratch_bytes(int64_t n, int64_t k, int dtype) {
  return lay_out(make_plan(n, k, element_size(dtype)), k, nullptr).bytes;
}

void sinkhorn_step(const Matrix& scores, double scale, const double* col, double* row,
                   double* column_lse, void* scratch, cudaStream_t stream) {
  if (col == nullptr)
    check(cudaMemsetAsync(row, 0, scores.rows * sizeof(double), stream), "cudaMemsetAsync");
  with_sinkhorn(scores, scale, scratch, stream, [&](auto& call) {
    if (col == nullptr)
      call.start_columns(1, nullptr, column_lse);
    else
      call.first_step(col, row, 1, nullptr, column_lse);
  });
}

void row_potential(const Matrix& scores, double scale, const double* col, double* row,
                   void* scratch, cudaStream_t stream) {
  with_sinkhorn(scores, scale, scratch, stream,
                [&](auto& call) { call.rows(Form::kWide, Finish::kRows, col, row, nullptr); });
}

bool sinkhorn(const Matrix& scores, double scale, const double* log_prior, int iterations,
              bool softmax_start, float* q, double* row, double* col, bool on_chip, void* scratch,
              cudaStream_t stream) {
  bool ran_on_chip = false;
  with_sinkhorn(scores, scale, scratch, stream, [&](auto& call) {
    ran_on_chip =
        on_chip && call.on_chip_potentials(log_prior, iterations, softmax_start, row, col, q);
    if (!ran_on_chip) call.stream_potentials(log_prior, iterations, softmax_start, row, col, q);
  });
  return ran_on_chip;
}

void evaluate(const Matrix& scores, double scale, const double* row, const double* col, float* q,
              void* scratch, cudaStream_t stream) {
  const Matrix& s = scores;
  const Targets targets{scores, scale, row, col};
  dispatch(s.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_width<T>(is_aligned<T>(s.data, s.stride, s.cols), [&](auto width) {
      constexpr int V = decltype(width)::value;
      launch("sinkhorn_evaluate", column_owner(s.rows, s.cols, V, stream), sinkhorn_evaluate<T, V>,
             prepare<T>(targets, scratch, stream), s.rows, static_cast<int>(s.cols), q);
    });
  });
}

}  // namespace ssl_fast
