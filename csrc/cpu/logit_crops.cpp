// Cross-entropy of several students, views of the same samples, against several teachers:
//
//   loss_si = A_si LSE_k(l_sik) - sum_k Q_sik l_sik,   Q_s = sum of the q_t, t != s where skip_same
//   dloss_si / dl_sik = A_si P_sik - Q_sik,            A_si = sum_k Q_sik
//
// A sample's targets are evaluated once and serve all students; no tile of them is stored.
// Bytes: forward reads students and teachers once, backward too and writes the gradients.
// Caron et al. 2021 (DINO), algorithm 1.
#include "cpu/cross_entropy_rows.h"
#include "cpu/parallel.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

// A sample's targets: those of each teacher, and their sums for the students.
template <typename C>
class Sums {
 public:
  Sums(const Teachers& teachers, int64_t columns)
      : teachers_(teachers), n_(columns), q_(teachers.count * columns), sum_(columns) {}

  void read(int64_t i, const Matrix& like) {
    for (int64_t t = 0; t < teachers_.count; t++) {
      C* q = q_ + t * n_;
      Reader<C>(like, teachers_.targets[t]).with_target(i, [&](auto target) {
        sweep<C>(n_, [&](int64_t k, auto lanes) { target(k, lanes).store(q + k, lanes); });
      });
    }
    summed_ = false;
  }

  // Q [K] of a student; good until the next call.
  const C* of(int64_t student) {
    const int64_t count = teachers_.count, own = teachers_.skip_same ? student : count;
    if (count - (own < count) == 1) return q_ + (own == 0) * n_;
    if (own >= count && summed_) return sum_;
    for (int64_t k = 0; k < n_; k++) sum_[k] = 0;
    for (int64_t t = 0; t < count; t++)
      if (t != own) add(q_ + t * n_);
    summed_ = own >= count;
    return sum_;
  }

 private:
  void add(const C* q) {
    using V = Vec<C>;
    sweep<C>(n_, [&](int64_t k, auto lanes) {
      (V::load(sum_ + k, lanes) + V::load(q + k, lanes)).store(sum_ + k, lanes);
    });
  }
  const Teachers& teachers_;
  const int64_t n_;
  Scratch<C> q_, sum_;
  bool summed_ = false;
};

// f(student, sample, Q) for all of them.
template <typename C, typename F>
void visit(const Matrix* students, int64_t views, const Teachers& teachers, Team team, F f) {
  Sums<C> targets(teachers, students->cols);
  for (int64_t i = team.begin(students->rows); i < team.end(students->rows); i++) {
    targets.read(i, *students);
    for (int64_t s = 0; s < views; s++) f(s, i, Given<C>{targets.of(s)});
  }
}

Stats stats_of(const ViewStats& stats, int64_t view) {
  return {stats.row + view * stats.view_stride, stats.row_stride, nullptr};
}

template <typename C>
void forward(const Matrix* students, int64_t views, double inv_temperature,
             const Teachers& teachers, const ViewStats& stats, int threads) {
  const int64_t columns = students->cols;
  parallel(threads, views * students->rows * columns, [&](Team team) {
    Scratch<C> scratch(converts<C>(*students) ? columns : 0);
    visit<C>(students, views, teachers, team, [&](int64_t s, int64_t i, Given<C> target) {
      const C* l = read_row<C>(students[s], i, scratch);
      row_forward(l, columns, target, inv_temperature, largest(l, columns), stats_of(stats, s), i);
    });
  });
}

template <typename C>
void backward(const Matrix* students, int64_t views, double inv_temperature,
              const Teachers& teachers, const ViewStats& stats, const C* d_loss, double factor,
              const Matrix* out, int threads) {
  const int64_t columns = students->cols;
  const C g = (C)((double)*d_loss * factor * inv_temperature);
  for (int64_t s = 0; s < views; s++)
    advise_huge_pages(out[s].data,
                      converts<C>(out[s]) ? 0 : out[s].rows * out[s].stride * sizeof(C));
  parallel(threads, views * students->rows * columns, [&](Team team) {
    const int64_t extra = converts<C>(*students) ? columns : 0;
    Scratch<C> scratch(extra), d_scratch(extra);
    visit<C>(students, views, teachers, team, [&](int64_t s, int64_t i, Given<C> target) {
      const C* l = read_row<C>(students[s], i, scratch);
      C* d_l = write_row<C>(out[s], i, d_scratch);
      const double* row = stats.row + s * stats.view_stride + i;
      const double mine[] = {row[0], row[stats.row_stride], row[2 * stats.row_stride]};
      row_backward(l, columns, target, inv_temperature, mine, g, d_l);
      finish_row<C>(out[s], i, d_scratch);
    });
  });
}

}  // namespace

void logit_crops_forward(const Matrix* students, int64_t views, double inv_temperature,
                         const Teachers& teachers, const ViewStats& stats, int threads) {
  const auto kernel = students->dtype == kFloat64 ? forward<double> : forward<float>;
  kernel(students, views, inv_temperature, teachers, stats, threads);
}

void logit_crops_backward(const Matrix* students, int64_t views, double inv_temperature,
                          const Teachers& teachers, const ViewStats& stats, const void* d_loss,
                          double factor, const Matrix* out, int threads) {
  if (students->dtype == kFloat64)
    backward<double>(students, views, inv_temperature, teachers, stats, (const double*)d_loss,
                     factor, out, threads);
  else
    backward<float>(students, views, inv_temperature, teachers, stats, (const float*)d_loss, factor,
                    out, threads);
}

}  // namespace ssl_fast::SSL_FAST_ISA
