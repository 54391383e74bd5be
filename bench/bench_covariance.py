"""VICReg and Barlow Twins on two views, forward and backward."""

import torch
from torch import Tensor

from ssl_fast.losses import BarlowTwinsLoss, VICRegLoss

from .cases import Bar, Case, Floor, Memory, Problem, full, lightly, nbytes
from .pytest_cases import parametrize, run

EPS, WEIGHT = 1e-4, 5e-3


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Two views (N, D) that agree in part, standard deviations about 1."""
    common = torch.randn(shape, device=device)
    return [(0.8 * common + 0.6 * torch.randn(shape, device=device)).to(dtype) for _ in range(2)]


def off_diagonal(c: Tensor) -> Tensor:
    """A view without the diagonal, as the official codes take it."""
    n = len(c)
    return c.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten()


def covariance(z: Tensor) -> Tensor:
    """With lightly's mask."""
    z = z - z.mean(0)
    c = z.t() @ z / (len(z) - 1)
    mask = ~torch.eye(len(c), dtype=torch.bool, device=c.device)
    return c[mask].pow(2).sum() / z.shape[1]


def vicreg_eager(z0: Tensor, z1: Tensor) -> Tensor:
    z0, z1 = full(z0), full(z1)
    hinges = [torch.relu(1 - (z.var(0) + EPS).sqrt()).mean() for z in (z0, z1)]
    invariance = torch.nn.functional.mse_loss(z0, z1)
    return 25 * invariance + 12.5 * (hinges[0] + hinges[1]) + covariance(z0) + covariance(z1)


def barlow_eager(z0: Tensor, z1: Tensor) -> Tensor:
    a, b = (torch.nn.functional.batch_norm(full(z), None, None, training=True) for z in (z0, z1))
    c = a.t() @ b / len(a)
    return (c.diagonal() - 1).pow(2).sum() + WEIGHT * off_diagonal(c).pow(2).sum()


def products(z0: Tensor, *_: Tensor) -> Floor:
    """Half of both views' smaller Gram, which is symmetric, and that times the views."""
    gram, back = smaller(*z0.shape)
    rows, inner, columns = gram
    return Floor("2 half products, 2 products", ((rows, inner, columns // 2),) * 2, (back,) * 2)


def one_matrix(z0: Tensor, *_: Tensor) -> Floor:
    """The cross-correlation, which is not symmetric, or both Grams; both gradients."""
    rows, columns = z0.shape
    if columns >= 2 * rows:
        return products(z0)
    gram, back = smaller(rows, columns)
    return Floor("3 products", (gram,), (back,) * 2)


def smaller(rows: int, columns: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Products that form Z Z^T or Z^T Z, and then the gradient."""
    if columns >= 2 * rows:
        return (rows, columns, rows), (rows, rows, columns)
    return (columns, rows, columns), (rows, columns, columns)


def bounded(z0: Tensor, z1: Tensor) -> Memory:
    """No D x D matrix: gradients, and no more than twice that beside them."""
    return Memory("no D x D matrix", "peak", 3 * nbytes(full(z0), full(z1)))


_vicreg, _barlow = VICRegLoss(), BarlowTwinsLoss(WEIGHT)
VICREG = Problem(
    "covariance",
    "VICReg",
    inputs,
    vicreg_eager,
    lambda z0, z1: _vicreg(z0, z1),
    products,
    differentiable=(0, 1),
    memory=bounded,
    rivals=(("lightly", lightly("VICRegLoss")),),
)
BARLOW = Problem(
    "covariance",
    "Barlow Twins",
    inputs,
    barlow_eager,
    lambda z0, z1: _barlow(z0, z1),
    one_matrix,
    differentiable=(0, 1),
    memory=bounded,
    rivals=(("lightly", lightly("BarlowTwinsLoss")),),
)

CASES = [
    Case(VICREG, (256, 8192), bar=Bar(120, "Lightly")),
    Case(VICREG, (256, 2048), bar=Bar(20, "Lightly")),
    Case(VICREG, (2048, 512), bar=Bar(1.75, "Lightly")),
    Case(VICREG, (64, 128), bar=Bar(1, "Lightly")),
    Case(BARLOW, (256, 2048), bar=Bar(6, "Lightly")),
    Case(BARLOW, (1024, 512), bar=Bar(1, "Lightly")),
    Case(BARLOW, (64, 128), bar=Bar(1, "Lightly")),
]
CASES += [Case(VICREG, (2048, 8192), dtype, "cuda", Bar(3)) for dtype in ("bfloat16", "float32")]

pytest_generate_tests = parametrize(CASES)


def test_covariance(benchmark, case, contender):
    run(benchmark, case, contender)
