// Fills the table of one instruction set; compiled once for each, with SSL_FAST_ISA as its
// namespace.
#include "cpu/kernels.h"

namespace ssl_fast::SSL_FAST_ISA { const Kernels kernels{}; }  // namespace ssl_fast::SSL_FAST_ISA
