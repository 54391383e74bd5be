"""Uniformity metrics: the printed formulas, known values, what they refuse."""

import math

import pytest
import torch
from checks import normal, unit

from ssl_fast import metrics


def w2_by_the_formula(z: torch.Tensor, jitter: float) -> float:
    """Eigenvalues of the whole covariance, as the released metric has it."""
    z = torch.nn.functional.normalize(z.double())
    mean, width = z.mean(0), z.shape[1]
    covariance = (z - mean).T @ (z - mean) / len(z)
    roots = (torch.linalg.eigvalsh(covariance).clamp(min=0) + jitter).sqrt()
    return math.sqrt(mean @ mean + 1 + covariance.trace() - 2 / math.sqrt(width) * roots.sum())


@pytest.mark.parametrize("shape", [(40, 7), (5, 12), (1, 3), (9, 9)], ids=str)
@pytest.mark.parametrize("jitter", [1e-8, 0.0])
def test_wasserstein(shape, jitter):
    """Also with fewer rows than columns, whose missing eigenvalues count as zeros."""
    z = normal(*shape)
    expected = w2_by_the_formula(z, jitter)
    assert metrics.wasserstein_uniformity(z, jitter=jitter) == pytest.approx(expected, abs=2e-7)


def test_wasserstein_of_an_isotropic_set_is_zero():
    corners = torch.cat([torch.eye(6), -torch.eye(6)])
    assert metrics.wasserstein_uniformity(corners, jitter=0) == pytest.approx(0, abs=1e-7)


def test_wasserstein_of_one_point():
    """No covariance at all: |mean|^2 + 1 = 2."""
    point = unit(1, 5).expand(8, -1)
    assert metrics.wasserstein_uniformity(point, jitter=0) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("rows", [2, 33, 1500])
def test_gaussian_uniformity(rows):
    z = normal(rows, 6)
    pairs = torch.pdist(torch.nn.functional.normalize(z.double())).square()
    expected = float(pairs.mul(-2).exp().mean().log())
    assert metrics.gaussian_uniformity(z) == pytest.approx(expected, abs=1e-12)


def test_gaussian_uniformity_does_not_underflow():
    x = torch.tensor([[0.0], [1.0]]) * 50
    assert metrics.gaussian_uniformity(x, normalize=False) == pytest.approx(-5000)


def test_alignment():
    x, y = unit(9, 4), unit(9, 4, seed=1)
    for alpha in (1.0, 2.0, 3.0):
        expected = float((x.double() - y.double()).square().sum(1).pow(alpha / 2).mean())
        assert metrics.alignment(x, y, alpha=alpha) == pytest.approx(expected, rel=1e-6)
    assert metrics.alignment(3 * x, x) == pytest.approx(0, abs=1e-12)


def test_spectrum_counts_the_dimensions():
    z = torch.cat([normal(50, 3), torch.zeros(50, 4)], 1)
    values = metrics.spectrum(z, normalize=False)
    assert values.shape == (7,) and bool((values.diff() <= 0).all())
    assert bool((values[3:].abs() < 1e-15).all()) and float(values[2]) > 0.1
    assert float(values.sum()) == pytest.approx(float(z.double().var(0, correction=0).sum()))
    assert metrics.spectrum(normal(3, 8)).shape == (8,)


def test_effective_rank():
    assert metrics.effective_rank(torch.eye(5)) == pytest.approx(5)
    assert metrics.effective_rank(torch.ones(4, 3)) == pytest.approx(1)
    assert metrics.effective_rank(torch.ones(4, 3), center=True) == 0
    values = torch.tensor([3.0, 1.0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert metrics.effective_rank(values.diag()) == pytest.approx(math.exp(entropy))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.wasserstein_uniformity([[1.0]]), "x must be a floating-point.*list"),
        (lambda: metrics.spectrum(torch.ones(2, 2, dtype=torch.int64)), "int64"),
        (lambda: metrics.gaussian_uniformity(torch.ones(1, 3)), "at least 2 rows.*1, 3"),
        (lambda: metrics.gaussian_uniformity(torch.ones(2, 3), t=0), "t must be > 0"),
        (lambda: metrics.alignment(torch.ones(2, 3), torch.ones(3, 3)), "pair up"),
        (lambda: metrics.alignment(torch.ones(2, 3), torch.ones(2, 3), alpha=-1), "alpha"),
    ],
)
def test_refusals(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
