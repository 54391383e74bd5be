"""The public functions: argument checks, autograd and distributed sums over the backends."""

from .assignment import Assignment
from .contrastive import (
    decoupled_nt_xent,
    info_nce,
    multi_view_nt_xent,
    nt_xent,
    proto_nce,
)
from .cross_entropy import linear_soft_cross_entropy, soft_cross_entropy
from .sinkhorn import sinkhorn

__all__ = [
    "Assignment",
    "decoupled_nt_xent",
    "info_nce",
    "linear_soft_cross_entropy",
    "multi_view_nt_xent",
    "nt_xent",
    "proto_nce",
    "sinkhorn",
    "soft_cross_entropy",
]
