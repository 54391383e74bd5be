// Parallel regions: few and long. A forked child runs alone, since OpenMP's pool does not survive.
#pragma once
#include <stdint.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace ssl_fast {
bool forked();  // dispatch.cpp
}

namespace ssl_fast::SSL_FAST_ISA {

// Fewer elements than this are done sooner than a second thread wakes up.
constexpr int64_t kSerialElements = 16384;

struct Team {
  int thread, threads;
  // This thread's share of n, contiguous.
  int64_t begin(int64_t n) const { return n * thread / threads; }
  int64_t end(int64_t n) const { return n * (thread + 1) / threads; }
  void barrier() const {
#if defined(_OPENMP)
    if (threads > 1) {
#pragma omp barrier
    }
#endif
  }
};

template <typename F>
inline void parallel(int threads, int64_t elements, F f) {
#if defined(_OPENMP)
  if (threads > 1 && elements >= kSerialElements && !forked()) {
#pragma omp parallel num_threads(threads)
    f(Team{omp_get_thread_num(), omp_get_num_threads()});
    return;
  }
#endif
  (void)threads, (void)elements;
  f(Team{0, 1});
}

}  // namespace ssl_fast::SSL_FAST_ISA
