"""Log-sum-exps over negatives and their gradients, tile by tile on tensor cores.

    rows:   l_ij = c a_i b_j <x_i, w_j>,  without columns lo_i <= j < hi_i
    pairs:  l_ij = c a_i a_j <z_i, z_j>,  without the block of `views` rows that holds i

Not stored: similarities, softmax, rows of unit norm (norms are factors of a tile). A program owns a
block of rows and visits all columns, or a range of them. Sums of pairs: `_contrastive_pairs.py`. No
atomics.
Operations: 2 N K D a pass over tiles, and 2 N K D a gradient, twice that for half inputs, whose
weights stay in two halves (see `_products.py`).

van den Oord et al. 2018 (InfoNCE); Chen et al. 2020 (NT-Xent).
"""

import triton
import triton.language as tl
from torch import Tensor

from ._common import LOG2_E, cdiv, empty, launch
from ._contrastive_pairs import pairs_forward
from ._contrastive_tiles import (
    BLOCK,
    NONE,
    OTHER,
    OWN,
    alike,
    factors_of,
    largest,
    left_out,
    merge,
    settings,
    tile_of,
)
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
from ._statistics import LOWEST, parts, share_of_program

__all__ = ["pairs_backward", "pairs_forward", "rows_backward", "rows_forward"]


