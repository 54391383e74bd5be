"""From the kernels' row and column statistics to the loss: tiles, reductions and ranks."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import _distributed
from ._tiles import product, product_dtype

# (row_stats (4, n), col_stats (3, K) or None) of one tile of rows, as the kernels return them.
Part = tuple[Tensor, Tensor | None]


class Targets:
    """An assignment inside an operator: its fields, and its rows with the scores at hand."""

    def __init__(self, values, z, prototypes, scale, row, col):
        self.values, self.z, self.prototypes = values, z, prototypes
        self.scale, self.row, self.col = scale, row, col

    def tile(self, rows: slice) -> Any:
        """The targets of some rows, as kernels take them: values are there."""
        values = self.values
        values = product(self.z[rows], self.prototypes) if values is None else values[rows]
        row = None if self.row is None else self.row[rows]
        return SimpleNamespace(values=values, scale=self.scale, row=row, col=self.col)


def loss_factor(reduction: str, symmetric: bool, rows: int) -> float:
    """What the summed loss is multiplied by: 1/rows for "mean", a half when symmetric."""
    return (0.5 if symmetric else 1.0) / (rows if reduction == "mean" else 1)


def finish(
    parts: list[Part], like: Tensor, inv_temperature: float, symmetric: bool, reduction: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(loss, row_stats, col_stats, rows of all ranks) from the tiles' statistics."""
    row_stats = torch.cat([part[0] for part in parts], 1)
    col_stats = row_stats.new_empty(3, 0)
    count = _distributed.all_reduce(row_stats.new_full((), row_stats.shape[1]), "sum", group)
    if reduction == "none":
        return row_stats[3].to(product_dtype(like)), row_stats, col_stats, count
    total = row_stats[3].sum()
    if symmetric:
        col_stats = _columns([part[1] for part in parts], inv_temperature, group)
        _check_square(count, col_stats.shape[1])
        total = total + total - (row_stats[2] * _log_sum_exp(row_stats, inv_temperature)).sum()
    total = _distributed.all_reduce(total, "sum", group)
    if symmetric:
        total = total + (col_stats[2] * _log_sum_exp(col_stats, inv_temperature)).sum()
    loss = total * loss_factor(reduction, symmetric, 1)
    loss = loss / count if reduction == "mean" else loss
    return loss.to(product_dtype(like)), row_stats, col_stats, count


def upstream(
    d_loss: Tensor, count: Tensor, reduction: str, symmetric: bool, rows: int, group: str
) -> tuple[Tensor, float]:
    """(d_loss, factor): the gradient of a row's loss is factor * d_loss.

    Over ranks it is multiplied by their number, because DDP takes the mean.
    """
    if not group:
        return d_loss, loss_factor(reduction, symmetric, rows)
    factor = _distributed.world_size(group) * loss_factor(reduction, symmetric, 1)
    return ((d_loss / count).to(d_loss.dtype) if reduction == "mean" else d_loss), factor


def fake_outputs(like: Tensor, rows: int, columns: int, symmetric: bool, reduction: str) -> Any:
    """Shapes of what `finish` returns."""
    double = {"dtype": torch.float64}
    return (
        like.new_empty((rows,) if reduction == "none" else (), dtype=product_dtype(like)),
        like.new_empty((4, rows), **double),
        like.new_empty((3, columns if symmetric else 0), **double),
        like.new_empty((), **double),
    )


def _columns(parts: list[Tensor | None], inv_temperature: float, group: str) -> Tensor:
    """Column statistics of all tiles and ranks."""
    stats = torch.stack([part for part in parts if part is not None], 1)  # (3, tiles, K)
    shift = _distributed.all_reduce(stats[0].amax(0), "max", group)
    relative = (stats[0] - shift) * inv_temperature + stats[1]
    total = _distributed.all_reduce(relative.exp().sum(0), "sum", group)
    mass = _distributed.all_reduce(stats[2].sum(0), "sum", group)
    return torch.stack([shift, total.log(), mass])


def _log_sum_exp(stats: Tensor, inv_temperature: float) -> Tensor:
    return stats[0] * inv_temperature + stats[1]


def _check_square(count: Tensor, columns: int) -> None:
    if count.device.type == "cpu" and int(count) != columns:
        raise ValueError(
            f"symmetric=True needs square logits: {int(count)} rows over all ranks, {columns} columns"
        )
