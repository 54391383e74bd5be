"""Variance, covariance, cross-correlation: against the printed formulas, in both forms."""

import math

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
    value_and_grads,
)

from ssl_fast.functional import _covariance_blocks as blocks
from ssl_fast.functional import _covariance_products as products
from ssl_fast.functional import _cross_correlation as correlations
from ssl_fast.functional import (
    covariance_penalty,
    cross_correlation_penalty,
    variance_hinge,
    vicreg,
)

pytestmark = [pytest.mark.cpu_kernels, pytest.mark.usefixtures("poisoned")]

# The least rows; a width of one; the dual by one Gram, by halves, by several chunks of columns;
# strips of rows: one, several, the last one short.
SHAPES = [(2, 1), (2, 5), (7, 1), (7, 3), (13, 67), (131, 1031), (61, 83), (300, 259)]
WEIGHTS = torch.tensor([0.7, -1.3, 0.4])


def terms(z0: torch.Tensor, z1: torch.Tensor, **options) -> torch.Tensor:
    return torch.stack(vicreg(z0, z1, **options))


# Ours, the formula, and how many views they take.
FORMS = {
    "variance": (variance_hinge, oracles.variance_hinge, 1),
    "covariance": (covariance_penalty, oracles.covariance_penalty, 1),
    "vicreg": (terms, oracles.vicreg, 2),
    "barlow": (cross_correlation_penalty, oracles.barlow_twins, 2),
}


