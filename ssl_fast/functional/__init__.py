"""The public functions: argument checks, autograd and distributed sums over the backends."""

from .assignment import Assignment
from .cross_entropy import linear_soft_cross_entropy, soft_cross_entropy
from .multi_crop import multi_crop_cross_entropy
from .prior import msn, power_law_prior, prior_kl
from .sinkhorn import sinkhorn

__all__ = [
    "Assignment",
    "linear_soft_cross_entropy",
    "msn",
    "multi_crop_cross_entropy",
    "power_law_prior",
    "prior_kl",
    "sinkhorn",
    "soft_cross_entropy",
]
