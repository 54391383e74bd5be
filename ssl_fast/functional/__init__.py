"""The public functions: argument checks, autograd and distributed sums over the backends."""

from .assignment import Assignment
from .cross_entropy import linear_soft_cross_entropy, soft_cross_entropy
from .sinkhorn import sinkhorn

__all__ = ["Assignment", "linear_soft_cross_entropy", "sinkhorn", "soft_cross_entropy"]
