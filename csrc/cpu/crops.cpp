// Students against shared teachers, tile by tile, with prototypes as rows: a tile is x = C aᵀ
// [K, V r], the logits of r samples in V views; the product is faster this way round, and sums over
// prototypes are sums of vectors.
//
//   l = inv_temperature x,  e = exp(l - shift),  S_c = sum_k e_kc,  P = e / S
//   loss_c = a_c (shift + log S_c) - sum_k q_kc l_kc,   p_k = sum_c P_kc
//   d_l = P_kc (a_c + G_k - sum_j P_jc G_j) - q_kc
//
// Forward leaves e in the tile, backward the gradient. Views of the same samples share q [K, r],
// which is read once a view and stored nowhere else. Operations: one exp an element.
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

constexpr int kBlockRows = 4;
constexpr int64_t kFoldRows = 128;  // float32 sums this long, then float64

template <typename C>
struct Tile {
  C* x;  // [K, views * samples]
  int64_t prototypes, views, samples;
  const C* const* q;  // of each view: [K, samples]
  int64_t columns() const { return views * samples; }
  // Where a column's statistics are: views are `stride` apart.
  int64_t place(int64_t c, int64_t stride) const { return c / samples * stride + c % samples; }
};

// Sums over prototypes of some quantities, for every column: float32 for a while, then float64.
template <typename C>
class Sums {
 public:
  Sums(int count, int64_t columns, int threads)
      : size_(count * columns), parts_(threads * size_), totals_(threads * size_) {
    parts_.fill(threads * size_, 0);
    totals_.fill(threads * size_, 0);
  }
  C* part(Team team) const { return parts_ + team.thread * size_; }
  void fold(Team team) const {
    C* part = parts_ + team.thread * size_;
    double* total = totals_ + team.thread * size_;
    for (int64_t i = 0; i < size_; i++) total[i] += part[i], part[i] = 0;
  }
  double total(int64_t i, Team team) const {
    double sum = 0;
    for (int t = 0; t < team.threads; t++) sum += totals_[t * size_ + i];
    return sum;
  }

 private:
  int64_t size_;
  Scratch<C> parts_;
  Scratch<double> totals_;
};

template <int n>
struct Count {
  static constexpr int value = n;
};

// f(k, n) for this thread's prototypes, n of them at once; folds the sums now and then.
template <typename C, typename F>
void each_block(int64_t prototypes, Team team, const Sums<C>& sums, F f) {
  const int64_t end = team.end(prototypes);
  int64_t k = team.begin(prototypes), folded = k;
  while (k < end) {
    if (k + kBlockRows <= end) {
      f(k, Count<kBlockRows>{});
      k += kBlockRows;
    } else {
      f(k, Count<1>{});
      k++;
    }
    if (k - folded >= kFoldRows) sums.fold(team), folded = k;
  }
  sums.fold(team);
}

// Largest entry of every column: the shift.
template <typename C>
void column_maxima(const Tile<C>& tile, Team team, C* parts, C* shift) {
  using V = Vec<C>;
  const int64_t columns = tile.columns(), end = team.end(tile.prototypes);
  C* most = parts + team.thread * columns;
  for (int64_t c = 0; c < columns; c++) most[c] = (C)-INFINITY;
  for (int64_t k = team.begin(tile.prototypes); k < end; k++)
    sweep<C>(columns, [&](int64_t c, auto lanes) {
      max(V::load(tile.x + k * columns + c, lanes), V::load(most + c, lanes))
          .store(most + c, lanes);
    });
  team.barrier();
  for (int64_t c = team.begin(columns); c < team.end(columns); c++) {
    shift[c] = parts[c];
    for (int t = 1; t < team.threads; t++)
      if (parts[t * columns + c] > shift[c]) shift[c] = parts[t * columns + c];
  }
  team.barrier();
}

