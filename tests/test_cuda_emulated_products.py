"""The CUDA C++ kernels around the library's products, run on the CPU by tests/emulation.

Contrastive tiles, the polar iteration, covariances.
"""

import contextlib

import oracles
import pytest
import torch
from checks import assert_right
from cuda_harness import (
    DTYPES,
    EMULATED,
    SANITIZED,
    TOLERANCE,
    assert_near,
    random,
    strided,
)
from torch import Tensor

from ssl_fast import backend
from ssl_fast._polar import TorchKernels
from ssl_fast.functional import (
    covariance_penalty,
    cross_correlation_penalty,
    variance_hinge,
    vicreg,
)
from ssl_fast.native import matrix
from ssl_fast.native.cuda import covariance, cross_correlation, launch, wasserstein
from ssl_fast.reference import contrastive as contrastive_reference
from ssl_fast.reference import wasserstein as wasserstein_reference

pytestmark = EMULATED


@contextlib.contextmanager
def tiles_on_the_machine(kernels, rows: int, columns: int):
    """`ssl_fast.native.contrastive`, its tiles this small, with the CUDA epilogues."""
    from ssl_fast.native import contrastive

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrastive, "ROW_TILE", {"cpu": (rows, columns)})
        patch.setattr(contrastive, "PAIR_TILE", {"cpu": (columns, rows)})
        patch.setattr(
            contrastive, "_run", lambda name, tile, *rest: launch(name, tile, matrix(tile), *rest)
        )
        yield contrastive


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(19, 70)] if SANITIZED else [(1, 1), (19, 70), (70, 300)])
def test_contrastive_rows(kernels, n, k, dtype):
    """Factors, left-out ranges, a row without negatives; tiles of 32 x 40."""
    x, w = random(n, 12, dtype=dtype), random(k, 12, dtype=dtype, seed=1)
    a, b = random(1, n, seed=2)[0].abs() + 0.5, random(1, k, seed=3)[0].abs() + 0.5
    lo = torch.arange(n) % k
    hi = lo + min(3, k - 1)
    if n > 1:
        lo[n // 2], hi[n // 2] = 0, k
    weight = torch.arange(n).double() - 2
    with tiles_on_the_machine(kernels, 32, 40) as ours:
        for factors, ranges, scale in (((a, b), (lo, hi), 3.0), ((None, None), (None, None), 1.0)):
            arguments = (x, w, *factors, scale, *ranges)
            lse, pull = ours.rows_forward(*arguments, True)
            exact, exact_pull = contrastive_reference.rows_forward(*arguments, True)
            assert_near(lse, exact, TOLERANCE)
            assert_near(pull, exact_pull, 5 * TOLERANCE)
            assert torch.equal(ours.rows_forward(*arguments, False)[0], lse)
            push = ours.rows_backward(*arguments, exact, weight)
            expected = contrastive_reference.rows_backward(*arguments, exact, weight)
            assert_near(push, expected, 5 * TOLERANCE)


@pytest.mark.parametrize("scale", [5.0, 100.0])
@pytest.mark.parametrize(
    ("samples", "views"), [(21, 2)] if SANITIZED else [(2, 2), (50, 2), (31, 3)]
)
def test_contrastive_pairs(kernels, samples, views, scale):
    """One shift, and beyond 64 nats a maximum a row; the triangle in tiles of 32 x 40."""
    z = random(samples * views, 12)
    arguments = (z, 1 / z.norm(dim=1), scale, views)
    blocks = random(samples * views, views, seed=4)
    with tiles_on_the_machine(kernels, 32, 40) as ours:
        lse = contrastive_reference.pairs_forward(*arguments)
        assert_near(ours.pairs_forward(*arguments), lse, TOLERANCE)
        expected = contrastive_reference.pairs_backward(*arguments, lse, blocks)
        assert_near(ours.pairs_backward(*arguments, lse, blocks), expected, 5 * TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37, 13), (3, 70)] + ([] if SANITIZED else [(1, 1), (700, 33)]))
def test_polar_updates(kernels, shape, dtype):
    """Each step between the products, on rows further apart than their width."""
    ours, plain = wasserstein.PolarKernels, TorchKernels
    z = strided(random(*shape, dtype=dtype))
    mean = plain.column_sums(z) / len(z)
    assert_near(ours.column_sums(z), plain.column_sums(z), 1e-13)
    for row in (None, mean):
        assert torch.equal(ours.center(z, row), plain.center(z, row))
    x = plain.center(z, mean)
    gram = x.T @ x
    arguments = (8.5, -25.2, 18.7), gram, gram @ gram
    assert_near(ours.polynomial(*arguments), plain.polynomial(*arguments), 1e-13)
    for row, factor in ((None, None), (mean, torch.tensor(0.3, dtype=torch.float64))):
        assert_near(ours.finish(x, row, factor), plain.finish(x, row, factor), 1e-7)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
@pytest.mark.parametrize(("center", "distance"), [(False, False), (True, True)])
def test_polar_iteration(kernels, shape, center, distance):
    z = random(*shape)
    arguments = (center, 1e-6, distance, True, len(z), lambda value, op: value)
    value, gradient = wasserstein.forward(z, *arguments)
    exact, expected = wasserstein_reference.forward(z.double(), *arguments)
    assert_near(value[None], exact[None], 1e-6)
    assert_near(gradient, expected, 1e-6)


@pytest.fixture
def covariance_kernels(kernels, monkeypatch):
    """The public functions run the covariance kernels of the emulated module."""
    stems = {"covariance": covariance, "cross_correlation": cross_correlation}
    monkeypatch.setattr(backend, "implementation", lambda name, stem: stems[stem])


def vicreg_terms(z0: Tensor, z1: Tensor) -> Tensor:
    return torch.stack(vicreg(z0, z1))


def correlated(*shape: int, dtype=torch.float32) -> list[Tensor]:
    return [strided((random(*shape) + 0.7 * random(*shape, seed=s) + 3).to(dtype)) for s in (1, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37, 13), (9, 70)] + ([] if SANITIZED else [(3, 2), (300, 33)]))
def test_covariance(covariance_kernels, shape, dtype):
    """Values and gradients in both forms; values alone by triangular tiles."""
    z = correlated(*shape, dtype=dtype)
    assert_right(variance_hinge, oracles.variance_hinge, z[:1], wrt=1)
    for count in (0, 1):
        assert_right(covariance_penalty, oracles.covariance_penalty, z[:1], wrt=count)
    upstream = torch.tensor([0.7, -1.3, 0.4])
    assert_right(vicreg_terms, oracles.vicreg, z, wrt=2, upstream=upstream)
    assert_right(cross_correlation_penalty, oracles.barlow_twins, z, wrt=2)


@pytest.mark.parametrize("shape", [(16, 96), (40, 24)])
@pytest.mark.parametrize("kind", ["one huge column", "repeated rows", "constant"])
def test_hostile_covariances(covariance_kernels, kind, shape):
    z = random(*shape)
    if kind == "one huge column":
        z[:, 7] *= 1000
    else:
        z = z[torch.arange(len(z)) // (2 if kind == "repeated rows" else len(z))]
    assert_right(covariance_penalty, oracles.covariance_penalty, [z], wrt=1)
    half = z.bfloat16()
    assert_right(covariance_penalty, oracles.covariance_penalty, [half], wrt=1)
