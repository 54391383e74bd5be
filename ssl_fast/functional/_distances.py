"""Powers of the distances of positive pairs, behind both alignments."""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _distributed
from ._autograd import OfTwo
from ._operator import operator
from ._stats import upstream
from ._tiles import product_dtype


def _fake_alignment(x, y, alpha, name, group):
    count = x.new_empty((), dtype=torch.float64) if group else x.new_empty(0)
    return x.new_empty((), dtype=product_dtype(x)), count


@operator(_fake_alignment)
def alignment_forward(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    alpha: float,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor]:
    """mean_i |x_i - y_i|^alpha, and with a group the rows of all ranks."""
    total = backend.implementation(name, "uniformity").distance_power(x, y, alpha)
    count = None
    if group:
        total = _distributed.all_reduce(total, "sum", group)
        count = _distributed.all_reduce(total.new_full((), x.shape[0]), "sum", group)
    value = total / (x.shape[0] if count is None else count)
    outputs: Any = value.to(product_dtype(x)), count
    return outputs


class Alignment(OfTwo):
    """(value, rows of all ranks) of x and y."""

    run = alignment_forward

    @staticmethod
    def backward(ctx, d_value):
        x, y, count = ctx.saved_tensors
        alpha, name, group = ctx.numbers
        d_value, factor = upstream(d_value, count, len(x), group)
        return alignment_backward(x, y, alpha, d_value, factor, name)


def _fake_alignment_backward(x, y, *_):
    return torch.empty_like(x), torch.empty_like(y)


@operator(_fake_alignment_backward)
def alignment_backward(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    alpha: float,
    d_value: Tensor,  # 0-d
    factor: float,
    name: str,
) -> tuple[Tensor, Tensor]:
    """(d_x, d_y)."""
    kernels = backend.implementation(name, "uniformity")
    return kernels.distance_power_backward(x, y, alpha, d_value, factor)
