"""What the stems share: launching, table look-up, the assignment q = exp(scale s + row + col)."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Exponents up to this many nats from their reference are formed in float32, larger ones in float64.
NARROW = tl.constexpr(64.0)
LOG2_E = tl.constexpr(1.4426950408889634)
# The interpreter multiplies bfloat16 wrongly: there, operands of a product are upcast first.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


def launch(kernel: Any, grid: tuple, like: Tensor, *args: Any, **options: Any) -> None:
    """Run `kernel` on the device of `like`; a * b + c may fuse, every launch says so itself."""
    with torch.cuda.device_of(like):
        kernel[grid](*args, **options, enable_fp_fusion=True)


def choose(table: Sequence[tuple], key: int) -> tuple:
    """The settings of the first entry (limit, *settings) of a sorted table with key <= limit."""
    return next((entry[1:] for entry in table if key <= entry[0]), table[-1][1:])


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def stride_of(tensor: Tensor | None) -> int:
    """Between rows, or entries of a vector; 0 where one value, or none, serves all."""
    return 0 if tensor is None or tensor.dim() == 0 else tensor.stride(0)


def empty(like: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of the GPU; 2 under the interpreter, whose grids have to be tiny."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def element(values, i, stride_i, j, stride_j):
    """values[i, j] in float32."""
    offset = tl.full((), i, tl.int64) * stride_i + tl.full((), j, tl.int64) * stride_j
    return tl.load(values + offset).to(tl.float32)


@triton.jit
def potential(pointer, index, size):
    """pointer[index] in float64, 0 beyond `size` and for an absent potential."""
    if pointer is None:
        value = tl.zeros_like(index).to(tl.float64)
    else:
        value = tl.load(pointer + index, mask=index < size, other=0.0)
    return value


@triton.jit
def assignment(
    values,  # (own, other): scores, or q itself when both potentials are None
    stride_own,
    stride_other,
    scale,  # nats per unit of score, float64
    own_potential,  # (own,) float64, or None
    other_potential,  # (other,) float64, or None
    own,  # (R,) indices
    other,  # (C,) indices
    size_own,
    size_other,
    first_own,  # any index inside, of a reference score
    first_other,
):
    """q (R, C) float32, 0 outside.

    The exponent cancels large numbers. Score and potentials are taken relative to a reference
    within the tile, in float64 where one number serves a row or column; elements then need
    float32 alone while they stay within NARROW of the reference.
    """
    mask = (own < size_own)[:, None] & (other < size_other)[None, :]
    offsets = own.to(tl.int64)[:, None] * stride_own + other.to(tl.int64)[None, :] * stride_other
    s = tl.load(values + offsets, mask=mask, other=0.0).to(tl.float32)
    if (own_potential is None) and (other_potential is None):
        q = s
    else:
        reference = element(values, first_own, stride_own, first_other, stride_other)
        row = potential(own_potential, own, size_own)
        col = potential(other_potential, other, size_other)
        row_reference = _reference(own_potential, first_own)
        near = tl.where(mask, s - reference, 0.0) * tl.full((), scale, tl.float32)
        offset = (row - row_reference).to(tl.float32)
        distance = tl.where((own < size_own) & (offset != float("-inf")), tl.abs(offset), 0.0)
        if tl.max(tl.maximum(tl.abs(near), distance[:, None])) <= NARROW:
            rest = col + (reference.to(tl.float64) * scale + row_reference)
            exponent = near + (offset[:, None] + rest.to(tl.float32)[None, :])
        else:
            exponent = (s.to(tl.float64) * scale + (row[:, None] + col[None, :])).to(tl.float32)
        q = tl.where(mask, tl.exp(exponent), 0.0)
    return q


@triton.jit
def factored_assignment(scores, scale, own_potential, other_potential, own, other,
                        size_own, size_other, first_own):  # fmt: skip
    """q (R, C) of scores that are a product: float32 rounded them, float32 forms the exponent."""
    mask = (own < size_own)[:, None] & (other < size_other)[None, :]
    row = potential(own_potential, own, size_own)
    col = potential(other_potential, other, size_other)
    row_reference = _reference(own_potential, first_own)
    row = (row - row_reference).to(tl.float32)
    col = (col + row_reference).to(tl.float32)
    exponent = scores * tl.full((), scale, tl.float32) + (row[:, None] + col[None, :])
    return tl.where(mask, tl.exp(exponent), 0.0)


@triton.jit
def _reference(pointer, first):
    """A finite potential of the tile."""
    if pointer is None:
        value = tl.full((), 0.0, tl.float64)
    else:
        value = tl.load(pointer + first)
    return tl.where(value > float("-inf"), value, 0.0)
