"""mean_cosine and nearest_rows: against the formula, on both CPU backends."""

import pytest
import torch
from checks import (
    DTYPES,
    LAYOUTS,
    assert_relative,
    assert_right,
    gradcheck,
    normal,
    opcheck,
    same_bits,
    spread,
    value_and_grads,
)
from torch.nn.functional import cosine_similarity

from ssl_fast import backend as dispatch
from ssl_fast.functional._nearest import nearest_rows
from ssl_fast.functional.cosine import mean_cosine

pytestmark = pytest.mark.cpu_kernels
SHAPES = [(1, 2), (7, 3), (67, 17), (131, 300)]


def formula(x, y, eps=1e-8):
    return cosine_similarity(x, y, dim=1, eps=eps).mean()


@pytest.mark.parametrize(("shape", "eps", "dtype"), spread(SHAPES, [1e-8, 3.0], list(DTYPES)))
def test_right(backend, poisoned, shape, eps, dtype) -> None:
    x = normal(*shape, dtype=torch.float64)
    y = x + normal(*shape, dtype=torch.float64, seed=1)  # no cancellation between rows
    x, y = x.to(DTYPES[dtype]), y.to(DTYPES[dtype])
    upstream = torch.tensor(-1.5)
    assert_right(lambda a, b: mean_cosine(a, b, eps=eps), lambda a, b: formula(a, b, eps),
                 [x, y], 2, upstream)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout) -> None:
    x, y = normal(9, 6), normal(9, 6, seed=1)
    exact = value_and_grads(mean_cosine, [x, y], 2)
    for a, e in zip(value_and_grads(mean_cosine, [LAYOUTS[layout](x), LAYOUTS[layout](y)], 2),
                    exact, strict=True):  # fmt: skip
        assert torch.allclose(a, e, rtol=1e-6)


def test_gradcheck(backend) -> None:
    gradcheck(mean_cosine, normal(5, 4), normal(5, 4, seed=1))


def test_zero_rows_and_large_ones(backend) -> None:
    x, y = normal(4, 5), normal(4, 5, seed=1)
    x[1], y[2] = 0, 0
    x[3] *= 1e15
    value, d_x, d_y = value_and_grads(mean_cosine, [x, y], 2)
    assert all(bool(t.isfinite().all()) for t in (value, d_x, d_y))
    assert not bool(d_x[1].any()) and not bool(d_y[2].any())


@pytest.mark.parametrize("magnitude", [1e-25, 1e-15, 1e20, 1e30])
def test_squares_beyond_float32(backend, magnitude) -> None:
    x, y = magnitude * normal(7, 33), normal(7, 33, seed=1) / magnitude
    value, *grads = value_and_grads(lambda a, b: mean_cosine(a, b, eps=1e-32), [x, y], 2)
    exact = formula(x.double(), y.double(), 1e-32)
    assert_relative(value, exact, 1e-6)
    assert all(bool(g.isfinite().all()) for g in grads)


def test_nearest(backend) -> None:
    u = torch.nn.functional.normalize(normal(300, 8), dim=1)
    cosines = (u @ u.T).fill_diagonal_(-2)
    name = dispatch.select("cosine", u.device, u.dtype)
    assert torch.equal(nearest_rows(u, name), cosines.argmax(1))
    assert nearest_rows(u[:1], name).tolist() == [0]
    assert nearest_rows(torch.ones(5, 2), name).tolist() == [1, 0, 0, 0, 0]


def test_same_bits_each_time(backend) -> None:
    x, y = normal(257, 33), normal(257, 33, seed=1)
    first, second = (value_and_grads(mean_cosine, [x, y], 2) for _ in range(2))
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


def test_operators() -> None:
    x, y = normal(5, 4), normal(5, 4, seed=1)
    opcheck("cosine_forward", x, y, 1e-8, "native")
    stats = torch.rand(3, 5, dtype=torch.float64) + 1
    opcheck("cosine_backward", x, y, 1e-8, stats, torch.tensor(1.0), 0.2, True, True, "native")
    opcheck("nearest_rows", x, "native")


def test_refusals() -> None:
    with pytest.raises(ValueError, match="one shape"):
        mean_cosine(normal(5, 4), normal(6, 4))
    with pytest.raises(ValueError, match="eps must be finite and > 0"):
        mean_cosine(normal(5, 4), normal(5, 4), eps=0.0)
