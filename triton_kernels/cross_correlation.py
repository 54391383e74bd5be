"""What the cross-correlation loss does around its products, beside covariance's pieces.

    sum_d (C_dd - 1)^2 + w sum_{d != e} C_de^2,  C = Z0^T Z1 / N,  Z0 and Z1 standardised

Products are the library's; a strip of C is read and written once. Zbontar et al. 2021 (Barlow
Twins), Eq. 1, 2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import cdiv, choose, empty, launch, stride_of
from ._elementwise import column, elementwise, load, partial_sums, store, tile_of_program
from .covariance import MOMENTS, center, inner, moments, on_device

__all__ = ["center", "dots", "gradient", "inner", "moments", "on_device", "penalty"]


def penalty(tile: Tensor, first: int, count: int, weight: float) -> Tensor:
    """As `reference.cross_correlation.penalty`."""
    partial = partial_sums(tile)
    elementwise(_penalty_kernel, tile, tile, tile.stride(0), first, 1.0 / count, weight, partial)
    return partial.sum(dtype=torch.float64)


def dots(
    push: Tensor, own: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None
) -> Tensor:
    """As `reference.cross_correlation.dots`."""
    rows, columns = own.shape
    height, width, warps = choose(MOMENTS, rows)
    blocks = cdiv(columns, width)
    dots = empty(own, columns, dtype=torch.float64)
    launch(
        _dots_kernel, (blocks,), own,
        push, push.stride(0), own, own.stride(0), other, stride_of(other), alpha, beta, dots,
        rows, columns, height, width, num_warps=warps,
    )  # fmt: skip
    return dots


def gradient(
    push: Tensor, own: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None,
    dots: Tensor, scale: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """As `reference.cross_correlation.gradient`."""
    elementwise(
        _standardised_kernel, own,
        push, push.stride(0), own, own.stride(0), other, stride_of(other),
        alpha, beta, dots, scale, out, out.stride(0),
    )  # fmt: skip


@triton.jit
def _penalty_kernel(tile, stride, first, inverse, weight, partial, N, D,
                        ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows, cols, mask = tile_of_program(N, D, ROWS, COLUMNS)
    c = load(tile, stride, rows, cols, mask) * inverse
    diagonal = rows[:, None] == (first + cols)[None, :]
    # (c - 1)^2 on the diagonal, weight c^2 off it, and their derivatives
    d = tl.where(mask, tl.where(diagonal, c - 1.0, c), 0.0)
    w = tl.where(diagonal, 1.0, weight)
    store(tile, stride, rows, cols, mask, 2.0 * w * d * inverse)
    tl.store(partial + tl.program_id(0), tl.sum(w * d * d))


@triton.jit
def _combined(push, push_stride, other, other_stride, alpha, beta, rows, cols, mask, D):
    """alpha push + beta other."""
    g = alpha * load(push, push_stride, rows, cols, mask)
    if other is not None:
        o = load(other, other_stride, rows, cols, mask)
        g += column(beta, cols, D)[None, :] * o
    return g


@triton.jit
def _dots_kernel(push, push_stride, own, own_stride, other, other_stride, alpha, beta, dots,
                 N, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    cols = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float64)
    for first in range(0, N, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < N)[:, None] & (cols < D)[None, :]
        g = _combined(push, push_stride, other, other_stride, alpha, beta, rows, cols, mask, D)
        x = load(own, own_stride, rows, cols, mask)
        total += tl.sum(g * x, 0).to(tl.float64)
    tl.store(dots + cols, total, mask=cols < D)


@triton.jit
def _standardised_kernel(push, push_stride, own, own_stride, other, other_stride, alpha, beta,
                         dots, scale, out, out_stride, N, D, ROWS: tl.constexpr,
                         COLUMNS: tl.constexpr):  # fmt: skip
    rows, cols, mask = tile_of_program(N, D, ROWS, COLUMNS)
    g = _combined(push, push_stride, other, other_stride, alpha, beta, rows, cols, mask, D)
    g -= column(dots, cols, D)[None, :] * load(own, own_stride, rows, cols, mask)
    store(out, out_stride, rows, cols, mask, g * column(scale, cols, D)[None, :])
