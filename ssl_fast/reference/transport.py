"""Entropic transport between clouds of points (Cuturi 2013), log domain, float64.

    C_ij = |x_i - y_j|^p;   P = argmin <P, C> + epsilon KL(P | uniform),  rows 1/n, columns 1/m
    P_ij = 1/(n m) exp((f_i + g_j - C_ij) / epsilon);   distance = <P, C>

The distance is that of the optimal P, so dP/dx counts. With (u, v) from

    sum_j P(j|i) (C_ij - u_i - v_j) = 0 for all i,   sum_i P(i|j) (C_ij - u_i - v_j) = 0 for all j

    d<P, C>/dC_ij = P_ij (1 + (u_i + v_j - C_ij) / epsilon)

(the implicit function theorem on both marginals; as epsilon falls it becomes P, the envelope).
"""

import torch
from torch import Tensor

# The first steps take epsilon 2^k, k = DESCENT ... 1: near potentials from far.
DESCENT = 10


def distance(
    x: Tensor, y: Tensor, epsilon: float, p: int, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """(distance 0-d float64, state (2, n + m)): potentials f, g and, beneath, u and v = 0.

    At most `iterations` at epsilon, fewer if f moves by less than tolerance * epsilon before.
    """
    n, m = len(x), len(y)
    costs = _costs(x, y, p)
    f, g = costs.new_zeros(n), costs.new_zeros(m)
    for k in range(-DESCENT, iterations):
        now = epsilon * 2 ** max(0, -k)
        moved, f = f, _potential(g - costs, now)
        g = _potential(f - costs.T, now)
        if k >= 0 and float((f - moved).abs().max()) <= tolerance * now:
            break
    f = _potential(g - costs, epsilon)
    mean = _mean(g - costs, costs, epsilon)
    state = torch.stack([torch.cat([f, g]), torch.cat([mean, torch.zeros_like(g)])])
    return mean.mean(), state


def distance_backward(
    x: Tensor, y: Tensor, state: Tensor, epsilon: float, p: int, iterations: int, tolerance: float,
    d_value: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(d_x, d_y)."""
    n, costs = len(x), _costs(x, y, p)
    (f, g), (u, v) = state[0].split([n, len(y)]), state[1].split([n, len(y)])
    for _ in range(iterations):
        v = _mean(f - costs.T, costs.T - u, epsilon)
        moved, u = u, _mean(g - costs, costs - v, epsilon)
        if float((u - moved).abs().max()) <= tolerance * epsilon:
            break
    weight = 1 + (u[:, None] + v - costs) / epsilon
    slope = torch.where(costs > 0, 1 / costs, 0) if p == 1 else 2 * torch.ones_like(costs)
    gradients = []
    for own, other, exponent, w in (
        (x, y, g - costs, weight * slope), (y, x, f - costs.T, (weight * slope).T)
    ):  # fmt: skip
        w = (exponent / epsilon).softmax(1) * w * (d_value.double() / len(own))
        moved = torch.stack([w[i] @ (own[i].double() - other.double()) for i in range(len(own))])
        gradients.append(moved.to(own.dtype))
    return gradients[0], gradients[1]


def distances(
    points: Tensor, starts: Tensor, pairs: Tensor, epsilon: float, p: int, iterations: int,
    tolerance: float,
) -> Tensor:  # fmt: skip
    """(Q,) float64: between clouds points[starts[k] : starts[k + 1]], for pairs (Q, 2) of them."""
    clouds = points.tensor_split(starts[1:-1].cpu())
    found = [
        distance(clouds[a], clouds[b], epsilon, p, iterations, tolerance)[0]
        for a, b in pairs.tolist()
    ]
    return torch.stack(found)


def _costs(x: Tensor, y: Tensor, p: int) -> Tensor:
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(x.double(), y.double(), compute_mode=mode).pow(p)


def _potential(exponent: Tensor, epsilon: float) -> Tensor:
    """-epsilon log mean_j exp(exponent_ij / epsilon)"""
    size = torch.tensor(exponent.shape[1], dtype=exponent.dtype)
    return -epsilon * ((exponent / epsilon).logsumexp(1) - size.log())


def _mean(exponent: Tensor, values: Tensor, epsilon: float) -> Tensor:
    """sum_j P(j|i) values_ij"""
    return ((exponent / epsilon).softmax(1) * values).sum(1)
