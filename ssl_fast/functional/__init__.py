"""The public functions: argument checks, autograd and distributed sums over the backends."""

from .assignment import Assignment
from .covariance import (
    covariance_penalty,
    cross_correlation_penalty,
    variance_hinge,
    vicreg,
)
from .cross_entropy import linear_soft_cross_entropy, soft_cross_entropy
from .sinkhorn import sinkhorn

__all__ = [
    "Assignment",
    "covariance_penalty",
    "cross_correlation_penalty",
    "linear_soft_cross_entropy",
    "sinkhorn",
    "soft_cross_entropy",
    "variance_hinge",
    "vicreg",
]
