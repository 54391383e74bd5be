// Sums over rows and over columns that do not depend on the number of threads: float32 over 64 rows
// or 1024 columns, float64 beyond.
#pragma once
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {

constexpr int kColumns = 64;   // columns that a thread has in cache, all rows of them
constexpr int kFoldRows = 64;  // rows summed in float32 before float64 takes over
constexpr int kFoldCols = 1024;

// Columns [first, first + cols) of m.
inline Matrix columns_of(const Matrix& m, int64_t first, int64_t cols) {
  return {static_cast<char*>(m.data) + first * element_size(m), m.rows, cols, m.stride, m.dtype};
}

// Sums over rows of up to kColumns columns.
template <typename C>
class ColumnSums {
 public:
  // sums_j += x_j for one more row
  template <typename F>
  void add(int64_t cols, F x) {
    sweep<C>(cols, [&](int64_t j, auto lanes) {
      (Vec<C>::load(part_ + j, lanes) + x(j, lanes)).store(part_ + j, lanes);
    });
    if (++rows_ % kFoldRows == 0) fold();
  }
  const double* total() {
    fold();
    return total_;
  }

 private:
  void fold() {
    for (int j = 0; j < kColumns; j++) total_[j] += part_[j], part_[j] = 0;
  }
  C part_[kColumns] = {};
  double total_[kColumns] = {};
  int rows_ = 0;
};

// f(first, cols) for blocks of columns, in parallel.
template <typename F>
void column_blocks(const Matrix& m, int threads, F f) {
  const int64_t blocks = (m.cols + kColumns - 1) / kColumns;
  parallel(threads, m.rows * m.cols, [&](Team team) {
    for (int64_t b = team.begin(blocks); b < team.end(blocks); b++) {
      const int64_t first = b * kColumns, left = m.cols - first;
      f(first, left < kColumns ? left : (int64_t)kColumns);
    }
  });
}

// sum_i f(i), each row's part in float64 and added in order: the same for any number of threads.
template <typename F>
double row_sums(const Matrix& m, int threads, F f) {
  Scratch<double> sums(m.rows);
  parallel(threads, m.rows * m.cols, [&](Team team) {
    for (int64_t i = team.begin(m.rows); i < team.end(m.rows); i++) sums[i] = f(i);
  });
  double total = 0;
  for (int64_t i = 0; i < m.rows; i++) total += sums[i];
  return total;
}

// sum_j f(j, lanes) of a row.
template <typename C, typename F>
double folded_sum(int64_t cols, F f) {
  using V = Vec<C>;
  constexpr int kLanes = V::kLanes, kUnroll = 4 * kLanes;
  double total = 0;
  for (int64_t first = 0; first < cols; first += kFoldCols) {
    const int64_t end = first + kFoldCols < cols ? first + kFoldCols : cols;
    V a, b, c, d;
    int64_t j = first;
    for (; j + kUnroll <= end; j += kUnroll) {
      a = a + f(j, Full{});
      b = b + f(j + kLanes, Full{});
      c = c + f(j + 2 * kLanes, Full{});
      d = d + f(j + 3 * kLanes, Full{});
    }
    sweep<C>(end - j, [&](int64_t k, auto lanes) { a = a + f(j + k, lanes).or_else(0, lanes); });
    total += (double)((a + b) + (c + d)).sum();
  }
  return total;
}

// A float64 mean as two C: z - high is exact where z is near, and low brings the rest of the
// digits.
template <typename C>
struct Mean {
  Scratch<C> high, low;
  Mean(const double* mean, int64_t n) : high(n), low(n) {
    for (int64_t j = 0; j < n; j++) low[j] = (C)(mean[j] - (high[j] = (C)mean[j]));
  }
  template <typename Lanes>
  Vec<C> centred(Vec<C> z, int64_t j, Lanes lanes) const {
    return (z - Vec<C>::load(high + j, lanes)) - Vec<C>::load(low + j, lanes);
  }
};

template <typename C>
struct Converted {
  Scratch<C> values;
  Converted(const double* from, int64_t n) : values(from ? n : 0) {
    for (int64_t j = 0; j < n && from; j++) values[j] = (C)from[j];
  }
  operator const C*() const { return values; }
};

}  // namespace ssl_fast::SSL_FAST_ISA
