"""Alignment, uniformity and correlation of embeddings and of prototypes."""

import math
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check, _distributed
from ._autograd import apply, first_output_only, once_differentiable
from ._operator import operator
from ._tiles import product_dtype


def gaussian_uniformity(x: Tensor, *, t: float = 2.0, group: Any = None) -> Tensor:
    """Logarithm of the mean Gaussian potential over pairs of rows.

        log mean_{i < j} exp(-t |x_i - x_j|^2)

    Args:
        x: (N, D), N >= 2 over all ranks; used as given, not normalised.
        t: > 0, in units of 1 / |x|^2.
        group: process group: the pairs are those of all ranks' rows. Every rank returns the global
            value, and gradients such that the mean over ranks, as DDP takes it, is exact. Ranks
            may hold unequal N.

    Returns:
        0-d float32, float64 for float64; the gradient in x's type. Rows that coincide, exactly or
        all of them, give each other zero gradient. Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: Wang and Isola 2020, Eq. 2; `uniform_loss` of SsnL/align_uniform e256d47.
    Cost: with gradient 3 products of N^2 D operations (half of each N x N tile pair), one exp a
        pair. No N x N matrix is stored: two copies of x at work, kept for backward one gradient.
    """
    _check.matrix("x", x)
    t = _check.positive("t", t)
    group = _check.group_name(group)
    return _potential(x, t, True, group, "x")


def prototype_uniformity(c: Tensor, *, t: float = 2.0) -> Tensor:
    """Mean Gaussian potential over pairs of different prototypes, without logarithm.

        mean_{p != q} exp(-t |c_p - c_q|^2)

    Args:
        c: (K, D) prototypes, K >= 2; used as given, not normalised.
        t: > 0, in units of 1 / |c|^2.

    Returns:
        0-d float32, float64 for float64; the gradient in c's type. Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: PAUC (Eq. 5), p_proto taken as uniform over pairs p != q.
    Cost: as `gaussian_uniformity`; K = 100 000 needs no K x K matrix.
    """
    _check.matrix("c", c)
    return _potential(c, _check.positive("t", t), False, "", "c")


def alignment(x: Tensor, y: Tensor, *, alpha: float = 2.0, group: Any = None) -> Tensor:
    """Mean power of the distance of positive pairs: mean_i |x_i - y_i|^alpha.

    Args:
        x: (N, D); used as given, not normalised.
        y: (N, D), same type.
        alpha: > 0.
        group: process group: the mean is over the rows of all ranks, as in `gaussian_uniformity`.

    Returns:
        0-d float32, float64 for float64; gradients in the inputs' type, zero where x_i = y_i for
        every alpha. Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: Wang and Isola 2020, Eq. 1; `align_loss` of SsnL/align_uniform e256d47.
    Cost: one read of both forward, one read and one write backward; nothing but the inputs is kept.
    """
    _check.matrix("x", x)
    _check.matrix("y", y)
    return _aligned(x, y, _check.positive("alpha", alpha), _check.group_name(group), "x", "y")


def prototype_alignment(p: Tensor, q: Tensor, *, s: float = 2.0) -> Tensor:
    """Mean power of the distance of positive prototypes: mean_i |p_i - q_i|^s.

    Args:
        p: (P, D), one row a positive pair; used as given, not normalised.
        q: (P, D), same type.
        s: > 0.

    Returns:
        0-d float32, float64 for float64; gradients in the inputs' type. Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: PAUC, Eq. 4. Which prototypes are positive is the caller's: see `losses.PAUCLoss`.
    Cost: as `alignment`, which this is under another name.
    """
    _check.matrix("p", p)
    _check.matrix("q", q)
    return _aligned(p, q, _check.positive("s", s), "", "p", "q")


