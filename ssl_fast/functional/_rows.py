"""What losses ask of a queue of rows, and the prototypes and weights of a batch."""

import torch
from torch import Tensor

from . import _check, _distributed
from ._contrastive_check import same_shape
from ._norms import normalized
from ._tiles import product, product_dtype
from ._unit import unit_rows

# Queue rows compared at a time: a tile of 256 queries stays in cache.
_TILE = 4096


@torch.no_grad()
def nearest_rows(z: Tensor, queue: Tensor) -> Tensor:
    """(N, D): for every row of z the row of `queue` with the largest product; the first of equals.

    Tile by tile: the (N, K) products are never stored.
    """
    _check.factors("z", z.to(queue.dtype), "queue", queue)
    best = index = None
    for first in range(0, len(queue), _TILE):
        top, at = product(z.to(queue.dtype), queue[first : first + _TILE]).max(1)
        if best is None or index is None:
            best, index = top, at
        else:
            index = torch.where(top > best, at + first, index)
            best = torch.maximum(top, best)
    assert index is not None
    return queue[index]


@torch.no_grad()
def mises_fisher_weights(z0: Tensor, z1: Tensor, sigma: float, group: str) -> Tensor:
    """(N,) 2 - N softmax_i(u0_i u1_i / sigma), N and the softmax over the rows of all ranks."""
    same_shape("z0", z0, "z1", z1)
    logits = (unit_rows(z0) * unit_rows(z1)).sum(1).double() / sigma
    total = _distributed.log_sum_exp(logits.logsumexp(0), group)
    count = _distributed.all_reduce(logits.new_full((), len(logits)), "sum", group)
    return (2 - count * (logits - total).exp()).to(product_dtype(z0))


def cluster_means(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """(C, D) normalised means of the unit rows of each cluster in the batch, and the rows' C."""
    clusters, own = index.unique(return_inverse=True)
    unit = normalized(x)
    members = own == torch.arange(len(clusters), device=own.device)[:, None]
    # The direction of a mean is that of its sum; a product adds in a fixed order.
    return normalized(members.to(unit.dtype) @ unit), own


# As torch.compiler.disable marks them, which imports the compiler for a second.
cluster_means._torchdynamo_disable = True  # type: ignore[attr-defined]
cluster_means._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
    "the number of clusters in a batch decides the shapes"
)
