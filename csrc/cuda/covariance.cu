// What the covariance losses do around the library's products (ssl_fast/functional/
// _covariance_products.py, _cross_correlation.py):
//
//   moments    mean and centred squares of the columns, one read: eight rows at a time in
//              registers, merged by Chan et al.; never E[z^2] - E[z]^2
//   each, sums centred copies, gradients, reductions over Grams and strips of Z^T Z: one pass each
//   triangle   sum_{d != e} (Z^T Z)_de^2 by tiles of the upper triangle, nothing stored
//   rescue     the gradient of that; both return at once unless a flag on the device says that the
//              Gram dual cancelled digits, so that the host never waits
//
// Bardes et al. 2022 (VICReg), Eq. 1, 4; Zbontar et al. 2021 (Barlow Twins), Eq. 1, 2.
#include "launchers.h"
#include "load.cuh"
#include "reduce.cuh"

namespace ssl_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 32, kLanes = kThreads / kColumns;
constexpr int kRows = 8;   // that a thread holds in registers
constexpr int kTile = 32;  // of Z^T Z, square
constexpr int kStep = 16;  // rows of Z in shared memory at a time
constexpr int kOwn = kTile * kTile / kThreads;
constexpr int kMaxBlocks = 4096;

// A matrix (n, d); null data: absent.
template <typename T>
struct View {
  const T* data;
  int64_t stride;
  __device__ __forceinline__ float operator()(int64_t i, int64_t j) const {
    return to_float(data[i * stride + j]);
  }
};

template <typename T>
View<T> view(const Matrix& m) {
  return {static_cast<const T*>(m.data), m.stride};
}

// z - mean, the float64 mean in two floats.
__device__ __forceinline__ float centred(float z, double mean) {
  const float high = static_cast<float>(mean);
  return (z - high) - static_cast<float>(mean - high);
}

struct Moments {
  float count = 0, mean = 0, square = 0;
  __device__ __forceinline__ void add(float size, float own, float own_square) {
    const float total = count + size, move = own - mean;
    mean += move * (size / total);
    square += own_square + move * move * (count * size / total);
    count = total;
  }
};

// partial [parts, 3, d]: rows, mean, centred squares of a range of rows.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    covariance_moments(View<T> z, int64_t n, int64_t d, double* partial) {
  Moments* lanes = reinterpret_cast<Moments*>(dynamic_shared());  // [kLanes, kColumns]
  const int column = threadIdx.x % kColumns, lane = threadIdx.x / kColumns;
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kColumns + column;
  const int64_t share = (n + gridDim.y - 1) / gridDim.y;
  const int64_t begin = blockIdx.y * share, end = begin + share < n ? begin + share : n;
  Moments own;
  // Relative to the first row: equal rows have zero squares, large offsets cost no digits.
  const float origin = j < d && begin < end ? z(begin, j) : 0;
  if (j < d)
    for (int64_t i = begin + lane * kRows; i < end; i += kLanes * kRows) {
      float x[kRows], sum = 0, square = 0;
      const int rows = end - i < kRows ? static_cast<int>(end - i) : kRows;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        x[r] = r < rows ? z(i + r, j) - origin : 0;
        sum += x[r];
      }
      const float mean = sum / rows;
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (r < rows) square = fmaf(x[r] - mean, x[r] - mean, square);
      own.add(rows, mean, square);
    }
  lanes[threadIdx.x] = own;
  __syncthreads();
  if (lane != 0 || j >= d) return;
  for (int k = 1; k < kLanes; ++k) {
    const Moments other = lanes[k * kColumns + column];
    if (other.count > 0) own.add(other.count, other.mean, other.square);
  }
  double* out = partial + blockIdx.y * 3 * d + j;
  out[0] = own.count;
  out[d] = static_cast<double>(origin) + own.mean;
  out[2 * d] = own.square;
}