// x becomes e; sums of e and q l, and of q, over n prototypes from k on. l is relative to the
// shift, in units of ln 2.
template <int n, typename C>
void exponentials(const Tile<C>& tile, int64_t k, const C* shift, C k2, C* sums) {
  using V = Vec<C>;
  const int64_t columns = tile.columns(), r = tile.samples;
  const V scale(k2);
  for (int64_t v = 0; v < tile.views; v++) {
    const C* q = tile.q[v] + k * r;
    C* x = tile.x + k * columns + v * r;
    C *sum = sums + v * r, *dot = sum + columns, *mass = dot + columns;
    sweep<C>(r, [&](int64_t j, auto lanes) {
      const V c = V::load(shift + v * r + j, lanes);
      V s = V::load(sum + j, lanes), d = V::load(dot + j, lanes);
      for (int b = 0; b < n; b++) {
        V t = (V::load(x + b * columns + j, lanes) - c) * scale;
        V e = exp2(t);
        e.store(x + b * columns + j, lanes);
        s = s + e;
        d = fma(V::load(q + b * r + j, lanes), t, d);
      }
      s.store(sum + j, lanes);
      d.store(dot + j, lanes);
    });
    if (v && tile.q[v] == tile.q[v - 1]) continue;  // the same mass
    sweep<C>(r, [&](int64_t j, auto lanes) {
      V m = V::load(mass + j, lanes);
      for (int b = 0; b < n; b++) m = m + V::load(q + b * r + j, lanes);
      m.store(mass + j, lanes);
    });
  }
}

// p_k += sum_c e_kc / S_c, for this thread's prototypes.
template <typename C>
void add_mass(const Tile<C>& tile, Team team, const C* inverse, double* p) {
  using V = Vec<C>;
  const int64_t columns = tile.columns();
  for (int64_t k = team.begin(tile.prototypes); k < team.end(tile.prototypes); k++) {
    V sum;
    sweep<C>(columns, [&](int64_t c, auto lanes) {
      sum = fma(V::load(tile.x + k * columns + c, lanes), V::load(inverse + c, lanes), sum);
    });
    p[k] += (double)sum.sum();
  }
}

template <typename C>
void forward(const Tile<C>& tile, double inv_temperature, const ViewStats& stats, double* p,
             int threads) {
  const int64_t columns = tile.columns();
  Sums<C> sums(3, columns, threads);
  Scratch<C> shift(columns), inverse(columns), maxima(threads * columns);
  parallel(threads, tile.prototypes * columns, [&](Team team) {
    column_maxima<C>(tile, team, maxima, shift);
    each_block(tile.prototypes, team, sums, [&](int64_t k, auto n) {
      exponentials<n.value, C>(tile, k, shift, (C)(inv_temperature * kLog2e), sums.part(team));
    });
    team.barrier();
    for (int64_t c = team.begin(columns); c < team.end(columns); c++) {
      int64_t v = c / tile.samples;
      while (v && tile.q[v] == tile.q[v - 1]) v--;  // whose mass was summed
      const double sum = sums.total(c, team), dot = sums.total(columns + c, team);
      const double mass = sums.total(2 * columns + v * tile.samples + c % tile.samples, team);
      const double log_sum = log(sum);
      double* out = stats.row + tile.place(c, stats.view_stride);
      out[0] = shift[c];
      out[stats.row_stride] = log_sum;
      out[2 * stats.row_stride] = mass;
      out[3 * stats.row_stride] = mass * log_sum - dot * kLn2;
      inverse[c] = (C)(1 / sum);
    }
    if (!p) return;
    team.barrier();
    add_mass<C>(tile, team, inverse, p);
  });
}

// Of every column: P = e * inverse; d = P (alpha + G) - q with alpha = a - h.
template <typename C>
struct Columns {
  Scratch<C> shift, inverse, alpha;
  explicit Columns(int64_t n) : shift(n), inverse(n), alpha(n) {}
};

// x becomes e unless it is; sums of e G over n prototypes from k on.
template <int n, typename C>
void weigh(const Tile<C>& tile, int64_t k, bool has_exp, const Columns<C>& of, C k2,
           const C* gradient, C* sums) {
  using V = Vec<C>;
  const int64_t columns = tile.columns();
  const V scale(k2);
  sweep<C>(columns, [&](int64_t c, auto lanes) {
    V h = V::load(sums + c, lanes);
    for (int b = 0; b < n; b++) {
      C* x = tile.x + (k + b) * columns + c;
      V e = V::load(x, lanes);
      if (!has_exp) {
        e = exp2((e - V::load(of.shift + c, lanes)) * scale);
        e.store(x, lanes);
      }
      h = fma(e, V(gradient[k + b]), h);
    }
    h.store(sums + c, lanes);
  });
}

