"""Uniformity, alignment and correlation against the printed formulas, pair by pair."""

import math
import time

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
    gradcheck,
    normal,
    same_bits,
    spread,
    unit,
    value_and_grads,
)

import ssl_fast
from ssl_fast.functional import (
    alignment,
    gaussian_uniformity,
    prototype_alignment,
    prototype_correlation,
    prototype_uniformity,
)
from ssl_fast.losses import AlignUniformLoss
from ssl_fast.native import uniformity as native
from ssl_fast.reference import uniformity as reference

pytestmark = [pytest.mark.cpu_kernels, pytest.mark.usefixtures("poisoned")]

UPSTREAM = torch.tensor(-2.5)
# One pair, odd, prime, several tiles of 256 rows with a rest, wider than a block.
SHAPES = [(2, 1), (3, 5), (67, 17), (131, 300), (521, 16)]
PAIRWISE = {
    "gaussian_uniformity": (gaussian_uniformity, oracles.gaussian_uniformity),
    "prototype_uniformity": (prototype_uniformity, oracles.prototype_uniformity),
    "prototype_correlation": (prototype_correlation, oracles.prototype_correlation),
}
ONE = pytest.mark.parametrize("name", PAIRWISE)


@pytest.fixture(params=["pairs", "tiles"])
def ways(request, monkeypatch) -> None:
    """The native kernels take small batches pair by pair, larger ones by tiles."""
    if request.param == "tiles":
        monkeypatch.setattr(native, "FEW", 0)


EITHER_WAY = pytest.mark.usefixtures("ways")


@pytest.mark.parametrize(
    ("shape", "name", "dtype"), spread(SHAPES, list(PAIRWISE), list(DTYPES)), ids=str
)
def test_right(backend, shape, name, dtype) -> None:
    ours, formula = PAIRWISE[name]
    assert_right(ours, formula, [unit(*shape, dtype=DTYPES[dtype])], 1, UPSTREAM)


@EITHER_WAY
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", PAIRWISE)
def test_right_in_every_type(backend, name, dtype) -> None:
    ours, formula = PAIRWISE[name]
    assert_right(ours, formula, [(normal(67, 19) / 2).to(dtype)], 1, UPSTREAM)


@pytest.mark.parametrize("t", [0.1, 1.0, 3.0, 17.0])
def test_right_for_every_t(backend, t) -> None:
    for ours, formula in list(PAIRWISE.values())[:2]:
        assert_right(lambda x, f=ours: f(x, t=t), lambda x, f=formula: f(x, t=t), [unit(70, 9)], 1)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_right_for_every_temperature(backend, temperature) -> None:
    assert_right(
        lambda c: prototype_correlation(c, temperature=temperature),
        lambda c: oracles.prototype_correlation(c, temperature),
        [unit(70, 9)], 1, UPSTREAM,
    )  # fmt: skip


@pytest.mark.parametrize(("shape", "alpha", "dtype"), spread(
    [(1, 1), (7, 3), (67, 17), (131, 300)], [0.5, 1.0, 2.0, 3.0], list(DTYPES),
), ids=str)  # fmt: skip
def test_alignment_is_right(backend, shape, alpha, dtype) -> None:
    x, y = (unit(*shape, dtype=DTYPES[dtype], seed=s) for s in (0, 1))
    if shape[1] == 1:
        y = x * 0.5  # units of one column are 1 and -1: the native gradient divides by 0
    for ours, option in ((alignment, "alpha"), (prototype_alignment, "s")):
        assert_right(
            lambda x, y, f=ours, o=option: f(x, y, **{o: alpha}),
            lambda x, y: oracles.alignment(x, y, alpha),
            [x, y], 2, UPSTREAM,
        )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided(backend, layout) -> None:
    x, y = LAYOUTS[layout](unit(37, 11)), LAYOUTS[layout](unit(37, 11, seed=1))
    for ours, formula in PAIRWISE.values():
        assert_right(ours, formula, [x], 1)
    assert_right(alignment, oracles.alignment, [x, y], 2)


