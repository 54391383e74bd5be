"""Variance, covariance and cross-correlation of a batch: the terms of VICReg and Barlow Twins."""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._autograd import apply
from ._covariance import Correlation, Terms


def variance_hinge(
    z: Tensor, *, gamma: float = 1.0, eps: float = 1e-4, group: Any = None
) -> Tensor:
    """How far the standard deviations of the columns fall below `gamma`.

        v = mean_d relu(gamma - sqrt(var_d + eps)),   var_d with N - 1

    Args:
        z: (N, D), float64, float32, bfloat16 or float16; N >= 2 over all ranks.
        gamma: the wanted standard deviation, > 0, in units of z.
        eps: added to the variance, > 0.
        group: process group: every rank returns the global value, and gradients such that the
            mean over ranks, as DDP takes it, is exact. Ranks may hold unequal N.

    Returns:
        0-d, float32, float64 for float64 input; differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: VICReg (Bardes et al. 2022), Eq. 1; facebookresearch/vicreg 4e12602.
    Cost: one read of z forward, one read and one write backward. Kept for backward: z and 2 D
        numbers. The centred batch is not stored.
    """
    z, numbers, group = _arguments("z", z, gamma, eps, group)
    return _terms(z, None, numbers, 1, "variance", group)[1]


def covariance_penalty(z: Tensor, *, group: Any = None) -> Tensor:
    """Squared covariances of different columns.

        c = sum_{d != e} C_de^2 / D,   C = Z^T Z / (N - 1),   Z = z - mean over rows

    For D >= 2 N (N over all ranks) from the Gram of the rows, sum_{d != e} C_de^2 (N - 1)^2 =
    ||Z Z^T||^2 - sum_d (sum_i Z_id^2)^2; else from C, strip by strip.

    Args:
        z: (N, D), float64, float32, bfloat16 or float16; N >= 2 over all ranks.
        group: process group: every rank returns the global value, and gradients such that the
            mean over ranks, as DDP takes it, is exact. Ranks may hold unequal N. The rows are
            gathered, or strips of C summed, whichever moves fewer bytes.

    Returns:
        0-d, float32, float64 for float64 input; differentiable once. Where float32 would cancel
        (one column far larger than all others), the dual is formed in float64.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: VICReg (Bardes et al. 2022), Eq. 4; facebookresearch/vicreg 4e12602.
    Cost: products of 3/2 N^2 D operations forward and 2 N^2 D backward in the dual, of 3 N D^2
        forward otherwise. Kept for backward: z and the N x N Gram, else one N x D matrix. No
        D x D matrix is stored.
    """
    z, numbers, group = _arguments("z", z, 1.0, 1.0, group)
    return _terms(z, None, numbers, 1, "covariance", group)[2]


