// Entropic transport between clouds of points (Cuturi 2013), log domain, uniform weights.
//
//   C_ij = |x_i - y_j|^p, p = 1 or 2;   P_ij = 1/(n m) exp((f_i + g_j - C_ij) / eps)
//   f_i = -eps log 1/m sum_j exp((g_j - C_ij) / eps), and g likewise;   V = sum_ij P_ij C_ij
//   dV/dC_ij = P_ij (1 + (u_i + v_j - C_ij) / eps)
//   u_i = sum_j P(j | i) (C_ij - v_j),  v_j = sum_i P(i | j) (C_ij - u_i)
//
// Costs are formed again in every pass from differences, four rows at a time: nothing n x m is
// stored, and identical points are at distance 0. Both pairs of equations are iterated until they
// move by less than `tolerance` eps, or `iterations` times; the first after a descent to eps.
// A pass: n m D multiply-adds, one exp and, for p = 1, one square root a pair.
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

constexpr int kRows = 4;
// The first passes take eps 2^k, k = kDescent ... 1: near potentials from far.
constexpr int kDescent = 10;

// n points row by row, and the same transposed.
template <typename C>
struct Cloud {
  const C* rows;     // [n, d]
  const C* columns;  // [d, stride]
  int64_t n, stride;
};

template <typename C>
struct Problem {
  Cloud<C> x, y;
  int64_t d;
  int p;
  double epsilon;
  Problem swapped() const { return {y, x, d, p, epsilon}; }
};

// costs [kRows, m] of points i to i + count of x.
template <typename C>
void costs_of(const Problem<C>& problem, int64_t i, int count, C* costs) {
  using V = Vec<C>;
  const int64_t m = problem.y.n, d = problem.d, stride = problem.y.stride;
  const C* own[kRows];
  for (int r = 0; r < kRows; r++) own[r] = problem.x.rows + (i + (r < count ? r : 0)) * d;
  sweep<C>(m, [&](int64_t j, auto lanes) {
    V square[kRows];
    for (int64_t k = 0; k < d; k++) {
      const V y = V::load(problem.y.columns + k * stride + j, lanes);
      for (int r = 0; r < kRows; r++) {
        const V away = y - V(own[r][k]);
        square[r] = fma(away, away, square[r]);
      }
    }
    for (int r = 0; r < count; r++)
      (problem.p == 1 ? sqrt(square[r]) : square[r]).store(costs + r * m + j, lanes);
  });
}

// f(i, costs of x_i) for this thread's rows.
template <typename C, typename F>
void for_rows(const Team& team, const Problem<C>& problem, C* costs, F f) {
  const int64_t end = team.end(problem.x.n);
  for (int64_t i = team.begin(problem.x.n); i < end; i += kRows) {
    const int count = (int)(end - i < kRows ? end - i : kRows);
    costs_of(problem, i, count, costs);
    for (int r = 0; r < count; r++) f(i + r, costs + r * problem.y.n);
  }
}

// e_j = exp((g_j - c_j) / eps - top), unnormalised; returns their sum.
template <typename C>
C exponentials(const C* costs, const C* g, int64_t m, double epsilon, C& top, C* e) {
  using V = Vec<C>;
  const V k2((C)(kLog2e / epsilon));
  V most((C)-INFINITY), sum;
  sweep<C>(m, [&](int64_t j, auto lanes) {
    const V z = V::load(g + j, lanes) - V::load(costs + j, lanes);
    most = max(most, z.or_else((C)-INFINITY, lanes));
    z.store(e + j, lanes);
  });
  top = most.largest();
  const V origin(top);
  sweep<C>(m, [&](int64_t j, auto lanes) {
    const V value = exp2((V::load(e + j, lanes) - origin) * k2).or_else(0, lanes);
    sum = sum + value;
    value.store(e + j, lanes);
  });
  return sum.sum();
}

// What one thread works in, and where it says how far it moved.
template <typename C>
struct Work {
  C *costs, *e;   // [kRows, m] and [m] for the larger cloud
  double* moved;  // [threads]
};

// f from g; the largest |change| / eps of any row goes to work.moved.
template <typename C>
void update(const Team& team, const Problem<C>& problem, const C* g, C* f, const Work<C>& work) {
  double moved = 0;
  for_rows(team, problem, work.costs, [&](int64_t i, const C* costs) {
    C top;
    const C sum = exponentials(costs, g, problem.y.n, problem.epsilon, top, work.e);
    const C value = (C)(-(double)top - problem.epsilon * log((double)sum / problem.y.n));
    const double change = fabs((double)value - (double)f[i]) / problem.epsilon;
    moved = change > moved ? change : moved;
    f[i] = value;
  });
  work.moved[team.thread] = moved;
}

