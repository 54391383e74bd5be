// Fills the table of one instruction set; compiled once for each, with SSL_FAST_ISA as its
// namespace.
#include "cpu/ops.h"

namespace ssl_fast::SSL_FAST_ISA {
// In the order of the struct, one a line.
const Kernels kernels{
    sinkhorn,
    sinkhorn_step,
    row_potential,
    evaluate,
    cross_entropy_forward,
    cross_entropy_backward,
    prior_forward,
    prior_backward,
    column_moments,
    center,
    inner,
    squared_distance,
    triangle,
    covariance_gradient,
    correlation_tile,
    correlation_dots,
    correlation_gradient,
    contrastive_rows_forward,
    contrastive_rows_backward,
    contrastive_pairs_forward,
    contrastive_pairs_backward,
    pair_distances,
    pair_weights,
    pair_close,
    distance_power,
    distance_power_backward,
    correlation,
    correlation_backward,
    spectral_weights,
    column_sums,
    subtract_mean,
    crops_forward,
    crops_backward,
    unit_rows_forward,
    unit_rows_backward,
    transport,
    transport_pairs,
    cosine_forward,
    cosine_backward,
    nearest,
};
}  // namespace ssl_fast::SSL_FAST_ISA
