"""The pieces of the covariance losses around their products; Z is (N, D), centred by columns.

    covariance penalty   sum_{d != e} C_de^2,  C = Z^T Z           gradient 4 Z (C - diag C)
    by the Gram dual     ||Z Z^T||^2 - sum_d c_d^2,  c_d = C_dd    gradient 4 (Z Z^T Z - Z diag c)

Everything is float64. `functional._covariance` forms the products, in the type of what it passes.
"""

import torch
from torch import Tensor


def moments(z: Tensor, stats: Tensor, out: Tensor | None, eps: float | None) -> None:
    """stats (2, D) = mean, and sum of squares about it; out = z - mean, over sqrt(var + eps)."""
    mean = z.double().mean(0)
    centred = z.double() - mean
    square = centred.square().sum(0)
    if out is not None:
        out.copy_(centred if eps is None else centred * (square / z.shape[0] + eps).rsqrt())
    stats.copy_(torch.stack([mean, square]))


def center(z: Tensor, mean: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """out = (z - mean) * scale."""
    centred = z.double() - mean
    out.copy_(centred if scale is None else centred * scale)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """sum_ij a_ij b_ij, 0-d float64."""
    return (a.double() * b.double()).sum()


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """sum_ij (a_ij - b_ij)^2, 0-d float64."""
    return (a.double() - b.double()).square().sum()


def triangle(tile: Tensor, scale: float) -> Tensor:
    """Rows of a symmetric matrix from the diagonal on: the squares of scale * it off it, summed.

    tile (R, M) starts with an R x R square; its diagonal is set to zero.
    """
    rows = tile.shape[0]
    tile.diagonal().zero_()
    squares = (scale * tile.double()).square()
    return squares[:, :rows].sum() + 2 * squares[:, rows:].sum()


def gradient(
    push: Tensor | None, z: Tensor, other: Tensor | None, mean: Tensor, beta: Tensor,
    factors: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """out = f_0 push + beta_d (z - mean) + f_1 (z - other); factors (2,), beta (D,) float64."""
    total = (z.double() - mean) * beta
    if push is not None:
        total += factors[0] * push.double()
    if other is not None:
        total += factors[1] * (z.double() - other.double())
    out.copy_(total)
