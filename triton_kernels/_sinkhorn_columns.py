"""Log-sum-exps of the columns: those of the scores alone, and those that row sweeps leave in parts.

Partial sums merge in a fixed order. Columns that vanish are summed again from the scores, relative
to their maximum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import NARROW, cdiv, choose, element, empty, launch, potential, processors
from ._elementwise import load
from ._statistics import LOWEST

# Columns, at most -> rows of a block, columns of a tile, warps.                         unmeasured
COLUMNS = ((64, 64, 64, 4), (1 << 62, 32, 128, 4))
# Partial sums, at most -> partial sums of a block, columns of a tile, warps.            unmeasured
PARTIALS = ((32, 16, 64, 2), (1 << 62, 32, 64, 4))
# Programs a multiprocessor                                                              unmeasured
OCCUPANCY = 2
# A column sum below this has lost terms to underflow.
_VANISHED = tl.constexpr(1e-28)


def start(scores: Tensor, scale: float, log_prior: Tensor | None, update: bool) -> Tensor:
    """LSE_i(scale s_ik), or log prior minus that."""
    size, columns = scores.shape
    block, tile, warps = choose(COLUMNS, columns)
    tiles = cdiv(columns, tile)
    wanted = cdiv(OCCUPANCY * processors(scores.device), tiles)
    partial = empty(scores, min(cdiv(size, block), wanted), columns, dtype=torch.float64)
    launch(
        _start_kernel, (tiles, partial.shape[0]), scores,
        scores, scores.stride(0), partial, size, columns, scale, block, tile, num_warps=warps,
    )  # fmt: skip
    return combine(scores, scale, partial, None, None, log_prior, update)


def combine(scores, scale, partial, col, row, log_prior, update):
    """Column sums of all programs, in a fixed order, to LSE (K,) or to log prior - LSE."""
    count, columns = partial.shape
    block, tile, warps = choose(PARTIALS, count)
    out = empty(scores, columns, dtype=torch.float64)
    launch(
        _combine_kernel, (cdiv(columns, tile),), scores,
        partial, col, row, log_prior, out, scores, scores.stride(0),
        count, scores.shape[0], columns, scale, update, block, tile, num_warps=warps,
    )  # fmt: skip
    return out


@triton.jit
def _start_kernel(
    scores,  # (N, K)
    stride,
    partial,  # (P, K) float64: LSE of every P-th block of rows
    N,
    K,
    scale: tl.float64,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    cols = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    program, programs = tl.program_id(1), tl.num_programs(1)
    scale32 = tl.full((), scale, tl.float32)
    reference = element(scores, program * ROWS, stride, tl.program_id(0) * COLUMNS, 1)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    farthest = tl.zeros((ROWS, COLUMNS), tl.float32)
    for block in range(program, tl.cdiv(N, ROWS), programs):
        rows = block * ROWS + tl.arange(0, ROWS)
        mask = (rows < N)[:, None] & (cols < K)[None, :]
        s = load(scores, stride, rows, cols, mask)
        near = tl.where(mask, s - reference, 0.0) * scale32
        farthest = tl.maximum(farthest, tl.abs(near))
        total += tl.where(mask, tl.exp(near), 0.0)
    lse = tl.log(tl.sum(total, 0)).to(tl.float64) + reference.to(tl.float64) * scale
    if tl.max(farthest) > NARROW:
        lse = _wide_columns(scores, stride, None, cols, N, K, scale, program, programs, ROWS)
    tl.store(partial + program.to(tl.int64) * K + cols, lse, mask=cols < K)


@triton.jit
def _wide_columns(scores, stride, row, cols, N, K, scale, first, every, ROWS: tl.constexpr):
    """LSE_i(scale s_ik + row_i), (C,) float64, over every `every`-th block of rows."""
    peak = tl.zeros_like(cols).to(tl.float64) + LOWEST
    total = tl.zeros_like(cols).to(tl.float32)
    for block in range(first, tl.cdiv(N, ROWS), every):
        rows = block * ROWS + tl.arange(0, ROWS)
        mask = (rows < N)[:, None] & (cols < K)[None, :]
        s = load(scores, stride, rows, cols, mask)
        exponent = s.to(tl.float64) * scale + potential(row, rows, N)[:, None]
        exponent = tl.where(mask, exponent, LOWEST)
        higher = tl.maximum(peak, tl.max(exponent, 0))
        total *= tl.exp((peak - higher).to(tl.float32))
        total += tl.sum(tl.exp((exponent - higher[None, :]).to(tl.float32)), 0)
        peak = higher
    return peak + tl.log(total).to(tl.float64)


@triton.jit
def _combine_kernel(
    partial,  # (P, K): float64 logarithms at the start (no row), else float32 sums, relative to col
    col,  # (K,) float64, or None
    row,  # (N,) float64, or None
    log_prior,  # (K,) float64, or None for zeros
    out,  # (K,) float64
    scores,  # (N, K)
    stride,
    P,
    N,
    K,
    scale: tl.float64,
    UPDATE: tl.constexpr,  # out = log_prior - LSE rather than LSE
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    cols = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    prior = potential(log_prior, cols, K)
    if row is None:
        lse = _combine_logarithms(partial, cols, P, K, BLOCK)
    else:
        total = tl.zeros((COLUMNS,), tl.float64)
        for first in range(0, P, BLOCK):
            part, _ = _load_partial(partial, first, cols, P, K, BLOCK)
            total += tl.sum(part.to(tl.float64), 0)
        vanished = (total < _VANISHED) & (cols < K)
        if UPDATE:
            vanished = vanished & (prior > float("-inf"))
        lse = tl.log(tl.maximum(total, 1e-300)) - potential(col, cols, K)
        lse = tl.where(total == total, lse, total)
        if tl.max(vanished.to(tl.int32)) > 0:
            rescued = _wide_columns(scores, stride, row, cols, N, K, scale, 0, 1, BLOCK)
            lse = tl.where(vanished, rescued, lse)
    if UPDATE:
        lse = prior - lse
    tl.store(out + cols, lse, mask=cols < K)


@triton.jit
def _combine_logarithms(partial, cols, P, K, BLOCK: tl.constexpr):
    peak = tl.zeros_like(cols).to(tl.float64) + LOWEST
    total = tl.zeros_like(cols).to(tl.float64)
    for first in range(0, P, BLOCK):
        part, mask = _load_partial(partial, first, cols, P, K, BLOCK)
        part = tl.where(mask, part, LOWEST)
        higher = tl.maximum(peak, tl.max(part, 0))
        total *= tl.exp((peak - higher).to(tl.float32)).to(tl.float64)
        terms = tl.exp((part - higher[None, :]).to(tl.float32))
        total += tl.sum(terms.to(tl.float64), 0)
        peak = higher
    return peak + tl.log(total)


@triton.jit
def _load_partial(partial, first, cols, P, K, BLOCK: tl.constexpr):
    index = first + tl.arange(0, BLOCK)
    mask = (index < P)[:, None] & (cols < K)[None, :]
    offsets = index.to(tl.int64)[:, None] * K + cols[None, :]
    return tl.load(partial + offsets, mask=mask, other=0.0), mask
