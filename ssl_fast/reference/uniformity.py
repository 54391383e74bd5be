"""Pairwise potentials and prototype terms (Wang and Isola 2020; PAUC, Eqs. 4-6), in float64.

potential:    log sum_{i in rows, j != i} w_ij,      w_ij = exp(-t |x_i - x_j|^2)
distance:     sum_i |x_i - y_i|^alpha
correlation:  mean_{p != q} sum_d c_pd log(c_qd / c_pd),   c = softmax_d(scores * inv_temperature)
"""

import torch
from torch import Tensor


def potential(
    x: Tensor, first: int, last: int, t: float, want_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """The logarithm (0-d float64, or a Python float) over rows first to last of x; if wanted

        -4t sum_j w_ij (x_i - x_j) / sum      (rows, D), in x's type, float32 for half

    which for all rows is the gradient of the logarithm.
    """
    z = x.double()
    rows = z[first:last]
    squares = torch.cdist(rows, z, compute_mode="donot_use_mm_for_euclid_dist").square()
    squares.diagonal(first).fill_(torch.inf)
    exponents = (-t * squares).flatten()
    log_sum = exponents.logsumexp(0)
    if not want_grad:
        return log_sum, None
    w = exponents.softmax(0).view_as(squares)
    moved = torch.stack([w[i] @ (rows[i] - z) for i in range(len(rows))])
    return log_sum, (-4 * t * moved).to(torch.promote_types(x.dtype, torch.float32))


def distance_power(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """sum_i |x_i - y_i|^alpha, 0-d float64."""
    return (x.double() - y.double()).norm(dim=1).pow(alpha).sum()


def distance_power_backward(
    x: Tensor, y: Tensor, alpha: float, d_value: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    """g alpha |x_i - y_i|^(alpha - 2) (x_i - y_i) and its negative, g = factor * d_value.

    Rows that coincide get zeros, whatever alpha is.
    """
    difference = x.double() - y.double()
    norm = difference.norm(dim=1, keepdim=True)
    coefficient = torch.where(norm > 0, alpha * norm.pow(alpha - 2), 0)
    d_x = difference * (coefficient * (d_value.double() * factor))
    return d_x.to(x.dtype), (-d_x).to(y.dtype)


def correlation(c: Tensor, inv_temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(value 0-d float64, row (2, K), col (2, D)), float64.

    row: shift and log, with LSE_d(c_pd * inv_temperature) = shift * inv_temperature + log.
    col: means over p of the distributions, and of log c_pd - log c_0d.
    """
    k = c.shape[0]
    shift = c.double().amax(1)
    log = ((c.double() - shift[:, None]) * inv_temperature).exp().sum(1).log()
    row = torch.stack([shift, log])
    p, relative = _distributions(c, inv_temperature, row)
    col = torch.stack([p.mean(0), relative.mean(0)])
    value = (p * (col[1] - relative)).sum() / (k - 1)
    return value, row, col


def correlation_backward(
    c: Tensor, inv_temperature: float, row: Tensor, col: Tensor, d_value: Tensor, factor: float
) -> Tensor:
    """d_c (K, D) for g = factor * d_value: with r = log c - log c_0, m its mean, a that of c,

    d c_pd = g inv_temperature / (K - 1) [c_pd (m_d - r_pd - sum_e c_pe (m_e - r_pe)) + a_d - c_pd]
    """
    p, relative = _distributions(c, inv_temperature, row)
    distance = col[1] - relative
    d = p * (distance - (p * distance).sum(1, keepdim=True)) + (col[0] - p)
    return (d * (d_value.double() * (factor * inv_temperature / (len(c) - 1)))).to(c.dtype)


def _distributions(c: Tensor, inv_temperature: float, row: Tensor) -> tuple[Tensor, Tensor]:
    """c as distributions (K, D), and their logarithms less those of the first."""
    shift, log = row
    logs = (c.double() - shift[:, None]) * inv_temperature - log[:, None]
    return logs.exp(), logs - logs[0]
