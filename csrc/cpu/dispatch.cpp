// Compiled without instruction-set flags: this code runs before the processor is known.
#include "cpu/dispatch.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <stdexcept>

namespace ssl_fast {
namespace {

struct Entry {
  const char* name;
  const Kernels* kernels;
  bool (*supported)();
};

// Narrowest first.
const Entry entries[] = {
    {"baseline", &baseline::kernels, [] { return true; }},
#ifdef SSL_FAST_HAS_AVX2
    {"avx2", &avx2::kernels,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
#ifdef SSL_FAST_HAS_AVX512
    {"avx512", &avx512::kernels,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
     }},
#endif
};

const Entry* widest() {
  const Entry* best = entries;
  for (const Entry& entry : entries)
    if (entry.supported()) best = &entry;
  return best;
}

const Entry* current = widest();

bool in_forked_child = false;
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });

}  // namespace

bool forked() { return in_forked_child; }

// A fresh large buffer costs more in page faults than in arithmetic; huge pages cut that to a
// third.
void advise_huge_pages(void* data, int64_t bytes, int64_t least) {
#if defined(MADV_HUGEPAGE)
  constexpr int64_t kPage = 4096;
  if (bytes < least) return;
  const uintptr_t begin = ((uintptr_t)data + kPage - 1) / kPage * kPage;
  const uintptr_t end = ((uintptr_t)data + bytes) / kPage * kPage;
  madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes, (void)least;
#endif
}

const Kernels& active() { return *current->kernels; }

std::string selected() { return current->name; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Entry& entry : entries)
    if (entry.supported()) names.push_back(entry.name);
  return names;
}

void select(const std::string& name) {
  std::string known;
  for (const Entry& entry : entries) {
    if (!entry.supported()) continue;
    if (entry.name == name) {
      current = &entry;
      return;
    }
    known += std::string(known.empty() ? "" : ", ") + entry.name;
  }
  throw std::invalid_argument("no instruction set '" + name + "' here; choose from " + known);
}

}  // namespace ssl_fast
