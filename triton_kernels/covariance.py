"""What the covariance losses do around their products, and triangular tiles of Z^T Z.

    covariance   sum_{d != e} (Z^T Z)_de^2            dZ = 4 Z (Z^T Z - diag c)
    correlation  sum_d (C_dd - 1)^2 + w sum_{d != e} C_de^2,  C = Z0^T Z1 / N

Products that are kept (Grams, strips, gradients) are the library's. Where values alone are wanted,
tiles of the upper triangle are squared and summed as they come, nothing is stored. Moments are one
read: mean and centred squares of a tile on chip, tiles merged by Chan et al.; never E[z^2] - E[z]^2.

Where the dual would cancel digits (`flag`, on the device), the same triangle replaces its value and
`rescue_gradient` its gradient; else both return at once, and the host never waits.

Bardes et al. 2022 (VICReg), Eq. 1, 4; Zbontar et al. 2021 (Barlow Twins), Eq. 1, 2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import cdiv, choose, launch, processors

# Rows, at most -> rows of a tile, columns of a tile, warps.                              unmeasured
MOMENTS = ((512, 16, 64, 4), (1 << 62, 32, 64, 8))
# Columns, at most -> rows of a tile, columns of a tile, warps.                           unmeasured
TILES = ((128, 16, 128, 4), (1 << 62, 4, 1024, 4))
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
    _elementwise(
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
    partial = _partial(tile)
    _elementwise(_strip_kernel, tile, tile, tile.stride(0), scale, partial)
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
    _elementwise(
        _gradient_kernel, z, push, _stride(push), z, z.stride(0), other, _stride(other),
        mean, beta, factors, out, out.stride(0),
    )  # fmt: skip


def correlation_tile(tile: Tensor, first: int, count: int, weight: float) -> Tensor:
    """As `reference.covariance.correlation_tile`."""
    partial = _partial(tile)
    _elementwise(
        _correlation_kernel, tile, tile, tile.stride(0), first, 1.0 / count, weight, partial
    )
    return partial.sum(dtype=torch.float64)


def correlation_dots(
    push: Tensor, own: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None
) -> Tensor:
    """As `reference.covariance.correlation_dots`."""
    rows, columns = own.shape
    height, width, warps = choose(MOMENTS, rows)
    blocks = cdiv(columns, width)
    dots = torch.empty(columns, dtype=torch.float64, device=own.device)
    launch(
        _dots_kernel, (blocks,), own,
        push, push.stride(0), own, own.stride(0), other, _stride(other), alpha, beta, dots,
        rows, columns, height, width, num_warps=warps,
    )  # fmt: skip
    return dots


def correlation_gradient(
    push: Tensor, own: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None,
    dots: Tensor, scale: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """As `reference.covariance.correlation_gradient`."""
    _elementwise(
        _standardised_kernel, own, push, push.stride(0), own, own.stride(0), other, _stride(other),
        alpha, beta, dots, scale, out, out.stride(0),
    )  # fmt: skip


def _stride(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(0)


def _grid(like: Tensor) -> tuple[int, int, int, int]:
    """Programs, rows and columns of a tile, warps."""
    rows, columns = like.shape
    height, width, warps = choose(TILES, columns)
    return cdiv(rows, height) * cdiv(columns, width), height, width, warps


def _partial(like: Tensor) -> Tensor:
    return torch.empty(_grid(like)[0], dtype=torch.float32, device=like.device)


def _elementwise(kernel, like: Tensor, *arguments) -> None:
    """`kernel` on tiles of a matrix shaped as `like`."""
    programs, height, width, warps = _grid(like)
    launch(kernel, (programs,), like, *arguments, *like.shape, height, width, num_warps=warps)


def _reduced(a: Tensor, b: Tensor, difference: bool) -> Tensor:
    partial = _partial(a)
    _elementwise(
        _reduce_kernel, a, a, a.stride(0), b, b.stride(0), partial, difference
    )  # fmt: skip
    return partial.sum(dtype=torch.float64)


@triton.jit
def _tile(N, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row and column indices and the mask of this program's tile."""
    tiles = tl.cdiv(D, COLUMNS)
    rows = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    return rows, cols, (rows < N)[:, None] & (cols < D)[None, :]


