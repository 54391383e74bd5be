"""Sinkhorn-Knopp in potentials, streaming.

    row_i = -LSE_k(scale s_ik + col_k)
    col_k = log prior_k - L_k,    L_k = LSE_i(scale s_ik + row_i)

Not stored: exponents, exponentials, assignments. A program owns blocks of rows and sweeps each of
them twice, for row_i and then, from the cache, for its share of the column sums of
exp(scale s_ik + row_i + col_k) <= 1. Bytes: one read of s an iteration (twice that where a block of
rows outgrows the cache) and 8 K per program. Operations: two exponentials an element.

Precision: scores are taken relative to a score c of their block and col relative to its maximum so
far, both in float64. Where |s - c| scale exceeds NARROW, the block is done again with float64
exponents: never coarser than one global c and one global span would be. Within NARROW no sum can
overflow or underflow; columns that vanish otherwise are summed again relative to their maximum.

Caron et al. 2020 (SwAV); Cuturi 2013.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import NARROW, assignment, cdiv, choose, element, empty, launch, potential, processors
from ._elementwise import load
from ._sinkhorn_columns import OCCUPANCY, combine, start
from ._statistics import LOWEST

# Bytes of a row, at most -> rows of a block, columns of a tile, warps.                  unmeasured
ROWS = (
    (1 << 9, 32, 128, 4),
    (1 << 13, 16, 256, 4),
    (1 << 15, 4, 1024, 4),
    (1 << 62, 2, 2048, 8),
)


def step(scores: Tensor, scale: float, col: Tensor | None) -> tuple[Tensor, Tensor]:
    """One iteration: (row (N,), column_lse (K,)) in float64; `col` None stands for row = 0."""
    if col is None:
        row = scores.new_zeros(scores.shape[0], dtype=torch.float64)
        return row, start(scores, scale, None, update=False)
    return _iterate(scores, scale, col, None, update=False)


def row_potential(scores: Tensor, scale: float, col: Tensor | None) -> Tensor:
    """-LSE_k(scale s_ik + col_k), float64 (N,)."""
    return _rows(scores, scale, col)


def potentials(
    scores: Tensor, scale: float, log_prior: Tensor | None, iterations: int, softmax_start: bool
) -> tuple[Tensor, Tensor]:
    """(row (N,), col (K,)), float64, after `iterations`: iterations + 1 reads of the scores."""
    col = _column_potential(scores, scale, log_prior, iterations, softmax_start)
    return _rows(scores, scale, col), col


def dense(
    scores: Tensor, scale: float, log_prior: Tensor | None, iterations: int, softmax_start: bool
) -> Tensor:
    """The assignment (N, K), float32: the last row potential and the output in one pass."""
    col = _column_potential(scores, scale, log_prior, iterations, softmax_start)
    q = empty(scores, *scores.shape)
    _rows(scores, scale, col, dense=q)
    return q


def evaluate(scores: Tensor, scale: float, row: Tensor, col: Tensor | None) -> Tensor:
    """exp(scale s + row + col), (N, K) float32."""
    size, columns = scores.shape
    block, tile, warps = choose(ROWS, columns * scores.element_size())
    q = empty(scores, *scores.shape)
    launch(
        _evaluate, (cdiv(size, block) * cdiv(columns, tile),), scores,
        scores, scores.stride(0), row, col, q, size, columns, scale, block, tile, num_warps=warps,
    )  # fmt: skip
    return q


def _column_potential(
    scores: Tensor, scale: float, log_prior: Tensor | None, iterations: int, softmax_start: bool
) -> Tensor:
    if softmax_start:
        col = _iterate(scores, scale, None, log_prior, update=True)[1]
    else:
        col = start(scores, scale, log_prior, update=True)
    for _ in range(iterations - 1):
        col = _iterate(scores, scale, col, log_prior, update=True)[1]
    return col


def _iterate(
    scores: Tensor, scale: float, col: Tensor | None, log_prior: Tensor | None, update: bool
) -> tuple[Tensor, Tensor]:
    """(row, column_lse), or (row, log prior - column_lse); `col` None stands for zeros."""
    blocks = cdiv(scores.shape[0], _row_settings(scores)[0])
    programs = min(blocks, OCCUPANCY * processors(scores.device))
    partial = empty(scores, programs, scores.shape[1])
    row = _rows(scores, scale, col, partial=partial)
    return row, combine(scores, scale, partial, col, row, log_prior, update)


def _rows(
    scores: Tensor,
    scale: float,
    col: Tensor | None,
    partial: Tensor | None = None,
    dense: Tensor | None = None,
) -> Tensor:
    """The row potential; fills `partial` (programs, K) with column sums or `dense` with q."""
    size, columns = scores.shape
    block, tile, warps = _row_settings(scores)
    row = empty(scores, size, dtype=torch.float64)
    programs = cdiv(size, block) if partial is None else partial.shape[0]
    launch(
        _rows_kernel, (programs,), scores,
        scores, scores.stride(0), col, row, partial, dense, size, columns, scale,
        block, tile, num_warps=warps,
    )  # fmt: skip
    return row


def _row_settings(scores: Tensor) -> tuple:
    return choose(ROWS, scores.shape[1] * scores.element_size())


@triton.jit
def _rows_kernel(
    scores,  # (N, K)
    stride,
    col,  # (K,) float64, or None for zeros
    row,  # (N,) float64, out
    partial,  # (P, K) float32, out: sums of q over the rows of a program; or None
    dense,  # (N, K) float32, out: q; or None
    N,
    K,
    scale: tl.float64,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    for block in range(program, tl.cdiv(N, ROWS), programs):
        rows = block * ROWS + tl.arange(0, ROWS)
        reference = element(scores, block * ROWS, stride, 0, 1)
        shift = reference.to(tl.float64) * scale
        lse, peak, farthest = _near_rows(
            scores, stride, col, reference, rows, N, K, scale, ROWS, COLUMNS
        )
        wide = farthest > NARROW
        if wide:
            lse = _wide_rows(scores, stride, col, rows, N, K, scale, ROWS, COLUMNS)
        tl.store(row + rows, -lse, mask=rows < N)
        if (partial is not None) or (dense is not None):
            near_row = (shift + peak - lse).to(tl.float32)
            # Backwards: the tiles read last are the likeliest to be near.
            for j in range(tl.cdiv(K, COLUMNS)):
                cols = (tl.cdiv(K, COLUMNS) - 1 - j) * COLUMNS + tl.arange(0, COLUMNS)
                mask = (rows < N)[:, None] & (cols < K)[None, :]
                s = load(scores, stride, rows, cols, mask)
                v = potential(col, cols, K)
                if wide:
                    exponent = s.to(tl.float64) * scale + (v[None, :] - lse[:, None])
                    q = tl.exp(exponent.to(tl.float32))
                else:
                    near = (s - reference) * tl.full((), scale, tl.float32)
                    q = tl.exp(near + ((v - peak).to(tl.float32)[None, :] + near_row[:, None]))
                if dense is not None:
                    offsets = rows.to(tl.int64)[:, None] * K + cols[None, :]
                    tl.store(dense + offsets, q, mask=mask)
                else:
                    sums = tl.sum(tl.where(mask, q, 0.0), 0)
                    target = partial + program.to(tl.int64) * K + cols
                    if block != program:
                        sums += tl.load(target, mask=cols < K, other=0.0)
                    tl.store(target, sums, mask=cols < K)
            # The next block of this program adds to the sums stored here.
            tl.debug_barrier()


@triton.jit
def _near_rows(
    scores, stride, col, reference, rows, N, K, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """LSE_k (R,) float64, the maximum of col, and how far a score is from the reference, in nats.

    The sum is relative to reference * scale + peak: at least exp(-NARROW), at most K exp(NARROW).
    """
    peak = tl.full((), LOWEST, tl.float64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    farthest = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, K, COLUMNS):
        cols = first + tl.arange(0, COLUMNS)
        mask = (rows < N)[:, None] & (cols < K)[None, :]
        s = load(scores, stride, rows, cols, mask)
        v = tl.where(cols < K, potential(col, cols, K), float("-inf"))
        higher = tl.maximum(peak, tl.max(v))
        # In two factors: what rescaling loses is then below exp(-NARROW) of the final sum.
        half = tl.exp(((peak - higher) * 0.5).to(tl.float32))
        near = tl.where(mask, s - reference, 0.0) * tl.full((), scale, tl.float32)
        farthest = tl.maximum(farthest, tl.abs(near))
        total = total * half * half + tl.exp(near + (v - higher).to(tl.float32)[None, :])
        peak = higher
    lse = tl.log(tl.sum(total, 1)).to(tl.float64) + (reference.to(tl.float64) * scale + peak)
    return lse, peak, tl.max(farthest)


@triton.jit
def _wide_rows(scores, stride, col, rows, N, K, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """LSE_k (R,) float64, every exponent in float64."""
    peak = tl.full((ROWS,), LOWEST, tl.float64)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, K, COLUMNS):
        cols = first + tl.arange(0, COLUMNS)
        mask = (rows < N)[:, None] & (cols < K)[None, :]
        s = load(scores, stride, rows, cols, mask)
        v = tl.where(cols < K, potential(col, cols, K), float("-inf"))
        exponent = s.to(tl.float64) * scale + v[None, :]
        higher = tl.maximum(peak, tl.max(exponent, 1))
        total *= tl.exp((peak - higher).to(tl.float32))
        total += tl.sum(tl.exp((exponent - higher[:, None]).to(tl.float32)), 1)
        peak = higher
    return peak + tl.log(total).to(tl.float64)


@triton.jit
def _evaluate(
    scores,  # (N, K)
    stride,
    row,  # (N,) float64
    col,  # (K,) float64, or None
    q,  # (N, K) float32, out
    N,
    K,
    scale: tl.float64,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tiles = tl.cdiv(K, COLUMNS)
    first_row = tl.program_id(0) // tiles * ROWS
    first_col = tl.program_id(0) % tiles * COLUMNS
    rows, cols = first_row + tl.arange(0, ROWS), first_col + tl.arange(0, COLUMNS)
    tile = assignment(scores, stride, 1, scale, row, col, rows, cols, N, K, first_row, first_col)
    mask = (rows < N)[:, None] & (cols < K)[None, :]
    tl.store(q + rows.to(tl.int64)[:, None] * K + cols[None, :], tile, mask=mask)
