"""Nuclear norm and Wasserstein uniformity: value and gradient from one decomposition."""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from .._polar import SMALLEST_EPS
from . import _check, _distributed
from ._autograd import Scaled, apply
from ._operator import fake_loss, operator

NULL = 1e-6  # of the largest singular value: below, a direction counts as null


def nuclear_norm(z: Tensor, *, center: bool = False, group: Any = None) -> Tensor:
    """Sum of the singular values of z, or of z less its column means.

        |X|_* = sum_i s_i,   X = z or z - mean;      d|X|_* / dz = U V^T, the polar factor

    Null directions (s_i at most 1e-6 of the largest, or lost in the rounding of the mean) get the
    zero subgradient; collapsed ones above that get their full gradient. Repeated singular values,
    fewer rows than columns, equal rows, zero rows (gradient 0 when not centred) and N = 1 are all
    finite.

    Args:
        z: (N, D), float64, float32, bfloat16 or float16.
        center: subtract the mean of the columns first.
        group: process group: z is this rank's share of the rows. Every rank returns the norm of
            all rows, and gradients such that DDP's mean is exact. Ranks may hold unequal N.

    Returns:
        0-d float32, float64 for float64. The gradient has z's type; differentiable once.
        NaN where z holds values that are not finite.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: math.md, section 6; the norm of MMCR (Yerxa et al. 2023).
    Cost: one eigendecomposition of the smaller Gram, min(N, D) wide, and two products of
        2 N D min(N, D) operations; on a GPU a polar iteration of products instead. Kept for
        backward: the gradient for an upstream of one, (N, D). With a group: the D x D Gram is
        summed when there are more rows than columns, else the rows are gathered, whichever
        moves less.
    """
    return _spectral(z, bool(center), NULL, False, group)


def wasserstein_uniformity(z: Tensor, *, eps: float = NULL, group: Any = None) -> Tensor:
    """Quadratic Wasserstein distance between the rows' Gaussian N(mean, C) and N(0, I / D).

        W2^2 = |mean|^2 + 1 + tr C - (2 / sqrt(D)) tr C^(1/2),      C = X^T X / N,  X = z - mean

    Lower is more uniform. Nothing is normalised inside: the method passes rows of unit norm. The
    outer root is included; where W2 is 0 the gradient is 0.

    Args:
        z: (N, D), N >= 1, float64, float32, bfloat16 or float16.
        eps: singular values of X at most eps times the largest (or lost in the rounding of the
            mean) get the zero subgradient, > 0; the value does not depend on it. Collapsed
            directions above it get their full gradient. On a GPU, a polar iteration resolves eps
            to a factor of 1.3 either way, and to 1e-7 at least: below that an SVD in float64,
            which waits for the host, takes over.
        group: process group, as in `nuclear_norm`: one distance for the rows of all ranks.

    Returns:
        0-d float32, float64 for float64. The gradient has z's type; differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: Fang et al. 2024 (arXiv 2403.00642); statsle/WassersteinSSL a16a931, module.py, without
        its jitter: eigenvalues alone enter, nothing is differentiated through eigenvectors.
    Cost: as `nuclear_norm`.
    """
    return _spectral(z, True, _check.positive("eps", eps), True, group)


def _spectral(z: Tensor, center: bool, eps: float, distance: bool, group: Any) -> Tensor:
    _check.matrix("z", z)
    group = _check.group_name(group)
    name, z = _backend(z, eps), _check.rows_contiguous(z)
    want_grad = torch.is_grad_enabled() and z.requires_grad
    return apply(_Spectral, z, center, eps, distance, want_grad, name, group)


def _backend(z: Tensor, eps: float) -> str:
    """The polar iteration, which GPUs run, resolves eps down to 1e-7; the reference does less."""
    name = backend.select("wasserstein", z.device, z.dtype)
    if eps >= SMALLEST_EPS or name == "reference" or (name == "native" and not z.is_cuda):
        return name
    if backend.get_backend() != "auto":
        raise ValueError(
            f"backend {name!r} takes eps of at least {SMALLEST_EPS:g}, got {eps:g}: choose a "
            'larger eps, or set_backend("auto"), which takes the reference for it'
        )
    return "reference"


def _fake_forward(z, center, eps, distance, want_grad, name, group):
    return fake_loss(z, (z, want_grad))


@operator(_fake_forward)
def wasserstein_forward(
    z: Tensor,  # (N, D)
    center: bool,
    eps: float,
    distance: bool,
    want_grad: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor]:
    """The value of all ranks' rows and, if wanted, its gradient (N, D) times the ranks' number."""
    kernels, numbers = backend.implementation(name, "wasserstein"), (center, eps, distance)

    def reduce(value: Tensor, op: str) -> Tensor:
        return _distributed.all_reduce(value, op, group)

    rows = z.shape[0]
    if not group:
        return kernels.forward(z, *numbers, want_grad, rows, reduce)
    rows = int(reduce(torch.full((), rows, device=z.device), "sum"))
    if name == "reference" or rows <= z.shape[1]:
        everyone, (first, last) = _distributed.rows_of_all(z, group)
        value, gradient = kernels.forward(everyone, *numbers, want_grad, rows, _as_it_is)
        gradient = gradient[first:last] if want_grad else None
    else:
        value, gradient = kernels.forward(z, *numbers, want_grad, rows, reduce)
    outputs: Any = value, gradient * _distributed.world_size(group) if want_grad else None
    return outputs


class _Spectral(Scaled):
    """(value, its gradient) of z; only the value is for the caller."""

    run = wasserstein_forward


def _as_it_is(value: Tensor, op: str) -> Tensor:
    return value