// d_l over x, which holds e, or logits where `raw`.
template <bool raw, typename C>
void gradient_rows(const Tile<C>& tile, Team team, const Columns<C>& of, C k2, const C* gradient) {
  using V = Vec<C>;
  const int64_t columns = tile.columns(), r = tile.samples;
  const V scale(k2);
  for (int64_t k = team.begin(tile.prototypes); k < team.end(tile.prototypes); k++) {
    const V g(gradient ? gradient[k] : 0);
    for (int64_t v = 0; v < tile.views; v++) {
      C* x = tile.x + k * columns + v * r;
      const C* q = tile.q[v] + k * r;
      sweep<C>(r, [&](int64_t j, auto lanes) {
        V e = V::load(x + j, lanes);
        if (raw) e = exp2((e - V::load(of.shift + v * r + j, lanes)) * scale);
        V p = e * V::load(of.inverse + v * r + j, lanes);
        (p * (g + V::load(of.alpha + v * r + j, lanes)) - V::load(q + j, lanes))
            .store(x + j, lanes);
      });
    }
  }
}

// prior [2, K] as in prior_backward, or null.
template <typename C>
void backward(const Tile<C>& tile, double inv_temperature, bool has_exp, const ViewStats& stats,
              const double* prior, int threads) {
  const int64_t columns = tile.columns(), prototypes = tile.prototypes;
  const C k2 = (C)(inv_temperature * kLog2e);
  Scratch<C> gradient(prior ? prototypes : 0);
  for (int64_t k = 0; k < prototypes && prior; k++)
    gradient[k] = (C)(prior[k] * exp(-prior[prototypes + k]));
  Sums<C> sums(1, prior ? columns : 0, threads);
  Columns<C> of(columns);
  for (int64_t c = 0; c < columns; c++) {
    const double* row = stats.row + tile.place(c, stats.view_stride);
    of.shift[c] = (C)row[0];
    of.inverse[c] = (C)exp(-row[stats.row_stride]);
    of.alpha[c] = (C)row[2 * stats.row_stride];
  }
  parallel(threads, prototypes * columns, [&](Team team) {
    if (prior) {
      each_block(prototypes, team, sums, [&](int64_t k, auto n) {
        weigh<n.value, C>(tile, k, has_exp, of, k2, gradient, sums.part(team));
      });
      team.barrier();
      for (int64_t c = team.begin(columns); c < team.end(columns); c++)
        of.alpha[c] -= (C)(sums.total(c, team) * of.inverse[c]);
      team.barrier();
    }
    if (has_exp || prior)
      gradient_rows<false, C>(tile, team, of, k2, gradient);
    else
      gradient_rows<true, C>(tile, team, of, k2, gradient);
  });
}

}  // namespace

void crops_forward(const Crops& crops, double inv_temperature, const ViewStats& stats, double* mass,
                   int threads) {
  const auto run = [&](auto x) {
    using C = decltype(x);
    forward<C>({static_cast<C*>(crops.x), crops.prototypes, crops.views, crops.samples,
                reinterpret_cast<const C* const*>(crops.q)},
               inv_temperature, stats, mass, threads);
  };
  crops.dtype == kFloat64 ? run(double()) : run(float());
}

void crops_backward(const Crops& crops, double inv_temperature, bool has_exp,
                    const ViewStats& stats, const double* prior, int threads) {
  const auto run = [&](auto x) {
    using C = decltype(x);
    backward<C>({static_cast<C*>(crops.x), crops.prototypes, crops.views, crops.samples,
                 reinterpret_cast<const C* const*>(crops.q)},
                inv_temperature, has_exp, stats, prior, threads);
  };
  crops.dtype == kFloat64 ? run(double()) : run(float());
}

}  // namespace ssl_fast::SSL_FAST_ISA
