"""The mean cosine of paired rows: BYOL, SimSiam and W-MSE."""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._autograd import OfTwo, apply
from ._operator import operator
from ._tiles import product_dtype


def mean_cosine(x: Tensor, y: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Mean over rows of the cosine.

        mean_i <x_i, y_i> / (max(|x_i|, eps) max(|y_i|, eps))

    Args:
        x: (N, D), float64, float32, bfloat16 or float16.
        y: (N, D), same type; under autocast two types become autocast's.
        eps: least norm, > 0: 1e-8 in torch's `cosine_similarity`, 1e-12 in its `normalize`.

    Returns:
        0-d float32, float64 for float64; gradients in the inputs' type, zero for a zero row.
        Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: torch.nn.functional.cosine_similarity; Grill et al. 2020 (BYOL), Chen and He 2021
        (SimSiam).
    Cost: one read of both forward, one read and one write backward; kept for backward: the inputs
        and 3 N numbers.
    """
    if getattr(x, "dtype", None) != getattr(y, "dtype", None):
        x, y = _check.autocast(x, y)
    _check.matrix("x", x)
    _check.matrix("y", y)
    _check.same("x", x, "y", y)
    if x.shape != y.shape:
        raise ValueError(
            f"x and y must have one shape, row i of one beside row i of the other, got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    name = backend.select("cosine", x.device, x.dtype)
    x, y = _check.rows_contiguous(x), _check.rows_contiguous(y)
    return apply(_MeanCosine, x, y, _check.positive("eps", eps), name)


def _fake_forward(x: Tensor, *_: Any) -> Any:
    double = torch.float64
    return x.new_empty((), dtype=product_dtype(x)), x.new_empty((3, x.shape[0]), dtype=double)


@operator(_fake_forward)
def cosine_forward(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    eps: float,
    name: str,
) -> tuple[Tensor, Tensor]:
    """The mean, and stats (3, N) as the kernels have them."""
    total, stats = backend.implementation(name, "cosine").forward(x, y, eps)
    return (total / x.shape[0]).to(product_dtype(x)), stats


class _MeanCosine(OfTwo):
    """(mean, stats) of x and y; only the mean is for the caller."""

    run = cosine_forward

    @staticmethod
    def backward(ctx, d_mean):
        x, y, stats = ctx.saved_tensors
        eps, name = ctx.numbers
        need = ctx.needs_input_grad[:2]
        return cosine_backward(x, y, eps, stats, d_mean, 1 / len(x), *need, name)


def _fake_backward(x: Tensor, y: Tensor, *rest: Any) -> Any:
    pairs = zip((x, y), rest[-3:-1], strict=True)
    return tuple(z.new_empty(z.shape) if n else z.new_empty(0) for z, n in pairs)


@operator(_fake_backward)
def cosine_backward(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    eps: float,
    stats: Tensor,  # (3, N)
    d_mean: Tensor,  # 0-d
    factor: float,
    need_x: bool,
    need_y: bool,
    name: str,
) -> tuple[Tensor, Tensor]:
    """(d_x, d_y); None for what is not needed."""
    kernels = backend.implementation(name, "cosine")
    outputs: Any = kernels.backward(x, y, eps, stats, d_mean, factor, need_x, need_y)
    return outputs
