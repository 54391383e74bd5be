"""Powers of the distances of positive pairs: sum_i |x_i - y_i|^alpha."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import cdiv, empty, launch
from ._elementwise import elementwise, load, store, tile_of_program

ROWS, COLUMNS = 32, 128  # of a tile                                              unmeasured


def distance_power(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """As `reference.uniformity.distance_power`."""
    return _squares(x, y).double().pow(alpha / 2).sum()


def distance_power_backward(
    x: Tensor, y: Tensor, alpha: float, d_value: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    """As `reference.uniformity.distance_power_backward`."""
    coefficient = torch.full((len(x),), alpha * factor, dtype=torch.float32, device=x.device)
    if alpha != 2:
        squares = _squares(x, y).double()
        powers = torch.where(squares > 0, squares.pow(alpha / 2 - 1), 0)
        coefficient = (powers * (alpha * factor)).float()
    coefficient = coefficient * d_value.float()
    d_x, d_y = x.new_empty(x.shape), y.new_empty(y.shape)
    elementwise(
        _difference_kernel, x, x, x.stride(0), y, y.stride(0), coefficient, d_x, d_y
    )  # fmt: skip
    return d_x, d_y


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """(N,) float32: |x_i - y_i|^2."""
    n, d = x.shape
    out = empty(x, n)
    launch(
        _squares_kernel, (cdiv(n, ROWS),), x, x, x.stride(0), y, y.stride(0), out, n, d,
        ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _squares_kernel(x, x_stride, y, y_stride, out, N, D,
                    ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, D, COLUMNS):
        cols = first + tl.arange(0, COLUMNS)
        mask = (rows < N)[:, None] & (cols < D)[None, :]
        away = load(x, x_stride, rows, cols, mask) - load(y, y_stride, rows, cols, mask)
        total += tl.sum(away * away, 1)
    tl.store(out + rows, total, mask=rows < N)


@triton.jit
def _difference_kernel(x, x_stride, y, y_stride, coefficient, d_x, d_y, N, D,
                       ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows, cols, mask = tile_of_program(N, D, ROWS, COLUMNS)
    g = tl.load(coefficient + rows, mask=rows < N, other=0.0)[:, None]
    away = g * (load(x, x_stride, rows, cols, mask) - load(y, y_stride, rows, cols, mask))
    store(d_x, D, rows, cols, mask, away)
    store(d_y, D, rows, cols, mask, -away)