// op(i, j) for every entry.
template <typename Op>
__global__ void __launch_bounds__(kThreads) covariance_each(Op op, int64_t n, int64_t d) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < n * d; k += step)
    op(k / d, k % d);
}

// partial[block] = sum of op(i, j).
template <typename Op>
__global__ void __launch_bounds__(kThreads)
    covariance_sums(Op op, int64_t n, int64_t d, double* partial) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  double sum = 0;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < n * d; k += step)
    sum += op(k / d, k % d);
  BlockReduce reduce;
  sum = reduce(sum, Add());
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <typename T>
struct Center {
  View<T> z;
  const double *mean, *scale;
  float* out;
  int64_t stride;
  __device__ __forceinline__ void operator()(int64_t i, int64_t j) const {
    const float x = centred(z(i, j), mean[j]);
    out[i * stride + j] = scale ? x * static_cast<float>(scale[j]) : x;
  }
};

// factors[0] push + beta (z - mean) + factors[1] (z - other)
template <typename T, typename Out>
struct Gradient {
  View<float> push;
  View<T> z, other;
  const double *mean, *beta, *factors;
  Out* out;
  int64_t stride;
  __device__ __forceinline__ void operator()(int64_t i, int64_t j) const {
    const float x = z(i, j);
    float g = centred(x, mean[j]) * static_cast<float>(beta[j]);
    if (push.data) g = fmaf(static_cast<float>(factors[0]), push(i, j), g);
    if (other.data) g = fmaf(static_cast<float>(factors[1]), x - other(i, j), g);
    from_float(g, out[i * stride + j]);
  }
};

struct Inner {
  View<float> a, b;
  __device__ __forceinline__ double operator()(int64_t i, int64_t j) const {
    return a(i, j) * b(i, j);
  }
};

template <typename T>
struct Distance {
  View<T> a, b;
  __device__ __forceinline__ double operator()(int64_t i, int64_t j) const {
    const float d = a(i, j) - b(i, j);
    return d * d;
  }
};

// Rows of a symmetric matrix from the diagonal on, which becomes zero.
struct Strip {
  float* tile;
  int64_t stride, rows;
  float scale;
  __device__ __forceinline__ double operator()(int64_t i, int64_t j) const {
    float& x = tile[i * stride + j];
    if (i == j) {
      x = 0;
      return 0;
    }
    const float c = x * scale;
    return (j < rows ? 1.f : 2.f) * c * c;
  }
};

// Rows `first` on of N C, replaced by the derivative over N.
struct CorrelationStrip {
  float* tile;
  int64_t stride, first;
  float inverse, weight;
  __device__ __forceinline__ double operator()(int64_t i, int64_t j) const {
    float& x = tile[i * stride + j];
    const bool diagonal = first + i == j;
    const float d = x * inverse - (diagonal ? 1.f : 0.f), w = diagonal ? 1.f : weight;
    x = 2 * w * d * inverse;
    return w * d * d;
  }
};

// g = alpha push + beta other
struct Combined {
  View<float> push, other;
  float alpha;
  const double* beta;
  __device__ __forceinline__ float operator()(int64_t i, int64_t j) const {
    const float g = alpha * push(i, j);
    return other.data ? fmaf(static_cast<float>(beta[j]), other(i, j), g) : g;
  }
};

struct Standardised {
  Combined g;
  View<float> own;
  const double *dots, *scale;
  float* out;
  int64_t stride;
  __device__ __forceinline__ void operator()(int64_t i, int64_t j) const {
    const float rest = g(i, j) - static_cast<float>(dots[j]) * own(i, j);
    out[i * stride + j] = rest * static_cast<float>(scale[j]);
  }
};

