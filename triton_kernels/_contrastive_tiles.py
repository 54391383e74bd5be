"""Tiles of similarities: what they leave out, and their log-sum-exps, base 2."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import LOG2_E, choose
from ._products import input_precision, padded
from ._statistics import LOWEST

# Which elements a tile leaves out.
NONE, OWN, OTHER, BLOCK = (tl.constexpr(i) for i in range(4))


def alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Operands of one product have one type: float32 where they differ."""
    same = len({t.dtype for t in tensors}) == 1
    tensors = tensors if same else tuple(t.float() for t in tensors)
    return tuple(t if t.stride(1) == 1 else t.contiguous() for t in tensors)


def settings(own: Tensor, table: dict[int, tuple]) -> tuple:
    size = own.element_size()
    return choose(table[size], size * padded(own.shape[1]))


def tile_of(own: Tensor, rows: int, columns: int | None, width: int | None) -> dict:
    tile = {"ROWS": rows, "WIDTH": width or padded(own.shape[1]), "WHOLE": width is None,
            "PRECISION": input_precision()}  # fmt: skip
    return tile if columns is None else {**tile, "COLUMNS": columns}


def merge(partial: Tensor) -> Tensor:
    """(P, 2, N) maxima and sums, base 2, to (N,) float64 log-sum-exps; -inf for no terms."""
    shift = partial[:, 0].amax(0)
    total = (partial[:, 1].double() * (partial[:, 0] - shift).double().exp2()).sum(0)
    return torch.where(total == 0, -torch.inf, (shift.double() + total.log2()) / LOG2_E.value)


@triton.jit
def factors_of(pointer, index, size):
    """pointer[index] in float32; ones for None."""
    if pointer is None:
        value = tl.full(index.shape, 1.0, tl.float32)
    else:
        value = tl.load(pointer + index, mask=index < size, other=0.0).to(tl.float32)
    return value


@triton.jit
def left_out(first, second, rows, N, cols, K, views, WITHOUT: tl.constexpr):
    """(R, C) elements that take no part."""
    out = (rows >= N)[:, None] | (cols >= K)[None, :]
    if WITHOUT == OWN:
        lo = tl.load(first + rows, mask=rows < N, other=0)[:, None]
        hi = tl.load(second + rows, mask=rows < N, other=0)[:, None]
        out = out | ((lo <= cols[None, :]) & (cols[None, :] < hi))
    elif WITHOUT == OTHER:
        lo = tl.load(first + cols, mask=cols < K, other=0)[None, :]
        hi = tl.load(second + cols, mask=cols < K, other=0)[None, :]
        out = out | ((lo <= rows[:, None]) & (rows[:, None] < hi))
    elif WITHOUT == BLOCK:
        out = out | ((rows // views)[:, None] == (cols // views)[None, :])
    return out


@triton.jit
def largest(logits, AXIS: tl.constexpr):
    """The maximum, and the sum of exponentials relative to it; 0 where all are left out."""
    top = tl.max(logits, AXIS)
    terms = tl.exp2(logits - tl.expand_dims(top, AXIS))
    terms = tl.where(logits <= LOWEST, 0.0, terms)  # NaN stays
    return top, tl.sum(terms, AXIS)
