"""What losses ask of a queue of rows, and the weights of a batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check, _distributed
from ._contrastive_check import same_shape
from ._operator import operator
from ._tiles import joined, part, product, product_dtype, row_slices
from ._unit import unit_rows

# Queue rows compared at a time. On a CPU a tile stays in cache, a GPU wants few launches.
_COLUMNS = {"cpu": 1024}
_COLUMNS_ELSEWHERE = 4096


@torch.no_grad()
def nearest_in_queue(views: Sequence[Tensor], queue: Tensor) -> tuple[Tensor, ...]:
    """For every row of each view the row of `queue` nearest by direction; the first of equals.

    All views at once: fresh memory for a second product costs a quarter of it.
    """
    for z in views:
        _check.factors("z", z.to(queue.dtype), "queue", queue)
    unit = unit_rows(joined([*views])).to(queue.dtype)
    index = nearest_index(unit, queue, backend.select("cosine", unit.device, unit.dtype))
    return queue.index_select(0, index).split([len(z) for z in views])


def _fake_index(z: Tensor, queue: Tensor, name: str) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)


@operator(_fake_index)
def nearest_index(
    z: Tensor,  # (N, D)
    queue: Tensor,  # (K, D)
    name: str,
) -> Tensor:
    """(N,) argmax_k <z_i, q_k>, tile by tile: the (N, K) products are never stored."""
    kernels = backend.implementation(name, "cosine")
    columns = min(len(queue), _COLUMNS.get(z.device.type, _COLUMNS_ELSEWHERE))
    slices = row_slices(0, len(z), columns) if z.device.type == "cpu" else [slice(0, len(z))]
    return joined([_nearest(part(z, rows), queue, columns, kernels) for rows in slices])


def _nearest(z: Tensor, queue: Tensor, columns: int, kernels: Any) -> Tensor:
    buffer = None  # memory fresh for every tile is slow to get on a CPU
    if z.device.type == "cpu":
        buffer = z.new_empty((len(z), columns), dtype=product_dtype(z))
    tiles = []
    for rows in queue.split(columns):
        out = None if buffer is None else buffer[:, : len(rows)]
        tiles.append(_largest(product(z, rows, out), kernels))
    tops, at = map(torch.stack, zip(*tiles, strict=True))
    tile = tops.argmax(0)
    return at.gather(0, tile[None])[0] + tile * columns


def _largest(tile: Tensor, kernels: Any) -> tuple[Tensor, Tensor]:
    """The largest entry of each row and its column."""
    at = kernels.nearest(tile)
    return tile.gather(1, at[:, None])[:, 0], at


@torch.no_grad()
def mises_fisher_weights(z0: Tensor, z1: Tensor, sigma: float, group: str) -> Tensor:
    """(N,) 2 - N softmax_i(u0_i u1_i / sigma), N and the softmax over the rows of all ranks."""
    same_shape("z0", z0, "z1", z1)
    logits = (unit_rows(z0) * unit_rows(z1)).sum(1).double() / sigma
    total = _distributed.log_sum_exp(logits.logsumexp(0), group)
    count = _distributed.all_reduce(logits.new_full((), len(logits)), "sum", group)
    return (2 - count * (logits - total).exp()).to(product_dtype(z0))
