"""The covariance kernels in Triton, on the CPU: TRITON_INTERPRET=1 pytest -m interpreter."""

import oracles
import pytest
import torch
from checks import assert_relative, assert_right, normal, value_and_grads
from triton_harness import DTYPES, INTERPRETER, kernels

import ssl_fast
from ssl_fast import backend
from ssl_fast.functional import (
    covariance_penalty,
    cross_correlation_penalty,
    variance_hinge,
    vicreg,
)

pytestmark = INTERPRETER
# The least; odd; the dual; several tiles of rows and columns in both forms.
SHAPES = [(3, 2), (7, 5), (13, 67), (67, 83), (33, 131)]
WEIGHTS = torch.tensor([0.7, -1.3, 0.4])


def terms(z0: torch.Tensor, z1: torch.Tensor) -> torch.Tensor:
    return torch.stack(vicreg(z0, z1))


def views(*shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    common = normal(*shape, seed=1)
    return [((common + 0.7 * normal(*shape, seed=s)) * 0.8 + 0.5).to(dtype) for s in (2, 3)]


@pytest.fixture(autouse=True)
def ran_on_triton():
    with ssl_fast.set_backend("triton"), backend.trace() as ran:
        yield
    assert {name for _, name in ran} == {"triton"}


@pytest.mark.parametrize(
    ("shape", "dtype"), [*zip(SHAPES, [*DTYPES, *DTYPES], strict=False), ((13, 67), "float32")]
)
def test_right(shape, dtype) -> None:
    z = views(*shape, dtype=DTYPES[dtype])
    assert_right(variance_hinge, oracles.variance_hinge, z[:1], wrt=1)
    assert_right(covariance_penalty, oracles.covariance_penalty, z[:1], wrt=1)
    assert_right(terms, oracles.vicreg, z, wrt=2, upstream=WEIGHTS)
    assert_right(cross_correlation_penalty, oracles.barlow_twins, z, wrt=2)


@pytest.mark.parametrize("shape", SHAPES[1:4:2], ids=str)
def test_values_alone_come_from_triangular_tiles(shape, monkeypatch) -> None:
    """Below D = 2 N, without gradients: no strip of Z^T Z is formed."""
    calls = []
    kernel = kernels("covariance").off_diagonal_squares
    monkeypatch.setattr(
        kernels("covariance"), "off_diagonal_squares", lambda *a: calls.append(a) or kernel(*a)
    )
    z = views(*shape)[0]
    assert_right(covariance_penalty, oracles.covariance_penalty, [z])
    assert len(calls) == 1


@pytest.mark.parametrize("entry", range(2))
@pytest.mark.parametrize("table", ["MOMENTS", "TILES", "TRIANGLE"])
def test_every_entry_of_the_tables(table, entry, monkeypatch) -> None:
    for stem in ("covariance", "_covariance_triangle", "cross_correlation", "_elementwise"):
        if entries := getattr(kernels(stem), table, None):
            monkeypatch.setattr(kernels(stem), table, (entries[entry],))
    for shape in ((5, 70), (37, 66)):
        z = views(*shape)
        assert_right(covariance_penalty, oracles.covariance_penalty, z[:1])
    assert_right(terms, oracles.vicreg, z, wrt=2, upstream=WEIGHTS)
    assert_right(cross_correlation_penalty, oracles.barlow_twins, z, wrt=2)


def test_more_parts_than_tiles(monkeypatch) -> None:
    """Rows split among programs, merged after Chan et al."""
    monkeypatch.setattr(kernels("_statistics"), "processors", lambda device: 40)
    z = views(200, 3)[0] + 100
    assert_right(variance_hinge, oracles.variance_hinge, [z], wrt=1)


@pytest.mark.parametrize("kind", ["one huge column", "repeated rows", "constant", "far"])
@pytest.mark.parametrize("shape", [(16, 96), (40, 24)], ids=str)
def test_hostile(kind, shape) -> None:
    z = normal(*shape, seed=4)
    if kind == "one huge column":
        z[:, 7] *= 1000
    elif kind == "repeated rows":
        z = z[torch.arange(len(z)) // 2]
    elif kind == "constant":
        z = z[:1].repeat(len(z), 1)
    else:
        z = z + 300
    assert_right(covariance_penalty, oracles.covariance_penalty, [z], wrt=1)
    if kind != "constant":
        assert_right(terms, oracles.vicreg, [z, z.roll(1, 0)], wrt=2, upstream=WEIGHTS)
    else:
        loss, *grads = value_and_grads(cross_correlation_penalty, [z, z], 2)
        assert_relative(loss, torch.tensor(float(shape[1])), 1e-6)
        assert not any(bool(g.any()) for g in grads)


def test_rescue_is_needed_and_alone(monkeypatch) -> None:
    """One column 1000 times the rest: the flag replaces value and gradient; elsewhere it is off."""
    flags = []
    kernel = kernels("covariance").rescue_gradient
    monkeypatch.setattr(
        kernels("covariance"), "rescue_gradient", lambda *a: flags.append(bool(a[6])) or kernel(*a)
    )
    z = normal(16, 96)
    value_and_grads(covariance_penalty, [z], 1)
    z[:, 7] *= 1000
    value_and_grads(covariance_penalty, [z], 1)
    assert flags == [False, True]


def test_strided_rows() -> None:
    base = torch.full((26, 90), float("nan"))
    view = base[::2, 9:76]
    z = views(13, 67)
    view.copy_(z[0])
    expected = value_and_grads(terms, z, 2, WEIGHTS)
    found = value_and_grads(terms, [view, z[1]], 2, WEIGHTS)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
