"""Cross-entropy of softmax(l), l = logits * inv_temperature, against an assignment q.

    loss_i = a_i LSE_k(l_ik) - sum_k q_ik l_ik,    a_i = sum_k q_ik
    dloss_i / dl_ik = a_i P_ik - q_ik             symmetric: the same of rows and columns exchanged

From stored logits. Not stored: softmax, q of an assignment in potentials. Bytes: forward one read
of logits and targets (two when symmetric: the columns are a second, transposed pass), backward one
read of both and one write. Operations: one exponential an element for P, one for q.
Relative to the running maximum m of a row every term of sum q (m - l) has the sign of q, so that
float32 loses nothing at logits of 1e4. From embeddings: `_linear_cross_entropy.py`.

Caron et al. 2021 (DINO); Weng et al. 2025 (ReSA, Eq. 2).
"""

import triton
import triton.language as tl
from torch import Tensor

from ._common import assignment, cdiv, choose, empty, launch, stride_of
from ._elementwise import load, store
from ._linear_cross_entropy import linear_backward, linear_forward
from ._statistics import (
    accumulate,
    empty_statistics,
    merge,
    parts,
    share_of_program,
    softmax,
    store_part,
    total_loss,
)

__all__ = ["backward", "forward", "linear_backward", "linear_forward", "statistics"]

# Columns, at most -> rows of a tile, columns of a tile, warps.                          unmeasured
ROWS = (
    (128, 16, 128, 4),
    (1 << 62, 4, 1024, 4),
)
# The transposed pass; rows, at most -> columns of a tile, rows of a tile, warps.        unmeasured
COLUMNS = ((256, 16, 64, 4), (1 << 62, 32, 64, 4))
# Backward; columns, at most -> rows of a tile, columns of a tile, warps.                unmeasured
TILES = ((128, 16, 128, 4), (1 << 62, 4, 1024, 4))


def forward(
    logits: Tensor, inv_temperature: float, targets, symmetric: bool, factor: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss times `factor`, row_stats (4, N), col_stats (3, K) or None; float64 statistics."""
    row_stats = statistics(logits, inv_temperature, targets, transposed=False)
    col_stats = statistics(logits, inv_temperature, targets, True) if symmetric else None
    loss = total_loss(row_stats, col_stats, factor)
    return loss, row_stats, None if col_stats is None else col_stats[:3]


def backward(
    logits: Tensor,
    inv_temperature: float,
    targets,
    row_stats: Tensor,
    col_stats: Tensor | None,
    d_loss: Tensor | None,
    factor: float,
    out: Tensor | None = None,
) -> Tensor:
    """d_logits (N, K), in the type of logits, or into `out`, which may be logits."""
    size, columns = logits.shape
    rows, cols, warps = choose(TILES, columns)
    if out is None:
        out = logits.new_empty(logits.shape)
    launch(
        _gradient, (cdiv(size, rows) * cdiv(columns, cols),), logits,
        logits, logits.stride(0), targets.values, targets.values.stride(0), targets.scale or 0.0,
        targets.row, targets.col, row_stats, row_stats.stride(0), col_stats, stride_of(col_stats),
        d_loss, stride_of(d_loss), out, out.stride(0), size, columns, inv_temperature, factor,
        rows, cols, num_warps=warps,
    )  # fmt: skip
    return out


def statistics(logits: Tensor, inv_temperature: float, targets, transposed: bool) -> Tensor:
    """(4, N) float64: shift, log, mass, loss of the rows, or of the columns of logits."""
    values = targets.values
    operands = [logits, *logits.stride(), values, *values.stride(), targets.scale or 0.0]
    potentials, shape = [targets.row, targets.col], list(logits.shape)
    table = ROWS
    if transposed:
        operands[1:3] = operands[2:0:-1]
        operands[4:6] = operands[5:3:-1]
        potentials, shape, table = potentials[::-1], shape[::-1], COLUMNS
    own, other, warps = choose(table, shape[1])
    blocks = cdiv(shape[0], own)
    count = parts(blocks, cdiv(shape[1], other), logits.device)
    partial = empty(logits, count, 4, shape[0])
    launch(
        _statistics_kernel, (blocks, count), logits,
        *operands, *potentials, partial, *shape, inv_temperature, own, other, num_warps=warps,
    )  # fmt: skip
    return merge(partial, inv_temperature)


@triton.jit
def _statistics_kernel(
    logits,  # (N, K)
    stride_row,
    stride_col,
    values,  # (N, K)
    values_stride_row,
    values_stride_col,
    scale: tl.float64,
    row,  # (N,) float64, or None
    col,  # (K,) float64, or None
    partial,  # (P, 4, N) float32, out
    N,
    K,
    inv_temperature,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    shift, total, mass, distance = empty_statistics(ROWS)
    begin, end = share_of_program(K, COLUMNS)
    for first_col in range(begin, end, COLUMNS):
        cols = first_col + tl.arange(0, COLUMNS)
        mask = (rows < N)[:, None] & (cols < K)[None, :]
        offsets = rows.to(tl.int64)[:, None] * stride_row + cols.to(tl.int64)[None, :] * stride_col
        tile = tl.load(logits + offsets, mask=mask, other=0.0).to(tl.float32)
        q = assignment(
            values, values_stride_row, values_stride_col, scale, row, col, rows, cols, N, K,
            first_row, first_col,
        )  # fmt: skip
        shift, total, mass, distance = accumulate(
            shift, total, mass, distance, tile, q, mask, inv_temperature
        )
    store_part(partial, tl.program_id(1), shift, total, mass, distance, rows, N)


@triton.jit
def _gradient(
    logits,  # (N, K)
    stride,
    values,  # (N, K)
    values_stride,
    scale: tl.float64,
    row,  # (N,) float64, or None
    col,  # (K,) float64, or None
    row_stats,  # (3 or more, N) float64
    row_stats_stride,
    col_stats,  # (3, K) float64, or None
    col_stats_stride,
    d_loss,  # (N,), or 0-d with stride 0, or None
    d_loss_stride,
    d_logits,  # (N, K), out; may be logits
    d_logits_stride,
    N,
    K,
    inv_temperature,
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
    q = assignment(
        values, values_stride, 1, scale, row, col, rows, cols, N, K, first_row, first_col
    )
    # a_i P_ik - q_ik, and the same of the columns
    d = softmax(tile, row_stats, row_stats_stride, rows, N, inv_temperature, 1) - q
    if col_stats is not None:
        d += softmax(tile, col_stats, col_stats_stride, cols, K, inv_temperature, 0) - q
    d *= inv_temperature * factor
    if d_loss is not None:
        g = tl.load(d_loss + rows * d_loss_stride, mask=rows < N, other=0.0)
        d *= g.to(tl.float32)[:, None]
    store(d_logits, d_logits_stride, rows, cols, mask, d)
