"""The public functions: argument checks, autograd and distributed sums over the backends."""

from .assignment import Assignment
from .contrastive import decoupled_nt_xent, info_nce, multi_view_nt_xent, nt_xent, proto_nce
from .covariance import covariance_penalty, cross_correlation_penalty, variance_hinge, vicreg
from .cross_entropy import linear_soft_cross_entropy, soft_cross_entropy
from .multi_crop import multi_crop_cross_entropy
from .prior import msn, power_law_prior, prior_kl
from .sinkhorn import sinkhorn
from .transport import sinkhorn_distance
from .uniformity import (
    alignment,
    gaussian_uniformity,
    prototype_alignment,
    prototype_correlation,
    prototype_uniformity,
)
from .wasserstein import nuclear_norm, wasserstein_uniformity

__all__ = [
    "Assignment",
    "alignment",
    "covariance_penalty",
    "cross_correlation_penalty",
    "decoupled_nt_xent",
    "gaussian_uniformity",
    "info_nce",
    "linear_soft_cross_entropy",
    "msn",
    "multi_crop_cross_entropy",
    "multi_view_nt_xent",
    "nt_xent",
    "nuclear_norm",
    "power_law_prior",
    "prior_kl",
    "proto_nce",
    "prototype_alignment",
    "prototype_correlation",
    "prototype_uniformity",
    "sinkhorn",
    "sinkhorn_distance",
    "soft_cross_entropy",
    "variance_hinge",
    "vicreg",
    "wasserstein_uniformity",
]