def rows_forward(
    x: Tensor, w: Tensor, a: Tensor | None, b: Tensor | None, scale: float, lo: Tensor | None,
    hi: Tensor | None, want_pull: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """As `reference.contrastive.rows_forward`."""
    x, w = alike(x, w)
    without = (NONE, None, None) if lo is None else (OWN, lo, hi)
    blocks, count, settings = _programs(x, w, FORWARD)
    partial = empty(x, count, 2, x.shape[0])
    launch(
        _statistics, (blocks, count), x, *_operands(x, w, a, b), scale, *without[1:], partial,
        WITHOUT=without[0].value, **settings,
    )  # fmt: skip
    lse = merge(partial)
    pull = None
    if want_pull:
        pull = _gradient(x, w, a, b, scale, own_lse=lse, without=without)
    return lse, pull


def rows_backward(
    x: Tensor, w: Tensor, a: Tensor | None, b: Tensor | None, scale: float, lo: Tensor | None,
    hi: Tensor | None, lse: Tensor, weight: Tensor,
) -> Tensor:  # fmt: skip
    """As `reference.contrastive.rows_backward`: the columns own the tiles, rows are the others."""
    x, w = alike(x, w)
    without = (NONE, None, None) if lo is None else (OTHER, lo, hi)
    return _gradient(w, x, b, a, scale, other_lse=lse, other_weight=weight, without=without)


def pairs_backward(
    z: Tensor, a: Tensor | None, scale: float, views: int, lse: Tensor, blocks: Tensor
) -> Tensor:
    """As `reference.contrastive.pairs_backward`."""
    (z,) = alike(z)
    without = (BLOCK, blocks.float().contiguous(), None)
    return _gradient(z, z, a, a, scale, own_lse=lse, other_lse=lse, without=without, views=views)


def _gradient(
    own: Tensor,
    other: Tensor,
    own_scale: Tensor | None,
    other_scale: Tensor | None,
    scale: float,
    own_lse: Tensor | None = None,
    other_lse: Tensor | None = None,
    other_weight: Tensor | None = None,
    without: tuple = (NONE, None, None),
    views: int = 1,
) -> Tensor:
    """(own, D) float32: sum_j d_ij other_scale_j other_j."""
    blocks, count, settings = _programs(own, other, BACKWARD)
    dim = own.shape[1]
    width = min(padded(dim), WIDEST[own.element_size()])
    partial = empty(own, count, *own.shape)
    launch(
        _gradient_kernel, (blocks, count, cdiv(dim, width)), own,
        *_operands(own, other, own_scale, other_scale), scale, own_lse, other_lse, other_weight,
        *without[1:], views, partial, WITHOUT=without[0].value, SLICE=width, **settings,
    )  # fmt: skip
    return partial[0] if count == 1 else partial.sum(0)


def _operands(own: Tensor, other: Tensor, own_scale, other_scale) -> list:
    return [
        own, own.stride(0), other, other.stride(0), own_scale, other_scale,
        own.shape[0], other.shape[0], own.shape[1],
    ]  # fmt: skip


def _programs(own: Tensor, other: Tensor, table: dict[int, tuple]) -> tuple[int, int, dict]:
    rows, columns, width, warps, stages = settings(own, table)
    blocks = cdiv(own.shape[0], rows)
    count = parts(blocks, cdiv(other.shape[0], columns), own.device)
    return blocks, count, {
        **tile_of(own, rows, columns, width), "num_warps": warps, "num_stages": stages
    }  # fmt: skip


@triton.jit
def _statistics(
    own,  # (N, D)
    own_stride,
    other,  # (K, D)
    other_stride,
    own_scale,  # (N,), or None
    other_scale,  # (K,), or None
    N,
    K,
    D,
    scale,
    lo,  # (N,), or None
    hi,
    partial,  # (P, 2, N) float32, out
    WITHOUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if WHOLE:
        own_tile = load_rows(own, own_stride, rows, N, 0, D, WIDTH)
    factor = factors_of(own_scale, rows, N) * (scale * LOG2_E)
    shift = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    begin, end = share_of_program(K, COLUMNS)
    for first_col in range(begin, end, COLUMNS):
        cols = first_col + tl.arange(0, COLUMNS)
        if WHOLE:
            other_tile = load_rows(other, other_stride, cols, K, 0, D, WIDTH)
            products = dot(own_tile, tl.trans(other_tile), None, PRECISION)
        else:
            products = product(
                own, own_stride, rows, N, other, other_stride, cols, K, D, WIDTH, PRECISION
            )
        logits = products * factor[:, None] * factors_of(other_scale, cols, K)[None, :]
        out = left_out(lo, hi, rows, N, cols, K, 1, WITHOUT)
        top, sums = largest(tl.where(out, LOWEST, logits), 1)
        higher = tl.maximum(shift, top)
        total = total * tl.exp2(shift - higher) + sums * tl.exp2(top - higher)
        shift = higher
    pointers = partial + tl.program_id(1).to(tl.int64) * 2 * N + rows
    tl.store(pointers, shift, mask=rows < N)
    tl.store(pointers + N, total, mask=rows < N)


@triton.jit
def _gradient_kernel(
    own,  # (N, D)
    own_stride,
    other,  # (K, D)
    other_stride,
    own_scale,  # (N,), or None
    other_scale,  # (K,), or None
    N,
    K,
    D,
    scale,
    own_lse,  # (N,) float64, or None
    other_lse,  # (K,) float64, or None
    other_weight,  # (K,), or None: ones
    first,  # lo of own or other rows, or blocks (N, views) float32, or None
    second,  # hi, or None
    views,
    d_own,  # (P, N, D) float32, out
    WITHOUT: tl.constexpr,
    SLICE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first_width = tl.program_id(2) * SLICE
    if WHOLE:
        own_tile = load_rows(own, own_stride, rows, N, 0, D, WIDTH)
    factor = factors_of(own_scale, rows, N) * (scale * LOG2_E)
    total = tl.zeros((ROWS, SLICE), tl.float32)
    begin, end = share_of_program(K, COLUMNS)
    for first_col in range(begin, end, COLUMNS):
        cols = first_col + tl.arange(0, COLUMNS)
        other_tile = load_rows(other, other_stride, cols, K, first_width, D, SLICE)
        if WHOLE:
            products = dot(own_tile, tl.trans(other_tile), None, PRECISION)
        else:
            products = product(
                own, own_stride, rows, N, other, other_stride, cols, K, D, WIDTH, PRECISION
            )
        scales = factors_of(other_scale, cols, K)
        logits = products * factor[:, None] * scales[None, :]
        out = left_out(first, second, rows, N, cols, K, views, WITHOUT)
        # P_ij of the own rows, plus P_ji of the others
        d = tl.zeros((ROWS, COLUMNS), tl.float32)
        if own_lse is not None:
            d += tl.where(out, 0.0, tl.exp2(logits - _base_two(own_lse, rows, N)[:, None]))
        if other_lse is not None:
            p = tl.where(out, 0.0, tl.exp2(logits - _base_two(other_lse, cols, K)[None, :]))
            d += p * factors_of(other_weight, cols, K)[None, :]
        if WITHOUT == BLOCK:
            place = cols[None, :] - (rows // views * views)[:, None]
            inside = (place >= 0) & (place < views) & (rows < N)[:, None] & (cols < K)[None, :]
            offsets = rows.to(tl.int64)[:, None] * views + place
            d += tl.load(first + offsets, mask=inside, other=0.0)
        total = gradient_product(d * scales[None, :], other_tile, total, PRECISION)
    width = first_width + tl.arange(0, SLICE)
    offsets = (tl.program_id(1).to(tl.int64) * N + rows)[:, None] * D + width[None, :]
    tl.store(d_own + offsets, total, mask=(rows < N)[:, None] & (width < D)[None, :])


@triton.jit
def _base_two(lse, index, size):
    """lse[index] / log 2 in float32; 0 for a row without terms."""
    value = tl.load(lse + index, mask=index < size, other=0.0)
    return tl.where(value > float("-inf"), value * LOG2_E, 0.0).to(tl.float32)