def clusters(size: float, n: int = 90, d: int = 8) -> torch.Tensor:
    """Three tight clusters of unit rows: most distances are far smaller than the rows."""
    centres = unit(3, d, dtype=torch.float64).repeat(n // 3, 1)
    return (centres + size * normal(n, d, dtype=torch.float64, seed=1)).float()


@EITHER_WAY
@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3, 1e-5])
def test_near_rows_lose_no_digits(backend, size) -> None:
    """Squares by a Gram matrix would err by 1e-7 where they are 1e-10."""
    for ours, formula in list(PAIRWISE.values())[:2]:
        assert_right(ours, formula, [clusters(size)], 1)
        # Clusters that do not see one another: the gradient is that of the near pairs alone.
        assert_right(lambda x, f=ours: f(x, t=500.0), lambda x, f=formula: f(x, t=500.0),
                     [clusters(size)], 1)  # fmt: skip


@EITHER_WAY
@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-6])
@ONE
def test_a_collapsed_batch_loses_no_digits(backend, name, size) -> None:
    ours, formula = PAIRWISE[name]
    x = (unit(1, 20, dtype=torch.float64) + size * normal(64, 20, dtype=torch.float64)).float()
    assert_right(ours, formula, [x], 1)


@EITHER_WAY
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@ONE
def test_identical_rows(backend, name, dtype) -> None:
    x = unit(1, 7, dtype=dtype).expand(19, 7).contiguous()
    value, grad = value_and_grads(PAIRWISE[name][0], [x], 1)
    assert abs(float(value) - (1.0 if name == "prototype_uniformity" else 0.0)) < 1e-6
    assert float(grad.abs().max()) < 1e-6
    if name != "prototype_correlation":
        assert not bool(grad.any())


@EITHER_WAY
@ONE
def test_repeated_and_zero_rows(backend, name) -> None:
    """A row that comes twice, and two that are zero: the formula still has a gradient there."""
    ours, formula = PAIRWISE[name]
    x = unit(40, 6)
    x[7] = x[3]
    x[[0, 9]] = 0
    assert_right(ours, formula, [x], 1)


@EITHER_WAY
def test_far_rows(backend) -> None:
    """exp(-4284) is 0 in any type; its logarithm is not minus infinity."""
    x = torch.tensor([[0.0, 0.0], [46.28174585, 0.0], [0.0, 60.0]])
    value, grad = value_and_grads(gaussian_uniformity, [x], 1)
    exact = oracles.gaussian_uniformity(x.double())
    assert -4286 < float(value) < -4284 and abs(float(value - exact)) < 1e-3
    assert_right(gaussian_uniformity, oracles.gaussian_uniformity, [x], 1)
    value, grad = value_and_grads(prototype_uniformity, [x], 1)
    assert float(value) == 0 and not bool(grad.any())


@EITHER_WAY
def test_a_share_of_the_rows() -> None:
    """The rows of one rank: their own smallest distance is the shift, however near others are."""
    x = unit(40, 6) * 30
    x[0] = x[1]
    for first, last in ((0, 7), (7, 30), (30, 40)):
        log_sum, gradient = native.potential(x, first, last, 2.0, True)
        exact = reference.potential(x.double(), first, last, 2.0, True)
        assert abs(log_sum - float(exact[0])) <= 1e-6 * abs(float(exact[0])) + 1e-6
        torch.testing.assert_close(gradient.double(), exact[1], rtol=0, atol=1e-5 * 120)


@pytest.mark.parametrize("size", [30.0, 1e4])
@ONE
def test_large_rows(backend, name, size) -> None:
    value, grad = value_and_grads(PAIRWISE[name][0], [normal(300, 12) * size], 1)
    assert bool(value.isfinite()) and bool(grad.isfinite().all())
    if size == 30.0:
        assert_right(*PAIRWISE[name], [normal(300, 12) * size], 1)


