// Contrastive losses: what happens to a float32 tile of products between one library product and
// the next, in place.
//   rows:   l_ij = scale b_j t_ij, without columns lo_i <= j < hi_i; running maximum and sum
//   pairs:  l_ij = scale t_ij, t symmetric, without the block of `views` rows that holds i;
//           tiles at and below the diagonal alone, each feeding the sums of both its sides
// Bytes: a tile is read twice by rows_forward and pairs_forward (a block reads its row again from
// L2), once by the others, and written once. One exp2 an element, two in pairs_backward.
// van den Oord et al. 2018; Chen et al. 2020.
#include "columns.cuh"
#include "launchers.h"
#include "reduce.cuh"

namespace ssl_fast {
namespace {

constexpr int kRowThreads = 256;

struct Tile {
  float* data;  // (n, k), rows `stride` apart
  int64_t n, k, stride;
};

// What row i of the tile leaves out.
struct Gap {
  int64_t first = 0, last = 0;
  __device__ __forceinline__ Gap(const Ranges& without, int64_t i) {
    if (!without.lo) return;
    first = without.lo[i] - without.begin;
    last = without.hi[i] - without.begin;
  }
  __device__ __forceinline__ bool holds(int64_t j) const { return first <= j && j < last; }
};

// shift, sum: running, of row i; the terms replace t when rescale is given.
__global__ void __launch_bounds__(kRowThreads, 4)
    contrast_rows_forward(Tile tile, const float* b /*(K) or null*/, float scale2, double scale,
                          Ranges without, double* shift /*(N)*/, double* sum /*(N)*/,
                          float* rescale /*(N) or null*/) {
  const int64_t i = blockIdx.x;
  float* const t = tile.data + i * tile.stride;
  const Gap gap(without, i);
  BlockReduce reduce;
  float top = -INFINITY;
  for (int64_t j = threadIdx.x; j < tile.k; j += kRowThreads)
    if (!gap.holds(j)) top = fmaxf(top, b ? t[j] * b[j] : t[j]);
  top = reduce(top, Max());
  const double old = shift[i];
  const double now = fmax(old, static_cast<double>(top));
  const bool none = now == -INFINITY;
  const float center = none ? 0.f : static_cast<float>(now);
  float terms = 0;
  for (int64_t j = threadIdx.x; j < tile.k; j += kRowThreads) {
    const float l = b ? t[j] * b[j] : t[j];
    const float e = gap.holds(j) ? 0.f : exp2_fast((l - center) * scale2);
    terms += e;
    if (rescale) t[j] = b ? e * b[j] : e;
  }
  const double total = reduce(static_cast<double>(terms), Add());
  if (threadIdx.x != 0) return;
  const double kept = none ? 1.0 : exp((old - now) * scale);
  shift[i] = now;
  sum[i] = sum[i] * kept + total;
  if (rescale) rescale[i] = static_cast<float>(kept);
}

// A log-sum-exp in two parts: one in units of t, subtracted where nothing rounds, and the rest.
struct Split {
  float whole = 0, rest = 0;
  __device__ __forceinline__ Split(double lse, double scale) {
    if (lse == -INFINITY) return;
    whole = static_cast<float>(lse / scale);
    rest = static_cast<float>((lse - static_cast<double>(whole) * scale) * kLog2e);
  }
  __device__ __forceinline__ float exp(float t, float scale2) const {
    return exp2_fast((t - whole) * scale2 - rest);
  }
};

// t = weight_i exp(l - lse_i)
__global__ void __launch_bounds__(kRowThreads, 4)
    contrast_rows_backward(Tile tile, const float* b /*(K) or null*/, float scale2, double scale,
                           Ranges without, const double* lse /*(N)*/,
                           const double* weight /*(N)*/) {
  const int64_t i = blockIdx.x;
  float* const t = tile.data + i * tile.stride;
  const Gap gap(without, i);
  const Split own(lse[i], scale);
  const float w = static_cast<float>(weight[i]);
  for (int64_t j = threadIdx.x; j < tile.k; j += kRowThreads) {
    const float e = own.exp(b ? t[j] * b[j] : t[j], scale2);
    t[j] = gap.holds(j) ? 0.f : w * e;
  }
}

// A tile's place in the symmetric matrix.
struct Place {
  int64_t row, col, views;
  __device__ __forceinline__ bool same(int64_t i, int64_t j) const {
    return (row + i) / views == (col + j) / views;
  }
};

// t becomes its terms; sums (M) of the tile's rows grow.
__global__ void __launch_bounds__(kRowThreads, 4)
    contrast_pairs_rows(Tile tile, float scale2, float shift, Place at, double* sums) {
  const int64_t i = blockIdx.x;
  float* const t = tile.data + i * tile.stride;
  float terms = 0;
  for (int64_t j = threadIdx.x; j < tile.k; j += kRowThreads) {
    const float e = at.same(i, j) ? 0.f : exp2_fast((t[j] - shift) * scale2);
    t[j] = e;
    terms += e;
  }
  BlockReduce reduce;
  const double total = reduce(static_cast<double>(terms), Add());
  if (threadIdx.x == 0) sums[at.row + i] += total;
}

// sums (k) of the columns grow by the terms in t.
__global__ void __launch_bounds__(kColumnBlock) contrast_pairs_columns(Tile tile, double* sums) {
  const int64_t j = own_column();
  const double total = column_sum(0, j < tile.k ? tile.n : 0,
                                  [&](int64_t i) { return tile.data[i * tile.stride + j]; });
  if (is_first_lane() && j < tile.k) sums[j] += total;
}

// t = exp(l - lse_i) + exp(l - lse_j); blocks (M, views) as given.
__global__ void __launch_bounds__(kRowThreads, 4)
    contrast_pairs_backward(Tile tile, float scale2, double scale, double shift, Place at,
                            const double* lse /*(M)*/, const float* blocks, bool narrow) {
  const int64_t i = blockIdx.x, own = at.row + i;
  float* const t = tile.data + i * tile.stride;
  const Split mine(lse[own], scale);
  const float weight = narrow ? exp_of(shift * scale - lse[own]) : 0.f;
  for (int64_t j = threadIdx.x; j < tile.k; j += kRowThreads) {
    const double other = lse[at.col + j];
    float d;
    if (at.same(i, j))
      d = blocks[own * at.views + (at.col + j) % at.views];
    else if (narrow)
      d = exp2_fast((t[j] - static_cast<float>(shift)) * scale2) *
          (weight + exp_of(shift * scale - other));
    else
      d = mine.exp(t[j], scale2) + Split(other, scale).exp(t[j], scale2);
    t[j] = d;
  }
}

Tile view(const Matrix& tile) {
  if (tile.dtype != kFloat32)
    throw std::runtime_error("ssl_fast: contrastive tiles are float32, got dtype code " +
                             std::to_string(tile.dtype));
  return {static_cast<float*>(tile.data), tile.rows, tile.cols, tile.stride};
}

Launch by_rows(const Matrix& tile, cudaStream_t stream) {
  return {static_cast<unsigned>(tile.rows), kRowThreads, kReduceBytes, stream};
}

float base_two(double scale) { return static_cast<float>(scale * kLog2e); }

}  // namespace

void contrastive_rows_forward(const Matrix& tile, const float* b, double scale,
                              const Ranges& without, double* stats, float* rescale,
                              cudaStream_t stream) {
  launch("contrast_rows_forward", by_rows(tile, stream), contrast_rows_forward, view(tile), b,
         base_two(scale), scale, without, stats, stats + tile.rows, rescale);
}

void contrastive_rows_backward(const Matrix& tile, const float* b, double scale,
                               const Ranges& without, const double* lse, const double* weight,
                               cudaStream_t stream) {
  launch("contrast_rows_backward", by_rows(tile, stream), contrast_rows_backward, view(tile), b,
         base_two(scale), scale, without, lse, weight);
}

void contrastive_pairs_forward(const Matrix& tile, double scale, double shift, int64_t row,
                               int64_t col, int64_t views, double* sums, cudaStream_t stream) {
  const Place at{row, col, views};
  launch("contrast_pairs_rows", by_rows(tile, stream), contrast_pairs_rows, view(tile),
         base_two(scale), static_cast<float>(shift), at, sums);
  // The square on the diagonal serves both its sides by its rows.
  const int64_t square = col + tile.cols > row ? col + tile.cols - row : 0;
  if (square >= tile.rows) return;
  Tile below = view(tile);
  below.data += square * below.stride;
  below.n -= square;
  launch("contrast_pairs_columns", by_columns(tile.cols, 1, sizeof(double), stream),
         contrast_pairs_columns, below, sums + col);
}

void contrastive_pairs_backward(const Matrix& tile, double scale, double shift, int64_t row,
                                int64_t col, int64_t views, const double* lse, const float* blocks,
                                bool narrow, cudaStream_t stream) {
  launch("contrast_pairs_backward", by_rows(tile, stream), contrast_pairs_backward, view(tile),
         base_two(scale), scale, shift, Place{row, col, views}, lse, blocks, narrow);
}

}  // namespace ssl_fast
