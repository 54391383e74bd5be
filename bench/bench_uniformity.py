"""Uniformity of a batch (log-mean Gaussian potential) and the correlation of prototypes."""

import torch
from torch import Tensor

from ssl_fast.functional import gaussian_uniformity, prototype_correlation

from .cases import Bar, Case, Floor, Problem, full, nbytes, unit
from .pytest_cases import parametrize, run


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    return [unit(*shape, device).to(dtype)]


def eager(x: Tensor) -> Tensor:
    """As Wang and Isola's code has it."""
    return torch.pdist(full(x)).pow(2).mul(-2).exp().mean().log()


def products(x: Tensor) -> Floor:
    """Half a Gram matrix, and as much twice for the moments of rows and columns."""
    rows, width = x.shape
    return Floor(
        "3 half products", ((rows, width, rows // 2),) + ((rows, rows // 2, width),) * 2, ()
    )


def eager_correlation(c: Tensor) -> Tensor:
    """The factorised form (the pairs one by one would need K x K x D numbers)."""
    k = c.shape[0]
    logs = full(c).log_softmax(1)
    p = logs.exp()
    return ((p.sum(0) * logs.sum(0)).sum() - k * (p * logs).sum()) / (k * (k - 1))


def one_pass(c: Tensor) -> Floor:
    return Floor("1 read, then 1 read + 1 write", nbytes(c), 2.0 * nbytes(c))


UNIFORMITY = Problem(
    "uniformity", "uniformity", inputs, eager, lambda x: gaussian_uniformity(x), products,
    differentiable=(0,),
)  # fmt: skip
CORRELATION = Problem(
    "uniformity", "prototype correlation", inputs, eager_correlation,
    lambda c: prototype_correlation(c), one_pass, differentiable=(0,),
)  # fmt: skip

CASES = [
    Case(UNIFORMITY, (2048, 128), bar=Bar(3.5)),
    Case(UNIFORMITY, (256, 128), bar=Bar(1)),
    Case(UNIFORMITY, (64, 128), bar=Bar(1)),
    Case(CORRELATION, (10000, 128), bar=Bar(1)),
]
CASES += [Case(UNIFORMITY, (8192, 128), dtype, "cuda", Bar(1)) for dtype in ("bfloat16", "float32")]

pytest_generate_tests = parametrize(CASES)


def test_uniformity(benchmark, case, contender):
    run(benchmark, case, contender)
