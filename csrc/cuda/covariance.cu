// What the covariance losses do around the library's products (ssl_fast/functional/
// _covariance_products.py):
//
//   moments    mean and centred squares of the columns, one read: eight rows at a time in
//              registers, merged by Chan et al.; never E[z^2] - E[z]^2
//   each, sums centred copies, gradients, reductions over Grams and strips of Z^T Z: one pass each
//   triangle   sum_{d != e} (Z^T Z)_de^2 by tiles of the upper triangle, nothing stored
//   rescue     the gradient of that, where the Gram dual cancelled digits
//
// Bardes et al. 2022 (VICReg), Eq. 1, 4.
#include "columns.cuh"
#include "covariance_triangle.cuh"
#include "elementwise.cuh"
#include "launchers.h"

namespace ssl_fast {
namespace {

constexpr int kRows = 8;  // that a thread holds in registers

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
__global__ void __launch_bounds__(kColumnBlock)
    covariance_moments(View<T> z, int64_t n, int64_t d, double* partial) {
  Moments* lanes = reinterpret_cast<Moments*>(dynamic_shared());  // [kLanes, kColumns]
  const int column = threadIdx.x % kColumns, lane = threadIdx.x / kColumns;
  const int64_t j = own_column();
  const auto [begin, end] = own_share(n);
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
    const float g = pull(i, j);
    write(i, j, push.data ? pushed(g, push(i, j)) : g);
  }
  __device__ __forceinline__ float pull(int64_t i, int64_t j) const {
    return centred(z(i, j), mean[j]) * static_cast<float>(beta[j]);
  }
  __device__ __forceinline__ float pushed(float g, float push) const {
    return fmaf(static_cast<float>(factors[0]), push, g);
  }
  __device__ __forceinline__ void write(int64_t i, int64_t j, float g) const {
    if (other.data) g = fmaf(static_cast<float>(factors[1]), z(i, j) - other(i, j), g);
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

int64_t covariance_parts(int64_t n, int64_t d) { return sum_blocks(n, d); }

int64_t covariance_tiles(int64_t d) {
  const int64_t tiles = ceil_div(d, kTile);
  return tiles * (tiles + 1) / 2;
}

void covariance_moments(const Matrix& z, int64_t parts, double* partial, cudaStream_t stream) {
  const Launch how = by_columns(z.cols, parts, sizeof(Moments), stream);
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
    launch("covariance_rescue", blocks(count, shared, stream),
           covariance_rescue<T, Gradient<T, Out>>, view<T>(z), z.rows, z.cols, own.rows, flag, op);
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

}  // namespace ssl_fast
