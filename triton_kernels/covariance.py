"""What the covariance losses do around their products, and triangular tiles of Z^T Z.

    sum_{d != e} (Z^T Z)_de^2,   dZ = 4 Z (Z^T Z - diag c)

Products that are kept (Grams, strips, gradients) are the library's. Where values alone are wanted,
tiles of the upper triangle are squared and summed as they come, nothing is stored. Moments are one
read: mean and centred squares of a tile on chip, tiles merged by Chan et al.; never
E[z^2] - E[z]^2.

Where the dual would cancel digits (`flag`, on the device), the same triangle replaces its value and
`rescue_gradient` its gradient; else both return at once, and the host never waits.

Bardes et al. 2022 (VICReg), Eq. 1, 4.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import cdiv, choose, launch, processors
from ._elementwise import column, elementwise, load, partial_sums, store, stride_of, tile_of_program

# Rows, at most -> rows of a tile, columns of a tile, warps.                              unmeasured
MOMENTS = ((512, 16, 64, 4), (1 << 62, 32, 64, 8))
# Width, at most -> columns of a tile of Z^T Z, rows of a step, warps.                    unmeasured
TRIANGLE = ((128, 32, 32, 4), (1 << 62, 64, 32, 8))
_RESCUE = (32, 32, 4)


def moments(z: Tensor, stats: Tensor, out: Tensor | None, eps: float | None) -> None:
    """As `reference.covariance.moments`."""
    rows, columns = z.shape
    height, width, warps = choose(MOMENTS, rows)
    blocks, tiles = cdiv(columns, width), cdiv(rows, height)
    count = max(1, min(tiles, cdiv(2 * processors(z.device), blocks)))
    count = cdiv(tiles, cdiv(tiles, count))
    partial = torch.empty((count, 4, columns), dtype=torch.float32, device=z.device)
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
    elementwise(
        _center_kernel, z, z, z.stride(0), mean, scale, out, out.stride(0)
    )  # fmt: skip


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


def off_diagonal_squares(z: Tensor, mean: Tensor, scale: float, flag: Tensor | None) -> Tensor:
    """sum_{d != e} (scale sum_i (z - mean)_id (z - mean)_ie)^2, 0-d float64; 0 unless `flag`."""
    width, step, warps = choose(TRIANGLE, z.shape[1])
    blocks = cdiv(z.shape[1], width)
    partial = torch.empty(blocks * (blocks + 1) // 2, dtype=torch.float32, device=z.device)
    launch(
        _triangle_kernel, (len(partial),), z,
        z, z.stride(0), mean, scale, flag, partial, *z.shape, width, step, num_warps=warps,
    )  # fmt: skip
    return partial.sum(dtype=torch.float64)


def rescue_gradient(
    z: Tensor, rows: Tensor, other: Tensor | None, mean: Tensor, beta: Tensor, factors: Tensor,
    flag: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """Where `flag`: out as `gradient` has it, for push = rows (Z^T Z - diag), recomputed by tiles.

    rows, other, out: the same rows of z, or all; every tile of Z^T Z is formed once a block of
    rows, which is slow, exact and rare.
    """
    width, step, warps = _RESCUE
    grid = cdiv(rows.shape[0], step) * cdiv(z.shape[1], width)
    launch(
        _rescue_kernel, (grid,), z,
        z, z.stride(0), rows, rows.stride(0), other, 0 if other is None else other.stride(0),
        mean, beta, factors, flag, out, out.stride(0), rows.shape[0], *z.shape, width, step,
        num_warps=warps,
    )  # fmt: skip


def on_device(z: Tensor) -> bool:
    """The two above replace a float64 Gram that the host would ask for."""
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
    elementwise(
        _reduce_kernel, a, a, a.stride(0), b, b.stride(0), partial, difference
    )  # fmt: skip
    return partial.sum(dtype=torch.float64)


@triton.jit
def _centred(pointer, stride, mean, rows, cols, mask, D):
    """z - mean, the float64 mean in two parts; 0 outside."""
    m = tl.load(mean + cols, mask=cols < D, other=0.0)
    high = m.to(tl.float32)
    low = (m - high.to(tl.float64)).to(tl.float32)
    z = load(pointer, stride, rows, cols, mask)
    return tl.where(mask, (z - high[None, :]) - low[None, :], 0.0)


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
    tiles = tl.cdiv(tl.cdiv(N, ROWS), tl.num_programs(1))
    begin = tl.program_id(1) * tiles * ROWS
    end = tl.minimum(begin + tiles * ROWS, N)
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
    x = _centred(z, stride, mean, rows, cols, mask, D)
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
    g = _centred(z, stride, mean, rows, cols, mask, D) * column(beta, cols, D)[None, :]
    if push is not None:
        g += tl.load(factors).to(tl.float32) * load(push, push_stride, rows, cols, mask)
    if other is not None:
        d = load(z, stride, rows, cols, mask) - load(other, other_stride, rows, cols, mask)
        g += tl.load(factors + 1).to(tl.float32) * d
    store(out, out_stride, rows, cols, mask, g)


@triton.jit
def _product(z, stride, mean, left, right, N, D, WIDTH: tl.constexpr, STEP: tl.constexpr):
    """(Z^T Z) of columns `left` and `right`, (W, W); the diagonal is zero."""
    total = tl.zeros((WIDTH, WIDTH), tl.float32)
    for first in range(0, N, STEP):
        rows = first + tl.arange(0, STEP)
        a = _centred(z, stride, mean, rows, left, (rows < N)[:, None] & (left < D)[None, :], D)
        b = _centred(z, stride, mean, rows, right, (rows < N)[:, None] & (right < D)[None, :], D)
        total = tl.dot(tl.trans(a), b, total, input_precision="ieee")
    return tl.where(left[:, None] != right[None, :], total, 0.0)


@triton.jit
def _triangle_kernel(
    z,  # (N, D)
    stride,
    mean,  # (D,) float64
    scale,
    flag,  # bool, or None
    partial,  # (programs,) float32
    N,
    D,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,
):
    wanted = True
    if flag is not None:
        wanted = tl.load(flag) != 0
    result = 0.0
    if wanted:
        index = tl.program_id(0)
        # Tile (i, j), j <= i, is number i (i + 1) / 2 + j.
        i = ((tl.sqrt(8.0 * index + 1.0) - 1.0) * 0.5).to(tl.int32)
        i = tl.where(i * (i + 1) // 2 > index, i - 1, i)
        i = tl.where((i + 1) * (i + 2) // 2 <= index, i + 1, i)
        j = index - i * (i + 1) // 2
        left, right = i * WIDTH + tl.arange(0, WIDTH), j * WIDTH + tl.arange(0, WIDTH)
        c = _product(z, stride, mean, left, right, N, D, WIDTH, STEP) * scale
        result = tl.sum(c * c) * tl.where(i == j, 1.0, 2.0)
    tl.store(partial + tl.program_id(0), result)


@triton.jit
def _rescue_kernel(
    z,  # (N, D)
    stride,
    own,  # (M, D), rows of z
    own_stride,
    other,  # (M, D) or None
    other_stride,
    mean,  # (D,) float64
    beta,  # (D,) float64
    factors,  # (2,) float64
    flag,  # bool
    out,  # (M, D)
    out_stride,
    M,
    N,
    D,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,
):
    if tl.load(flag) != 0:
        tiles = tl.cdiv(D, WIDTH)
        rows = tl.program_id(0) // tiles * STEP + tl.arange(0, STEP)
        cols = tl.program_id(0) % tiles * WIDTH + tl.arange(0, WIDTH)
        mask = (rows < M)[:, None] & (cols < D)[None, :]
        push = tl.zeros((STEP, WIDTH), tl.float32)
        for first in range(0, D, WIDTH):
            left = first + tl.arange(0, WIDTH)
            c = _product(z, stride, mean, left, cols, N, D, WIDTH, STEP)
            inside = (rows < M)[:, None] & (left < D)[None, :]
            a = _centred(own, own_stride, mean, rows, left, inside, D)
            push = tl.dot(a, c, push, input_precision="ieee")
        g = tl.load(factors).to(tl.float32) * push
        x = _centred(own, own_stride, mean, rows, cols, mask, D)
        g += x * column(beta, cols, D)[None, :]
        if other is not None:
            d = load(own, own_stride, rows, cols, mask)
            d -= load(other, other_stride, rows, cols, mask)
            g += tl.load(factors + 1).to(tl.float32) * d
        store(out, out_stride, rows, cols, mask, g)
