"""Many small covariances in one batch of products, as positions of a map have: VICRegL's matches.

Block by block, as `_covariance_products` takes large ones, the calls would cost more than the sums.
"""

from typing import Any

import torch
from torch import Tensor

from ._covariance_products import CANCELS, CHUNK_BYTES, is_dual, scratch
from ._tiles import product_dtype


def covariances(
    kernels: Any, z: Tensor, blocks: int, group: str, stats: Tensor, kept: Tensor | None
) -> Tensor | None:
    """Sum over blocks of what `covariance` gives; None where they are large, or a Gram too coarse.

    z (N, B D); fills stats (2, B D) and kept (B, N, N or D).
    """
    if not _are_small(z, blocks, group):
        return None
    rows, columns = z.shape
    centred = scratch(z, rows, columns, product_dtype(z), 0)
    kernels.moments(z, stats, centred, None)
    each = _by_block(centred, blocks)
    if is_dual(rows, columns // blocks):
        grams = torch.bmm(each, each.mT, out=kept)
        if _coarse(grams, stats):
            return None
        total = grams.double().square().sum() - stats[1].square().sum()
    else:
        products = torch.bmm(each.mT, each)
        products.diagonal(dim1=1, dim2=2).zero_()
        total = products.double().square().sum()
        if kept is not None:
            torch.bmm(each, products, out=kept)
    return total / (rows - 1.0) ** 2


def push(
    kernels: Any, z: Tensor, group: str, kept: Tensor, stats: Tensor, dual: bool
) -> Tensor | None:
    """(N, B D), the covariances' part of the gradient; None as in `covariances`."""
    if not _are_small(z, len(kept), group):
        return None
    if dual:
        if _coarse(kept, stats):
            return None
        centred = scratch(z, len(z), z.shape[1], kept.dtype, 0)
        kernels.center(z, stats[0], None, centred)
        kept = torch.bmm(kept, _by_block(centred, len(kept)))
    return kept.transpose(0, 1).reshape(z.shape)


def _are_small(z: Tensor, blocks: int, group: str) -> bool:
    """Whether the centred columns of all blocks fit the cache together; on a CPU."""
    size = z.numel() * product_dtype(z).itemsize
    return blocks > 1 and not group and not z.is_cuda and size <= CHUNK_BYTES


def _by_block(z: Tensor, blocks: int) -> Tensor:
    """(B, N, D) of (N, B D), in place."""
    return z.view(len(z), blocks, -1).transpose(0, 1)


def _coarse(grams: Tensor, stats: Tensor) -> bool:
    """As `cancels`, for any block."""
    squares = stats[1].view(len(grams), -1).square().sum(1)
    fine = squares <= CANCELS * grams.double().square().sum((1, 2))
    return grams.dtype != torch.float64 and not bool(fine.all())
