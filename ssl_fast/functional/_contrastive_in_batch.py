"""InfoNCE within a batch by whole rows of logits: three products, each tile formed once.

    l = u_q u_k^T / T,   loss_i = log sum_j exp(l_ij) - l_ii,   dloss_i / dl_ij = P_ij - [i = j]

A tile of whole rows becomes its gradient in place, so both operands' gradients are formed in the
forward visit and wait for the upstream number. Nothing of size N x N outlives a tile.
"""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from ._autograd import Scaled
from ._operator import fake_loss, operator
from ._stats import loss_factor
from ._tiles import MIN_ROWS, TILE_BYTES, row_slices
from ._unit import TwoRows


def by_whole_rows(query: Tensor) -> bool:
    """Whether a tile of whole rows takes no more bytes than inputs and gradients, or is small."""
    if query.is_cuda:
        return False
    rows, width = query.shape
    return 4 * min(rows, MIN_ROWS) * rows <= max(TILE_BYTES, 4 * 4 * rows * width)


def _fake_forward(query, key, inv_temperature, normalize, reduction, want_query, want_key, name):
    return fake_loss(query, (query, want_query), (key, want_key))


@operator(_fake_forward)
def in_batch_forward(
    query: Tensor,  # (N, D)
    key: Tensor,  # (N, D)
    inv_temperature: float,
    normalize: bool,
    reduction: str,
    want_query: bool,
    want_key: bool,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, d_query, d_key, in `product_dtype`; None for what is not wanted."""
    kernels = backend.implementation(name, "contrastive")
    both = TwoRows(query, key, normalize, name)
    q, k = both.rows
    factor, store = loss_factor(reduction, False, len(q)), want_query or want_key
    numbers = inv_temperature, factor * inv_temperature, store
    slices = row_slices(0, len(q), len(k))
    if len(slices) == 1:  # without slices, a tenth faster at 64 x 64
        tile = torch.mm(q, k.t())
        total = kernels.in_batch(tile, 0, *numbers)
        d_q = torch.mm(tile, k) if want_query else None
        d_k = torch.mm(tile.t(), q) if want_key else None
    else:
        d_q = torch.empty_like(q) if want_query else None
        d_k = torch.zeros_like(k) if want_key else None
        total, buffer = 0.0, q.new_empty(max(s.stop - s.start for s in slices), len(k))
        for rows in slices:
            tile = torch.mm(q[rows], k.t(), out=buffer[: rows.stop - rows.start])
            total += kernels.in_batch(tile, rows.start, *numbers)
            if d_q is not None:
                torch.mm(tile, k, out=d_q[rows])
            if d_k is not None:
                d_k.addmm_(tile.t(), q[rows])
    outputs: Any = q.new_full((), total * factor), *both.backward(d_q, d_k)
    return outputs


class InBatch(Scaled):
    """(loss, d_query, d_key) at an upstream gradient of 1; only the loss is for the caller."""

    run = in_batch_forward
