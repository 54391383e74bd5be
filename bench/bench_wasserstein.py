"""Wasserstein uniformity and MMCR, forward and backward: what decompositions cost."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_fast.functional import wasserstein_uniformity
from ssl_fast.losses import MMCRLoss

from .cases import Bar, Case, Floor, Problem, full, lightly, unit
from .pytest_cases import parametrize, run

WEIGHT = 5e-3  # of MMCR's manifolds


def embeddings(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    rows, width = shape
    return [unit(rows, width, device).to(dtype)]


def eager(z: Tensor) -> Tensor:
    """By the covariance's eigenvalues; those that are 0 for want of rows have no derivative."""
    z = full(z)
    rows, width = z.shape
    mean = z.mean(0)
    centred = z - mean
    covariance = centred.t() @ centred / rows
    eigenvalues = torch.linalg.eigvalsh(covariance)[-min(rows - 1, width) :]
    roots = eigenvalues.clamp(min=1e-12).sqrt().sum()
    return (mean @ mean + 1 + covariance.trace() - 2 / width**0.5 * roots).sqrt()


def products(z: Tensor) -> Floor:
    """The Gram of the smaller side, and its root times z."""
    less, more = sorted(z.shape)
    return Floor("2 products", ((less, more, less),), ((less, less, more),))


def manifolds(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Online and momentum views (B, K, D), of unit norm."""
    batch, views, width = shape
    made = (F.normalize(torch.randn(batch, views, width, device=device), dim=2) for _ in range(2))
    return [x.to(dtype) for x in made]


def mmcr_eager(online: Tensor, momentum: Tensor) -> Tensor:
    """The decompositions that Lightly's class asks for, with all singular vectors."""
    z = torch.cat([full(online), full(momentum)], 1)
    norms = torch.linalg.svd(z).S.sum() / len(z)
    return WEIGHT * norms - torch.linalg.svd(z.mean(1)).S.sum()


mmcr_ours = MMCRLoss(WEIGHT)


def mmcr_products(online: Tensor, _: Tensor) -> Floor:
    batch, _, width = online.shape
    return products(online.new_empty(batch, width))


W2 = Problem(
    "wasserstein",
    "wasserstein_uniformity",
    embeddings,
    eager,
    wasserstein_uniformity,
    products,
    differentiable=(0,),
)
MMCR = Problem(
    "wasserstein",
    "MMCRLoss",
    manifolds,
    mmcr_eager,
    mmcr_ours,
    mmcr_products,
    differentiable=(0, 1),
    rivals=(("lightly", lightly("MMCRLoss", lmda=WEIGHT)),),
)

TALL = ((32, 16), (256, 128), (512, 256), (1024, 512), (2048, 512), (4096, 2048))
SQUARE = ((64, 64), (256, 256), (512, 512))
WIDE = ((16, 32), (64, 128), (256, 512), (512, 2048))
CASES = [Case(W2, shape, bar=Bar(1)) for shape in (*TALL, *SQUARE, *WIDE)]
CASES += [Case(MMCR, (256, 2, 512), bar=Bar(8, "Lightly"))]
for _dtype in ("bfloat16", "float32"):
    CASES += [Case(W2, (1024, 512), _dtype, "cuda", Bar(10, against="eager"))]
    CASES += [Case(MMCR, (256, 2, 512), _dtype, "cuda", Bar(1, against="eager"))]

pytest_generate_tests = parametrize(CASES)


def test_wasserstein(benchmark, case, contender):
    run(benchmark, case, contender)