def prototype_correlation(c: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean over pairs of minus the divergence between prototypes taken as distributions.

        mean_{p != q} sum_d c~_pd log(c~_qd / c~_pd),     c~ = softmax_d(c / temperature)

    The pairs factorise: K^2 of them cost O(K D). Minus a mean KL divergence, so never positive and,
    for prototypes of any length, unbounded below: normalise them first, then >= -2 / temperature.

    Args:
        c: (K, D) prototypes, K >= 2; used as given, not normalised.
        temperature: > 0, in units of c.

    Returns:
        0-d float32, float64 for float64; the gradient in c's type. Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: PAUC, Eq. 6; softmax rows are this project's reading of "distributions".
    Cost: one read forward, one read and one write backward, an exp an element each way. Kept: the
        input and 2 (K + D) numbers.
    """
    _check.matrix("c", c)
    inv_temperature = 1.0 / _check.positive("temperature", temperature)
    _at_least_two("c", c)
    name = backend.select("uniformity", c.device, c.dtype)
    return apply(_Correlation, _check.rows_contiguous(c), inv_temperature, name)


def _potential(x: Tensor, t: float, log: bool, group: str, argument: str) -> Tensor:
    if not group:
        _at_least_two(argument, x)
    name = backend.select("uniformity", x.device, x.dtype)
    want_grad = torch.is_grad_enabled() and x.requires_grad
    return apply(_Potential, _check.rows_contiguous(x), t, log, want_grad, name, group)


def _aligned(x: Tensor, y: Tensor, alpha: float, group: str, x_name: str, y_name: str) -> Tensor:
    _check.same(x_name, x, y_name, y)
    if x.shape != y.shape:
        raise ValueError(
            f"{x_name} and {y_name} must have one shape, row i of one positive to row i of the "
            f"other, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    name = backend.select("uniformity", x.device, x.dtype)
    x, y = _check.rows_contiguous(x), _check.rows_contiguous(y)
    return apply(_Alignment, x, y, alpha, name, group)


def _at_least_two(name: str, value: Tensor) -> None:
    if value.shape[0] < 2:
        raise ValueError(f"{name} must have at least 2 rows, pairs are made of them; got 1")


class _Potential(torch.autograd.Function):
    """(value, gradient for d_value = 1) of x."""

    @staticmethod
    def forward(*args):
        return gaussian_potential(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        first_output_only(ctx, output)
        _Potential.keep(ctx, inputs, output)

    @staticmethod
    def keep(ctx, inputs, outputs):
        ctx.save_for_backward(inputs[0], outputs[1])  # x for its type, and to refuse through

    @staticmethod
    @once_differentiable
    def backward(ctx, d_value, *_):
        if d_value is None:
            return (None,) * 6
        x, gradient = ctx.saved_tensors
        return (gradient * d_value).to(x.dtype), *(None,) * 5


class _Alignment(torch.autograd.Function):
    """(value, rows of all ranks) of x and y."""

    @staticmethod
    def forward(*args):
        return alignment_forward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        first_output_only(ctx, output)
        _Alignment.keep(ctx, inputs, output)

    @staticmethod
    def keep(ctx, inputs, outputs):
        ctx.numbers = inputs[2:]
        ctx.save_for_backward(*inputs[:2], outputs[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, d_value, *_):
        if d_value is None:
            return (None,) * 5
        x, y, count = ctx.saved_tensors
        alpha, name, group = ctx.numbers
        if group:
            d_value = (d_value / count * _distributed.world_size(group)).to(d_value.dtype)
        d_x, d_y = alignment_backward(x, y, alpha, d_value, 1.0 if group else 1 / len(x), name)
        need_x, need_y = ctx.needs_input_grad[:2]
        return d_x if need_x else None, d_y if need_y else None, None, None, None


class _Correlation(torch.autograd.Function):
    """(value, row, col) of c."""

    @staticmethod
    def forward(*args):
        return correlation_forward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        first_output_only(ctx, output)
        _Correlation.keep(ctx, inputs, output)

    @staticmethod
    def keep(ctx, inputs, outputs):
        ctx.numbers = inputs[1:]
        ctx.save_for_backward(inputs[0], *outputs[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, d_value, *_):
        if d_value is None:
            return (None,) * 3
        c, row, col = ctx.saved_tensors
        inv_temperature, name = ctx.numbers
        return correlation_backward(c, inv_temperature, row, col, d_value, name), None, None


def _fake_potential(x, t, log, want_grad, name, group):
    wide = product_dtype(x)
    gradient = x.new_empty(x.shape, dtype=wide) if want_grad else x.new_empty(0)
    return x.new_empty((), dtype=wide), gradient


@operator(_fake_potential)
def gaussian_potential(
    x: Tensor,  # (N, D)
    t: float,
    log: bool,
    want_grad: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor]:
    """The mean over pairs, or its logarithm, and if wanted its gradient (N, D)."""
    kernels = backend.implementation(name, "uniformity")
    rows, own = x, (0, x.shape[0])
    if group:
        rows, own = _distributed.rows_of_all(x, group)
    count = rows.shape[0]
    if count < 2:
        raise ValueError("x must have at least 2 rows over all ranks, pairs are made of them")
    log_sum, gradient = kernels.potential(rows, *own, t, want_grad)
    if group:
        total = _distributed.log_sum_exp(log_sum, group)
        if gradient is not None:
            share = (log_sum - total).exp() * _distributed.world_size(group)
            gradient = gradient * share.to(gradient.dtype)
        log_sum = total
    value = log_sum - math.log(count * (count - 1))
    if not log:
        value = value.exp()
        if gradient is not None:
            gradient *= value.to(gradient.dtype)
    outputs: Any = value.to(product_dtype(x)), gradient
    return outputs


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
