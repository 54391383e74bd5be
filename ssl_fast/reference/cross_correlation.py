"""The pieces of the cross-correlation loss around its products, beside covariance's.

    sum_d (C_dd - 1)^2 + w sum_{d != e} C_de^2,  C = Z_0^T Z_1 / N,  Z_0 and Z_1 standardised

Everything is float64. `functional._cross_correlation` forms the products.
"""

import torch
from torch import Tensor

from .covariance import center, inner, moments

__all__ = ["center", "dots", "gradient", "inner", "moments", "penalty"]


def penalty(tile: Tensor, first: int, count: int, weight: float) -> Tensor:
    """Columns `first` on of C, times N: the penalty, and in place its derivative by C, over N."""
    c = tile.double() / count
    columns = torch.arange(c.shape[1], device=c.device)
    diagonal = c[first + columns, columns].clone()
    c[first + columns, columns] = 0
    derivative = 2 * weight * c
    derivative[first + columns, columns] = 2 * (diagonal - 1)
    tile.copy_(derivative / count)
    return (diagonal - 1).square().sum() + weight * c.square().sum()


def dots(
    push: Tensor, own: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None
) -> Tensor:
    """sum_i g_id own_id of g = alpha push + beta_d other, (D,) float64."""
    return (_combined(push, other, alpha, beta) * own.double()).sum(0)


def gradient(
    push: Tensor, own: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None,
    dots: Tensor, scale: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """Through the standardisation: out = scale_d (g - dots_d own), g as in `dots`."""
    g = _combined(push, other, alpha, beta)
    out.copy_(scale * (g - dots * own.double()))


def _combined(push: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None) -> Tensor:
    g = alpha * push.double()
    return g if other is None or beta is None else g + beta * other.double()
