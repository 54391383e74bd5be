"""KoLeoLoss against the formula and Lightly's class."""

import oracles
import pytest
import torch
from checks import DTYPES, Allocations, assert_relative, assert_right, error, normal
from checks import gradcheck as check

from ssl_fast.functional._koleo import own_koleo
from ssl_fast.losses import KoLeoLoss

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("n", "d"), [(2, 1), (2, 5), (67, 16), (1500, 3)])
def test_right(n, d, dtype) -> None:
    """Sizes of one tile of rows and of several."""
    x = torch.full((n, d), 2.0, dtype=dtype) if d == 1 else normal(n, d, dtype=dtype)
    assert_right(KoLeoLoss(), oracles.koleo_loss, [x], 1, torch.tensor(-1.5))


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.5, 1, 2, 3, float("inf")])
def test_norms(backend, p, dtype) -> None:
    """Of any p, on both CPU backends; and by the largest coordinates where two are equal."""
    assert_right(
        lambda x: own_koleo(x, p, 1e-3),
        lambda x: oracles.koleo_loss(x, 1e-3, p),
        [normal(67, 16, dtype=dtype)],
        1,
        torch.tensor(-1.5),
    )
    tied = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=dtype).requires_grad_()
    own_koleo(tied, p, 1e-3).backward()
    assert error(tied.grad, torch.zeros(2, 2)) < 1e-6


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("p", [1, 2, 3, float("inf")])
def test_nan_stays(backend, p) -> None:
    x = normal(7, 4)
    x[2, 1] = torch.nan
    loss = own_koleo(x.requires_grad_(), p, 1e-3)
    loss.backward()
    assert loss.isnan() and x.grad[2].isnan().all()


@pytest.mark.parametrize("p", [0, -1.0, float("nan")])
def test_refuses_what_is_no_norm(p) -> None:
    with pytest.raises(ValueError, match="p must be > 0"):
        own_koleo(normal(5, 4), p, 1e-8)


def test_gradcheck() -> None:
    check(KoLeoLoss(), normal(7, 4))


def test_lightly() -> None:
    lightly = pytest.importorskip("lightly.loss")
    x = normal(64, 16)
    assert_relative(KoLeoLoss()(x), lightly.KoLeoLoss()(x).double(), 1e-6)


def test_opposite_rows_are_neighbours() -> None:
    """Two antipodes: a distance of 2, not of a row to itself."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert_relative(KoLeoLoss()(x), -torch.tensor(2.0).double().log(), 1e-6)


def test_nearest_is_of_angles_not_of_norms() -> None:
    x = normal(33, 4)
    scaled = x * normal(33, 1, seed=1).exp()
    assert error(KoLeoLoss()(scaled), KoLeoLoss()(x)) < 1e-5


@pytest.mark.parametrize("case", ["collapsed", "zero rows", "rows of 1e4", "pairs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_finite(case, dtype) -> None:
    """Equal rows: -log of the two eps; a zero row gets a zero gradient."""
    x = normal(9, 4)
    if case == "collapsed":
        x = x[:1].repeat(9, 1)
    elif case == "zero rows":
        x[2:5] = 0
    elif case == "rows of 1e4":
        x = x * 1e4
    else:
        x = x[:3].repeat(3, 1)
    x = x.to(dtype).requires_grad_()
    value = KoLeoLoss()(x)
    value.backward()
    assert bool(value.isfinite()) and bool(x.grad.isfinite().all())
    if case == "collapsed":
        assert_relative(value, -torch.tensor(3e-8).double().log(), 1e-3)
    if case == "zero rows":
        assert not x.grad[2:5].any() and bool(x.grad[0].any())


def test_half_is_taken_in_float32() -> None:
    """Also under autocast: the loss of the float32 copies."""
    x = normal(33, 8, dtype=torch.bfloat16)
    expected = KoLeoLoss()(x.float())
    assert torch.equal(KoLeoLoss()(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(KoLeoLoss()(x.float()), expected)


def test_no_gram_matrix() -> None:
    """Cosines exist by tiles."""
    x = normal(4096, 4).requires_grad_()
    with Allocations() as watch:
        KoLeoLoss()(x).backward()
    assert watch.largest() <= 4096 * 4096 // 8


REFUSED = {
    "one row": (lambda: KoLeoLoss()(torch.ones(1, 3)), ValueError, ["2 rows", "1"]),
    "a vector": (lambda: KoLeoLoss()(torch.ones(3)), ValueError, ["x", r"\(3,\)"]),
    "integers": (lambda: KoLeoLoss()(torch.ones(3, 3).long()), TypeError, ["x", "int64"]),
    "eps 0": (lambda: KoLeoLoss(eps=0.0), ValueError, ["eps", "0"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case) -> None:
    call, kind, words = REFUSED[case]
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        caught.match(word)
