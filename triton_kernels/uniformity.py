"""Pairwise potentials, distances of pairs, and the correlation of prototypes.

    potential:    log sum_ij w_ij, w_ij = exp(-t |x_i - x_j|^2), and sum_j w_ij (x_i - x_j)
    distance:     sum_i |x_i - y_i|^alpha
    correlation:  mean_{p != q} sum_d c_pd log(c_qd / c_pd), from column sums

A program of `potential` owns a block of rows and visits all columns (a range of them where rows
are few), at the running smallest distance, as in FlashAttention: 2 N^2 D operations for the squares
and 2 N^2 D for the moments, each pair twice, so that nothing needs atomics. Not stored: N x N.
Squares come from products of rows moved to the batch's mean; float32 as three TF32 products. Rows
much nearer to each other than to the mean lose digits here, which the CPU kernels restore.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import cdiv, launch
from ._products import dot, input_precision, load_rows, padded, product
from ._statistics import columns_of_program, parts

# Rows, columns and width of a tile of pairs.                                     unmeasured
PAIR_ROWS, PAIR_COLUMNS, PAIR_WIDTH = 64, 64, 32
WIDEST = 64  # of a slice of the moments that one program accumulates          unmeasured
STREAM_ROWS, STREAM_COLUMNS = 32, 128  # of a streaming tile                    unmeasured
_FAR = tl.constexpr(3e38)
_LOG2_E = tl.constexpr(1.4426950408889634)


def potential(
    x: Tensor, first: int, last: int, t: float, want_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """As `reference.uniformity.potential`."""
    z = x.float() - x.mean(0, dtype=torch.float32)
    n, d = z.shape
    own = last - first
    rows, columns, width = PAIR_ROWS, PAIR_COLUMNS, min(PAIR_WIDTH, padded(d))
    slice_width = min(padded(d), WIDEST) if want_grad else 16
    blocks = cdiv(own, rows)
    count = parts(blocks, cdiv(n, columns), z.device)
    stats = _empty(z, (count, 2, own))
    moments = _empty(z, (count, own, d)) if want_grad else None
    launch(
        _potential_kernel, (blocks, count, cdiv(d, slice_width) if want_grad else 1), z,
        z, z.square().sum(1), first, last, n, d, t, stats, moments,
        ROWS=rows, COLUMNS=columns, WIDTH=width, PRECISION=input_precision(), SLICE=slice_width,
        num_warps=8, num_stages=2,
    )  # fmt: skip
    # Parts and rows stand at shifts of their own; a row without a finite weight has a weight of 0.
    shift, weight = stats[:, 0].double(), stats[:, 1].double()
    least = shift.min()
    weight *= ((least - shift) * t).exp()
    total = weight.sum()
    log_sum = total.log() - least * t
    if moments is None:
        return log_sum, None
    factor = ((least - shift) * t).exp().float()[..., None]
    own_rows = z[first:last]
    moved = weight.sum(0).float()[:, None] * own_rows - (moments * factor).sum(0)
    return log_sum, moved * (-4 * t / total).float()


def distance_power(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """As `reference.uniformity.distance_power`."""
    return _squares(x, y).double().pow(alpha / 2).sum()


def distance_power_backward(
    x: Tensor, y: Tensor, alpha: float, d_value: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    """As `reference.uniformity.distance_power_backward`."""
    n, d = x.shape
    coefficient = torch.full((n,), alpha * factor, dtype=torch.float32, device=x.device)
    if alpha != 2:
        squares = _squares(x, y).double()
        powers = torch.where(squares > 0, squares.pow(alpha / 2 - 1), 0)
        coefficient = (powers * (alpha * factor)).float()
    coefficient = coefficient * d_value.float()
    d_x, d_y = x.new_empty(x.shape), y.new_empty(y.shape)
    rows, columns = STREAM_ROWS, STREAM_COLUMNS
    launch(
        _difference_kernel, (cdiv(n, rows), cdiv(d, columns)), x,
        x, x.stride(0), y, y.stride(0), coefficient, d_x, d_y, n, d,
        ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return d_x, d_y


def correlation(c: Tensor, inv_temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.uniformity.correlation`."""
    k, d = c.shape
    rows, columns = STREAM_ROWS, STREAM_COLUMNS
    row = torch.empty((2, k), dtype=torch.float64, device=c.device)
    launch(
        _rows_kernel, (cdiv(k, rows),), c, c, c.stride(0), row, k, d, inv_temperature,
        ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    blocks = cdiv(d, columns)
    count = parts(blocks, cdiv(k, rows), c.device)
    sums = torch.empty((count, 3, d), dtype=torch.float64, device=c.device)
    launch(
        _columns_kernel, (blocks, count), c, c, c.stride(0), row, sums, k, d, inv_temperature,
        ROWS=rows, COLUMNS=columns, num_warps=4,
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
    rows, columns = STREAM_ROWS, STREAM_COLUMNS
    launch(
        _correlation_gradient_kernel, (cdiv(k, rows),), c,
        c, c.stride(0), row, col, g, d_c, k, d, inv_temperature,
        ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return d_c


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """(N,) float32: |x_i - y_i|^2."""
    n, d = x.shape
    rows, columns = STREAM_ROWS, STREAM_COLUMNS
    out = _empty(x, (n,))
    launch(
        _squares_kernel, (cdiv(n, rows),), x, x, x.stride(0), y, y.stride(0), out, n, d,
        ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return out


def _empty(like: Tensor, shape: tuple) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


@triton.jit
def _potential_kernel(
    z,  # (N, D) float32, contiguous
    norms,  # (N,) float32: |z_i|^2
    first,
    last,
    N,
    D,
    t,
    stats,  # (P, 2, own) float32, out: smallest square, sum of weights at it
    moments,  # (P, own, D) float32, out: sum_j w_ij z_j, or None
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    SLICE: tl.constexpr,
):
    rows = first + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    slice_first = tl.program_id(2) * SLICE
    row_norm = tl.load(norms + rows, mask=rows < last, other=0.0)
    least = tl.full((ROWS,), _FAR, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    moment = tl.zeros((ROWS, SLICE), tl.float32)
    scale = t * _LOG2_E
    begin, end = columns_of_program(N, COLUMNS)
    for first_col in range(begin, end, COLUMNS):
        cols = first_col + tl.arange(0, COLUMNS)
        products = product(z, D, rows, last, z, D, cols, N, D, WIDTH, PRECISION)
        col_norm = tl.load(norms + cols, mask=cols < N, other=0.0)
        square = tl.maximum(row_norm[:, None] + col_norm[None, :] - 2.0 * products, 0.0)
        valid = (cols < N)[None, :] & (rows < last)[:, None] & (rows[:, None] != cols[None, :])
        square = tl.where(valid, square, _FAR)
        nearer = tl.minimum(least, tl.min(square, 1))
        shrink = tl.exp2(tl.maximum((nearer - least) * scale, -1000.0))
        away = tl.where(valid, nearer[:, None] - square, 0.0)
        w = tl.where(valid, tl.exp2(away * scale), 0.0)
        total = total * shrink + tl.sum(w, 1)
        least = nearer
        if moments is not None:
            part = load_rows(z, D, cols, N, slice_first, D, SLICE)
            moment = dot(w, part, moment * shrink[:, None], PRECISION)
    own_count = last - first
    place = rows - first
    here = tl.program_id(1).to(tl.int64)
    if tl.program_id(2) == 0:
        tl.store(stats + here * 2 * own_count + place, least, mask=rows < last)
        tl.store(stats + (here * 2 + 1) * own_count + place, total, mask=rows < last)
    if moments is not None:
        columns = slice_first + tl.arange(0, SLICE)
        offsets = (here * own_count + place)[:, None] * D + columns[None, :]
        mask = (rows < last)[:, None] & (columns < D)[None, :]
        tl.store(moments + offsets, moment, mask=mask)


@triton.jit
def _tile(pointer, stride, rows, N, cols, D):
    """Float32 (R, C), 0 outside."""
    mask = (rows < N)[:, None] & (cols < D)[None, :]
    offsets = rows.to(tl.int64)[:, None] * stride + cols[None, :]
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, rows, N, cols, D, value):
    """Into a contiguous (N, D), in its type."""
    mask = (rows < N)[:, None] & (cols < D)[None, :]
    offsets = rows.to(tl.int64)[:, None] * D + cols[None, :]
    tl.store(pointer + offsets, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _squares_kernel(x, x_stride, y, y_stride, out, N, D,
                    ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, D, COLUMNS):
        cols = first + tl.arange(0, COLUMNS)
        away = _tile(x, x_stride, rows, N, cols, D) - _tile(y, y_stride, rows, N, cols, D)
        total += tl.sum(away * away, 1)
    tl.store(out + rows, total, mask=rows < N)


@triton.jit
def _difference_kernel(x, x_stride, y, y_stride, coefficient, d_x, d_y, N, D,
                       ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    g = tl.load(coefficient + rows, mask=rows < N, other=0.0)[:, None]
    away = g * (_tile(x, x_stride, rows, N, cols, D) - _tile(y, y_stride, rows, N, cols, D))
    _store(d_x, rows, N, cols, D, away)
    _store(d_y, rows, N, cols, D, -away)


@triton.jit
def _rows_kernel(c, stride, row, K, D, inv_temperature,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """row (2, K) float64: shift and log."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    shift = tl.full((ROWS,), -_FAR, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    scale = inv_temperature * _LOG2_E
    for first in range(0, D, COLUMNS):
        cols = first + tl.arange(0, COLUMNS)
        valid = (cols < D)[None, :]
        x = tl.where(valid, _tile(c, stride, rows, K, cols, D), -_FAR)
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
    x = _tile(c, stride, rows, K, cols, D)
    first = tl.load(c + cols, mask=cols < D, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(row + rows, mask=rows < K, other=0.0)
    log = tl.load(row + K + rows, mask=rows < K, other=0.0)
    moved = (shift - tl.load(row)) * inv_temperature + (log - tl.load(row + K))
    scale = inv_temperature * _LOG2_E
    below = (x - shift.to(tl.float32)[:, None]) * scale - (log * _LOG2_E).to(tl.float32)[:, None]
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
    tiles = tl.cdiv(tl.cdiv(K, ROWS), tl.num_programs(1))
    begin = tl.program_id(1) * tiles * ROWS
    for first in range(begin, tl.minimum(begin + tiles * ROWS, K), ROWS):
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
        _store(d_c, rows, K, cols, D, factor * (p * away + (a[None, :] - p)))
