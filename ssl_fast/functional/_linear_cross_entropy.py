"""The operators behind `linear_soft_cross_entropy`: products by tiles, kernels on the tiles.

    logits = x @ weight.T;  d_x = d_logits @ weight;  d_weight = d_logits.T @ x

Forward turns the tiles that stay in memory into d_logits at once, for d_loss = 1: backward has only
the two products left there. It recomputes the other tiles. A backend that forms tiles on its own
(Triton) offers `linear_forward` and `linear_backward` and keeps nothing; it alone comes here for
the symmetric form, which `_linear_symmetric` has for the others.
"""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from ._operator import operator
from ._stats import Targets, fake_outputs, finish
from ._tiles import (
    Tiles,
    kept_rows,
    nbytes,
    product,
    product_dtype,
    row_slices,
    scaled_product,
    times,
)


def _fake_forward(x, weight, inv_temperature, values, z, prototypes, scale, row, col,
                  symmetric, reduction, want_grad, name, group):  # fmt: skip
    rows, columns = x.shape[0], weight.shape[0]
    kept = x.new_empty((kept_of_products(x, weight, want_grad), columns), dtype=product_dtype(x))
    return (*fake_outputs(x, rows, columns, symmetric, reduction, group), kept)


@operator(_fake_forward)
def linear_cross_entropy_forward(
    x: Tensor,  # (N, D)
    weight: Tensor,  # (K, D)
    inv_temperature: float,
    values: Tensor | None,
    z: Tensor | None,
    prototypes: Tensor | None,
    scale: float | None,
    row: Tensor | None,
    col: Tensor | None,
    symmetric: bool,
    reduction: str,
    want_grad: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `cross_entropy_forward`, and d_logits of the kept rows."""
    kernels = backend.implementation(name, "cross_entropy")
    targets = Targets(values, z, prototypes, scale, row, col, name)
    if hasattr(kernels, "linear_forward"):
        part = kernels.linear_forward(x, weight, inv_temperature, targets, symmetric, 1.0)[1:]
        outputs: Any = finish([part], x, inv_temperature, symmetric, reduction, group)
        return *outputs, x.new_empty((0, weight.shape[0]), dtype=product_dtype(x))
    tiles = Tiles(x, weight, kept_of_products(x, weight, want_grad))
    parts = []
    for rows, logits in tiles:
        target = targets.tile(rows)
        part = kernels.forward(logits, inv_temperature, target, False, 1.0)[1:]
        parts.append(part)
        if tiles.keeps(rows):
            kernels.backward(logits, inv_temperature, target, part[0], None, None, 1.0, logits)
    outputs = finish(parts, x, inv_temperature, symmetric, reduction, group)
    return *outputs, tiles.cache


def _fake_backward(x, weight, *rest: Any):
    need_x, need_weight = rest[-3:-1]
    d_x = torch.empty_like(x) if need_x else x.new_empty(0)
    return d_x, torch.empty_like(weight) if need_weight else x.new_empty(0)


@operator(_fake_backward)
def linear_cross_entropy_backward(
    x: Tensor,  # (N, D)
    weight: Tensor,  # (K, D)
    inv_temperature: float,
    values: Tensor | None,
    z: Tensor | None,
    prototypes: Tensor | None,
    scale: float | None,
    row: Tensor | None,
    col: Tensor | None,
    row_stats: Tensor,  # (4, N)
    col_stats: Tensor | None,  # (3, K), nothing unless symmetric
    cache: Tensor,  # (kept, K)
    d_loss: Tensor,  # 0-d, or (N,)
    factor: float,
    need_x: bool,
    need_weight: bool,
    name: str,
) -> tuple[Tensor, Tensor]:
    """(d_x, d_weight); None for what is not needed."""
    kernels = backend.implementation(name, "cross_entropy")
    targets = Targets(values, z, prototypes, scale, row, col, name)
    columns = col_stats if col_stats is not None and col_stats.numel() else None
    if hasattr(kernels, "linear_backward"):
        return kernels.linear_backward(
            x, weight, inv_temperature, targets, row_stats, columns, d_loss, factor,
            need_x, need_weight,
        )  # fmt: skip
    sums = Products(x, weight, need_x, need_weight, d_loss=d_loss, factor=factor)
    kept = cache.shape[0]
    if kept:
        sums.add(slice(0, kept), cache)
    for rows in row_slices(kept, x.shape[0], weight.shape[0]):
        logits = product(x[rows], weight)
        target, part = targets.tile(rows), row_stats[:, rows]
        sums.add(rows, kernels.backward(
            logits, inv_temperature, target, part, columns, None, 1.0, logits
        ))  # fmt: skip
    return sums.result()


class Products:
    """d_x = g * d_logits @ weight and d_weight = d_logits.T @ (g * x), summed over tiles of rows.

    g = factor * d_loss. A number goes into the products themselves; reading it costs nothing on a
    CPU, and elsewhere, as one g a row does, it multiplies the narrow factor. Results are in the
    inputs' types, or in the products' where `wide`.
    """

    def __init__(self, x, weight, need_x, need_weight, *, d_loss=None, factor=1.0, wide=False):
        self.x, self.weight = x, weight
        self.number, self.rows = factor, None
        if d_loss is not None and (d_loss.dim() or d_loss.is_cuda):
            self.number, self.rows = 1.0, (d_loss * factor).expand(x.shape[0])[:, None]
        elif d_loss is not None:
            self.number *= float(d_loss)
        self.dtype = product_dtype(x) if wide else weight.dtype
        self.d_x = torch.empty_like(x, dtype=self.dtype) if need_x else None
        self.d_weight = torch.empty_like(weight, dtype=product_dtype(x)) if need_weight else None

    def add(self, rows: slice, d_logits: Tensor) -> None:
        g = None if self.rows is None else self.rows[rows]
        if self.d_x is not None:
            times(d_logits, self.weight, self.number, g, self.d_x[rows])
        if self.d_weight is not None:
            x = self.x[rows].to(d_logits.dtype)
            x = x if g is None else x * g
            if rows.start == 0:
                scaled_product(d_logits.t(), x, self.number, self.d_weight)
            else:
                self.d_weight.addmm_(d_logits.t(), x, alpha=self.number)

    def result(self) -> Any:  # (d_x, d_weight), either may be None
        d_weight = self.d_weight
        return self.d_x, None if d_weight is None else d_weight.to(self.dtype)


def kept_of_products(x: Tensor, weight: Tensor, want_grad: bool) -> int:
    """Rows of d_logits kept from forward to backward: the bytes of inputs and gradients."""
    return kept_rows(2 * nbytes(x, weight), x, weight.shape[0]) if want_grad else 0
