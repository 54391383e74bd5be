"""From the kernels' row and column statistics to the loss: tiles, reductions and ranks."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _distributed
from ._tiles import is_one_tile, product, product_dtype

# (row_stats (4, n), col_stats (3, K) or None) of one tile of rows, as the kernels return them.
Part = tuple[Tensor, Tensor | None]


class Targets:
    """An assignment inside an operator: its fields, and its rows with the scores at hand.

    row: (N,) potentials, or (2, N) of a `weighted` assignment, with the logs of its weights.
    """

    def __init__(self, values, z, prototypes, scale, row, col, name):
        self.values, self.z, self.prototypes = values, z, prototypes
        self.scale, self.row, self.col, self.name = scale, row, col, name
        self._log_weights = None
        if row is not None and row.dim() == 2:
            self.row, self._log_weights = row.sum(0), row[1]

    def tile(self, rows: slice) -> Any:
        """The targets of some rows, as kernels take them: values are there."""
        if self.values is None and is_one_tile(self.z, self.prototypes):
            self.values, self.row = self._formed(slice(0, self.z.shape[0]))
        if self.values is not None and rows == slice(0, self.values.shape[0]):
            return self
        if self.values is None:
            values, row = self._formed(rows)
        else:
            values, row = self.values[rows], None if self.row is None else self.row[rows]
        return SimpleNamespace(values=values, scale=self.scale, row=row, col=self.col)

    def _formed(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """Scores of z and prototypes, and the potentials that make their rows sum to one.

        The assignment's own cancel the scores of another product, which may round otherwise where
        it has more rows or fewer: at scores of 1e4 the difference is no longer small.
        """
        values = product(self.z[rows], self.prototypes)
        kernels = backend.implementation(self.name, "sinkhorn")
        row = kernels.row_potential(values, self.scale, self.col)
        return values, row if self._log_weights is None else row + self._log_weights[rows]


def loss_factor(reduction: str, symmetric: bool, rows: int) -> float:
    """What the summed loss is multiplied by: 1/rows for "mean", a half when symmetric."""
    return (0.5 if symmetric else 1.0) / (rows if reduction == "mean" else 1)


def finish(
    parts: list[Part], like: Tensor, inv_temperature: float, symmetric: bool, reduction: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Loss, row_stats, col_stats if symmetric, and with a group the rows of all ranks."""
    row_stats = parts[0][0] if len(parts) == 1 else torch.cat([part[0] for part in parts], 1)
    col_stats = None
    rows = row_stats.shape[1]
    count = _distributed.all_reduce(row_stats.new_full((), rows), "sum", group) if group else None
    if reduction == "none":
        return row_stats[3].to(product_dtype(like)), row_stats, col_stats, count
    total = row_stats[3].sum()
    if symmetric:
        col_stats = _columns([part[1] for part in parts], inv_temperature, group)
        _check_square(rows if count is None else count, col_stats.shape[1])
        # sum_ik q l is in the rows' losses; the columns have it once more. Row and column masses
        # have one sum, so a common offset drops out before it could cancel digits.
        offset = col_stats[0, 0]
        total = total + total - _mass_log_sum_exp(row_stats, offset, inv_temperature)
    total = _distributed.all_reduce(total, "sum", group)
    if col_stats is not None:
        total = total + _mass_log_sum_exp(col_stats, offset, inv_temperature)
    loss = total * loss_factor(reduction, symmetric, 1)
    if reduction == "mean":
        loss = loss / (rows if count is None else count)
    return loss.to(product_dtype(like)), row_stats, col_stats, count


def upstream(
    d_loss: Tensor, count: Tensor | None, rows: int, group: str, reduction: str = "mean",
    symmetric: bool = False,
) -> tuple[Tensor, float]:  # fmt: skip
    """(d_loss, factor): the gradient of a row's loss is factor * d_loss.

    Over ranks it is multiplied by their number, because DDP takes the mean.
    """
    if not group:
        return d_loss, loss_factor(reduction, symmetric, rows)
    factor = _distributed.world_size(group) * loss_factor(reduction, symmetric, 1)
    if reduction == "mean":
        assert count is not None
        d_loss = (d_loss / count).to(d_loss.dtype)
    return d_loss, factor


def fake_outputs(
    like: Tensor, rows: int, columns: int, symmetric: bool, reduction: str, group: str
) -> Any:
    """Shapes of what `finish` returns; an operator has an empty tensor for None."""
    double = torch.float64
    return (
        like.new_empty((rows,) if reduction == "none" else (), dtype=product_dtype(like)),
        like.new_empty((4, rows), dtype=double),
        like.new_empty((3, columns), dtype=double) if symmetric else like.new_empty(0),
        like.new_empty((), dtype=double) if group else like.new_empty(0),
    )


def _columns(parts: list[Tensor | None], inv_temperature: float, group: str) -> Tensor:
    """Column statistics of all tiles and ranks."""
    stats = torch.stack([part for part in parts if part is not None], 1)  # (3, tiles, K)
    shift = _distributed.all_reduce(stats[0].amax(0), "max", group)
    relative = (stats[0] - shift) * inv_temperature + stats[1]
    total = _distributed.all_reduce(relative.exp().sum(0), "sum", group)
    mass = _distributed.all_reduce(stats[2].sum(0), "sum", group)
    return torch.stack([shift, total.log(), mass])


def _mass_log_sum_exp(stats: Tensor, offset: Tensor, inv_temperature: float) -> Tensor:
    """sum of mass * LSE, for logits less `offset`."""
    return (stats[2] * ((stats[0] - offset) * inv_temperature + stats[1])).sum()


def _check_square(count: Tensor | int, columns: int) -> None:
    on_gpu = isinstance(count, Tensor) and count.is_cuda  # reading it would synchronise
    if not on_gpu and int(count) != columns:
        raise ValueError(
            f"symmetric=True needs square logits, got {int(count)} rows over all ranks and "
            f"{columns} columns"
        )
