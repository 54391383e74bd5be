"""The mean cosine of paired rows (BYOL, SimSiam), forward and backward."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ssl_fast.functional.cosine import mean_cosine

from .cases import Bar, Case, Floor, Problem, full, nbytes
from .pytest_cases import parametrize, run


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    return [torch.randn(shape, device=device).to(dtype) for _ in range(2)]


def eager(x: Tensor, y: Tensor) -> Tensor:
    return cosine_similarity(full(x), full(y)).mean()


def reads_and_write(x: Tensor, y: Tensor) -> Floor:
    """The prediction gets a gradient, the target does not."""
    read = nbytes(x, y)
    return Floor("4 reads + 1 write", read, read + nbytes(x))


PROBLEM = Problem(
    "cosine", "mean cosine", inputs, eager, lambda x, y: mean_cosine(x, y), reads_and_write,
    differentiable=(0,),
)  # fmt: skip

CASES = [Case(PROBLEM, shape, bar=Bar(1)) for shape in ((4096, 2048), (256, 2048), (256, 256))]

pytest_generate_tests = parametrize(CASES)


def test_cosine(benchmark, case, contender):
    run(benchmark, case, contender)
