"""Pairwise potentials; positive pairs are in `_distances.py`, prototypes in `_correlation.py`.

    log sum_ij w_ij, w_ij = exp(-t |x_i - x_j|^2), and sum_j w_ij (x_i - x_j)

A program owns a block of rows and visits all columns (a range of them where rows are few), at the
running smallest distance, as in FlashAttention: 2 N^2 D operations for the squares and 2 N^2 D for
the moments, each pair twice, so that nothing needs atomics. Not stored: N x N. Squares come from
products of rows moved to the batch's mean; float32 as three TF32 products. Rows much nearer to each
other than to the mean lose digits here, which the CPU kernels restore.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import LOG2_E, cdiv, empty, launch
from ._correlation import correlation, correlation_backward
from ._distances import distance_power, distance_power_backward
from ._products import dot, input_precision, load_rows, padded, product
from ._statistics import parts, share_of_program

__all__ = [
    "correlation",
    "correlation_backward",
    "distance_power",
    "distance_power_backward",
    "potential",
]

# Rows, columns and width of a tile of pairs.                                     unmeasured
ROWS, COLUMNS, WIDTH = 64, 64, 32
WIDEST = 64  # of a slice of the moments that one program accumulates          unmeasured
_FAR = tl.constexpr(3e38)


def potential(
    x: Tensor, first: int, last: int, t: float, want_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """As `reference.uniformity.potential`."""
    z = x.float() - x.mean(0, dtype=torch.float32)
    n, d = z.shape
    own = last - first
    rows, columns, width = ROWS, COLUMNS, min(WIDTH, padded(d))
    slice_width = min(padded(d), WIDEST) if want_grad else 16
    blocks = cdiv(own, rows)
    count = parts(blocks, cdiv(n, columns), z.device)
    stats = empty(z, count, 2, own)
    moments = empty(z, count, own, d) if want_grad else None
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
    moved = weight.sum(0).float()[:, None] * z[first:last] - (moments * factor).sum(0)
    return log_sum, moved * (-4 * t / total).float()


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
    scale = t * LOG2_E
    begin, end = share_of_program(N, COLUMNS)
    for first_col in range(begin, end, COLUMNS):
        cols = first_col + tl.arange(0, COLUMNS)
        products = product(z, D, rows, last, z, D, cols, N, D, WIDTH, PRECISION)
        col_norm = tl.load(norms + cols, mask=cols < N, other=0.0)
        square = row_norm[:, None] + col_norm[None, :] - 2.0 * products
        square = tl.where(square < 0.0, 0.0, square)  # NaN stays
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
