// What the covariance losses do around their products: columns' moments, reductions over Grams and
// strips of Z^T Z while they are in cache, gradients in one pass.
//
//   covariance   sum_{d != e} (Z^T Z)_de^2            dZ = 4 Z (Z^T Z - diag c)
//   correlation  sum_d (C_dd - 1)^2 + w sum_{d != e} C_de^2,  C = Z0^T Z1 / N
//
// The products are torch's, and no D x D matrix is stored. Means and squares are two passes over
// columns that stay in cache, never E[z^2] - E[z]^2; sums are float32 over 64 rows or 1024 columns
// and float64 beyond. Bytes: moments read z once and write the centred copy once.
//
// Bardes et al. 2022 (VICReg), Eq. 1, 4; Zbontar et al. 2021 (Barlow Twins), Eq. 1, 2.
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

constexpr int kColumns = 64;   // columns that a thread has in cache, all rows of them
constexpr int kFoldRows = 64;  // rows summed in float32 before float64 takes over
constexpr int kFoldCols = 1024;

// Columns [first, first + cols) of m.
Matrix columns_of(const Matrix& m, int64_t first, int64_t cols) {
  const int bytes = m.dtype == kFloat64 ? 8 : m.dtype == kFloat32 ? 4 : 2;
  return {static_cast<char*>(m.data) + first * bytes, m.rows, cols, m.stride, m.dtype};
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

template <typename C>
void moments(const Matrix& z, double* stats, int64_t stats_stride, const Matrix& out,
             bool standardise, double eps, int threads) {
  using V = Vec<C>;
  column_blocks(z, threads, [&](int64_t first, int64_t cols) {
    const Matrix from = columns_of(z, first, cols);
    const Matrix to = out.data ? columns_of(out, first, cols) : out;
    alignas(64) C row[kColumns], origin[kColumns], scale[kColumns];
    const C* top = read_row<C>(from, 0, row);
    for (int64_t j = 0; j < cols; j++) origin[j] = top[j];
    ColumnSums<C> sums, squares;  // of distances to the first row: equal rows sum to zero
    for (int64_t i = 0; i < z.rows; i++) {
      const C* x = read_row<C>(from, i, row);
      C* copy = to.data ? reinterpret_cast<C*>(row_address(to, i)) : row;
      sums.add(cols, [&](int64_t j, auto lanes) {
        V v = V::load(x + j, lanes);
        v.store(copy + j, lanes);
        return v - V::load(origin + j, lanes);
      });
    }
    const double* sum = sums.total();
    for (int64_t j = 0; j < cols; j++) stats[first + j] = (double)origin[j] + sum[j] / z.rows;
    const Mean<C> mean(stats + first, cols);
    for (int64_t i = 0; i < z.rows; i++) {
      C* x = to.data ? reinterpret_cast<C*>(row_address(to, i)) : row;
      const C* v = to.data ? x : read_row<C>(from, i, row);
      squares.add(cols, [&](int64_t j, auto lanes) {
        V d = mean.centred(V::load(v + j, lanes), j, lanes);
        d.store(x + j, lanes);
        return d * d;
      });
    }
    double* square = stats + stats_stride + first;
    sum = squares.total();
    for (int64_t j = 0; j < cols; j++) square[j] = sum[j];
    if (!standardise) return;
    for (int64_t j = 0; j < cols; j++) scale[j] = (C)(1 / sqrt(square[j] / z.rows + eps));
    for (int64_t i = 0; i < z.rows; i++) {
      C* x = reinterpret_cast<C*>(row_address(to, i));
      sweep<C>(cols, [&](int64_t j, auto lanes) {
        (V::load(x + j, lanes) * V::load(scale + j, lanes)).store(x + j, lanes);
      });
    }
  });
}

template <typename C>
void center_rows(const Matrix& z, const double* mean, const double* scale, const Matrix& out,
                 int threads) {
  using V = Vec<C>;
  const Mean<C> m(mean, z.cols);
  const Converted<C> scale_c(scale, z.cols);
  const C* s = scale_c;
  parallel(threads, z.rows * z.cols, [&](Team team) {
    Scratch<C> row(converts<C>(z) ? z.cols : 0);
    for (int64_t i = team.begin(z.rows); i < team.end(z.rows); i++) {
      const C* x = read_row<C>(z, i, row);
      C* y = reinterpret_cast<C*>(row_address(out, i));
      sweep<C>(z.cols, [&](int64_t j, auto lanes) {
        V d = m.centred(V::load(x + j, lanes), j, lanes);
        (s ? d * V::load(s + j, lanes) : d).store(y + j, lanes);
      });
    }
  });
}

template <typename C>
double inner_product(const Matrix& a, const Matrix& b, int threads) {
  using V = Vec<C>;
  return row_sums(a, threads, [&](int64_t i) {
    const C* x = reinterpret_cast<const C*>(row_address(a, i));
    const C* y = reinterpret_cast<const C*>(row_address(b, i));
    return folded_sum<C>(a.cols, [&](int64_t j, auto lanes) {
      return V::load(x + j, lanes) * V::load(y + j, lanes);
    });
  });
}

template <typename C>
double distance(const Matrix& a, const Matrix& b, int threads) {
  using V = Vec<C>;
  return row_sums(a, threads, [&](int64_t i) {
    C left[kFoldCols], right[kFoldCols];
    double total = 0;
    for (int64_t first = 0; first < a.cols; first += kFoldCols) {
      const int64_t cols = first + kFoldCols < a.cols ? (int64_t)kFoldCols : a.cols - first;
      const C* x = read_row<C>(columns_of(a, first, cols), i, left);
      const C* y = read_row<C>(columns_of(b, first, cols), i, right);
      total += folded_sum<C>(cols, [&](int64_t j, auto lanes) {
        V d = V::load(x + j, lanes) - V::load(y + j, lanes);
        return d * d;
      });
    }
    return total;
  });
}

template <typename C>
double triangle_squares(const Matrix& tile, double scale, int threads) {
  using V = Vec<C>;
  const V s((C)scale);
  return row_sums(tile, threads, [&](int64_t i) {
    C* x = reinterpret_cast<C*>(row_address(tile, i));
    x[i] = 0;
    const auto squares = [&](const C* y, int64_t cols) {
      return folded_sum<C>(cols, [&](int64_t j, auto lanes) {
        V c = V::load(y + j, lanes) * s;
        return c * c;
      });
    };
    return squares(x, tile.rows) + 2 * squares(x + tile.rows, tile.cols - tile.rows);
  });
}

// out = f0 push + beta (z - mean) + f1 (z - other)
template <typename C>
void gradient(const Matrix& push, const Matrix& z, const Matrix& other, const double* mean,
              const double* beta, const double* factors, const Matrix& out, int threads) {
  using V = Vec<C>;
  const Mean<C> m(mean, z.cols);
  const Converted<C> beta_c(beta, z.cols);
  const C* b = beta_c;
  const V f0((C)factors[0]), f1((C)factors[1]);
  parallel(threads, z.rows * z.cols, [&](Team team) {
    Scratch<C> own_row(converts<C>(z) ? z.cols : 0), other_row(converts<C>(z) ? z.cols : 0),
        out_row(converts<C>(out) ? z.cols : 0);
    for (int64_t i = team.begin(z.rows); i < team.end(z.rows); i++) {
      const C* x = read_row<C>(z, i, own_row);
      const C* y = other.data ? read_row<C>(other, i, other_row) : nullptr;
      const C* p = push.data ? reinterpret_cast<const C*>(row_address(push, i)) : nullptr;
      C* d = write_row<C>(out, i, out_row);
      sweep<C>(z.cols, [&](int64_t j, auto lanes) {
        const V v = V::load(x + j, lanes);
        V g = m.centred(v, j, lanes) * V::load(b + j, lanes);
        if (p) g = fma(f0, V::load(p + j, lanes), g);
        if (y) g = fma(f1, v - V::load(y + j, lanes), g);
        g.store(d + j, lanes);
      });
      finish_row<C>(out, i, out_row);
    }
  });
}

// c = tile / N in place of the derivative: 2 (c_dd - 1) / N on the diagonal, 2 w c / N off it.
template <typename C>
double correlation_rows(const Matrix& tile, int64_t first, double count, double weight,
                        int threads) {
  using V = Vec<C>;
  const V inverse((C)(1 / count)), slope((C)(2 * weight / count));
  return row_sums(tile, threads, [&](int64_t i) {
    C* x = reinterpret_cast<C*>(row_address(tile, i));
    const double diagonal = x[first + i] / count - 1;
    x[first + i] = 0;
    const double squares = folded_sum<C>(tile.cols, [&](int64_t j, auto lanes) {
      V c = V::load(x + j, lanes) * inverse;
      (c * slope).store(x + j, lanes);
      return c * c;
    });
    x[first + i] = (C)(2 * diagonal / count);
    return diagonal * diagonal + weight * squares;
  });
}

// g = alpha push + beta other, row by row.
template <typename C>
struct Combined {
  const Matrix &push, &other;
  const C* beta;  // [D], or null with no other
  Vec<C> alpha;
  template <typename Lanes>
  Vec<C> operator()(int64_t i, int64_t j, Lanes lanes) const {
    using V = Vec<C>;
    V g = alpha * V::load(reinterpret_cast<const C*>(row_address(push, i)) + j, lanes);
    if (!beta) return g;
    const C* o = reinterpret_cast<const C*>(row_address(other, i));
    return fma(V::load(beta + j, lanes), V::load(o + j, lanes), g);
  }
};

template <typename C>
void dots_of(const Matrix& push, const Matrix& own, const Matrix& other, double alpha,
             const double* beta, double* dots, int threads) {
  using V = Vec<C>;
  const Converted<C> beta_c(beta, own.cols);
  const Combined<C> g{push, other, beta_c, (C)alpha};
  column_blocks(own, threads, [&](int64_t first, int64_t cols) {
    ColumnSums<C> sums;
    for (int64_t i = 0; i < own.rows; i++) {
      const C* x = reinterpret_cast<const C*>(row_address(own, i)) + first;
      sums.add(cols, [&](int64_t j, auto lanes) {
        return g(i, first + j, lanes) * V::load(x + j, lanes);
      });
    }
    const double* total = sums.total();
    for (int64_t j = 0; j < cols; j++) dots[first + j] = total[j];
  });
}

// out = scale (g - dots own)
template <typename C>
void standardised_gradient(const Matrix& push, const Matrix& own, const Matrix& other, double alpha,
                           const double* beta, const double* dots, const double* scale,
                           const Matrix& out, int threads) {
  using V = Vec<C>;
  const Converted<C> beta_c(beta, own.cols), dots_c(dots, own.cols), scale_c(scale, own.cols);
  const Combined<C> g{push, other, beta_c, (C)alpha};
  const C *t = dots_c, *s = scale_c;
  parallel(threads, own.rows * own.cols, [&](Team team) {
    Scratch<C> row(converts<C>(out) ? own.cols : 0);
    for (int64_t i = team.begin(own.rows); i < team.end(own.rows); i++) {
      const C* x = reinterpret_cast<const C*>(row_address(own, i));
      C* d = write_row<C>(out, i, row);
      sweep<C>(own.cols, [&](int64_t j, auto lanes) {
        V rest = g(i, j, lanes) - V::load(t + j, lanes) * V::load(x + j, lanes);
        (rest * V::load(s + j, lanes)).store(d + j, lanes);
      });
      finish_row<C>(out, i, row);
    }
  });
}

}  // namespace

