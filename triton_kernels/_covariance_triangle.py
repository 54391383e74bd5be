"""Tiles of the upper triangle of Z^T Z, squared and summed as they come; nothing is stored.

Where the dual would cancel digits (`flag`, on the device), they replace its value and
`rescue_gradient` its gradient; else both return at once, and the host never waits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import cdiv, choose, empty, launch, stride_of
from ._elementwise import centred, column, load, store

# Width, at most -> columns of a tile of Z^T Z, rows of a step, warps.                    unmeasured
TRIANGLE = ((128, 32, 32, 4), (1 << 62, 64, 32, 8))
_RESCUE = (32, 32, 4)


def off_diagonal_squares(z: Tensor, mean: Tensor, scale: float, flag: Tensor | None) -> Tensor:
    """sum_{d != e} (scale sum_i (z - mean)_id (z - mean)_ie)^2, 0-d float64; 0 unless `flag`."""
    width, step, warps = choose(TRIANGLE, z.shape[1])
    blocks = cdiv(z.shape[1], width)
    partial = empty(z, blocks * (blocks + 1) // 2)
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
        z, z.stride(0), rows, rows.stride(0), other, stride_of(other),
        mean, beta, factors, flag, out, out.stride(0), rows.shape[0], *z.shape, width, step,
        num_warps=warps,
    )  # fmt: skip


@triton.jit
def gradient_tile(push, z, stride, other, other_stride, mean, beta, factors, rows, cols, mask, D):
    """(R, C): factors[0] push + beta (z - mean) + factors[1] (z - other); push a tile, or None."""
    g = centred(z, stride, mean, rows, cols, mask, D) * column(beta, cols, D)[None, :]
    if push is not None:
        g += tl.load(factors).to(tl.float32) * push
    if other is not None:
        d = load(z, stride, rows, cols, mask) - load(other, other_stride, rows, cols, mask)
        g += tl.load(factors + 1).to(tl.float32) * d
    return g


@triton.jit
def _product(z, stride, mean, left, right, N, D, WIDTH: tl.constexpr, STEP: tl.constexpr):
    """(Z^T Z) of columns `left` and `right`, (W, W); the diagonal is zero."""
    total = tl.zeros((WIDTH, WIDTH), tl.float32)
    for first in range(0, N, STEP):
        rows = first + tl.arange(0, STEP)
        a = centred(z, stride, mean, rows, left, (rows < N)[:, None] & (left < D)[None, :], D)
        b = centred(z, stride, mean, rows, right, (rows < N)[:, None] & (right < D)[None, :], D)
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
            a = centred(own, own_stride, mean, rows, left, inside, D)
            push = tl.dot(a, c, push, input_precision="ieee")
        g = gradient_tile(
            push, own, own_stride, other, other_stride, mean, beta, factors, rows, cols, mask, D
        )
        store(out, out_stride, rows, cols, mask, g)
