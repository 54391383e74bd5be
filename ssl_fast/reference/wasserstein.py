"""Nuclear norm and Wasserstein uniformity by the singular value decomposition, in float64.

    X = Z - mean, or Z;   X = U diag(s) V^T
    nuclear norm   |X|_* = sum_i s_i
    distance       W2^2  = |mean|^2 + sum_i (s_i / sqrt(N) - 1 / sqrt(D))^2,   i = 1 .. D

W2^2 is |mean|^2 + 1 + tr C - (2 / sqrt(D)) tr C^(1/2) with C = X^T X / N (Fang et al. 2024),
written as a sum of squares: nothing cancels. Only singular values enter: repeated ones do no harm.

    d|X|_* / dZ = U V^T
    dW2 / dZ    = (mean + sum_i (1 - sqrt(N / D) / s_i) s_i u_i v_i^T) / (N W2)

Null directions: where s_i <= max(eps * s_1, 1e-13 |Z|_F), 1 / s_i counts as 0: the zero
subgradient.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-13  # of |Z|_F: what subtracting a float64 mean leaves of equal rows


class Gradient(NamedTuple):
    """d value / dZ = of_mean * mean (in every row) + sum_i weight_i s_i u_i v_i^T."""

    value: Tensor  # 0-d float64
    weight: Tensor  # as the singular values
    of_mean: Tensor  # 0-d


def forward(
    z: Tensor, center: bool, eps: float, distance: bool, want_grad: bool, rows: int, reduce: object
) -> tuple[Tensor, Tensor | None]:
    """(value 0-d, its gradient (N, D)) in float64 for float64 z, else float32; z of all ranks."""
    wide = torch.promote_types(z.dtype, torch.float32)
    z = z.double()
    if not bool(z.isfinite().all()):
        nan = z.new_full((), math.nan).to(wide)
        return nan, nan.expand(z.shape).clone() if want_grad else None
    mean = z.mean(0) if center else None
    u, s, vh = torch.linalg.svd(z if mean is None else z - mean, full_matrices=False)
    value, weight, of_mean = gradient(s, mean, z.shape[0], z.shape[1], eps, distance)
    if not want_grad:
        return value.to(wide), None
    d_z = (u * (weight * s)) @ vh
    if mean is None:
        d_z *= (z != 0).any(1, keepdim=True)  # exactly 0 for rows of zeros
    else:
        d_z += of_mean * mean
    return value.to(wide), d_z.to(wide)


def gradient(
    s: Tensor,  # (min(N, D),) float64 singular values of X, any order
    mean: Tensor | None,  # (D,) float64
    rows: int,
    width: int,
    eps: float,
    distance: bool,
) -> Gradient:
    """Value and weights from the singular values alone."""
    squares = s.square().sum() + (0.0 if mean is None else rows * mean.square().sum())
    threshold = torch.maximum(eps * s.max(), ROUNDING * squares.sqrt())
    inverse = torch.where(s > threshold, 1 / s, 0.0)
    if not distance:
        return Gradient(s.sum(), inverse, s.new_zeros(()))
    assert mean is not None
    root = 1 / math.sqrt(width)
    squared = mean.square().sum() + (s / math.sqrt(rows) - root).square().sum()
    squared = squared + (width - len(s)) / width  # the singular values that are 0 for want of rows
    value = squared.sqrt()
    scale = torch.where(value > 0, 1 / (rows * value), 0.0)
    return Gradient(value, scale * (1 - math.sqrt(rows) * root * inverse), scale)
