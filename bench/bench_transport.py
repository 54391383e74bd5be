"""Entropic transport between two clouds of unit rows, forward and backward."""

import math

import torch
from torch import Tensor

from ssl_fast.functional import sinkhorn_distance

from .cases import Bar, Case, Floor, Problem, full, unit
from .pytest_cases import parametrize, run

# Of squared distances up to 4: potentials settle to float32's rounding.
EPSILON, ITERATIONS = 1.0, 50


def clouds(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x (N, D), y (M, D)."""
    n, m, width = shape
    return [unit(rows, width, device).to(dtype) for rows in (n, m)]


def eager(x: Tensor, y: Tensor) -> Tensor:
    """Potentials by log-sum-exps of a stored cost matrix, differentiated step by step."""
    costs = torch.cdist(full(x), full(y)).square() / EPSILON
    f = costs.new_zeros(len(x))
    for _ in range(ITERATIONS):
        g = math.log(len(x)) - (f[:, None] - costs).logsumexp(0)
        f = math.log(len(y)) - (g - costs).logsumexp(1)
    plan = (f[:, None] + g - costs).exp() / costs.numel()
    return EPSILON * (plan * costs).sum()


def ours(x: Tensor, y: Tensor) -> Tensor:
    return sinkhorn_distance(x, y, epsilon=EPSILON, p=2, iterations=ITERATIONS)


def products(x: Tensor, y: Tensor) -> Floor:
    """The costs once, however often they are used, and the plan times each cloud."""
    (n, width), m = x.shape, y.shape[0]
    return Floor("3 products", ((n, width, m),), ((n, m, width), (m, n, width)))


PROBLEM = Problem(
    "transport", "sinkhorn_distance", clouds, eager, ours, products, differentiable=(0, 1)
)

CASES = [
    Case(PROBLEM, (1000, 1000, 64), bar=Bar(1)),
    Case(PROBLEM, (100, 100, 16), bar=Bar(1)),
    Case(PROBLEM, (1000, 1000, 64), "float32", "cuda", Bar(1)),
]

pytest_generate_tests = parametrize(CASES)


def test_transport(benchmark, case, contender):
    run(benchmark, case, contender)
