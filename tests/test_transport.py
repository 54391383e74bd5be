"""Sinkhorn distances against the plan written out, POT, and closed forms."""

import oracles
import pytest
import torch
from checks import (
    DTYPES,
    LAYOUTS,
    Allocations,
    Saved,
    assert_relative,
    assert_right,
    error,
    gradcheck,
    normal,
    same_bits,
    spread,
    unit,
    value_and_grads,
)

import ssl_fast
from ssl_fast.functional import sinkhorn_distance
from ssl_fast.functional.transport import sinkhorn_distances

pytestmark = [pytest.mark.cpu_kernels, pytest.mark.usefixtures("poisoned")]

UPSTREAM = torch.tensor(-2.5)
SHAPES = [(1, 1, 1), (1, 7, 3), (7, 1, 2), (33, 21, 2), (67, 61, 17)]


@pytest.mark.parametrize(("shape", "p", "dtype"), spread(SHAPES, [1, 2], list(DTYPES)), ids=str)
def test_right(backend, shape, p, dtype) -> None:
    n, m, d = shape
    x, y = unit(n, d, dtype=DTYPES[dtype]), 0.8 * unit(m, d, dtype=DTYPES[dtype], seed=1)
    assert_right(
        lambda x, y: sinkhorn_distance(x, y, epsilon=0.2, p=p, iterations=500),
        lambda x, y: oracles.sinkhorn_distance(x, y, 0.2, p),
        [x, y], 2, UPSTREAM,
    )  # fmt: skip


@pytest.mark.parametrize("epsilon", [0.02, 0.05, 1.0, 50.0])
def test_right_for_every_epsilon(backend, epsilon) -> None:
    x, y = unit(20, 3, dtype=torch.float64), unit(24, 3, dtype=torch.float64, seed=1)
    ours = value_and_grads(
        lambda x, y: sinkhorn_distance(x, y, epsilon=epsilon, iterations=3000), [x, y], 2
    )
    exact = value_and_grads(
        lambda x, y: oracles.sinkhorn_distance(x, y, epsilon, 1, 3000), [x, y], 2
    )
    for a, b in zip(ours, exact, strict=True):
        assert error(a, b) <= 1e-6 * float(b.abs().max())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided(backend, layout) -> None:
    x, y = unit(23, 5), unit(31, 5, seed=1)
    expected = value_and_grads(sinkhorn_distance, [x, y], 2)
    strided = value_and_grads(sinkhorn_distance, [LAYOUTS[layout](x), LAYOUTS[layout](y)], 2)
    assert all(same_bits(a, b) for a, b in zip(strided, expected, strict=True))


@pytest.mark.parametrize(("n", "m", "d", "p"), [(30, 30, 2, 1), (17, 40, 3, 1), (25, 31, 8, 2)])
def test_pot(backend, n, m, d, p) -> None:
    """POT's entropic cost at the same epsilon, and its exact one nearby as epsilon falls."""
    ot = pytest.importorskip("ot", reason="pip install POT")
    x, y = unit(n, d, dtype=torch.float64), unit(m, d, dtype=torch.float64, seed=1)
    costs = ot.dist(x.numpy(), y.numpy(), metric="euclidean" if p == 1 else "sqeuclidean")
    a, b = ot.unif(n), ot.unif(m)
    theirs = ot.sinkhorn2(a, b, costs, 0.1, method="sinkhorn_log", numItermax=5000, stopThr=1e-13)
    assert_relative(sinkhorn_distance(x, y, epsilon=0.1, p=p), torch.tensor(theirs).double(), 1e-8)
    exact = float(ot.emd2(a, b, costs))
    ours = float(sinkhorn_distance(x, y, epsilon=0.005, p=p, iterations=4000))
    assert exact - 1e-6 <= ours <= exact * 1.03


def test_closed_forms(backend) -> None:
    one, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert abs(float(sinkhorn_distance(one, other)) - 5) < 1e-6
    assert abs(float(sinkhorn_distance(one, other, p=2)) - 25) < 1e-5
    # Every plan from one point is the same: the mean distance.
    cloud = normal(13, 2)
    assert_relative(sinkhorn_distance(one, cloud), cloud.double().norm(dim=1).mean(), 1e-6)
    # A cloud moved by far more than its own size, at cost p = 1 and small epsilon.
    x = 0.01 * normal(50, 3)
    moved = sinkhorn_distance(x, x + torch.tensor([100.0, 0.0, 0.0]))
    assert abs(float(moved) - 100) < 1e-3
    # A large epsilon leaves the product of the marginals: the mean of all distances.
    y = normal(9, 2, seed=1)
    expected = torch.cdist(cloud.double(), y.double()).mean()
    assert_relative(sinkhorn_distance(cloud, y, epsilon=1e6), expected, 1e-5)


