"""The polar factor by matrix products alone: no decomposition, nothing that waits for the host.

    X = U diag(s) V^T;   G = X^T X or X X^T, the smaller;   Q -> G^(-1/2);   U V^T = X Q

in float64: a Gram squares the condition number, and float32 would have no digit left at 1e4. With
odd polynomials p_j(s) = s (a + b s^2 + c s^4) the iteration is

    R = G / |G|_2 (an upper bound),   P_j = a I + b R + c R^2,   Q <- Q P_j,   R <- R P_j^2

each p_j the one of its degree nearest to 1 on what the last has left of [eps, 1] (Amsel et al.
2025, Polar Express). Half way, R is formed again from X Q: what rounding had added is gone.

Null directions: singular values under eps times the largest end up under a known value, and
3 y^2 - 2 y^3, repeated, sends them to 0 and the others to 1; those within a factor of 1.3 of eps
get part of their gradient. What null directions miss in the norm is at most eps each.

Per product 2 r^3 operations, r = min(N, D), about 75 products at eps = 1e-6; beside them two
passes over X for the restart and one for the gradient.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Under this eps a float64 Gram holds no digit of the smallest directions: the reference takes over.
SMALLEST_EPS = 1e-7
_SQUARINGS = 7  # bound on |G|_2 within r^(1/256)
_FILTERS = 6
_ROUNDING = 1e-13  # of |Z|_F, as in `reference.wasserstein`
Coefficients = tuple[float, float, float]


def forward(
    kernels: Any, z: Tensor, center: bool, eps: float, distance: bool, want_grad: bool, rows: int,
    reduce: Callable[[Tensor, str], Tensor],
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """As `reference.wasserstein.forward`.

    `kernels` has column_sums(z), center(z, mean), polynomial(coefficients, r, square) and
    finish(product, row, factor).
    """
    width, wide = z.shape[1], torch.promote_types(z.dtype, torch.float32)
    mean = reduce(kernels.column_sums(z), "sum") / rows if center else None
    x = kernels.center(z, mean)
    tall = rows > width
    a = x if tall else x.t()
    gram = reduce(a.t() @ a, "sum")
    trace = gram.trace()
    root, keep = inverse_root(kernels, a, gram, eps, reduce)
    norm = (root * gram).sum()  # tr(Q G) = sum s
    squared_mean = trace.new_zeros(()) if mean is None else mean.square().sum()
    energy = trace + rows * squared_mean
    # What the subtraction of the mean leaves of equal rows is no direction.
    some = (trace > _ROUNDING**2 * energy).to(trace.dtype)
    if distance:
        target = 1 / math.sqrt(width * rows)
        squared = squared_mean + 1 + trace / rows - 2 * target * norm
        value = squared.clamp(min=0).sqrt()
    else:
        value = norm
    if not want_grad:
        return value.to(wide), None
    # The large entries of Q in null directions must meet X's zeros there first.
    root = (root @ keep if tall else keep @ root) * some
    if not distance:
        d_z = kernels.finish(a @ root if tall else root @ x, None, None)
        if mean is None and not tall:
            d_z *= (z != 0).any(1, keepdim=True)  # exactly 0 for rows of zeros
        return value.to(wide), d_z
    # (X (I - sqrt(N / D) Q) + mean) / (N W2)
    root = kernels.polynomial((1.0, -target * rows, 0.0), root, root)
    factor = torch.where(value > 0, 1 / (rows * value), 0.0)
    return value.to(wide), kernels.finish(a @ root if tall else root @ x, mean, factor)


def inverse_root(
    kernels: Any, a: Tensor, gram: Tensor, eps: float, reduce: Callable[[Tensor, str], Tensor]
) -> tuple[Tensor, Tensor]:
    """(G^(-1/2), the projector on singular values above eps), (r, r) float64."""
    bound = largest_eigenvalue(gram)
    r, root = gram / bound, torch.empty(0)
    growth, low, threshold = schedule(eps)
    for step, coefficients in enumerate(growth):
        r, root = _step(kernels, coefficients, r, root)
        if step == len(growth) // 2:
            y = a @ root
            r = reduce(y.t() @ y, "sum") / bound
    keep = r * (0.5 / threshold**2)
    for coefficients in polish(low):
        r, root = _step(kernels, coefficients, r, root)
    for _ in range(_FILTERS):
        keep = (keep @ keep) @ kernels.polynomial((3.0, -2.0, 0.0), keep, keep)
    return root * bound.rsqrt(), keep


def _step(kernels: Any, coefficients: Coefficients, r: Tensor, root: Tensor) -> tuple:
    p = kernels.polynomial(coefficients, r, r @ r)
    return (r @ p) @ p, root @ p if root.numel() else p


def largest_eigenvalue(gram: Tensor) -> Tensor:
    """|G^m|_F^(1/m), m = 2^squarings: never less than the largest, r^(1/2m) times it at most."""
    norm = torch.linalg.vector_norm(gram).clamp(min=1e-300)
    power, log = gram / norm, norm.log()
    for i in range(1, _SQUARINGS + 1):
        power = power @ power
        norm = torch.linalg.vector_norm(power).clamp(min=1e-300)
        power, log = power / norm, log + norm.log() * 0.5**i
    return log.exp().clamp(min=1e-200)


@functools.cache
def schedule(eps: float) -> tuple[tuple[Coefficients, ...], float, float]:
    """Polynomials that lift all above some 1.3 eps into [v, 2 - v]; v, and where eps itself lands.

    eps lands at about 0.84 v. So the filter's fixed point 1/2 can stand for eps, and what lies in
    [v, 2 - v] starts between 0.7 and 0.9, from where it reaches 1.
    """
    candidates = [_lift(eps * (1 + 0.02 * i), eps) for i in range(1, 100)]
    return min(candidates, key=lambda found: abs(found[2] / found[1] - 0.84))


def _lift(low: float, eps: float) -> tuple[tuple[Coefficients, ...], float, float]:
    high, steps = 1.0, []
    while low < 0.85:
        steps.append(nearest_to_one(low, high))
        low, eps = evaluate(steps[-1], low), evaluate(steps[-1], eps)
        high = 2 - low
    return tuple(steps), low, eps


@functools.cache
def polish(low: float) -> tuple[Coefficients, ...]:
    """From [low, 2 - low] to 1 within float64's rounding."""
    high, steps = 2 - low, []
    while 1 - low > 1e-9:
        steps.append(nearest_to_one(low, high))
        low = evaluate(steps[-1], low)
        high = 2 - low
    return (*steps, _NEWTON)


