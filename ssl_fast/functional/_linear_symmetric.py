"""Symmetric cross-entropy from embeddings: the loss, and its gradients in the same pass.

Columns are complete once every row has been read, so that d_logits needs the tiles twice: those
that fit into the bounded cache are formed once, the others again. The result is one number, so
that backward multiplies the gradients by its own.
"""

from typing import Any

from torch import Tensor

from .. import backend
from ._autograd import Scaled
from ._linear_cross_entropy import Products, kept_of_products
from ._operator import fake_loss, operator
from ._stats import Targets, finish, loss_factor, upstream
from ._tiles import Tiles


def _fake(x, weight, inv_temperature, values, z, prototypes, scale, row, col, reduction,
          need_x, need_weight, name, group):  # fmt: skip
    return fake_loss(x, (x, need_x), (weight, need_weight))


@operator(_fake)
def linear_symmetric(
    x: Tensor,  # (N, D)
    weight: Tensor,  # (K, D)
    inv_temperature: float,
    values: Tensor | None,
    z: Tensor | None,
    prototypes: Tensor | None,
    scale: float | None,
    row: Tensor | None,
    col: Tensor | None,
    reduction: str,
    need_x: bool,
    need_weight: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, d_x, d_weight) in `product_dtype`; None for what is not needed."""
    kernels = backend.implementation(name, "cross_entropy")
    targets = Targets(values, z, prototypes, scale, row, col, name)
    tiles = Tiles(x, weight, kept_of_products(x, weight, need_x or need_weight))
    factor = loss_factor(reduction, True, x.shape[0])
    parts = [
        kernels.forward(logits, inv_temperature, targets.tile(rows), True, factor)
        for rows, logits in tiles
    ]
    loss, row_stats, col_stats, count = _loss(parts, x, inv_temperature, reduction, group)
    outputs: Any = loss, None, None
    if not (need_x or need_weight):
        return outputs
    d_loss = None
    if group:
        d_loss, factor = upstream(loss.new_ones(()), count, x.shape[0], group, reduction, True)
    sums = Products(x, weight, need_x, need_weight, d_loss=d_loss, factor=factor, wide=True)
    for rows, logits in tiles:
        target, part = targets.tile(rows), row_stats[:, rows]
        kernels.backward(logits, inv_temperature, target, part, col_stats, None, 1.0, logits)
        sums.add(rows, logits)
    outputs = loss, *sums.result()
    return outputs


class LinearSymmetric(Scaled):
    """(loss, d_x, d_weight)."""

    run = linear_symmetric


def _loss(parts: list, x: Tensor, inv_temperature: float, reduction: str, group: str) -> Any:
    """As `finish`; the loss of one tile alone is the kernel's."""
    if len(parts) == 1 and not group:
        return *parts[0], None
    return finish([part[1:] for part in parts], x, inv_temperature, True, reduction, group)