// u_i = sum_j P(j | i) (C_ij - v_j)
template <typename C>
void conditional_mean(const Team& team, const Problem<C>& problem, const C* g, const C* v, C* u,
                      const Work<C>& work) {
  using V = Vec<C>;
  double moved = 0;
  for_rows(team, problem, work.costs, [&](int64_t i, const C* costs) {
    C top;
    const C sum = exponentials(costs, g, problem.y.n, problem.epsilon, top, work.e);
    V total;
    sweep<C>(problem.y.n, [&](int64_t j, auto lanes) {
      const V rest = V::load(costs + j, lanes) - V::load(v + j, lanes);
      total = fma(V::load(work.e + j, lanes), rest, total);
    });
    const C value = total.sum() / sum;
    const double change = fabs((double)value - (double)u[i]) / problem.epsilon;
    moved = change > moved ? change : moved;
    u[i] = value;
  });
  work.moved[team.thread] = moved;
}

// Whether no row of f moved by more than `tolerance` eps, or than the digits that f has; all
// threads get the same answer, once all are here.
template <typename C>
bool settled(const Team& team, const Problem<C>& problem, const C* f, double tolerance,
             const double* moved) {
  constexpr double kUnit = sizeof(C) == 4 ? 1.2e-7 : 2.2e-16;
  team.barrier();
  double size = 0, largest = 0;
  for (int64_t i = 0; i < problem.x.n; i++)
    size = fabs((double)f[i]) > size ? fabs((double)f[i]) : size;
  for (int t = 0; t < team.threads; t++) largest = moved[t] > largest ? moved[t] : largest;
  team.barrier();
  return largest <= tolerance + 4 * kUnit * size / problem.epsilon;
}

// f [n], g [m]; V is the mean of u [n].
template <typename C>
void solve(const Team& team, const Problem<C>& problem, int iterations, double tolerance, C* f,
           C* g, C* u, C* v, const Work<C>& work) {
  for (int64_t j = team.begin(problem.y.n); j < team.end(problem.y.n); j++) g[j] = v[j] = 0;
  for (int64_t i = team.begin(problem.x.n); i < team.end(problem.x.n); i++) f[i] = u[i] = 0;
  team.barrier();
  for (int k = -kDescent; k < iterations; k++) {
    Problem<C> now = problem;
    if (k < 0) now.epsilon = ldexp(problem.epsilon, -k);
    update(team, now, g, f, work);
    const bool done = settled(team, now, f, tolerance, work.moved);
    update(team, now.swapped(), f, g, work);
    team.barrier();
    if (done && k >= 0) break;
  }
  update(team, problem, g, f, work);
  conditional_mean(team, problem, g, v, u, work);
  team.barrier();
}

// u [n] and v [m] from u as solve() leaves it, and v = 0.
template <typename C>
void solve_adjoint(const Team& team, const Problem<C>& problem, int iterations, double tolerance,
                   const C* f, const C* g, C* u, C* v, const Work<C>& work) {
  for (int k = 0; k < iterations; k++) {
    conditional_mean(team, problem.swapped(), f, u, v, work);
    team.barrier();
    conditional_mean(team, problem, g, v, u, work);
    if (settled(team, problem, u, tolerance, work.moved)) break;
  }
}

// d_x [n, d] = scale sum_j P(j | i) (1 + (u_i + v_j - C_ij) / eps) dC_ij/dx_i
template <typename C>
void gradient(const Team& team, const Problem<C>& problem, const C* g, const C* u, const C* v,
              double scale, C* d_x, const Work<C>& work) {
  using V = Vec<C>;
  const int64_t m = problem.y.n, d = problem.d;
  const V inverse((C)(1 / problem.epsilon)), one(1), two(2);
  for_rows(team, problem, work.costs, [&](int64_t i, const C* costs) {
    C top;
    const C sum = exponentials(costs, g, m, problem.epsilon, top, work.e);
    const V own(u[i]);
    sweep<C>(m, [&](int64_t j, auto lanes) {
      const V c = V::load(costs + j, lanes);
      const V w = fma(own + V::load(v + j, lanes) - c, inverse, one);
      (V::load(work.e + j, lanes) * w).store(work.e + j, lanes);
    });
    for (int64_t j = 0; j < m && problem.p == 1; j++)
      work.e[j] = costs[j] > 0 ? work.e[j] / costs[j] : 0;
    const C factor = (C)(scale * problem.p / ((double)sum * problem.x.n));
    for (int64_t k = 0; k < d; k++) {
      const V x(problem.x.rows[i * d + k]);
      V total;
      sweep<C>(m, [&](int64_t j, auto lanes) {
        const V away = (x - V::load(problem.y.columns + k * problem.y.stride + j, lanes));
        total = fma(V::load(work.e + j, lanes), away.or_else(0, lanes), total);
      });
      d_x[i * d + k] = total.sum() * factor;
    }
  });
}

