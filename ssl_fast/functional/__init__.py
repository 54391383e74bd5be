"""The public functions: argument checks, autograd and distributed sums over the backends."""

from .assignment import Assignment
from .cross_entropy import linear_soft_cross_entropy, soft_cross_entropy
from .sinkhorn import sinkhorn
from .wasserstein import nuclear_norm, wasserstein_uniformity

__all__ = [
    "Assignment",
    "linear_soft_cross_entropy",
    "nuclear_norm",
    "sinkhorn",
    "soft_cross_entropy",
    "wasserstein_uniformity",
]
