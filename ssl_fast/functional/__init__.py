"""The public functions: argument checks, autograd and distributed sums over the backends."""

from .assignment import Assignment
from .cross_entropy import linear_soft_cross_entropy, soft_cross_entropy
from .sinkhorn import sinkhorn
from .uniformity import (
    alignment,
    gaussian_uniformity,
    prototype_alignment,
    prototype_correlation,
    prototype_uniformity,
)

__all__ = [
    "Assignment",
    "alignment",
    "gaussian_uniformity",
    "linear_soft_cross_entropy",
    "prototype_alignment",
    "prototype_correlation",
    "prototype_uniformity",
    "sinkhorn",
    "soft_cross_entropy",
]
