"""Alignment, uniformity and correlation of embeddings and of prototypes."""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._autograd import apply
from ._correlation import Correlation
from ._distances import Alignment
from ._potential import Potential
from ._sphere import Sphere


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
    return apply(Correlation, _check.rows_contiguous(c), inv_temperature, name)


def sphere(x: Tensor, y: Tensor, *, t: float, weight: float, alpha: float) -> Tensor:
    """mean_i |u_i - v_i|^alpha + weight * (U(u) + U(v)), u and v the rows of x and y at unit norm.

    U is `gaussian_uniformity`. A zero row gets a zero gradient.
    """
    _check.matrix("x", x)
    _check.matrix("y", y)
    _one_shape("x", x, "y", y)
    _at_least_two("x", x)
    name = backend.select("uniformity", x.device, x.dtype)
    numbers = _check.positive("t", t), float(weight), _check.positive("alpha", alpha)
    x, y = _check.rows_contiguous(x), _check.rows_contiguous(y)
    wants = [torch.is_grad_enabled() and z.requires_grad for z in (x, y)]
    return apply(Sphere, x, y, *numbers, *wants, name)


def _potential(x: Tensor, t: float, log: bool, group: str, argument: str) -> Tensor:
    if not group:
        _at_least_two(argument, x)
    name = backend.select("uniformity", x.device, x.dtype)
    want_grad = torch.is_grad_enabled() and x.requires_grad
    return apply(Potential, _check.rows_contiguous(x), t, log, want_grad, name, group)


def _aligned(x: Tensor, y: Tensor, alpha: float, group: str, x_name: str, y_name: str) -> Tensor:
    _one_shape(x_name, x, y_name, y)
    name = backend.select("uniformity", x.device, x.dtype)
    x, y = _check.rows_contiguous(x), _check.rows_contiguous(y)
    return apply(Alignment, x, y, alpha, name, group)


def _one_shape(x_name: str, x: Tensor, y_name: str, y: Tensor) -> None:
    _check.same(x_name, x, y_name, y)
    if x.shape != y.shape:
        raise ValueError(
            f"{x_name} and {y_name} must have one shape, row i of one positive to row i of the "
            f"other, got {tuple(x.shape)} and {tuple(y.shape)}"
        )


def _at_least_two(name: str, value: Tensor) -> None:
    if value.shape[0] < 2:
        raise ValueError(f"{name} must have at least 2 rows, pairs are made of them; got 1")
