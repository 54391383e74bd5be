"""Column sums of P = softmax(l), l = logits * inv_temperature, for priors on prototypes.

    p_k = sum_i P_ik;   G = N dKL/dp, given as w and c: P_ik G_k = R_ik = w_k exp(log P_ik - c_k)
    dloss / dl_ik = a_i P_ik - q_ik + R_ik - P_ik h_i,    h_i = sum_j R_ij

Alone, or with the cross-entropy of the same tile (MSN; PMSN, Eq. 9). Not stored: P, q, R. Bytes:
forward two reads of the logits and one of the targets (rows, then columns, which need the rows'
normaliser), backward two reads of the logits, one of the targets, one write. From embeddings the
logits are tiles that stay in the L2 cache. Operations: one exponential an element and read, two
in the gradient and one more where q is evaluated.
Sums leave as logarithms: a prototype that nobody picks may have p_k = exp(-500).

Assran et al. 2022 (MSN); 2023 (PMSN).
"""

from types import SimpleNamespace

import triton
import triton.language as tl
from torch import Tensor

from ._common import NARROW, assignment, cdiv, choose, empty, launch, stride_of
from ._elementwise import load, store
from ._statistics import (
    accumulate,
    empty_statistics,
    merge,
    parts,
    share_of_program,
    store_part,
)
from .cross_entropy import statistics

__all__ = ["backward", "forward"]

# Column sums; rows, at most -> columns of a tile, rows of a tile, warps.               unmeasured
SUMS = ((256, 16, 64, 4), (1 << 62, 32, 64, 4))
# Row sums of R and the gradient; columns, at most -> rows of a tile, columns, warps.   unmeasured
TILES = ((128, 16, 128, 4), (1 << 62, 4, 1024, 4))


def forward(logits: Tensor, inv_temperature: float, targets) -> tuple[Tensor, Tensor]:
    """row_stats (4, N) and log p (K,), both float64; without targets mass and loss are 0."""
    given = SimpleNamespace(values=logits, scale=None, row=None, col=None)
    row_stats = statistics(logits, inv_temperature, given if targets is None else targets, False)
    if targets is None:
        row_stats[2:].zero_()
    size, columns = logits.shape
    own, other, warps = choose(SUMS, size)
    blocks = cdiv(columns, own)
    count = parts(blocks, cdiv(size, other), logits.device)
    partial = empty(logits, count, 4, columns)
    launch(
        _column_sums, (blocks, count), logits,
        logits, logits.stride(0), row_stats, row_stats.stride(0), partial, size, columns,
        inv_temperature, own, other, num_warps=warps,
    )  # fmt: skip
    shift, log = merge(partial, 1.0)[:2]
    return row_stats, shift + log


def backward(
    logits: Tensor,
    inv_temperature: float,
    targets,
    row_stats: Tensor,
    prior: Tensor,
    d_loss: Tensor | None,
    factor: float,
    out: Tensor | None = None,
) -> Tensor:
    """d_logits (N, K), in the type of logits, or into `out`, which may be logits."""
    size, columns = logits.shape
    rows, cols, warps = choose(TILES, columns)
    if out is None:
        out = logits.new_empty(logits.shape)
    blocks = cdiv(size, rows)
    count = parts(blocks, cdiv(columns, cols), logits.device)
    partial = empty(logits, count, size)
    operands = (
        logits, logits.stride(0), row_stats, row_stats.stride(0), prior, prior.stride(0), partial,
    )  # fmt: skip
    launch(
        _row_sums, (blocks, count), logits,
        *operands, size, columns, inv_temperature, rows, cols, num_warps=warps,
    )  # fmt: skip
    held = SimpleNamespace(values=None, scale=None, row=None, col=None)
    held = held if targets is None else targets
    launch(
        _gradient, (blocks * cdiv(columns, cols),), logits,
        *operands, held.values, stride_of(held.values),
        held.scale or 0.0, held.row, held.col, d_loss, out, out.stride(0), count, size, columns,
        inv_temperature, factor, rows, cols, num_warps=warps,
    )  # fmt: skip
    return out


@triton.jit
def _log_softmax(tile, stats, stride, rows, N, mask, inv_temperature, less):
    """log P_ik - less_k (R, C), formed in float64 where it exceeds NARROW; less (C,) float64."""
    shift = tl.load(stats + rows, mask=rows < N, other=0.0)
    log = tl.load(stats + stride + rows, mask=rows < N, other=0.0)
    near = tl.where(mask, tile - shift.to(tl.float32)[:, None], 0.0)
    near *= tl.full((), inv_temperature, tl.float32)
    largest = tl.max(tl.abs(near)) + tl.max(tl.abs(less)).to(tl.float32)
    if largest <= NARROW:
        value = near - (log.to(tl.float32)[:, None] + less.to(tl.float32)[None, :])
    else:
        wide = (tile.to(tl.float64) - shift[:, None]) * inv_temperature
        value = (wide - (log[:, None] + less[None, :])).to(tl.float32)
    return value