__global__ void __launch_bounds__(kThreads)
    covariance_dots(Combined g, View<float> own, int64_t n, int64_t d, double* dots) {
  double* lanes = reinterpret_cast<double*>(dynamic_shared());  // [kLanes, kColumns]
  const int column = threadIdx.x % kColumns, lane = threadIdx.x / kColumns;
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kColumns + column;
  double sum = 0;
  if (j < d)
    for (int64_t i = lane; i < n; i += kLanes) sum += g(i, j) * own(i, j);
  lanes[threadIdx.x] = sum;
  __syncthreads();
  if (lane != 0 || j >= d) return;
  for (int k = 1; k < kLanes; ++k) sum += lanes[k * kColumns + column];
  dots[j] = sum;
}

// c[k] = (Z^T Z) at (left + threadIdx.x / kTile + 8 k, right + threadIdx.x % kTile); 0 on the
// diagonal. `memory` holds 2 kStep kTile floats.
template <typename T>
__device__ __forceinline__ void product_tile(const View<T>& z, const double* mean, int64_t n,
                                             int64_t d, int64_t left, int64_t right, float* memory,
                                             float (&c)[kOwn]) {
  float *a = memory, *b = memory + kStep * kTile;
  const int column = threadIdx.x % kTile, row = threadIdx.x / kTile;
#pragma unroll
  for (int k = 0; k < kOwn; ++k) c[k] = 0;
  for (int64_t first = 0; first < n; first += kStep) {
    __syncthreads();
    for (int r = row; r < kStep; r += kThreads / kTile) {
      const int64_t i = first + r, p = left + column, q = right + column;
      a[r * kTile + column] = i < n && p < d ? centred(z(i, p), mean[p]) : 0;
      b[r * kTile + column] = i < n && q < d ? centred(z(i, q), mean[q]) : 0;
    }
    __syncthreads();
    for (int r = 0; r < kStep; ++r) {
      const float y = b[r * kTile + column];
#pragma unroll
      for (int k = 0; k < kOwn; ++k)
        c[k] = fmaf(a[r * kTile + row + k * (kThreads / kTile)], y, c[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kOwn; ++k)
    if (left + row + k * (kThreads / kTile) == right + column) c[k] = 0;
}

// Tile (p, q), q <= p, is number p (p + 1) / 2 + q.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    covariance_triangle(View<T> z, const double* mean, int64_t n, int64_t d, float scale,
                        const bool* flag, double* partial) {
  const int64_t index = blockIdx.x;
  double sum = 0;
  if (!flag || *flag) {
    int64_t p = static_cast<int64_t>((sqrt(8.0 * index + 1) - 1) / 2);
    while (p * (p + 1) / 2 > index) --p;
    while ((p + 1) * (p + 2) / 2 <= index) ++p;
    const int64_t q = index - p * (p + 1) / 2;
    float c[kOwn];
    float* memory = reinterpret_cast<float*>(dynamic_shared() + kReduceBytes);
    product_tile(z, mean, n, d, p * kTile, q * kTile, memory, c);
#pragma unroll
    for (int k = 0; k < kOwn; ++k) sum += (p == q ? 1.f : 2.f) * (c[k] * scale) * (c[k] * scale);
  }
  BlockReduce reduce;
  sum = reduce(sum, Add());
  if (threadIdx.x == 0) partial[index] = sum;
}

// op.out at rows [m], for push = own (Z^T Z - diag c), where `flag`; op.push is not read.
template <typename T, typename Out>
__global__ void __launch_bounds__(kThreads)
    covariance_rescue(View<T> z, int64_t n, int64_t d, int64_t m, const bool* flag,
                      Gradient<T, Out> op) {
  if (!*flag) return;
  float* memory = reinterpret_cast<float*>(dynamic_shared());
  float *tile = memory + 2 * kStep * kTile, *own = tile + kTile * kTile;  // [kTile, kTile] each
  const int64_t tiles = (d + kTile - 1) / kTile;
  const int64_t top = blockIdx.x / tiles * kTile, right = blockIdx.x % tiles * kTile;
  const int column = threadIdx.x % kTile, row = threadIdx.x / kTile;
  float push[kOwn] = {}, c[kOwn];
  for (int64_t left = 0; left < d; left += kTile) {
    product_tile(z, op.mean, n, d, left, right, memory, c);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int r = row + k * (kThreads / kTile);
      const int64_t i = top + r, j = left + column;
      tile[r * kTile + column] = c[k];
      own[r * kTile + column] = i < m && j < d ? centred(op.z(i, j), op.mean[j]) : 0;
    }
    __syncthreads();
    for (int l = 0; l < kTile; ++l)
#pragma unroll
      for (int k = 0; k < kOwn; ++k)
        push[k] = fmaf(own[(row + k * (kThreads / kTile)) * kTile + l], tile[l * kTile + column],
                       push[k]);
  }
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const int64_t i = top + row + k * (kThreads / kTile), j = right + column;
    if (i >= m || j >= d) continue;
    const float x = op.z(i, j);
    float g = static_cast<float>(op.factors[0]) * push[k];
    g = fmaf(centred(x, op.mean[j]), static_cast<float>(op.beta[j]), g);
    if (op.other.data) g = fmaf(static_cast<float>(op.factors[1]), x - op.other(i, j), g);
    from_float(g, op.out[i * op.stride + j]);
  }
}

