"""The correlation of prototypes taken as distributions, whose pairs factorise into column sums.

    mean_{p != q} sum_d c_pd log(c_qd / c_pd)

Logarithms are relative to the first row's, so that prototypes near each other lose no digits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import LOG2_E, cdiv, empty, launch
from ._elementwise import load, store
from ._statistics import LOWEST, parts, share_of_program

ROWS, COLUMNS = 32, 128  # of a tile                                              unmeasured


def correlation(c: Tensor, inv_temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.uniformity.correlation`."""
    k, d = c.shape
    row = empty(c, 2, k, dtype=torch.float64)
    launch(
        _rows_kernel, (cdiv(k, ROWS),), c, c, c.stride(0), row, k, d, inv_temperature,
        ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
    )  # fmt: skip
    blocks = cdiv(d, COLUMNS)
    count = parts(blocks, cdiv(k, ROWS), c.device)
    sums = empty(c, count, 3, d, dtype=torch.float64)
    launch(
        _columns_kernel, (blocks, count), c, c, c.stride(0), row, sums, k, d, inv_temperature,
        ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
    )  # fmt: skip
    p, r, products = sums.sum(0)
    value = (p * r / k - products).sum() / (k - 1)
    return value, row, torch.stack([p, r]) / k


def correlation_backward(
    c: Tensor, inv_temperature: float, row: Tensor, col: Tensor, d_value: Tensor, factor: float
) -> Tensor:
    """As `reference.uniformity.correlation_backward`."""
    k, d = c.shape
    d_c = c.new_empty(c.shape)
    g = d_value.float() * (factor * inv_temperature / (k - 1))
    launch(
        _correlation_gradient_kernel, (cdiv(k, ROWS),), c,
        c, c.stride(0), row, col, g, d_c, k, d, inv_temperature,
        ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
    )  # fmt: skip
    return d_c


@triton.jit
def _rows_kernel(c, stride, row, K, D, inv_temperature,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """row (2, K) float64: shift and log."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    shift = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    scale = inv_temperature * LOG2_E
    for first in range(0, D, COLUMNS):
        cols = first + tl.arange(0, COLUMNS)
        mask = (rows < K)[:, None] & (cols < D)[None, :]
        valid = (cols < D)[None, :]
        x = tl.where(valid, load(c, stride, rows, cols, mask), LOWEST)
        higher = tl.maximum(shift, tl.max(x, 1))
        shrink = tl.exp2(tl.maximum((shift - higher) * scale, -1000.0))
        below = tl.where(valid, x - higher[:, None], 0.0) * scale
        total = total * shrink + tl.sum(tl.where(valid, tl.exp2(below), 0.0), 1)
        shift = higher
    tl.store(row + rows, shift.to(tl.float64), mask=rows < K)
    tl.store(row + K + rows, tl.log(total).to(tl.float64), mask=rows < K)


@triton.jit
def _distribution(c, stride, row, rows, K, cols, D, inv_temperature):
    """p, and r = log p - log p of the first row; (R, C) float32, 0 outside."""
    valid = (rows < K)[:, None] & (cols < D)[None, :]
    x = load(c, stride, rows, cols, valid)
    first = tl.load(c + cols, mask=cols < D, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(row + rows, mask=rows < K, other=0.0)
    log = tl.load(row + K + rows, mask=rows < K, other=0.0)
    moved = (shift - tl.load(row)) * inv_temperature + (log - tl.load(row + K))
    scale = inv_temperature * LOG2_E
    below = (x - shift.to(tl.float32)[:, None]) * scale - (log * LOG2_E).to(tl.float32)[:, None]
    p = tl.where(valid, tl.exp2(below), 0.0)
    r = tl.where(valid, (x - first) * inv_temperature - moved.to(tl.float32)[:, None], 0.0)
    return p, r


@triton.jit
def _columns_kernel(c, stride, row, sums, K, D, inv_temperature,
                    ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """sums (P, 3, D) float64 of p, r and p r."""
    cols = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total_p = tl.zeros((COLUMNS,), tl.float64)
    total_r = tl.zeros((COLUMNS,), tl.float64)
    total_pr = tl.zeros((COLUMNS,), tl.float64)
    begin, end = share_of_program(K, ROWS)
    for first in range(begin, end, ROWS):
        rows = first + tl.arange(0, ROWS)
        p, r = _distribution(c, stride, row, rows, K, cols, D, inv_temperature)
        wide = p.to(tl.float64)  # what counts may be a small part of each sum
        total_p += tl.sum(wide, 0)
        total_r += tl.sum(r.to(tl.float64), 0)
        total_pr += tl.sum(wide * r, 0)
    out = sums + tl.program_id(1).to(tl.int64) * 3 * D + cols
    tl.store(out, total_p, mask=cols < D)
    tl.store(out + D, total_r, mask=cols < D)
    tl.store(out + 2 * D, total_pr, mask=cols < D)


@triton.jit
def _correlation_gradient_kernel(c, stride, row, col, g, d_c, K, D, inv_temperature,
                                 ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """g [ p (m - r - sum p (m - r)) + a - p ], a and m from col (2, D) float64."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mean = tl.zeros((ROWS,), tl.float32)
    for first in range(0, D, COLUMNS):
        cols = first + tl.arange(0, COLUMNS)
        p, r = _distribution(c, stride, row, rows, K, cols, D, inv_temperature)
        m = tl.load(col + D + cols, mask=cols < D, other=0.0).to(tl.float32)
        mean += tl.sum(p * (m[None, :] - r), 1)
    factor = tl.load(g)
    for first in range(0, D, COLUMNS):
        cols = first + tl.arange(0, COLUMNS)
        p, r = _distribution(c, stride, row, rows, K, cols, D, inv_temperature)
        a = tl.load(col + cols, mask=cols < D, other=0.0).to(tl.float32)
        m = tl.load(col + D + cols, mask=cols < D, other=0.0).to(tl.float32)
        away = m[None, :] - r - mean[:, None]
        mask = (rows < K)[:, None] & (cols < D)[None, :]
        store(d_c, D, rows, cols, mask, factor * (p * away + (a[None, :] - p)))