def test_the_nearest_pair_may_come_last(backend) -> None:
    """The shift moves by hundreds of nats while tiles go by."""
    x = normal(600, 3, dtype=torch.float64) * torch.linspace(1000, 1, 600)[:, None]
    assert_right(gaussian_uniformity, oracles.gaussian_uniformity, [x], 1)
    assert_right(gaussian_uniformity, oracles.gaussian_uniformity, [x.float()[-300:] / 8], 1)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_zero_distance_has_zero_gradient(backend, alpha) -> None:
    x, y = unit(9, 4), unit(9, 4, seed=1)
    y[[2, 5]] = x[[2, 5]]
    _, d_x, d_y = value_and_grads(lambda a, b: alignment(a, b, alpha=alpha), [x, y], 2)
    assert bool(d_x.isfinite().all()) and same_bits(d_x, -d_y + 0.0)
    assert not bool(d_x[[2, 5]].any()) and bool(d_x[[0, 1, 3]].any(1).all())


def test_alignment_far_outside_squares_range(backend) -> None:
    """1e25 squared is no float32, nor is 1e-25 squared."""
    for size in (1e25, 1e-25):
        x = unit(5, 3) * size
        value, grad = value_and_grads(
            lambda a: alignment(a, torch.zeros_like(a), alpha=1.0), [x], 1
        )
        assert abs(float(value) / size - 1) < 1e-6
        assert float((grad.norm(dim=1) * 5 - 1).abs().max()) < 1e-5


def test_small_distances_have_large_gradients(backend) -> None:
    """|x|^(-3/2) of 1e-30 is no float32, times x it is."""
    x, y = unit(5, 3) * 1e-30, torch.zeros(5, 3)
    ours = value_and_grads(lambda a, b: alignment(a, b, alpha=0.5), [x, y], 2)
    exact = value_and_grads(lambda a, b: oracles.alignment(a, b, 0.5), [x.double(), y.double()], 2)
    for one, other in zip(ours, exact, strict=True):
        assert_relative(one, other, 1e-6)


@EITHER_WAY
def test_double_squares_beyond_float32(backend) -> None:
    x = unit(5, 3, dtype=torch.float64) * 1e25
    assert_right(gaussian_uniformity, oracles.gaussian_uniformity, [x], 1)
    assert_right(prototype_uniformity, oracles.prototype_uniformity, [x], 1)


@EITHER_WAY
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@ONE
def test_not_a_number_is_passed_on(backend, name, dtype) -> None:
    for row in (0, 5, 18):
        x = unit(19, 5, dtype=dtype)
        x[row, 1] = math.nan
        value, grad = value_and_grads(PAIRWISE[name][0], [x], 1)
        assert bool(value.isnan()) and bool(grad.isnan().any())


@EITHER_WAY
def test_gradcheck(backend) -> None:
    x, y = unit(6, 4), unit(6, 4, seed=1)
    for ours, _ in PAIRWISE.values():
        gradcheck(ours, x)
    gradcheck(lambda a, b: alignment(a, b, alpha=1.5), x, y)
    gradcheck(lambda a: gaussian_uniformity(a, t=40.0), clusters(1e-2, 9, 4))


@ONE
def test_bitwise_repeatable(backend, name) -> None:
    first, second = (value_and_grads(PAIRWISE[name][0], [unit(300, 33)], 1) for _ in range(2))
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


def test_threads_agree() -> None:
    """Values do not depend on the number of threads beyond rounding."""
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(
            [value_and_grads(f, [clusters(1e-3, 600, 40)], 1) for f, _ in PAIRWISE.values()]
        )
    torch.set_num_threads(1)
    for one, two in zip(*found, strict=True):
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b, atol=2e-6 * float(a.abs().max()), rtol=0)


