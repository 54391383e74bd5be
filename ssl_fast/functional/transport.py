"""Entropic optimal transport between clouds of points."""

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._autograd import OfTwo, apply
from ._operator import operator
from ._tiles import product_dtype

EPSILON = 0.05
ITERATIONS = 200
# Potentials that move by less than this share of epsilon have settled (float32's own rounding of
# them is added by the kernels).
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


def sinkhorn_distance(
    x: Tensor, y: Tensor, *, epsilon: float = EPSILON, p: int = 1, iterations: int = ITERATIONS
) -> Tensor:
    """Transport cost between two clouds of points, of the entropic plan.

        <P, C>,   C_ij = |x_i - y_j|^p,   P = argmin <P, C> + epsilon KL(P | uniform)

    over P whose rows sum to 1/N and columns to 1/M. For p = 1 this is the earth mover's distance
    blurred over lengths of epsilon; it is above it by epsilon log(min(N, M)) at most.

    Args:
        x: (N, D); used as given, not normalised.
        y: (M, D), same type; M need not be N.
        epsilon: > 0, in units of the cost: 0.05 is 1/40 of the sphere's diameter. Smaller is
            nearer to the exact transport and settles later.
        p: 1, the Euclidean distance, or 2, its square.
        iterations: most steps at epsilon, after 10 from epsilon 2^10 down. On a CPU they stop when
            the potentials move by less than 1e-5 epsilon (1e-13 in float64); on a GPU all of them
            run, because asking would synchronise.

    Returns:
        0-d float32, float64 for float64, never negative, finite for identical and for single
        points; gradients in the inputs' type, 0 at points in the same place for p = 1.
        Differentiable once. The gradient is that of <P, C> at convergence, dP included (implicit
        function theorem: a linear system with the steps' own rate); it is not that of the steps.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: Cuturi 2013; Feydy et al. 2019 for the descent in epsilon.
    Cost: 2 N M (D multiply-adds, an exp, and a square root for p = 1) a step, backward as much.
        No N x M matrix is stored: costs are formed again in every step. Kept: inputs, 2 (N + M).
    """
    _check.factors("x", x, "y", y)
    arguments = transport_arguments(epsilon, p, iterations)
    name = backend.select("transport", x.device, x.dtype)
    x, y = _check.rows_contiguous(x), _check.rows_contiguous(y)
    return apply(_Distance, x, y, *arguments, TOLERANCE[product_dtype(x)], name)


def transport_arguments(epsilon: float, p: int, iterations: int) -> tuple[float, int, int]:
    epsilon = _check.positive("epsilon", epsilon)
    if p not in (1, 2) or isinstance(p, bool):
        raise ValueError(f"p must be 1 (distance) or 2 (squared distance), got {p!r}")
    return epsilon, int(p), _check.count("iterations", iterations)


def sinkhorn_distances(
    points: Tensor,
    starts: Tensor,
    pairs: Tensor,
    *,
    epsilon: float = EPSILON,
    p: int = 1,
    iterations: int = ITERATIONS,
) -> Tensor:
    """`sinkhorn_distance` of many pairs of clouds at once, (Q,) float64, without gradient.

    Args:
        points: (T, D), cloud k in rows starts[k] to starts[k + 1].
        starts: (G + 1,) long, rising, from 0 to T.
        pairs: (Q, 2) long, of clouds.
        epsilon: as in `sinkhorn_distance`, and so are
        p: 1 or 2,
        iterations: at most.

    Source: `sinkhorn_distance`. Cost: its, of all pairs; on a GPU in one launch a step.
    """
    _check.matrix("points", points)
    arguments = transport_arguments(epsilon, p, iterations)
    name = backend.select("transport", points.device, points.dtype)
    kernels = backend.implementation(name, "transport")
    return kernels.distances(
        _check.rows_contiguous(points.detach()), starts, pairs.contiguous(), *arguments,
        TOLERANCE[product_dtype(points)],
    )  # fmt: skip


def _fake_forward(x, y, epsilon, p, iterations, tolerance, name):
    state = torch.float64 if name == "reference" else product_dtype(x)
    shape = (2, x.shape[0] + y.shape[0])
    return x.new_empty((), dtype=product_dtype(x)), x.new_empty(shape, dtype=state)


@operator(_fake_forward)
def transport_forward(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    epsilon: float,
    p: int,
    iterations: int,
    tolerance: float,
    name: str,
) -> tuple[Tensor, Tensor]:
    """(distance, state (2, N + M)) as the kernels have them."""
    kernels = backend.implementation(name, "transport")
    value, state = kernels.distance(x, y, epsilon, p, iterations, tolerance)
    return value.to(product_dtype(x)), state


class _Distance(OfTwo):
    """(distance, state) of x and y."""

    run = transport_forward

    @staticmethod
    def backward(ctx, d_value):
        return transport_backward(*ctx.saved_tensors, d_value, *ctx.numbers)


def _fake_backward(x, y, *_):
    return x.new_empty(x.shape), y.new_empty(y.shape)


@operator(_fake_backward)
def transport_backward(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    state: Tensor,  # (2, N + M)
    d_value: Tensor,  # 0-d
    epsilon: float,
    p: int,
    iterations: int,
    tolerance: float,
    name: str,
) -> tuple[Tensor, Tensor]:
    """(d_x, d_y)."""
    kernels = backend.implementation(name, "transport")
    return kernels.distance_backward(x, y, state, epsilon, p, iterations, tolerance, d_value)