Launch blocks(int64_t count, size_t shared, cudaStream_t stream) {
  Launch how;
  how.grid = dim3(static_cast<unsigned>(count));
  how.block = dim3(kThreads);
  how.shared = shared;
  how.stream = stream;
  return how;
}

template <typename Op>
void each(const char* name, const Op& op, int64_t n, int64_t d, cudaStream_t stream) {
  const int64_t count = ceil_div(n * d, kThreads);
  launch(name, blocks(count < kMaxBlocks ? count : kMaxBlocks, 0, stream), covariance_each<Op>, op,
         n, d);
}

template <typename Op>
void sums(const char* name, const Op& op, int64_t n, int64_t d, double* partial,
          cudaStream_t stream) {
  launch(name, blocks(covariance_parts(n, d), kReduceBytes, stream), covariance_sums<Op>, op, n, d,
         partial);
}

// function(Type<T>, Type<Out>) for an output of the input's type or of float32.
template <typename Function>
void dispatch_pair(const Matrix& z, const Matrix& out, Function function) {
  dispatch(z.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (out.dtype == kFloat32) return function(Type<T>(), Type<float>());
    return function(Type<T>(), Type<T>());
  });
}

template <typename T, typename Out>
Gradient<T, Out> gradient_of(const Matrix& push, const Matrix& z, const Matrix& other,
                             const double* mean, const double* beta, const double* factors,
                             const Matrix& out) {
  return {view<float>(push),           view<T>(z), view<T>(other), mean, beta, factors,
          static_cast<Out*>(out.data), out.stride};
}

}  // namespace

int64_t covariance_parts(int64_t n, int64_t d) {
  const int64_t count = ceil_div(n * d, 4 * kThreads);
  return count < kMaxBlocks ? count : kMaxBlocks;
}

int64_t covariance_tiles(int64_t d) {
  const int64_t tiles = ceil_div(d, kTile);
  return tiles * (tiles + 1) / 2;
}

void covariance_moments(const Matrix& z, int64_t parts, double* partial, cudaStream_t stream) {
  Launch how = blocks(ceil_div(z.cols, kColumns), kThreads * sizeof(Moments), stream);
  how.grid.y = static_cast<unsigned>(parts);
  dispatch(z.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch("covariance_moments", how, covariance_moments<T>, view<T>(z), z.rows, z.cols, partial);
  });
}

void covariance_center(const Matrix& z, const double* mean, const double* scale, const Matrix& out,
                       cudaStream_t stream) {
  dispatch(z.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    each("covariance_center",
         Center<T>{view<T>(z), mean, scale, static_cast<float*>(out.data), out.stride}, z.rows,
         z.cols, stream);
  });
}