def views(*shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Two views that agree in part, with standard deviations on both sides of the hinge."""
    columns = shape[-1]
    common, size = normal(*shape, dtype=torch.float64, seed=1), torch.linspace(0.3, 2, columns)
    noise = [normal(*shape, dtype=torch.float64, seed=s) for s in (2, 3)]
    return [((common + 0.7 * n) * size + 0.5).to(dtype) for n in noise]


def upstream(form: str) -> torch.Tensor:
    return WEIGHTS if form == "vicreg" else torch.tensor(-2.5)


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """Every size takes several chunks and strips."""
    monkeypatch.setattr(products, "CHUNK_BYTES", 1)
    monkeypatch.setattr(products, "STRIP", 16)
    monkeypatch.setattr(correlations, "STRIPS", (16, 16))


@pytest.mark.parametrize(
    ("form", "shape", "dtype"), spread(list(FORMS), SHAPES[2:], list(DTYPES)), ids=str
)
def test_right(backend, form, shape, dtype) -> None:
    ours, formula, count = FORMS[form]
    if form == "barlow" and shape[1] == 1:
        shape = (7, 2)  # (1 - c)^2 of one column is rounding alone
    inputs = views(*shape, dtype=DTYPES[dtype])[:count]
    assert_right(ours, formula, inputs, wrt=count, upstream=upstream(form))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(5, 211), (131, 263), (67, 83)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_chunks_and_strips(backend, form, shape, dtype) -> None:
    ours, formula, count = FORMS[form]
    inputs = views(*shape, dtype=DTYPES[dtype])[:count]
    assert_right(ours, formula, inputs, wrt=count, upstream=upstream(form))


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_fewest_rows_and_columns(backend, form, shape) -> None:
    """In float64: two standardised rows are +-1, and a gradient there is rounding alone."""
    ours, formula, count = FORMS[form]
    inputs = views(*shape, dtype=torch.float64)[:count]
    found, exact = (value_and_grads(f, inputs, count, upstream(form)) for f in (ours, formula))
    for a, b in zip(found, exact, strict=True):
        assert error(a, b) <= 1e-11 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("shape", [(5, 3), (4, 9), (9, 20)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(backend, form, shape) -> None:
    gradcheck(FORMS[form][0], *views(*shape, dtype=torch.float64)[: FORMS[form][2]])


@pytest.mark.parametrize("shape", [(31, 17), (17, 61)], ids=str)
@pytest.mark.parametrize(("form", "layout"), spread(list(FORMS), list(LAYOUTS)))
def test_layouts(backend, form, layout, shape) -> None:
    """Strided inputs give the same bits, and gradients of their shape."""
    ours, _, count = FORMS[form]
    inputs = views(*shape)[:count]
    expected = value_and_grads(ours, inputs, count, upstream(form))
    strided = [LAYOUTS[layout](z) for z in inputs]
    found = value_and_grads(ours, strided, count, upstream(form))
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", [(37, 11), (9, 40)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_repeats_bit_for_bit(backend, form, shape) -> None:
    ours, _, count = FORMS[form]
    first, again = (value_and_grads(ours, views(*shape)[:count], count, upstream(form))
                    for _ in range(2))  # fmt: skip
    assert all(same_bits(a, b) for a, b in zip(first, again, strict=True))


def hostile(kind: str, rows: int, columns: int) -> torch.Tensor:
    z = normal(rows, columns, seed=4)
    if kind == "large":
        return z * 1e4
    if kind == "far from zero":
        return z + 300.0
    if kind == "small":
        return z * 1e-4
    if kind == "zero rows":
        return z * (torch.arange(rows) % 3 > 0)[:, None]
    if kind == "repeated rows":
        return z[torch.arange(rows) // 2]
    if kind == "constant columns":
        return torch.where(torch.arange(columns) % 2 == 0, z[0], z)
    if kind == "one huge column":
        return torch.where(torch.arange(columns) == columns // 2, 1000 * z, z)
    assert kind == "collapsed"
    return z[:1].repeat(rows, 1)


KINDS = ("large", "far from zero", "small", "zero rows", "repeated rows", "constant columns",
         "one huge column", "collapsed")  # fmt: skip


@pytest.mark.parametrize("shape", [(16, 96), (40, 24)], ids=str)
@pytest.mark.parametrize(("form", "kind"), spread(["covariance", "vicreg", "barlow"], KINDS))
def test_hostile(backend, form, kind, shape) -> None:
    ours, formula, count = FORMS[form]
    inputs = [hostile(kind, *shape), hostile(kind, *shape).roll(1, 0)][:count]
    if kind == "collapsed":  # the printed formula standardises by rounding errors
        for z in value_and_grads(ours, inputs, count, upstream(form)):
            assert bool(z.isfinite().all())
        return
    assert_right(ours, formula, inputs, wrt=count, upstream=upstream(form))


@pytest.mark.parametrize("form", ["covariance", "vicreg"])
def test_one_column_a_thousand_times_the_rest(backend, form) -> None:
    """The float32 Gram would be off by 1e-2: guarded, value and gradient hold 1e-6."""
    ours, formula, count = FORMS[form]
    inputs = [hostile("one huge column", 64, 1024)] * count
    assert_right(ours, formula, inputs, wrt=count, upstream=upstream(form))
    z = inputs[0]
    gram = (z - z.mean(0)) @ (z - z.mean(0)).T
    squares = (z - z.mean(0)).square().sum(0).double().square().sum()
    naive = (gram.double().square().sum() - squares) / 63**2 / 1024
    exact = oracles.covariance_penalty(z.double())
    assert abs(naive - exact) > 1e-5 * exact
    assert_relative(covariance_penalty(z), exact, 2e-6)


def test_huge_entries_overflow_late() -> None:
    """Squares beyond float32's range inside, a value within it outside."""
    for shape in ((8, 40), (40, 24)):
        z = normal(*shape) * 3e8
        assert_right(covariance_penalty, oracles.covariance_penalty, [z])


@pytest.mark.parametrize("shape", [(8, 40), (40, 8)], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_values_propagate(backend, bad, shape) -> None:
    z0, z1 = views(*shape)
    z0[3, 5] = bad
    assert not covariance_penalty(z0).isfinite()
    assert not cross_correlation_penalty(z0, z1).isfinite()
    assert not any(t.isfinite() for t in vicreg(z0, z1)[::2])


def test_half_moments_are_stable(backend) -> None:
    """E[z^2] - E[z]^2 in float32 would lose every digit of these deviations."""
    z = (normal(512, 3, dtype=torch.float64) * 0.5 + 4096).to(torch.float32)
    exact = oracles.variance_hinge(z.double(), gamma=2.0)
    assert_relative(variance_hinge(z, gamma=2.0), exact, 1e-5)


def test_options(backend) -> None:
    z0, z1 = views(30, 20)
    assert_right(
        lambda a, b: terms(a, b, gamma=1.7, eps=0.3),
        lambda a, b: oracles.vicreg(a, b, 1.7, 0.3),
        [z0, z1], wrt=2, upstream=WEIGHTS,
    )  # fmt: skip
    for weight in (0.4, 0):
        assert_right(
            lambda a, b: cross_correlation_penalty(a, b, off_diagonal_weight=weight, eps=0.2),  # noqa: B023
            lambda a, b: oracles.barlow_twins(a, b, weight, 0.2),  # noqa: B023
            [z0, z1], wrt=2,
        )  # fmt: skip


@pytest.mark.parametrize("shape", [(9, 3, 5), (9, 2, 2, 20)], ids=str)
def test_positions(backend, shape) -> None:
    """(N, ..., D): one covariance a position, their mean."""
    z0, z1 = (normal(*shape, seed=s) for s in (1, 2))
    assert_right(terms, oracles.vicreg, [z0, z1], wrt=2, upstream=WEIGHTS)


@pytest.mark.parametrize("shape", [(9, 3, 5), (9, 4, 20)], ids=str)
def test_positions_one_by_one(backend, monkeypatch, shape) -> None:
    """As many of them, or as large, that they do not fit the cache together."""
    monkeypatch.setattr(blocks, "CHUNK_BYTES", 0)
    z0, z1 = (normal(*shape, seed=s) for s in (1, 2))
    assert_right(terms, oracles.vicreg, [z0, z1], wrt=2, upstream=WEIGHTS)


def test_position_whose_gram_cancels(backend) -> None:
    """One column a thousand times as large, in one position of several."""
    z0, z1 = (normal(9, 4, 20, seed=s) for s in (1, 2))
    z0[:, 2, 3] *= 1000
    assert_right(terms, oracles.vicreg, [z0, z1], wrt=2, upstream=WEIGHTS)


@pytest.mark.parametrize("form", ["vicreg", "barlow"])
def test_one_view_may_be_a_constant(backend, form) -> None:
    ours, formula, _ = FORMS[form]
    z0, z1 = views(12, 40)
    assert_right(lambda a: ours(a, z1.to(a)), lambda a: formula(a, z1.to(a)), [z0], wrt=1,
                 upstream=upstream(form))  # fmt: skip


def test_terms_one_by_one(backend) -> None:
    """A gradient of one term alone is that term's."""
    z0, z1 = views(12, 40)
    for i in range(3):
        assert_right(
            lambda a, b, i=i: vicreg(a, b)[i], lambda a, b, i=i: oracles.vicreg(a, b)[i],
            [z0, z1], wrt=2,
        )  # fmt: skip


@pytest.mark.parametrize("shape", [(64, 1024), (700, 400)], ids=str)
@pytest.mark.parametrize("form", ["covariance", "vicreg", "barlow"])
def test_no_width_squared_matrix(backend, form, shape) -> None:
    """Nothing as large as D x D is formed, and little is kept for backward."""
    ours, _, count = FORMS[form]
    inputs = [z.requires_grad_() for z in views(*shape)[:count]]
    rows, columns = shape
    with Allocations() as watch, Saved(*inputs) as saved:
        value = ours(*inputs)
        value.backward(torch.ones_like(value))
    own = rows * columns if form != "barlow" else 2 * rows * columns
    dual = columns >= 2 * rows
    if columns**2 > own:
        assert watch.largest() < columns**2
    squares = [s for _, s, _ in watch.results if s == (columns, columns)]
    assert squares == []
    limit = rows * rows if dual and form != "barlow" else rows * columns
    assert saved.nbytes() <= count * (4 * limit + 16 * columns) + 64


REFUSED = {
    "z must be a torch.Tensor": (lambda: variance_hinge([1.0]), TypeError),
    "z1 must be a torch.Tensor": (lambda: vicreg(torch.zeros(3, 4), None), TypeError),
    "z must be a non-empty matrix": (lambda: covariance_penalty(torch.zeros(3)), ValueError),
    "z must have at least 2 rows": (lambda: variance_hinge(torch.zeros(1, 4)), ValueError),
    "z0 must have at least 2 rows": (
        lambda: cross_correlation_penalty(torch.zeros(1, 4), torch.zeros(1, 4)),
        ValueError,
    ),
    r"one shape, got z0 \(3, 4\) and z1 \(3, 5\)": (
        lambda: vicreg(torch.zeros(3, 4), torch.zeros(3, 5)),
        ValueError,
    ),
    r"one shape, got z0 \(3, 2, 4\) and z1 \(3, 8\)": (
        lambda: vicreg(torch.zeros(3, 2, 4), torch.zeros(3, 8)),
        ValueError,
    ),
    "z0 is torch.float32 and z1 is torch.float16": (
        lambda: vicreg(torch.zeros(3, 4), torch.zeros(3, 4).half()),
        TypeError,
    ),
    "gamma must be finite and > 0": (
        lambda: variance_hinge(torch.zeros(3, 4), gamma=0),
        ValueError,
    ),
    "eps must be finite and > 0": (
        lambda: cross_correlation_penalty(torch.zeros(3, 4), torch.zeros(3, 4), eps=-1),
        ValueError,
    ),
    "off_diagonal_weight must be a Python float": (
        lambda: cross_correlation_penalty(
            torch.zeros(3, 4), torch.zeros(3, 4), off_diagonal_weight=torch.ones(())
        ),
        TypeError,
    ),
    "init_process_group": (lambda: covariance_penalty(torch.zeros(3, 4), group="x"), ValueError),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message) -> None:
    call, kind = REFUSED[message]
    with pytest.raises(kind, match=message):
        call()
