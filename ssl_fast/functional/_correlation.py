"""The operators behind `prototype_correlation`."""

import torch
from torch import Tensor

from .. import backend
from ._autograd import ClosedForm
from ._operator import operator
from ._tiles import product_dtype


def _fake_correlation(c, inv_temperature, name):
    k, d = c.shape
    stats = (c.new_empty((2, size), dtype=torch.float64) for size in (k, d))
    return (c.new_empty((), dtype=product_dtype(c)), *stats)


@operator(_fake_correlation)
def correlation_forward(
    c: Tensor,  # (K, D)
    inv_temperature: float,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, row (2, K), col (2, D) as the kernels have them."""
    kernels = backend.implementation(name, "uniformity")
    value, row, col = kernels.correlation(c, inv_temperature)
    return value.to(product_dtype(c)), row, col


class Correlation(ClosedForm):
    """(value, row, col) of c."""

    run = correlation_forward

    @staticmethod
    def keep(ctx, inputs, outputs):
        ctx.numbers = inputs[1:]
        ctx.save_for_backward(inputs[0], *outputs[1:])

    @staticmethod
    def backward(ctx, d_value):
        c, row, col = ctx.saved_tensors
        inv_temperature, name = ctx.numbers
        return (correlation_backward(c, inv_temperature, row, col, d_value, name),)


def _fake_correlation_backward(c, *_):
    return c.new_empty(c.shape)


@operator(_fake_correlation_backward)
def correlation_backward(
    c: Tensor,  # (K, D)
    inv_temperature: float,
    row: Tensor,  # (2, K)
    col: Tensor,  # (2, D)
    d_value: Tensor,  # 0-d
    name: str,
) -> Tensor:
    """d_c (K, D)."""
    kernels = backend.implementation(name, "uniformity")
    return kernels.correlation_backward(c, inv_temperature, row, col, d_value, 1.0)
