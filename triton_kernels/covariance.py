"""What the covariance losses do around their products.

    sum_{d != e} (Z^T Z)_de^2,   dZ = 4 Z (Z^T Z - diag c)

Products that are kept (Grams, strips, gradients) are the library's; values alone come from
`_covariance_triangle.py`. Moments are one read: mean and centred squares of a tile on chip, tiles
merged by Chan et al.; never E[z^2] - E[z]^2.

Bardes et al. 2022 (VICReg), Eq. 1, 4.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import cdiv, choose, empty, launch, stride_of
from ._covariance_triangle import gradient_tile, off_diagonal_squares, rescue_gradient
from ._elementwise import (
    centred,
    column,
    elementwise,
    load,
    partial_sums,
    store,
    tile_of_program,
)
from ._statistics import parts, share_of_program

__all__ = [
    "center",
    "gradient",
    "inner",
    "moments",
    "off_diagonal_squares",
    "on_device",
    "rescue_gradient",
    "squared_distance",
    "triangle",
]

# Rows, at most -> rows of a tile, columns of a tile, warps.                              unmeasured
MOMENTS = ((512, 16, 64, 4), (1 << 62, 32, 64, 8))


def moments(z: Tensor, stats: Tensor, out: Tensor | None, eps: float | None) -> None:
    """As `reference.covariance.moments`."""
    rows, columns = z.shape
    height, width, warps = choose(MOMENTS, rows)
    blocks = cdiv(columns, width)
    count = parts(blocks, cdiv(rows, height), z.device)
    partial = empty(z, count, 4, columns)
    launch(
        _moments_kernel, (blocks, count), z,
        z, z.stride(0), partial, rows, columns, height, width, num_warps=warps,
    )  # fmt: skip
    sizes, origins, means, squares = partial.double().unbind(1)
    means = means + origins
    mean = (sizes * means).sum(0) / rows
    torch.stack([mean, (squares + sizes * (means - mean).square()).sum(0)], out=stats)
    if out is not None:
        scale = None if eps is None else (stats[1] / rows + eps).rsqrt()
        center(z, stats[0], scale, out)


def center(z: Tensor, mean: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """As `reference.covariance.center`."""
    elementwise(_center_kernel, z, z, z.stride(0), mean, scale, out, out.stride(0))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """As `reference.covariance.inner`."""
    return _reduced(a, b, False)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """As `reference.covariance.squared_distance`."""
    return _reduced(a, b, True)


def triangle(tile: Tensor, scale: float) -> Tensor:
    """As `reference.covariance.triangle`."""
    partial = partial_sums(tile)
    elementwise(_strip_kernel, tile, tile, tile.stride(0), scale, partial)
    return partial.sum(dtype=torch.float64)


def on_device(z: Tensor) -> bool:
    """Triangles and their gradient replace a float64 Gram that the host would ask for."""
    return True


def gradient(
    push: Tensor | None, z: Tensor, other: Tensor | None, mean: Tensor, beta: Tensor,
    factors: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """As `reference.covariance.gradient`."""
    elementwise(
        _gradient_kernel, z, push, stride_of(push), z, z.stride(0), other, stride_of(other),
        mean, beta, factors, out, out.stride(0),
    )  # fmt: skip


def _reduced(a: Tensor, b: Tensor, difference: bool) -> Tensor:
    partial = partial_sums(a)
    elementwise(_reduce_kernel, a, a, a.stride(0), b, b.stride(0), partial, difference)
    return partial.sum(dtype=torch.float64)


@triton.jit
def _moments_kernel(
    z,  # (N, D)
    stride,
    partial,  # (P, 4, D) float32: rows, first row, mean - first row, centred squares
    N,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    cols = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = share_of_program(N, ROWS)
    # Relative to the first row: equal rows have zero squares, large offsets cost no digits.
    origin = tl.load(z + tl.full((), begin, tl.int64) * stride + cols, mask=cols < D, other=0.0)
    origin = origin.to(tl.float32)
    count = 0.0
    mean = tl.zeros((COLUMNS,), tl.float32)
    square = tl.zeros((COLUMNS,), tl.float32)
    for first in range(begin, end, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < end)[:, None] & (cols < D)[None, :]
        x = tl.where(mask, load(z, stride, rows, cols, mask) - origin[None, :], 0.0)
        size = tl.minimum(end - first, ROWS).to(tl.float32)
        own = tl.sum(x, 0) / size
        d = tl.where(mask, x - own[None, :], 0.0)
        total = count + size
        move = own - mean
        mean += move * (size / total)
        square += tl.sum(d * d, 0) + move * move * (count * size / total)
        count = total
    pointers = partial + tl.program_id(1) * 4 * D + cols
    tl.store(pointers, tl.zeros((COLUMNS,), tl.float32) + count, mask=cols < D)
    tl.store(pointers + D, origin, mask=cols < D)
    tl.store(pointers + 2 * D, mean, mask=cols < D)
    tl.store(pointers + 3 * D, square, mask=cols < D)


@triton.jit
def _center_kernel(z, stride, mean, scale, out, out_stride, N, D,
                   ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows, cols, mask = tile_of_program(N, D, ROWS, COLUMNS)
    x = centred(z, stride, mean, rows, cols, mask, D)
    if scale is not None:
        x *= column(scale, cols, D)[None, :]
    store(out, out_stride, rows, cols, mask, x)


@triton.jit
def _reduce_kernel(a, a_stride, b, b_stride, partial, DIFFERENCE: tl.constexpr, N, D,
                   ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows, cols, mask = tile_of_program(N, D, ROWS, COLUMNS)
    x = load(a, a_stride, rows, cols, mask)
    y = load(b, b_stride, rows, cols, mask)
    terms = (x - y) * (x - y) if DIFFERENCE else x * y
    tl.store(partial + tl.program_id(0), tl.sum(terms))


@triton.jit
def _strip_kernel(tile, stride, scale, partial, N, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows, cols, mask = tile_of_program(N, D, ROWS, COLUMNS)
    x = load(tile, stride, rows, cols, mask)
    off = rows[:, None] != cols[None, :]
    store(tile, stride, rows, cols, mask & (rows[:, None] == cols[None, :]), x * 0.0)
    c = tl.where(off, x * scale, 0.0)
    twice = tl.where(cols < N, 1.0, 2.0)
    tl.store(partial + tl.program_id(0), tl.sum(c * c * twice[None, :]))


@triton.jit
def _gradient_kernel(push, push_stride, z, stride, other, other_stride, mean, beta, factors,
                     out, out_stride, N, D, ROWS: tl.constexpr,
                     COLUMNS: tl.constexpr):  # fmt: skip
    rows, cols, mask = tile_of_program(N, D, ROWS, COLUMNS)
    tile = None
    if push is not None:
        tile = load(push, push_stride, rows, cols, mask)
    g = gradient_tile(
        tile, z, stride, other, other_stride, mean, beta, factors, rows, cols, mask, D
    )
    store(out, out_stride, rows, cols, mask, g)