def vicreg(
    z0: Tensor, z1: Tensor, *, gamma: float = 1.0, eps: float = 1e-4, group: Any = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms of VICReg: invariance, variance, covariance.

        invariance = mean_id (z0_id - z1_id)^2
        variance = (v(z0) + v(z1)) / 2        v as in `variance_hinge`
        covariance = c(z0) + c(z1)            c as in `covariance_penalty`

    25, 25 and 1 times these are the official loss. The half on the variance is the official
    code's; the paper's Eq. 6 has none.

    Args:
        z0: (N, D) of one shape and type, or (N, ..., D): then the covariance is the mean over the
            positions in between, as VICRegL has it. N >= 2 over all ranks.
        z1: likewise.
        gamma: the wanted standard deviation, > 0, in units of z.
        eps: added to the variance, > 0.
        group: process group: every rank returns the global values, and gradients such that the
            mean over ranks, as DDP takes it, is exact. Ranks may hold unequal N.

    Returns:
        Three 0-d tensors, float32, float64 for float64 input; differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: Bardes et al. 2022, Eq. 1, 4, 5; facebookresearch/vicreg 4e12602.
    Cost: that of `covariance_penalty`, twice; nothing else reads the batch more than once.
    """
    blocks = 1
    if isinstance(z0, Tensor) and isinstance(z1, Tensor) and z0.dim() > 2:
        _one_shape(z0, z1)
        blocks = z0.shape[1:-1].numel()
        z0, z1 = z0.flatten(1), z1.flatten(1)
    _two_views(z0, z1)
    z0, numbers, group = _arguments("z0", z0, gamma, eps, group)
    terms = _terms(z0, _check.rows_contiguous(z1), numbers, blocks, "variance covariance", group)
    return terms[0], terms[1], terms[2]


def cross_correlation_penalty(
    z0: Tensor,
    z1: Tensor,
    *,
    off_diagonal_weight: float = 5e-3,
    eps: float = 1e-5,
    group: Any = None,
    own_statistics: bool = False,
) -> Tensor:
    """How far the cross-correlation of two views is from the identity (Barlow Twins).

        sum_d (C_dd - 1)^2 + w sum_{d != e} C_de^2,   C = Z0^T Z1 / N
        Z = (z - mean) / sqrt(var + eps),             var with N, as batch normalisation has it

    For D >= 2 N (N over all ranks), sum_de C_de^2 = <Z0 Z0^T, Z1 Z1^T> / N^2; else strips of C.

    Args:
        z0: (N, D) of one shape and type, not normalised; N >= 2 over all ranks.
        z1: likewise.
        off_diagonal_weight: w, >= 0.
        eps: added to the variance, > 0.
        group: process group: statistics and C are those of all ranks' rows, every rank returns the
            global loss, and gradients such that the mean over ranks, as DDP takes it, is exact.
        own_statistics: every rank standardises its rows by themselves, C alone is shared: Lightly's
            Barlow Twins, which has no synchronised batch norm. Strips of C are summed then.

    Returns:
        0-d, float32, float64 for float64 input; differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: Zbontar et al. 2021, Eq. 1, 2; facebookresearch/barlowtwins 8e8d284. That code sums C
        over ranks by a raw all-reduce, whose gradient is 1 / (number of ranks) of the true one.
    Cost: products of 3 N^2 D operations and 4 N^2 D with gradients in the dual, of 2 N D^2 and
        4 N D^2 otherwise. Kept for backward: both gradients, which forward has already formed.
        No D x D matrix is stored.
    """
    _two_views(z0, z1)
    z0, _, group = _arguments("z0", z0, 1.0, eps, group)
    weight = _check.at_least_zero("off_diagonal_weight", off_diagonal_weight)
    name = backend.select("covariance", z0.device, z0.dtype)
    z1 = _check.rows_contiguous(z1)
    want_grad = torch.is_grad_enabled() and (z0.requires_grad or z1.requires_grad)
    own = bool(own_statistics and group)
    return apply(Correlation, z0, z1, weight, float(eps), own, want_grad, name, group)


def view_terms(z: Tensor, gamma: float, eps: float, group: Any) -> tuple[Tensor, Tensor]:
    """variance_hinge(z) and covariance_penalty(z), in one call; z (N, ..., D) as in `vicreg`."""
    columns = z.shape[-1]
    z, numbers, group = _arguments("z", z.flatten(1), gamma, eps, group)
    terms = _terms(z, None, numbers, z.shape[1] // columns, "variance covariance", group)
    return terms[1], terms[2]


def covariance_term(z: Tensor, group: Any = None) -> Tensor:
    """covariance_penalty(z); of z (N, ..., D) the mean over the positions in between."""
    columns = z.shape[-1]
    z, numbers, group = _arguments("z", z.flatten(1), 1.0, 1.0, group)
    return _terms(z, None, numbers, z.shape[1] // columns, "covariance", group)[2]


def _two_views(z0: Any, z1: Any) -> None:
    _check.matrix("z0", z0)
    _check.matrix("z1", z1)
    _check.same("z0", z0, "z1", z1)
    _one_shape(z0, z1)


def _one_shape(z0: Tensor, z1: Tensor) -> None:
    if z0.shape != z1.shape:
        raise ValueError(
            f"z0 and z1 must have one shape, got z0 {tuple(z0.shape)} and z1 {tuple(z1.shape)}"
        )


def _arguments(
    name: str, z: Any, gamma: float, eps: float, group: Any
) -> tuple[Tensor, tuple[float, float], str]:
    """Checked: the batch, (gamma, eps) and the group's name."""
    _check.matrix(name, z)
    numbers = _check.positive("gamma", gamma), _check.positive("eps", eps)
    if group is None and z.shape[0] < 2:
        raise ValueError(
            f"{name} must have at least 2 rows, for a variance, got shape {tuple(z.shape)}: pass "
            "a larger batch"
        )
    return _check.rows_contiguous(z), numbers, _check.group_name(group)


def _terms(
    z0: Tensor, z1: Tensor | None, numbers: tuple, blocks: int, parts: str, group: str
) -> Tensor:
    """(3,): invariance, variance, covariance; those that are not asked for are 0."""
    name = backend.select("covariance", z0.device, z0.dtype)
    needs = z0.requires_grad or (z1 is not None and z1.requires_grad)
    want_grad = torch.is_grad_enabled() and needs
    return apply(Terms, z0, z1, *numbers, blocks, parts, want_grad, name, group)
