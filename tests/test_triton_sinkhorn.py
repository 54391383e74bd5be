"""Sinkhorn-Knopp in Triton, on the CPU: TRITON_INTERPRET=1 pytest -m interpreter."""

import pytest
import torch
from triton_harness import (
    INTERPRETER,
    SCALE,
    SHAPES,
    check_sinkhorn,
    dtypes,
    kernels,
    prior,
    scores,
)

from ssl_fast import reference

pytestmark = INTERPRETER


@dtypes
@pytest.mark.parametrize("shape", [*SHAPES, (5, 1031)], ids=str)
def test_sinkhorn(shape, dtype):
    check_sinkhorn(scores(*shape, dtype))


def test_sinkhorn_with_more_partial_sums_than_a_block(monkeypatch):
    for name, table in (("sinkhorn", "ROWS"), ("_sinkhorn_columns", "COLUMNS")):
        monkeypatch.setattr(kernels(name), table, ((1 << 62, 2, 128, 4),))
        monkeypatch.setattr(kernels(name), "processors", lambda device: 20)
    check_sinkhorn(scores(83, 20), prior(20))


def test_sinkhorn_with_an_empty_prototype():
    check_sinkhorn(scores(37, 70), prior(70))


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4], ids=str)
def test_sinkhorn_of_large_scores(size):
    """Beyond 64 nats exponents are formed in float64: nothing is lost at 2e5 nats."""
    check_sinkhorn(scores(35, 131, size=size), prior(131))


@pytest.mark.parametrize("nats", [63.0, 65.0, 129.0])
def test_sinkhorn_around_the_bound(nats):
    values = torch.rand(33, 67) * (nats / SCALE)
    values[0, 0], values[1, 1] = 0.0, nats / SCALE
    check_sinkhorn(values)


def test_sinkhorn_far_from_zero():
    """A constant added to all scores changes no assignment: what counts is the span."""
    shifted = scores(21, 40) + 512.0
    check_sinkhorn(shifted)
    q, expected = (
        kernels("sinkhorn").dense(s, SCALE, None, 3, False) for s in (shifted, shifted - 512)
    )
    torch.testing.assert_close(q, expected, atol=1e-7, rtol=3e-5)


def test_sinkhorn_of_collapsed_rows():
    row = scores(1, 70)
    check_sinkhorn(row.expand(33, 70).contiguous())
    check_sinkhorn(torch.zeros(33, 70))
    check_sinkhorn(scores(33, 1).expand(33, 70).contiguous())


def test_sinkhorn_of_a_column_that_underflows():
    """exp(scale s + row + col) is 0 in every row, its column's sum is not."""
    values = scores(33, 70)
    values[:, 3] -= 100.0
    check_sinkhorn(values)
    col = torch.zeros(70, dtype=torch.float64)
    col[4] = -500.0
    actual = kernels("sinkhorn").step(values, SCALE, col)
    expected = reference.sinkhorn.step(values, SCALE, col)
    torch.testing.assert_close(actual, expected, atol=3e-5, rtol=0)


def test_sinkhorn_when_maxima_of_col_lie_apart():
    """The reference of a row's sum moves by more than float32's exponent holds."""
    for step in (80.0, 120.0, 170.0, 400.0):
        col = torch.arange(5, dtype=torch.float64).repeat_interleave(64)[:300] * step
        values = scores(9, 300)
        values[:, :64] += 2.5
        actual = kernels("sinkhorn").row_potential(values, SCALE, col)
        expected = reference.sinkhorn.row_potential(values, SCALE, col)
        torch.testing.assert_close(actual, expected, atol=3e-5, rtol=0)
