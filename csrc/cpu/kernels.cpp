// Fills the table of one instruction set; compiled once for each, with SSL_FAST_ISA as its
// namespace.
#include "cpu/ops.h"

namespace ssl_fast::SSL_FAST_ISA {
const Kernels kernels{sinkhorn,      sinkhorn_step,         row_potential,
                      evaluate,      cross_entropy_forward, cross_entropy_backward,
                      prior_forward, prior_backward,        crops_forward,
                      crops_backward};
}  // namespace ssl_fast::SSL_FAST_ISA
