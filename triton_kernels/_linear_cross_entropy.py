"""Cross-entropy from embeddings: logits = x @ weight.T tile by tile on tensor cores.

    loss_i = a_i LSE_k(l_ik) - sum_k q_ik l_ik,   d_ik = g_i / T (a_i P_ik - q_ik)
    d_x = d @ weight,   d_weight = d.T @ x

Not stored: logits, softmax, q, d. A program owns a block of rows and visits the columns (a range of
them where rows are few); the transposed problem serves the columns: symmetric statistics, d_weight.
Scores of a factored target are a second product of the same visit. Operations: 2 N K D forward;
backward each gradient takes 2 N K D for the tile and, for half inputs, twice that for d in two
halves (see `_products.py`). No atomics.

Wijmans et al. 2024 (cut cross-entropy); Dao 2023 (FlashAttention-2), for the visit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import cdiv, empty, launch, stride_of
from ._linear_operands import Problem, target_tile
from ._products import (
    BACKWARD,
    FORWARD,
    WIDEST,
    dot,
    gradient_product,
    load_rows,
    padded,
    product,
)
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


def linear_forward(
    x: Tensor, weight: Tensor, inv_temperature: float, targets, symmetric: bool, factor: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `forward` of logits = x @ weight.T, with x (N, D) and weight (K, D)."""
    row_stats = _statistics(Problem(x, weight, targets), inv_temperature)
    col_stats = None
    if symmetric:
        col_stats = _statistics(Problem(x, weight, targets).transposed(), inv_temperature)
    loss = total_loss(row_stats, col_stats, factor)
    return loss, row_stats, None if col_stats is None else col_stats[:3]


