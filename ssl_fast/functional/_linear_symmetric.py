"""Symmetric cross-entropy from embeddings: the loss, and its gradients in the same pass.

Columns are complete once every row has been read, so that d_logits needs the tiles twice: those
that fit into the bounded cache are formed once, the others again. One tile alone becomes its
gradient at once. The result is one number, so that backward multiplies the gradients by its own.
"""

from typing import Any

from torch import Tensor

from .. import backend
from ._autograd import Scaled
from ._linear_cross_entropy import Products, kept_of_products
from ._operator import fake_loss, operator
from ._stats import Targets, finish, loss_factor, upstream
from ._tiles import Tiles, is_one_tile, product


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
    targets = Targets(values, z, prototypes, scale, row, col, name)
    return symmetric_loss(
        x, weight, inv_temperature, targets, reduction, need_x, need_weight, group
    )


def symmetric_loss(
    x: Tensor,
    weight: Tensor,
    inv_temperature: float,
    targets: Targets,
    reduction: str,
    need_x: bool,
    need_weight: bool,
    group: str,
    share: float = 1.0,
) -> Any:
    """(loss, d_x, d_weight) times `share`, in `product_dtype`; None for what is not needed."""
    kernels = backend.implementation(targets.name, "cross_entropy")
    factor = share * loss_factor(reduction, True, x.shape[0])
    if not group and (need_x or need_weight) and is_one_tile(x, weight):
        whole, logits = slice(0, x.shape[0]), product(x, weight)
        loss = kernels.at_once(logits, inv_temperature, targets.tile(whole), factor)
        sums = Products(x, weight, need_x, need_weight, wide=True)
        sums.add(whole, logits)
        return loss, *sums.result()
    tiles = Tiles(x, weight, kept_of_products(x, weight, need_x or need_weight))
    parts = [
        kernels.forward(logits, inv_temperature, targets.tile(rows), True, factor)
        for rows, logits in tiles
    ]
    loss, row_stats, col_stats, count = _loss(parts, x, inv_temperature, reduction, share, group)
    if not (need_x or need_weight):
        return loss, None, None
    d_loss = None
    if group:
        d_loss, factor = upstream(loss.new_ones(()), count, x.shape[0], group, reduction, True)
        factor *= share
    sums = Products(x, weight, need_x, need_weight, d_loss=d_loss, factor=factor, wide=True)
    for rows, logits in tiles:
        target, part = targets.tile(rows), row_stats[:, rows]
        kernels.backward(logits, inv_temperature, target, part, col_stats, None, 1.0, logits)
        sums.add(rows, logits)
    return loss, *sums.result()


class LinearSymmetric(Scaled):
    """(loss, d_x, d_weight)."""

    run = linear_symmetric


def _loss(
    parts: list, x: Tensor, inv_temperature: float, reduction: str, share: float, group: str
) -> Any:
    """As `finish`, times `share`; the loss of one tile alone is the kernel's."""
    if len(parts) == 1 and not group:
        return *parts[0], None
    loss, *rest = finish([part[1:] for part in parts], x, inv_temperature, True, reduction, group)
    return loss * share, *rest