@triton.jit
def _load(pointer, stride, rows, cols, mask):
    """(R, C) float32, 0 outside."""
    offsets = rows.to(tl.int64)[:, None] * stride + cols[None, :]
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, stride, rows, cols, mask, value):
    offsets = rows.to(tl.int64)[:, None] * stride + cols[None, :]
    tl.store(pointer + offsets, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _centred(pointer, stride, mean, rows, cols, mask, D):
    """z - mean, the float64 mean in two parts; 0 outside."""
    m = tl.load(mean + cols, mask=cols < D, other=0.0)
    high = m.to(tl.float32)
    low = (m - high.to(tl.float64)).to(tl.float32)
    z = _load(pointer, stride, rows, cols, mask)
    return tl.where(mask, (z - high[None, :]) - low[None, :], 0.0)


@triton.jit
def _column(pointer, cols, D):
    return tl.load(pointer + cols, mask=cols < D, other=0.0).to(tl.float32)


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
        x = tl.where(mask, _load(z, stride, rows, cols, mask) - origin[None, :], 0.0)
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
    rows, cols, mask = _tile(N, D, ROWS, COLUMNS)
    x = _centred(z, stride, mean, rows, cols, mask, D)
    if scale is not None:
        x *= _column(scale, cols, D)[None, :]
    _store(out, out_stride, rows, cols, mask, x)


@triton.jit
def _reduce_kernel(a, a_stride, b, b_stride, partial, DIFFERENCE: tl.constexpr, N, D,
                   ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows, cols, mask = _tile(N, D, ROWS, COLUMNS)
    x = _load(a, a_stride, rows, cols, mask)
    y = _load(b, b_stride, rows, cols, mask)
    terms = (x - y) * (x - y) if DIFFERENCE else x * y
    tl.store(partial + tl.program_id(0), tl.sum(terms))


@triton.jit
def _strip_kernel(tile, stride, scale, partial, N, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows, cols, mask = _tile(N, D, ROWS, COLUMNS)
    x = _load(tile, stride, rows, cols, mask)
    off = rows[:, None] != cols[None, :]
    _store(tile, stride, rows, cols, mask & (rows[:, None] == cols[None, :]), x * 0.0)
    c = tl.where(off, x * scale, 0.0)
    twice = tl.where(cols < N, 1.0, 2.0)
    tl.store(partial + tl.program_id(0), tl.sum(c * c * twice[None, :]))


@triton.jit
def _gradient_kernel(push, push_stride, z, stride, other, other_stride, mean, beta, factors,
                     out, out_stride, N, D, ROWS: tl.constexpr,
                     COLUMNS: tl.constexpr):  # fmt: skip
    rows, cols, mask = _tile(N, D, ROWS, COLUMNS)
    g = _centred(z, stride, mean, rows, cols, mask, D) * _column(beta, cols, D)[None, :]
    if push is not None:
        g += tl.load(factors).to(tl.float32) * _load(push, push_stride, rows, cols, mask)
    if other is not None:
        d = _load(z, stride, rows, cols, mask) - _load(other, other_stride, rows, cols, mask)
        g += tl.load(factors + 1).to(tl.float32) * d
    _store(out, out_stride, rows, cols, mask, g)


@triton.jit
def _correlation_kernel(tile, stride, first, inverse, weight, partial, N, D,
                        ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows, cols, mask = _tile(N, D, ROWS, COLUMNS)
    c = _load(tile, stride, rows, cols, mask) * inverse
    diagonal = (first + rows)[:, None] == cols[None, :]
    # (c - 1)^2 on the diagonal, weight c^2 off it, and their derivatives
    d = tl.where(mask, tl.where(diagonal, c - 1.0, c), 0.0)
    w = tl.where(diagonal, 1.0, weight)
    _store(tile, stride, rows, cols, mask, 2.0 * w * d * inverse)
    tl.store(partial + tl.program_id(0), tl.sum(w * d * d))


@triton.jit
def _combined(push, push_stride, other, other_stride, alpha, beta, rows, cols, mask, D):
    """alpha push + beta other."""
    g = alpha * _load(push, push_stride, rows, cols, mask)
    if other is not None:
        o = _load(other, other_stride, rows, cols, mask)
        g += _column(beta, cols, D)[None, :] * o
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
        x = _load(own, own_stride, rows, cols, mask)
        total += tl.sum(g * x, 0).to(tl.float64)
    tl.store(dots + cols, total, mask=cols < D)


@triton.jit
def _standardised_kernel(push, push_stride, own, own_stride, other, other_stride, alpha, beta,
                         dots, scale, out, out_stride, N, D, ROWS: tl.constexpr,
                         COLUMNS: tl.constexpr):  # fmt: skip
    rows, cols, mask = _tile(N, D, ROWS, COLUMNS)
    g = _combined(push, push_stride, other, other_stride, alpha, beta, rows, cols, mask, D)
    g -= _column(dots, cols, D)[None, :] * _load(own, own_stride, rows, cols, mask)
    _store(out, out_stride, rows, cols, mask, g * _column(scale, cols, D)[None, :])


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
        g += x * _column(beta, cols, D)[None, :]
        if other is not None:
            d = _load(own, own_stride, rows, cols, mask)
            d -= _load(other, other_stride, rows, cols, mask)
            g += tl.load(factors + 1).to(tl.float32) * d
        _store(out, out_stride, rows, cols, mask, g)