void column_moments(const Matrix& z, double* stats, int64_t stats_stride, const Matrix& out,
                    bool standardise, double eps, int threads) {
  if ((out.data ? out.dtype : z.dtype) == kFloat64)
    moments<double>(z, stats, stats_stride, out, standardise, eps, threads);
  else
    moments<float>(z, stats, stats_stride, out, standardise, eps, threads);
}

void center(const Matrix& z, const double* mean, const double* scale, const Matrix& out,
            int threads) {
  if (out.dtype == kFloat64)
    center_rows<double>(z, mean, scale, out, threads);
  else
    center_rows<float>(z, mean, scale, out, threads);
}

double inner(const Matrix& a, const Matrix& b, int threads) {
  return a.dtype == kFloat64 ? inner_product<double>(a, b, threads)
                             : inner_product<float>(a, b, threads);
}

double squared_distance(const Matrix& a, const Matrix& b, int threads) {
  return a.dtype == kFloat64 ? distance<double>(a, b, threads) : distance<float>(a, b, threads);
}

double triangle(const Matrix& tile, double scale, int threads) {
  return tile.dtype == kFloat64 ? triangle_squares<double>(tile, scale, threads)
                                : triangle_squares<float>(tile, scale, threads);
}

void covariance_gradient(const Matrix& push, const Matrix& z, const Matrix& other,
                         const double* mean, const double* beta, const double* factors,
                         const Matrix& out, int threads) {
  if ((push.data ? push.dtype : z.dtype) == kFloat64)
    gradient<double>(push, z, other, mean, beta, factors, out, threads);
  else
    gradient<float>(push, z, other, mean, beta, factors, out, threads);
}

double correlation_tile(const Matrix& tile, int64_t first, double count, double weight,
                        int threads) {
  return tile.dtype == kFloat64 ? correlation_rows<double>(tile, first, count, weight, threads)
                                : correlation_rows<float>(tile, first, count, weight, threads);
}

void correlation_dots(const Matrix& push, const Matrix& own, const Matrix& other, double alpha,
                      const double* beta, double* dots, int threads) {
  if (own.dtype == kFloat64)
    dots_of<double>(push, own, other, alpha, beta, dots, threads);
  else
    dots_of<float>(push, own, other, alpha, beta, dots, threads);
}

void correlation_gradient(const Matrix& push, const Matrix& own, const Matrix& other, double alpha,
                          const double* beta, const double* dots, const double* scale,
                          const Matrix& out, int threads) {
  if (own.dtype == kFloat64)
    standardised_gradient<double>(push, own, other, alpha, beta, dots, scale, out, threads);
  else
    standardised_gradient<float>(push, own, other, alpha, beta, dots, scale, out, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