def test_symmetric_and_bounded(backend) -> None:
    x, y = unit(21, 4), unit(33, 4, seed=1)
    there, back = sinkhorn_distance(x, y), sinkhorn_distance(y, x)
    torch.testing.assert_close(there, back, rtol=1e-5, atol=0)
    ot = pytest.importorskip("ot", reason="pip install POT")
    exact = ot.emd2(ot.unif(21), ot.unif(33), ot.dist(x.numpy(), y.numpy(), metric="euclidean"))
    assert float(exact) - 1e-6 <= float(there) <= float(exact) + 0.05 * 3.1


@pytest.mark.parametrize("p", [1, 2])
def test_identical_points(backend, p) -> None:
    """Finite, zero where it is, and with a gradient of zero."""
    for x in (torch.zeros(1, 3), torch.ones(7, 3), unit(1, 3).expand(5, 3).contiguous()):
        value, d_x, d_y = value_and_grads(lambda a, b: sinkhorn_distance(a, b, p=p), [x, x], 2)
        assert float(value) == 0 and not bool(d_x.any()) and not bool(d_y.any())
    x = unit(12, 3)
    value, d_x, d_y = value_and_grads(lambda a, b: sinkhorn_distance(a, b, p=p), [x, x], 2)
    assert 0 < float(value) < 0.2 and bool(d_x.isfinite().all()) and bool(d_y.isfinite().all())


@pytest.mark.parametrize("size", [1e-6, 1e4, 1e10])
def test_finite_at_any_scale(backend, size) -> None:
    x, y = unit(15, 3) * size, unit(10, 3, seed=1) * size
    value, d_x, d_y = value_and_grads(sinkhorn_distance, [x, y], 2)
    assert 0 < float(value) < 2 * size
    assert all(bool(d.isfinite().all()) for d in (d_x, d_y))


def test_gradcheck(backend) -> None:
    x, y = unit(5, 3), unit(4, 3, seed=1)
    for p in (1, 2):
        gradcheck(
            lambda a, b, p=p: sinkhorn_distance(a, b, epsilon=0.2, p=p, iterations=2000), x, y
        )


def test_many_pairs(backend) -> None:
    """Clouds of 1, 5, 12 and 20 points: each pair as on its own."""
    points = unit(38, 3)
    starts = torch.tensor([0, 1, 6, 18, 38])
    pairs = torch.tensor([[0, 1], [1, 2], [3, 2], [2, 2], [0, 0]])
    found = sinkhorn_distances(points, starts, pairs, epsilon=0.1)
    for value, (a, b) in zip(found, pairs.tolist(), strict=True):
        x, y = (points[starts[k] : starts[k + 1]] for k in (a, b))
        assert abs(float(value) - float(sinkhorn_distance(x, y, epsilon=0.1))) < 2e-7


def test_nothing_square_is_stored() -> None:
    x, y = unit(600, 3).requires_grad_(), unit(500, 3, seed=1).requires_grad_()
    with ssl_fast.set_backend("native"), Allocations() as watch, Saved(x, y) as saved:
        sinkhorn_distance(x, y, iterations=3).backward()
    assert watch.largest() <= 3 * 1100
    assert saved.nbytes() <= 4 * 2 * 1100


def test_bitwise_repeatable(backend) -> None:
    first, second = (
        value_and_grads(sinkhorn_distance, [unit(70, 3), unit(50, 3, seed=1)], 2) for _ in range(2)
    )
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


def test_threads_agree() -> None:
    x, y = unit(300, 3), unit(280, 3, seed=1)
    found = []
    with ssl_fast.set_backend("native"):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(value_and_grads(sinkhorn_distance, [x, y], 2))
    torch.set_num_threads(1)
    for a, b in zip(*found, strict=True):
        assert error(a, b) <= 1e-5 * float(a.abs().max())


@pytest.mark.parametrize(("call", "message"), [
    (lambda x: sinkhorn_distance(x, x[:, :2]), "x and y must have one width"),
    (lambda x: sinkhorn_distance(x, x[:0]), "y must be a non-empty matrix"),
    (lambda x: sinkhorn_distance(x, x.double()), "float32 and y is torch.float64"),
    (lambda x: sinkhorn_distance(x, x, epsilon=0.0), "epsilon must be finite and > 0"),
    (lambda x: sinkhorn_distance(x, x, p=3), "p must be 1 .* or 2"),
    (lambda x: sinkhorn_distance(x, x, p=1.5), "p must be 1 .* or 2"),
    (lambda x: sinkhorn_distance(x, x, iterations=0), "iterations must be an integer >= 1"),
])  # fmt: skip
def test_refusals(call, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(unit(4, 3))