@triton.jit
def _prior_term(tile, stats, stride, prior, prior_stride, rows, cols, N, K, mask, inv_temperature):
    """R_ik = w_k exp(log P_ik - c_k), 0 outside."""
    weight = tl.load(prior + cols, mask=cols < K, other=0.0).to(tl.float32)
    offset = tl.load(prior + prior_stride + cols, mask=cols < K, other=0.0)
    log_p = _log_softmax(tile, stats, stride, rows, N, mask, inv_temperature, offset)
    return tl.where(mask, weight[None, :] * tl.exp(log_p), 0.0)


@triton.jit
def _column_sums(
    logits,  # (N, K)
    stride,
    stats,  # (4, N) float64
    stats_stride,
    partial,  # (P, 4, K) float32, out
    N,
    K,
    inv_temperature: tl.float64,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    cols = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    shift, total, mass, distance = empty_statistics(COLUMNS)
    none = tl.zeros((COLUMNS,), tl.float64)
    begin, end = share_of_program(N, ROWS)
    for first in range(begin, end, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < N)[:, None] & (cols < K)[None, :]
        tile = load(logits, stride, rows, cols, mask)
        log_p = _log_softmax(tile, stats, stats_stride, rows, N, mask, inv_temperature, none)
        log_p, mask = tl.trans(log_p), tl.trans(mask)
        shift, total, mass, distance = accumulate(
            shift, total, mass, distance, log_p, tl.zeros_like(log_p), mask, 1.0
        )
    store_part(partial, tl.program_id(1), shift, total, mass, distance, cols, K)


@triton.jit
def _row_sums(
    logits,  # (N, K)
    stride,
    stats,  # (4, N) float64
    stats_stride,
    prior,  # (2, K) float64: w, c
    prior_stride,
    partial,  # (P, N) float32, out: parts of h
    N,
    K,
    inv_temperature: tl.float64,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    h = tl.zeros((ROWS,), tl.float32)
    begin, end = share_of_program(K, COLUMNS)
    for first in range(begin, end, COLUMNS):
        cols = first + tl.arange(0, COLUMNS)
        mask = (rows < N)[:, None] & (cols < K)[None, :]
        tile = load(logits, stride, rows, cols, mask)
        r = _prior_term(
            tile, stats, stats_stride, prior, prior_stride, rows, cols, N, K, mask, inv_temperature
        )
        h += tl.sum(r, 1)
    part = tl.full((), tl.program_id(1), tl.int64)
    tl.store(partial + part * N + rows, h, mask=rows < N)


@triton.jit
def _gradient(
    logits,  # (N, K)
    stride,
    stats,  # (4, N) float64
    stats_stride,
    prior,  # (2, K) float64: w, c
    prior_stride,
    partial,  # (P, N) float32: parts of h
    values,  # (N, K), or None without targets
    values_stride,
    scale: tl.float64,
    row,  # (N,) float64, or None
    col,  # (K,) float64, or None
    d_loss,  # 0-d, or None
    d_logits,  # (N, K), out; may be logits
    d_logits_stride,
    P,
    N,
    K,
    inv_temperature: tl.float64,
    factor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tiles = tl.cdiv(K, COLUMNS)
    first_row = tl.program_id(0) // tiles * ROWS
    first_col = tl.program_id(0) % tiles * COLUMNS
    rows, cols = first_row + tl.arange(0, ROWS), first_col + tl.arange(0, COLUMNS)
    mask = (rows < N)[:, None] & (cols < K)[None, :]
    tile = load(logits, stride, rows, cols, mask)
    h = tl.zeros((ROWS,), tl.float32)
    for part in range(P):
        pointers = partial + tl.full((), part, tl.int64) * N + rows
        h += tl.load(pointers, mask=rows < N, other=0.0)
    none = tl.zeros((COLUMNS,), tl.float64)
    p = tl.exp(_log_softmax(tile, stats, stats_stride, rows, N, mask, inv_temperature, none))
    d = _prior_term(
        tile, stats, stats_stride, prior, prior_stride, rows, cols, N, K, mask, inv_temperature
    )
    if values is None:
        d -= p * h[:, None]
    else:
        # a_i P_ik - q_ik + R_ik - h_i P_ik
        mass = tl.load(stats + 2 * stats_stride + rows, mask=rows < N, other=0.0).to(tl.float32)
        q = assignment(
            values, values_stride, 1, scale, row, col, rows, cols, N, K, first_row, first_col
        )
        d += p * (mass - h)[:, None] - q
    d *= tl.full((), inv_temperature, tl.float32) * factor
    if d_loss is not None:
        d *= tl.load(d_loss).to(tl.float32)
    store(d_logits, d_logits_stride, rows, cols, mask, d)