template <typename C>
class Workspace {
 public:
  Workspace(int64_t longest, int threads)
      : longest_(longest), memory_((kRows + 1) * longest * threads), moved_(threads) {}
  Work<C> of(int thread) const {
    C* mine = memory_ + (kRows + 1) * longest_ * thread;
    return {mine, mine + kRows * longest_, moved_};
  }

 private:
  const int64_t longest_;
  Scratch<C> memory_;
  Scratch<double> moved_;
};

template <typename C>
Cloud<C> cloud(const Points& points, int64_t first, int64_t last) {
  const C *rows = (const C*)points.rows, *columns = (const C*)points.columns;
  return {rows + first * points.d, columns + first, last - first, points.n};
}

template <typename C>
double one_pair(const Points& x, const Points& y, double epsilon, int p, int iterations,
                double tolerance, C* f, C* g, C* u, C* v, double d_value, C* d_x, C* d_y,
                int threads) {
  const Problem<C> problem{cloud<C>(x, 0, x.n), cloud<C>(y, 0, y.n), x.d, p, epsilon};
  const Workspace<C> workspace(x.n > y.n ? x.n : y.n, threads);
  parallel(threads, x.n * y.n, [&](Team team) {
    const Work<C> work = workspace.of(team.thread);
    if (d_x == nullptr) return solve(team, problem, iterations, tolerance, f, g, u, v, work);
    solve_adjoint(team, problem, iterations, tolerance, f, g, u, v, work);
    gradient(team, problem, g, u, v, d_value, d_x, work);
    gradient(team, problem.swapped(), f, v, u, d_value, d_y, work);
  });
  double total = 0;
  for (int64_t i = 0; i < x.n; i++) total += (double)u[i];
  return total / x.n;
}

template <typename C>
void all_pairs(const Points& points, const int64_t* starts, const int64_t* pairs, int64_t count,
               double epsilon, int p, int iterations, double tolerance, double* out, int threads) {
  int64_t longest = 0;
  for (int64_t q = 0; q < 2 * count; q++) {
    const int64_t size = starts[pairs[q] + 1] - starts[pairs[q]];
    longest = size > longest ? size : longest;
  }
  parallel(threads, count * longest * longest, [&](Team team) {
    const Workspace<C> workspace(longest, 1);
    const Scratch<C> memory(4 * longest);
    C *f = memory, *g = f + longest, *u = g + longest, *v = u + longest;
    for (int64_t q = team.thread; q < count; q += team.threads) {
      const int64_t *a = starts + pairs[2 * q], *b = starts + pairs[2 * q + 1];
      const Problem<C> problem{cloud<C>(points, a[0], a[1]), cloud<C>(points, b[0], b[1]), points.d,
                               p, epsilon};
      solve(Team{0, 1}, problem, iterations, tolerance, f, g, u, v, workspace.of(0));
      out[q] = 0;
      for (int64_t i = 0; i < problem.x.n; i++) out[q] += (double)u[i] / problem.x.n;
    }
  });
}

}  // namespace

double transport(const Points& x, const Points& y, double epsilon, int p, int iterations,
                 double tolerance, void* f, void* g, void* u, void* v, double d_value, void* d_x,
                 void* d_y, int threads) {
  if (x.dtype == kFloat64)
    return one_pair(x, y, epsilon, p, iterations, tolerance, (double*)f, (double*)g, (double*)u,
                    (double*)v, d_value, (double*)d_x, (double*)d_y, threads);
  return one_pair(x, y, epsilon, p, iterations, tolerance, (float*)f, (float*)g, (float*)u,
                  (float*)v, d_value, (float*)d_x, (float*)d_y, threads);
}

void transport_pairs(const Points& points, const int64_t* starts, const int64_t* pairs,
                     int64_t count, double epsilon, int p, int iterations, double tolerance,
                     double* out, int threads) {
  const auto run = points.dtype == kFloat64 ? all_pairs<double> : all_pairs<float>;
  run(points, starts, pairs, count, epsilon, p, iterations, tolerance, out, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