void covariance_inner(const Matrix& a, const Matrix& b, double* partial, cudaStream_t stream) {
  sums("covariance_inner", Inner{view<float>(a), view<float>(b)}, a.rows, a.cols, partial, stream);
}

void covariance_distance(const Matrix& a, const Matrix& b, double* partial, cudaStream_t stream) {
  dispatch(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    sums("covariance_distance", Distance<T>{view<T>(a), view<T>(b)}, a.rows, a.cols, partial,
         stream);
  });
}

void covariance_strip(const Matrix& tile, double scale, double* partial, cudaStream_t stream) {
  const Strip op{static_cast<float*>(tile.data), tile.stride, tile.rows, static_cast<float>(scale)};
  sums("covariance_strip", op, tile.rows, tile.cols, partial, stream);
}

void covariance_squares(const Matrix& z, const double* mean, double scale, const bool* flag,
                        double* partial, cudaStream_t stream) {
  const size_t shared = kReduceBytes + 2 * kStep * kTile * sizeof(float);
  dispatch(z.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch("covariance_triangle", blocks(covariance_tiles(z.cols), shared, stream),
           covariance_triangle<T>, view<T>(z), mean, z.rows, z.cols, static_cast<float>(scale),
           flag, partial);
  });
}

void covariance_rescue(const Matrix& z, const Matrix& own, const Matrix& other, const double* mean,
                       const double* beta, const double* factors, const bool* flag,
                       const Matrix& out, cudaStream_t stream) {
  const size_t shared = (2 * kStep * kTile + 2 * kTile * kTile) * sizeof(float);
  const int64_t count = ceil_div(own.rows, kTile) * ceil_div(z.cols, kTile);
  dispatch_pair(z, out, [&](auto type, auto out_type) {
    using T = typename decltype(type)::type;
    using Out = typename decltype(out_type)::type;
    const auto op = gradient_of<T, Out>({}, own, other, mean, beta, factors, out);
    launch("covariance_rescue", blocks(count, shared, stream), covariance_rescue<T, Out>,
           view<T>(z), z.rows, z.cols, own.rows, flag, op);
  });
}

void covariance_gradient(const Matrix& push, const Matrix& z, const Matrix& other,
                         const double* mean, const double* beta, const double* factors,
                         const Matrix& out, cudaStream_t stream) {
  dispatch_pair(z, out, [&](auto type, auto out_type) {
    using T = typename decltype(type)::type;
    using Out = typename decltype(out_type)::type;
    each("covariance_gradient", gradient_of<T, Out>(push, z, other, mean, beta, factors, out),
         z.rows, z.cols, stream);
  });
}

void correlation_strip(const Matrix& tile, int64_t first, double inverse, double weight,
                       double* partial, cudaStream_t stream) {
  const CorrelationStrip op{static_cast<float*>(tile.data), tile.stride, first,
                            static_cast<float>(inverse), static_cast<float>(weight)};
  sums("correlation_strip", op, tile.rows, tile.cols, partial, stream);
}

void correlation_dots(const Matrix& push, const Matrix& own, const Matrix& other, double alpha,
                      const double* beta, double* dots, cudaStream_t stream) {
  const Combined g{view<float>(push), view<float>(other), static_cast<float>(alpha), beta};
  launch("correlation_dots",
         blocks(ceil_div(own.cols, kColumns), kThreads * sizeof(double), stream), covariance_dots,
         g, view<float>(own), own.rows, own.cols, dots);
}

void correlation_gradient(const Matrix& push, const Matrix& own, const Matrix& other, double alpha,
                          const double* beta, const double* dots, const double* scale,
                          const Matrix& out, cudaStream_t stream) {
  const Combined g{view<float>(push), view<float>(other), static_cast<float>(alpha), beta};
  each("correlation_gradient",
       Standardised{g, view<float>(own), dots, scale, static_cast<float*>(out.data), out.stride},
       own.rows, own.cols, stream);
}

}  // namespace ssl_fast
