"""The contrastive kernels in Triton, on the CPU: TRITON_INTERPRET=1 pytest -m interpreter."""

import oracles
import pytest
import torch
from checks import assert_right, normal
from triton_harness import (
    INTERPRETER,
    check_contrast,
    check_pairs,
    dtypes,
)

import ssl_fast
from ssl_fast import backend, functional

pytestmark = INTERPRETER


@dtypes
@pytest.mark.parametrize("sizes", [(1, 1, 1), (35, 70, 24), (131, 67, 40), (20, 40, 300)], ids=str)
def test_contrastive_rows(sizes, dtype):
    """With and without norms as factors and left-out ranges; a row without any negative."""
    n, k, d = sizes
    x, w = (normal(n, d) / d**0.5).to(dtype), normal(k, d, seed=1).to(dtype)
    check_contrast(x, w, 5.0)
    first = torch.arange(n) % k
    count = torch.where(torch.arange(n) == 2, k, 2)
    lo = torch.where(torch.arange(n) == 2, 0, first)
    check_contrast(x, w, 3.0, (torch.rand(n) + 0.5, torch.rand(k) + 0.5), (lo, lo + count))


@dtypes
@pytest.mark.parametrize("sizes", [(2, 2, 3), (67, 2, 24), (30, 5, 40), (11, 3, 300)], ids=str)
def test_contrastive_pairs(sizes, dtype):
    """Blocks of an odd number of views meet the tiles' edges."""
    samples, views, d = sizes
    z = normal(samples * views, d, dtype=dtype)
    check_pairs(z, 1 / z.float().norm(dim=1), 5.0, views)
    check_pairs(z / d**0.5, None, 2.0, views)


def test_contrastive_of_large_similarities():
    z = normal(70, 24) * 30
    check_pairs(z, None, 1.0, 2)


def test_contrastive_functions():
    """Twice PyTorch's own float32 error at most, and Triton alone has run."""
    a, b, queue = normal(21, 8), normal(21, 8, seed=1), normal(37, 8, seed=2)
    index, phi = torch.arange(21), torch.rand(37) + 0.2
    with ssl_fast.set_backend("triton"), backend.trace() as ran:
        assert_right(functional.nt_xent, lambda *z: oracles.nt_xent(list(z), 0.5), [a, b], 2)
        assert_right(functional.decoupled_nt_xent, lambda *z: oracles.decoupled(*z, 0.1), [a, b], 2)
        assert_right(
            lambda *z: functional.info_nce(*z), lambda *z: oracles.one_of_many(*z, 0.2),
            [a, b, queue], 3,
        )  # fmt: skip
        assert_right(functional.info_nce, lambda *z: oracles.one_of_many(*z, None, 0.2), [a, b], 2)
        assert_right(
            lambda z, c: functional.proto_nce(z, c, phi, index),
            lambda z, c: oracles.proto_nce(z, c, phi, index), [a, queue], 2,
        )  # fmt: skip
    assert set(ran) == {("contrastive", "triton")}


def test_not_a_number_is_passed_on():
    a, b = normal(7, 5), normal(7, 5, seed=1)
    b[3, 2] = float("nan")
    with ssl_fast.set_backend("triton"):
        assert functional.nt_xent(a, b).isnan()
        assert functional.info_nce(a, b).isnan()
        assert functional.proto_nce(a, b, torch.ones(7), torch.zeros(7, dtype=torch.long)).isnan()