_NEWTON = (15 / 8, -10 / 8, 3 / 8)  # its error is the cube of what was left


def evaluate(coefficients: Coefficients, s: float) -> float:
    a, b, c = coefficients
    return s * (a + b * s**2 + c * s**4)


def nearest_to_one(low: float, high: float) -> Coefficients:
    """The odd polynomial of degree 5 with the least largest |1 - p| on [low, high], by Remez."""
    if low > 0.999:
        return _NEWTON
    inner, outer = (3 * low + high) / 4, (low + 3 * high) / 4
    for _ in range(50):
        points = torch.tensor([low, inner, outer, high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        system = torch.stack([points, points**3, points**5, signs], 1)
        a, b, c, _ = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        # where p' = a + 3 b s^2 + 5 c s^4 vanishes
        middle, width = -3 * b / (10 * c), math.sqrt(max(9 * b * b - 20 * a * c, 0.0)) / (10 * c)
        before, inner, outer = inner, *(math.sqrt(max(middle + d, 0.0)) for d in (-width, width))
        if abs(inner - before) < 1e-14:
            break
    return a, b, c


class TorchKernels:
    """The four steps in plain PyTorch: for tests, and for what the fused kernels are checked by."""

    @staticmethod
    def column_sums(z: Tensor) -> Tensor:
        return z.sum(0, dtype=torch.float64)

    @staticmethod
    def center(z: Tensor, mean: Tensor | None) -> Tensor:
        return z.double() if mean is None else z.double() - mean

    @staticmethod
    def polynomial(coefficients: Coefficients, r: Tensor, square: Tensor) -> Tensor:
        a, b, c = coefficients
        return a * torch.eye(len(r)).to(r) + b * r + c * square

    @staticmethod
    def finish(product: Tensor, row: Tensor | None, factor: Tensor | None) -> Tensor:
        total = product if row is None else product + row
        return (total if factor is None else total * factor).float()