def linear_backward(
    x: Tensor,
    weight: Tensor,
    inv_temperature: float,
    targets,
    row_stats: Tensor,
    col_stats: Tensor | None,
    d_loss: Tensor | None,
    factor: float,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """(d_x (N, D), d_weight (K, D)) in the inputs' type, accumulated in float32."""
    problem = Problem(x, weight, targets)
    scaling = inv_temperature * factor
    d_x = d_weight = None
    if need_x:
        d_x = _gradient(problem, row_stats, col_stats, d_loss, None, inv_temperature, scaling)
    if need_weight:
        d_weight = _gradient(
            problem.transposed(), col_stats, row_stats, None, d_loss, inv_temperature, scaling
        )
    return d_x, d_weight


def _statistics(problem: Problem, inv_temperature: float) -> Tensor:
    """(4, own) float64: shift, log, mass, loss."""
    rows, columns, width, warps, stages = problem.settings(FORWARD)
    size, others = problem.own.shape[0], problem.other.shape[0]
    blocks = cdiv(size, rows)
    count = parts(blocks, cdiv(others, columns), problem.own.device)
    partial = empty(problem.own, count, 4, size)
    launch(
        _statistics_kernel, (blocks, count), problem.own,
        *problem.operands(), inv_temperature, partial, **problem.tile(rows, columns, width),
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return merge(partial, inv_temperature)


def _gradient(
    problem: Problem,
    own_stats: Tensor | None,  # (3 or more, own), for the softmax over the others
    other_stats: Tensor | None,  # (3 or more, other)
    own_d_loss: Tensor | None,  # 0-d, or (own,)
    other_d_loss: Tensor | None,  # 0-d, or (other,)
    inv_temperature: float,
    scaling: float,
) -> Tensor:
    """(own, D): d_own of the problem, in its type."""
    rows, columns, width, warps, stages = problem.settings(BACKWARD)
    own, dim = problem.own, problem.own.shape[1]
    slice_width = min(padded(dim), WIDEST[own.element_size()])
    blocks = cdiv(own.shape[0], rows)
    count = parts(blocks, cdiv(problem.other.shape[0], columns), own.device)
    partial = empty(own, count, *own.shape, dtype=own.dtype if count == 1 else torch.float32)
    launch(
        _gradient_kernel, (blocks, count, cdiv(dim, slice_width)), own,
        *problem.operands(), inv_temperature, scaling, *_with_stride(own_stats),
        *_with_stride(other_stats), *_with_stride(own_d_loss), *_with_stride(other_d_loss),
        partial, **problem.tile(rows, columns, width), SLICE=slice_width,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return partial[0] if count == 1 else partial.sum(0).to(own.dtype)


def _with_stride(tensor: Tensor | None) -> tuple[Tensor | None, int]:
    return tensor, stride_of(tensor)


@triton.jit
def _statistics_kernel(
    x,  # (N, D)
    x_stride,
    weight,  # (K, D)
    weight_stride,
    z,  # (N, H), or None
    z_stride,
    prototypes,  # (K, H), or None
    prototypes_stride,
    values,  # (N, K), or None
    values_stride_row,
    values_stride_col,
    scale: tl.float64,
    row,  # (N,) float64, or None
    col,  # (K,) float64, or None
    N,
    K,
    D,
    H,
    inv_temperature,
    partial,  # (P, 4, N) float32, out
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_Z: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    z_tile = None
    if WHOLE:
        x_tile = load_rows(x, x_stride, rows, N, 0, D, WIDTH)
        if z is not None:
            z_tile = load_rows(z, z_stride, rows, N, 0, H, WIDTH_Z)
    shift, total, mass, distance = empty_statistics(ROWS)
    begin, end = share_of_program(K, COLUMNS)
    for first_col in range(begin, end, COLUMNS):
        cols = first_col + tl.arange(0, COLUMNS)
        if WHOLE:
            weight_tile = load_rows(weight, weight_stride, cols, K, 0, D, WIDTH)
            logits = dot(x_tile, tl.trans(weight_tile), None, PRECISION)
        else:
            logits = product(
                x, x_stride, rows, N, weight, weight_stride, cols, K, D, WIDTH, PRECISION
            )
        q = target_tile(
            z_tile, z, z_stride, prototypes, prototypes_stride, values, values_stride_row,
            values_stride_col, scale, row, col, rows, cols, N, K, H, first_row, first_col,
            WIDTH_Z, PRECISION,
        )  # fmt: skip
        mask = (cols < K)[None, :] & (rows < N)[:, None]
        shift, total, mass, distance = accumulate(
            shift, total, mass, distance, logits, q, mask, inv_temperature
        )
    store_part(partial, tl.program_id(1), shift, total, mass, distance, rows, N)


@triton.jit
def _gradient_kernel(
    x,  # (N, D)
    x_stride,
    weight,  # (K, D)
    weight_stride,
    z,  # (N, H), or None
    z_stride,
    prototypes,  # (K, H), or None
    prototypes_stride,
    values,  # (N, K), or None
    values_stride_row,
    values_stride_col,
    scale: tl.float64,
    row,  # (N,) float64, or None
    col,  # (K,) float64, or None
    N,
    K,
    D,
    H,
    inv_temperature,
    scaling,
    row_stats,  # (3, N) float64, or None
    row_stats_stride,
    col_stats,  # (3, K) float64, or None
    col_stats_stride,
    row_d_loss,  # (N,), or 0-d with stride 0, or None
    row_d_loss_stride,
    col_d_loss,  # (K,), or 0-d with stride 0, or None
    col_d_loss_stride,
    d_x,  # (P, N, D), out
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_Z: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    SLICE: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    first = tl.program_id(2) * SLICE
    z_tile = None
    if WHOLE:
        x_tile = load_rows(x, x_stride, rows, N, 0, D, WIDTH)
        if z is not None:
            z_tile = load_rows(z, z_stride, rows, N, 0, H, WIDTH_Z)
    d = tl.zeros((ROWS, SLICE), tl.float32)
    begin, end = share_of_program(K, COLUMNS)
    for first_col in range(begin, end, COLUMNS):
        cols = first_col + tl.arange(0, COLUMNS)
        weight_tile = load_rows(weight, weight_stride, cols, K, first, D, SLICE)
        if WHOLE:
            logits = dot(x_tile, tl.trans(weight_tile), None, PRECISION)
        else:
            logits = product(
                x, x_stride, rows, N, weight, weight_stride, cols, K, D, WIDTH, PRECISION
            )
        q = target_tile(
            z_tile, z, z_stride, prototypes, prototypes_stride, values, values_stride_row,
            values_stride_col, scale, row, col, rows, cols, N, K, H, first_row, first_col,
            WIDTH_Z, PRECISION,
        )  # fmt: skip
        # a_i P_ik - q_ik, and the same of the columns
        d_logits = tl.zeros((ROWS, COLUMNS), tl.float32)
        if row_stats is not None:
            p = softmax(logits, row_stats, row_stats_stride, rows, N, inv_temperature, 1)
            d_logits += p - q
        if col_stats is not None:
            p = softmax(logits, col_stats, col_stats_stride, cols, K, inv_temperature, 0)
            d_logits += p - q
        if col_d_loss is not None:
            g = tl.load(col_d_loss + cols * col_d_loss_stride, mask=cols < K, other=0.0)
            d_logits *= g.to(tl.float32)[None, :]
        mask = (cols < K)[None, :] & (rows < N)[:, None]
        d = gradient_product(tl.where(mask, d_logits, 0.0), weight_tile, d, PRECISION)
    if row_d_loss is not None:
        g = tl.load(row_d_loss + rows * row_d_loss_stride, mask=rows < N, other=0.0)
        d *= g.to(tl.float32)[:, None]
    columns = first + tl.arange(0, SLICE)
    offsets = (tl.program_id(1).to(tl.int64) * N + rows)[:, None] * D + columns[None, :]
    mask = (rows < N)[:, None] & (columns < D)[None, :]
    tl.store(d_x + offsets, (d * scaling).to(d_x.dtype.element_ty), mask=mask)
