"""Kernels of one operation an entry of a matrix, and of its sum: a program a tile."""

import triton
import triton.language as tl
from torch import Tensor

from ._common import cdiv, choose, empty, launch

# Columns, at most -> rows of a tile, columns of a tile, warps.                           unmeasured
TILES = ((128, 16, 128, 4), (1 << 62, 4, 1024, 4))


def _grid(like: Tensor) -> tuple[int, int, int, int]:
    """Programs, rows and columns of a tile, warps."""
    rows, columns = like.shape
    height, width, warps = choose(TILES, columns)
    return cdiv(rows, height) * cdiv(columns, width), height, width, warps


def partial_sums(like: Tensor) -> Tensor:
    return empty(like, _grid(like)[0])


def elementwise(kernel, like: Tensor, *arguments) -> None:
    """`kernel` on tiles of a matrix shaped as `like`."""
    programs, height, width, warps = _grid(like)
    launch(kernel, (programs,), like, *arguments, *like.shape, height, width, num_warps=warps)


@triton.jit
def tile_of_program(N, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row and column indices and the mask of this program's tile."""
    tiles = tl.cdiv(D, COLUMNS)
    rows = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    return rows, cols, (rows < N)[:, None] & (cols < D)[None, :]


@triton.jit
def load(pointer, stride, rows, cols, mask):
    """(R, C) float32, 0 outside."""
    offsets = rows.to(tl.int64)[:, None] * stride + cols[None, :]
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store(pointer, stride, rows, cols, mask, value):
    offsets = rows.to(tl.int64)[:, None] * stride + cols[None, :]
    tl.store(pointer + offsets, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def column(pointer, cols, D):
    return tl.load(pointer + cols, mask=cols < D, other=0.0).to(tl.float32)


@triton.jit
def centred(pointer, stride, mean, rows, cols, mask, D):
    """z - mean, the float64 mean in two parts; 0 outside."""
    m = tl.load(mean + cols, mask=cols < D, other=0.0)
    high = m.to(tl.float32)
    low = (m - high.to(tl.float64)).to(tl.float32)
    z = load(pointer, stride, rows, cols, mask)
    return tl.where(mask, (z - high[None, :]) - low[None, :], 0.0)
