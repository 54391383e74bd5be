"""Nuclear norm and Wasserstein uniformity by a polar iteration: the fused updates between products.

    column_sums   sum_i Z_id in float64                    one read of Z
    center        X = Z - mean in float64                  one read, one write
    polynomial    P = a I + b R + c R^2                    two reads, one write of r x r
    finish        (product + row) * factor in float32      one read, one write of N x D

The products, all float64, are the library's: Triton's dot has no float64 tensor cores. The
iteration and its error: `ssl_fast/_polar.py`. Fang et al. 2024; Amsel et al. 2025.
"""

import sys

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _polar
from ._common import cdiv, choose, empty, launch
from ._statistics import parts, share_of_program

# Elements, at most -> elements of a block, warps.                                       unmeasured
FLAT = ((1 << 16, 256, 4), (1 << 62, 1024, 4))
# Columns, at most -> rows of a tile, columns of a tile, warps.                          unmeasured
SUMS = ((64, 64, 16, 4), (1 << 62, 32, 64, 4))


def forward(
    z: Tensor, center: bool, eps: float, distance: bool, want_grad: bool, rows: int, reduce
) -> tuple[Tensor, Tensor | None]:
    """As `reference.wasserstein.forward`, for eps of at least 1e-7."""
    this = sys.modules[__name__]
    return _polar.forward(this, z, center, eps, distance, want_grad, rows, reduce)


def column_sums(z: Tensor) -> Tensor:
    """(D,) float64, summed in a fixed order."""
    size, width = z.shape
    rows, cols, warps = choose(SUMS, width)
    blocks = cdiv(width, cols)
    count = parts(blocks, cdiv(size, rows), z.device)
    partial = empty(z, count, width, dtype=torch.float64)
    launch(
        _column_sums, (blocks, count), z,
        z, z.stride(0), z.stride(1), partial, size, width, rows, cols, num_warps=warps,
    )  # fmt: skip
    return partial.sum(0)


def center(z: Tensor, mean: Tensor | None) -> Tensor:
    """z - mean, (N, D) float64."""
    x = empty(z, *z.shape, dtype=torch.float64)
    block, warps = choose(FLAT, x.numel())
    launch(
        _center, (cdiv(x.numel(), block),), z,
        z, z.stride(0), z.stride(1), mean, x, x.numel(), z.shape[1], block, num_warps=warps,
    )  # fmt: skip
    return x


def polynomial(coefficients: tuple[float, float, float], r: Tensor, square: Tensor) -> Tensor:
    """a I + b r + c square, (r, r) float64, contiguous operands."""
    out = torch.empty_like(r)
    block, warps = choose(FLAT, r.numel())
    launch(
        _polynomial, (cdiv(r.numel(), block),), r,
        r, square, out, r.numel(), r.shape[0], *coefficients, block, num_warps=warps,
    )  # fmt: skip
    return out


def finish(product: Tensor, row: Tensor | None, factor: Tensor | None) -> Tensor:
    """(product + row) * factor, (N, D) float32; product contiguous."""
    out = empty(product, *product.shape)
    block, warps = choose(FLAT, out.numel())
    launch(
        _finish, (cdiv(out.numel(), block),), product,
        product, row, factor, out, out.numel(), out.shape[1], block, num_warps=warps,
    )  # fmt: skip
    return out


@triton.jit
def _column_sums(
    z,  # (N, D)
    stride_row,
    stride_col,
    partial,  # (parts, D) float64, out
    N,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    cols = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = share_of_program(N, ROWS)
    total = tl.zeros((COLUMNS,), tl.float64)
    for first in range(begin, end, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < end)[:, None] & (cols < D)[None, :]
        offsets = rows.to(tl.int64)[:, None] * stride_row + cols.to(tl.int64)[None, :] * stride_col
        tile = tl.load(z + offsets, mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(tile.to(tl.float64), 0)
    offsets = tl.program_id(1).to(tl.int64) * D + cols
    tl.store(partial + offsets, total, mask=cols < D)


@triton.jit
def _center(
    z,  # (N, D)
    stride_row,
    stride_col,
    mean,  # (D,) float64, or None
    x,  # (N, D) float64, contiguous, out
    size,
    D,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < size
    row, col = index // D, index % D
    value = tl.load(z + row * stride_row + col * stride_col, mask=mask, other=0.0).to(tl.float32)
    value = value.to(tl.float64)
    if mean is not None:
        value -= tl.load(mean + col, mask=mask, other=0.0)
    tl.store(x + index, value, mask=mask)


@triton.jit
def _polynomial(
    r,  # (n, n) float64
    square,  # (n, n) float64
    out,  # (n, n) float64
    size,
    n,
    a: tl.float64,
    b: tl.float64,
    c: tl.float64,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < size
    value = tl.load(r + index, mask=mask, other=0.0) * b
    value += tl.load(square + index, mask=mask, other=0.0) * c
    value += tl.where(index // n == index % n, a, 0.0)
    tl.store(out + index, value, mask=mask)


@triton.jit
def _finish(
    product,  # (N, D) float64
    row,  # (D,) float64, or None
    factor,  # 0-d float64, or None
    out,  # (N, D) float32
    size,
    D,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < size
    value = tl.load(product + index, mask=mask, other=0.0)
    if row is not None:
        value += tl.load(row + index % D, mask=mask, other=0.0)
    if factor is not None:
        value *= tl.load(factor)
    tl.store(out + index, value.to(tl.float32), mask=mask)