def test_identities(backend) -> None:
    x, y = unit(30, 5), unit(30, 5, seed=1)
    exp = gaussian_uniformity(x).exp()
    torch.testing.assert_close(prototype_uniformity(x), exp, rtol=1e-6, atol=0)
    cosine = (2 - 2 * (x * y).sum(1)).mean()
    torch.testing.assert_close(alignment(x, y), cosine, rtol=1e-6, atol=0)
    # Moving and rotating the batch changes nothing.
    turn = torch.linalg.qr(normal(5, 5))[0]
    moved = gaussian_uniformity(x @ turn + 3)
    torch.testing.assert_close(moved, gaussian_uniformity(x), rtol=3e-6, atol=0)
    assert -2 <= float(prototype_correlation(x)) <= 0


def test_correlation_costs_no_pairs(backend) -> None:
    c = unit(3000, 8).requires_grad_()
    with Allocations() as watch, Saved(c) as saved:
        prototype_correlation(c).backward()
    assert watch.largest() <= 2 * c.numel()
    assert saved.nbytes() <= 8 * 2 * (3000 + 8)


def test_no_square_matrix_is_stored() -> None:
    x = unit(5000, 8).requires_grad_()
    with ssl_fast.set_backend("native"), Allocations() as watch, Saved(x) as saved:
        gaussian_uniformity(x).backward()
    assert watch.largest() <= 512 * 512
    assert saved.nbytes() <= 4 * x.numel()


@pytest.mark.slow
def test_a_hundred_thousand_prototypes() -> None:
    """40 GB as a matrix; here tiles, some 4 operations x 10^12 with the gradient."""
    c = unit(100_000, 128).requires_grad_()
    start = time.monotonic()
    with ssl_fast.set_backend("native"), Allocations() as watch:
        value = prototype_uniformity(c)
        value.backward()
    # |x - y|^2 of random unit rows is 2 - 2 cos, cos with variance 1/128.
    assert abs(float(value) - math.exp(-4) * math.exp(16 / 256)) < 2e-5
    assert c.grad is not None and bool(c.grad.isfinite().all())
    assert watch.largest() <= 100_000 * 129
    assert time.monotonic() - start < 240


@pytest.mark.parametrize(("call", "message"), [
    (lambda x: gaussian_uniformity(x[:1]), "x must have at least 2 rows"),
    (lambda x: prototype_uniformity(x[:1]), "c must have at least 2 rows"),
    (lambda x: prototype_correlation(x[:1]), "c must have at least 2 rows"),
    (lambda x: gaussian_uniformity(x[:0]), "x must be a non-empty matrix"),
    (lambda x: gaussian_uniformity(x[0]), "x must be a non-empty matrix"),
    (lambda x: gaussian_uniformity(x.long()), "x must be float64"),
    (lambda x: gaussian_uniformity(x, t=0), "t must be finite and > 0"),
    (lambda x: prototype_correlation(x, temperature=-1.0), "temperature must be finite and > 0"),
    (lambda x: prototype_correlation([x]), "c must be a torch.Tensor"),
    (lambda x: alignment(x, x[:2]), "x and y must have one shape"),
    (lambda x: alignment(x, x.double()), "x is torch.float32 and y is torch.float64"),
    (lambda x: alignment(x, x, alpha=0), "alpha must be finite and > 0"),
    (lambda x: prototype_alignment(x, x[:2]), "p and q must have one shape"),
    (lambda x: AlignUniformLoss(t=-1.0), "t must be finite and > 0"),
])  # fmt: skip
def test_refusals(call, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(unit(4, 3))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_align_uniform_loss(backend, dtype) -> None:
    """The example of SsnL/align_uniform: align_w L_align + unif_w (U(x) + U(y)) / 2."""

    def formula(x, y):
        uniform = oracles.gaussian_uniformity(x, 3.0) + oracles.gaussian_uniformity(y, 3.0)
        return 0.7 * oracles.alignment(x, y, 1.5) + 1.3 * uniform / 2

    loss = AlignUniformLoss(align_w=0.7, unif_w=1.3, alpha=1.5, t=3.0)
    assert_right(loss, formula, [unit(33, 7, dtype=dtype), unit(33, 7, dtype=dtype, seed=1)], 2)
    assert repr(loss) == "AlignUniformLoss(align_w=0.7, unif_w=1.3, alpha=1.5, t=3.0)"
