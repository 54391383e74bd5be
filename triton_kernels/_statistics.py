"""Online statistics of rows: maximum, sum of exponentials, mass, weighted distance to the maximum.

    m = max_k l_k;   total = sum_k exp((l_k - m) c);   mass = sum_k q_k
    distance = sum_k q_k (m - l_k)

Parts of a row merge in a fixed order; every term of `distance` has the sign of its q.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import LOG2_E, cdiv, empty, launch, processors

LOWEST = tl.constexpr(-3e38)
_BLOCK = 256


def parts(blocks: int, tiles: int, device: torch.device) -> int:
    """Into how many programs the tiles of a row are split, so that no multiprocessor idles."""
    wanted = max(1, min(tiles, cdiv(2 * processors(device), blocks)))
    return cdiv(tiles, cdiv(tiles, wanted))


def merge(partial: Tensor, inv_temperature: float) -> Tensor:
    """(P, 4, N) float32 parts to (4, N) float64: shift, log, mass, loss."""
    count, _, size = partial.shape
    stats = empty(partial, 4, size, dtype=torch.float64)
    launch(
        _merge_kernel, (cdiv(size, _BLOCK),), partial,
        partial, stats, count, size, inv_temperature, _BLOCK, num_warps=4,
    )  # fmt: skip
    return stats


def total_loss(row_stats: Tensor, col_stats: Tensor | None, factor: float) -> Tensor:
    """0-d float32."""
    total = row_stats[3].sum()
    if col_stats is not None:
        total += col_stats[3].sum()
    return (total * factor).float()


@triton.jit
def empty_statistics(ROWS: tl.constexpr):
    """(shift, total, mass, distance) of no columns, each (R,) float32."""
    zeros = tl.zeros((ROWS,), tl.float32)
    return zeros + LOWEST, zeros, zeros, zeros


@triton.jit
def accumulate(shift, total, mass, distance, logits, q, mask, inv_temperature):
    """The statistics with one more tile: logits and q (R, C) float32, q 0 outside `mask`."""
    higher = tl.maximum(shift, tl.max(tl.where(mask, logits, LOWEST), 1))
    below = tl.where(mask, higher[:, None] - logits, 0.0)
    scale = inv_temperature * LOG2_E
    terms = tl.where(mask, tl.exp2(below * -scale), 0.0)
    total = total * tl.exp2((shift - higher) * scale) + tl.sum(terms, 1)
    distance += mass * (higher - shift) + tl.sum(q * below, 1)
    return higher, total, mass + tl.sum(q, 1), distance


@triton.jit
def share_of_program(size, STEP: tl.constexpr):
    """The range of columns, or of rows, that this part visits."""
    tiles = tl.cdiv(tl.cdiv(size, STEP), tl.num_programs(1))
    begin = tl.program_id(1) * tiles * STEP
    return begin, tl.minimum(begin + tiles * STEP, size)


@triton.jit
def store_part(partial, part, shift, total, mass, distance, rows, N):
    """Into partial (P, 4, N)."""
    pointers = partial + tl.full((), part, tl.int64) * 4 * N + rows
    mask = rows < N
    tl.store(pointers, shift, mask=mask)
    tl.store(pointers + N, total, mask=mask)
    tl.store(pointers + 2 * N, mass, mask=mask)
    tl.store(pointers + 3 * N, distance, mask=mask)


@triton.jit
def softmax(logits, stats, stride, index, size, inv_temperature, AXIS: tl.constexpr):
    """mass * P (R, C): the softmax along AXIS, from stats (3, size) float64 of the other one."""
    mask = index < size
    shift = tl.load(stats + index, mask=mask, other=0.0).to(tl.float32)
    log = tl.load(stats + stride + index, mask=mask, other=0.0).to(tl.float32)
    mass = tl.load(stats + 2 * stride + index, mask=mask, other=0.0).to(tl.float32)
    scale = inv_temperature * LOG2_E
    below = (logits - tl.expand_dims(shift, AXIS)) * scale
    return tl.exp2(below - tl.expand_dims(log * LOG2_E, AXIS)) * tl.expand_dims(mass, AXIS)


@triton.jit
def _merge_kernel(
    partial,  # (P, 4, N) float32
    stats,  # (4, N) float64
    P,
    N,
    inv_temperature: tl.float64,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < N
    shift = tl.full((BLOCK,), LOWEST, tl.float32)
    for part in range(P):
        shift = tl.maximum(shift, tl.load(partial + _at(part, N) + rows, mask=mask, other=0.0))
    total = tl.zeros((BLOCK,), tl.float64)
    mass = tl.zeros((BLOCK,), tl.float64)
    distance = tl.zeros((BLOCK,), tl.float64)
    for part in range(P):
        pointers = partial + _at(part, N) + rows
        below = (shift - tl.load(pointers, mask=mask, other=0.0)).to(tl.float64)
        part_mass = tl.load(pointers + 2 * N, mask=mask, other=0.0).to(tl.float64)
        part_total = tl.load(pointers + N, mask=mask, other=1.0).to(tl.float64)
        total += part_total * tl.exp((below * -inv_temperature).to(tl.float32)).to(tl.float64)
        mass += part_mass
        distance += tl.load(pointers + 3 * N, mask=mask, other=0.0) + part_mass * below
    log = tl.log(total)
    tl.store(stats + rows, shift.to(tl.float64), mask=mask)
    tl.store(stats + tl.full((), N, tl.int64) + rows, log, mask=mask)
    tl.store(stats + tl.full((), N, tl.int64) * 2 + rows, mass, mask=mask)
    loss = mass * log + distance * inv_temperature
    tl.store(stats + tl.full((), N, tl.int64) * 3 + rows, loss, mask=mask)


@triton.jit
def _at(part, N):
    return tl.full((), part, tl.int64) * 4 * N
