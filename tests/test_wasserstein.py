"""nuclear_norm and wasserstein_uniformity: right and finite for any spectrum."""

import math

import oracles
import pytest
import torch
from checks import (
    DTYPES,
    LAYOUTS,
    Allocations,
    Saved,
    assert_right,
    error,
    gradcheck,
    normal,
    same_bits,
    spread,
    unit,
    value_and_grads,
)

from ssl_fast import _polar
from ssl_fast.functional import nuclear_norm, wasserstein_uniformity
from ssl_fast.functional._mmcr import nuclear_norms
from ssl_fast.functional.wasserstein import NULL
from ssl_fast.losses import WassersteinUniformityLoss

pytestmark = pytest.mark.cpu_kernels


def centred_norm(z):
    return nuclear_norm(z, center=True)


# Ours, the formula, and the two flags of `oracles.spectral_gradient`.
FUNCTIONS = {
    "norm": (nuclear_norm, oracles.nuclear_norm, False, False),
    "centred": (centred_norm, lambda z: oracles.nuclear_norm(z, True), True, False),
    "distance": (wasserstein_uniformity, oracles.wasserstein_svd, True, True),
}
names = pytest.mark.parametrize("name", FUNCTIONS)
SHAPES = [(40, 7), (7, 40), (64, 48), (33, 97), (300, 130)]


def with_spectrum(rows: int, width: int, s: torch.Tensor, mean: float = 0.0) -> torch.Tensor:
    """Float64 (rows, width) with singular values s; its rows sum to `mean` * rows, each column."""
    u = torch.linalg.qr(normal(rows, len(s) + 1, dtype=torch.float64, seed=1)).Q
    u = torch.linalg.qr(torch.cat([torch.ones(rows, 1).double(), u], 1)).Q[:, 1 : len(s) + 1]
    v = torch.linalg.qr(normal(width, len(s), dtype=torch.float64, seed=2)).Q
    return (u * s) @ v.T + mean


def falling(count: int, condition: float) -> torch.Tensor:
    return torch.logspace(0, -math.log10(condition), count, dtype=torch.float64)


def gradient(function, z):
    return value_and_grads(function, [z], 1)


@names
@pytest.mark.parametrize(("shape", "dtype"), spread(SHAPES, list(DTYPES.values())))
def test_right(backend, poisoned, shape, dtype, name):
    """Embeddings on the sphere, off centre; the native formulas are an SVD, for the distance the
    eigenvalues of the covariance."""
    ours, formula, *_ = FUNCTIONS[name]
    z = torch.nn.functional.normalize(normal(*shape, dtype=torch.float64) + 0.2).to(dtype)
    if formula is not oracles.nuclear_norm and shape[0] < shape[1]:
        # A centred batch of few rows has an exact null direction, which the SVD divides by.
        center, distance = FUNCTIONS[name][2:]
        value, grad = gradient(ours, z)
        exact = oracles.spectral_gradient(z, center, NULL, distance)
        rounding = {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float64: 1e-10}
        assert error(grad, exact) <= rounding.get(dtype, 3e-5) * float(exact.abs().max())
        assert float(value) == pytest.approx(float(formula(z.double())), rel=1e-6)
    else:
        native = oracles.wasserstein if name == "distance" else formula
        assert_right(ours, native, [z], 1, upstream=torch.tensor(-1.7))


def test_as_printed(backend):
    """The eigenvalues of the covariance, as the released code takes them."""
    assert_right(wasserstein_uniformity, oracles.wasserstein, [unit(200, 24)], 1)


@names
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided(backend, poisoned, layout, name):
    ours, z = FUNCTIONS[name][0], normal(23, 11)
    expected = gradient(ours, z)
    actual = gradient(ours, LAYOUTS[layout](z))
    assert actual[1].shape == z.shape
    for a, b in zip(actual, expected, strict=True):
        assert error(a, b) <= 2e-6 * float(b.abs().max())


@names
@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)], ids=str)
def test_gradcheck(name, shape):
    """Rank-deficient when centred and N <= D: the value is differentiable along every direction
    but the null one, which perturbations of one entry leave, so that is left out."""
    ours, _, center, _ = FUNCTIONS[name]
    if center and shape[0] <= shape[1]:
        z, d = normal(*shape, dtype=torch.float64), normal(*shape, dtype=torch.float64, seed=3)
        d = d - d.mean(0)
        analytic = (gradient(ours, z)[1] * d).sum()
        numeric = (ours(z + 1e-6 * d) - ours(z - 1e-6 * d)) / 2e-6
        assert float(analytic) == pytest.approx(float(numeric), rel=1e-7)
    else:
        gradcheck(ours, normal(*shape))


@names
@pytest.mark.parametrize(
    ("shape", "condition"),
    spread([(90, 40), (40, 90), (50, 50)], [1e1, 1e2, 1e3, 1e4, 1e5, 4e5]),
)
def test_collapsing_directions(backend, shape, condition, name):
    """Spectral error 1e-3 at most up to the threshold: every direction's gradient is right."""
    ours, _, center, distance = FUNCTIONS[name]
    z = with_spectrum(*shape, falling(min(shape) - 1, condition), mean=0.1 if center else 0.0)
    for dtype, allowed in ((torch.float32, 1e-3), (torch.float64, 1e-8)):
        x = z.to(dtype)
        exact = oracles.spectral_gradient(x, center, NULL, distance)
        value, grad = gradient(ours, x)
        largest = torch.linalg.matrix_norm(exact, 2)
        assert torch.linalg.matrix_norm(grad.double() - exact, 2) <= allowed * largest
        norms = {"norm": oracles.nuclear_norm, "distance": oracles.wasserstein_svd}
        formula = norms.get(name, FUNCTIONS[name][1])
        assert float(value) == pytest.approx(float(formula(x.double())), rel=2e-6)


@pytest.mark.parametrize("ratio", [0.3, 0.9, 1.1, 3.0])
def test_null_directions_have_the_zero_subgradient(backend, ratio):
    """Around eps, stated in units of the largest singular value; the value does not see it."""
    eps = 1e-3
    s = torch.tensor([1.0, 0.8, 0.5, ratio * eps], dtype=torch.float64)
    z = with_spectrum(30, 9, s)
    value, grad = gradient(lambda z: wasserstein_uniformity(z, eps=eps), z)
    expected = oracles.spectral_gradient(z, True, eps, True)
    assert torch.linalg.matrix_norm(grad - expected, 2) <= 1e-9
    polar = (z / 30 - grad * value) * (30 * 9) ** 0.5
    rank = 4 if ratio > 1 else 3
    ranks = torch.linalg.svdvals(polar)
    assert bool(((ranks - 1).abs()[:rank] < 1e-6).all()) and bool((ranks[rank:] < 1e-6).all())
    assert same_bits(value, wasserstein_uniformity(z))


@names
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    "make",
    {
        "one row": lambda: unit(1, 7),
        "one number": lambda: torch.ones(1, 1),
        "equal rows": lambda: unit(1, 7).expand(20, -1),
        "equal rows, wide": lambda: unit(1, 40, seed=5).expand(6, -1),
        "zeros": lambda: torch.zeros(8, 5),
        "repeated rows": lambda: unit(4, 9).repeat(5, 1),
        "identity": lambda: torch.eye(12),
        "isotropic": lambda: torch.cat([torch.eye(6), -torch.eye(6)]),
        "rank one": lambda: unit(30, 1) @ unit(1, 8, seed=1),
        "constant columns": lambda: torch.cat([unit(20, 4), torch.ones(20, 3)], 1),
        "large": lambda: normal(12, 8) * 1e4,
        "large, off centre": lambda: normal(12, 8) * 1e-2 + 1e4,
    }.items(),
    ids=lambda item: item[0],
)
def test_degenerate_batches_are_finite(backend, poisoned, make, dtype, name):
    """Bounded by the exact subgradients: |polar| <= 1; W2's by 2 / sqrt(N)."""
    ours, formula, _, distance = FUNCTIONS[name]
    z = make[1]().to(dtype).contiguous()
    value, grad = gradient(ours, z)
    assert bool(value.isfinite()) and bool(grad.isfinite().all())
    largest = float(torch.linalg.matrix_norm(grad.double(), 2))
    if distance:
        assert largest <= (2 + 1e-3) / math.sqrt(len(z)) * max(1.0, float(z.abs().max()))
    else:
        assert largest <= 1.01
    exact = float(formula(z.double()))
    if math.isfinite(exact):
        size = float(torch.linalg.matrix_norm(z.double()))
        assert abs(float(value) - exact) <= 2e-6 * max(abs(exact), 1e-2 * size)


def test_known_values(backend):
    """Equal rows: |mean|^2 + 1; an isotropic batch: 0, with a zero or bounded gradient."""
    z = unit(1, 7, dtype=torch.float64).expand(20, -1)
    value, grad = gradient(wasserstein_uniformity, z)
    assert float(value) == pytest.approx(math.sqrt(2))
    assert error(grad, z / 20 / math.sqrt(2)) < 1e-12
    corners = torch.cat([torch.eye(6), -torch.eye(6)]).double()
    value, grad = gradient(wasserstein_uniformity, corners)
    assert float(value) < 1e-7 and float(grad.norm()) <= 1 / math.sqrt(12) + 1e-9
    assert float(nuclear_norm(torch.eye(5))) == pytest.approx(5)


def test_zero_rows_get_a_zero_gradient(backend):
    for shape in ((20, 6), (6, 20)):
        z = normal(*shape)
        z[1] = z[4] = 0
        grad = gradient(nuclear_norm, z)[1]
        assert float(grad[[1, 4]].abs().max()) == 0 and float(grad[0].abs().max()) > 0.05


def test_a_perfect_batch_has_no_gradient(backend):
    """W2 = 0 exactly: one column of +-1, in one dimension."""
    value, grad = gradient(wasserstein_uniformity, torch.tensor([[1.0], [-1.0]]))
    assert float(value) == 0 and float(grad.abs().max()) == 0


@names
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e18])
def test_any_scale(backend, scale, name):
    """Squares that float32 cannot hold: values scale, polar factors stay."""
    ours, _, center, distance = FUNCTIONS[name]
    z = normal(20, 6) * scale
    value, grad = gradient(ours, z)
    exact = oracles.spectral_gradient(z, center, NULL, distance)
    assert error(grad, exact) <= 3e-5 * float(exact.abs().max())
    assert float(value) == pytest.approx(float(FUNCTIONS[name][1](z.double())), rel=1e-5)


@names
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_propagates(backend, bad, name):
    z = normal(9, 4)
    z[3, 2] = bad
    value, grad = gradient(FUNCTIONS[name][0], z)
    assert bool(value.isnan()) and bool(grad.isnan().any())


@names
def test_repeatable(backend, name):
    z = unit(150, 60)
    first, second = gradient(FUNCTIONS[name][0], z), gradient(FUNCTIONS[name][0], z)
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        assert same_bits(FUNCTIONS[name][0](z), first[0])


@names
def test_permutation_and_rotation(backend, name):
    """Rows in another order, axes rotated: the same value, the gradient follows."""
    ours, z = FUNCTIONS[name][0], normal(30, 8)
    value, grad = gradient(ours, z)
    order, q = torch.randperm(30), torch.linalg.qr(normal(8, 8, seed=4)).Q
    turned, d_turned = gradient(ours, z[order] @ q)
    assert float(turned) == pytest.approx(float(value), rel=2e-6)
    assert error(d_turned @ q.T, grad[order]) < 2e-5


def test_kept_for_backward(backend):
    """The input and the gradient for an upstream of one; nothing D x D, nothing twice."""
    z = unit(64, 32).requires_grad_()
    with Saved(z) as saved:
        wasserstein_uniformity(z)
    assert saved.nbytes() == z.numel() * 4
    half = unit(64, 32, dtype=torch.bfloat16).requires_grad_()
    with Saved(half) as saved:
        nuclear_norm(half)
    assert saved.nbytes() == half.numel() * 4


def test_the_smaller_side_is_decomposed(backend):
    """8 x 2000: nothing of 2000 x 2000."""
    with Allocations() as watch:
        wasserstein_uniformity(unit(8, 2000).requires_grad_()).backward()
    assert watch.largest() <= 8 * 2000


def test_retain_graph(backend):
    z = unit(20, 6).requires_grad_()
    value = wasserstein_uniformity(z)
    (first,) = torch.autograd.grad(value, z, retain_graph=True)
    kept = first.clone()
    first.zero_()
    assert same_bits(torch.autograd.grad(value, z)[0], kept)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nuclear_norm([1.0]), "z must be a torch.Tensor, got list"),
        (lambda: nuclear_norm(torch.ones(3)), r"non-empty matrix.*\(3,\)"),
        (lambda: nuclear_norm(torch.ones(0, 3)), "non-empty"),
        (lambda: wasserstein_uniformity(torch.ones(2, 2, dtype=torch.int32)), "z.float"),
        (lambda: wasserstein_uniformity(torch.ones(2, 2), eps=0.0), "eps must be finite and > 0"),
        (lambda: wasserstein_uniformity(torch.ones(2, 2), group=7), "group"),
        (lambda: WassersteinUniformityLoss()(), r"loss\(z0, z1\)"),
        (lambda: WassersteinUniformityLoss(eps=-1.0), "eps"),
    ],
)
def test_refusals(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_loss_is_of_all_views_together():
    z0, z1 = 3 * normal(12, 5), normal(8, 5, seed=1)
    z = torch.nn.functional.normalize(torch.cat([z0, z1]))
    assert same_bits(WassersteinUniformityLoss()(z0, z1), wasserstein_uniformity(z))
    raw = WassersteinUniformityLoss(eps=1e-2, normalize=False)
    assert same_bits(raw(z0), wasserstein_uniformity(z0, eps=1e-2))
    assert "eps=0.01" in repr(raw)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_loss_of_zero_rows(dtype):
    z = normal(12, 5, dtype=dtype)
    z[3] = 0
    value, gradient = value_and_grads(WassersteinUniformityLoss(), [z], 1)
    assert bool(value.isfinite()) and bool(gradient.isfinite().all())
    assert not bool(gradient[3].any()) and bool(gradient[2].any())


class Norms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        norms, ctx.gradient = nuclear_norms(z, True)
        ctx.dtype = z.dtype
        return norms

    @staticmethod
    def backward(ctx, d_norms):
        return (ctx.gradient * d_norms[:, None, None]).to(ctx.dtype)


@pytest.mark.parametrize("shape", [(5, 4, 9), (3, 9, 4), (7, 1, 6), (2, 3, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_norms_of_a_batch(shape, dtype):
    z = normal(*shape, dtype=dtype)
    upstream = normal(shape[0], seed=3)
    assert_right(Norms.apply, lambda z: torch.linalg.svdvals(z).sum(1), [z], 1, upstream=upstream)


def test_norms_of_a_degenerate_batch():
    z = torch.stack([torch.zeros(4, 6), torch.ones(4, 6), torch.eye(4, 6)])
    value, grad = gradient(Norms.apply, z)
    assert value.tolist() == pytest.approx([0, math.sqrt(24), 4], rel=1e-6)
    polar = [torch.zeros(4, 6), torch.full((4, 6), 24**-0.5), torch.eye(4, 6)]
    assert error(grad, torch.stack(polar)) < 1e-6
    assert bool(nuclear_norms(z * math.nan, False)[0].isnan().all())


def polar(z, center, distance, eps=NULL):
    """The GPUs' iteration, its updates in plain PyTorch."""
    return _polar.forward(
        _polar.TorchKernels, z, center, eps, distance, True, len(z), lambda value, op: value
    )


@names
@pytest.mark.parametrize(
    ("shape", "condition"),
    spread([(90, 40), (40, 90), (50, 50), (200, 12)], [1.0, 1e2, 1e4, 4e5]),
)
def test_polar_iteration(shape, condition, name):
    """Bars: 1e-4 relative on the value, 1e-3 on the gradient, at a condition number of 1e4."""
    _, _, center, distance = FUNCTIONS[name]
    s = falling(min(shape) - 1, condition)
    z = with_spectrum(*shape, s, mean=0.1 if center else 0.0).float()
    value, grad = polar(z, center, distance)
    formula = oracles.wasserstein_svd if distance else FUNCTIONS[name][1]
    assert float(value) == pytest.approx(float(formula(z.double())), rel=1e-6)
    exact = oracles.spectral_gradient(z, center, NULL, distance)
    largest = float(torch.linalg.matrix_norm(exact, 2))
    assert float(torch.linalg.matrix_norm(grad.double() - exact, 2)) <= 1e-5 * largest


@pytest.mark.parametrize("eps", [1e-6, 1e-3, 0.1])
def test_polar_iteration_has_the_same_threshold(eps):
    for ratio in (0.1, 0.7, 1.4, 10 if eps < 0.1 else 4):
        s = torch.tensor([1.0, 0.8, 0.5, ratio * eps], dtype=torch.float64)
        z = with_spectrum(30, 9, s)
        ranks = torch.linalg.svdvals(polar(z, False, False, eps)[1])
        found = float(ranks[3 if ratio * eps < 0.5 else -1]) if ratio < 4 else 1.0
        assert found == pytest.approx(float(ratio > 1), abs=2e-3)
        assert bool(((ranks[:3] - 1).abs() < 1e-6).all())


@pytest.mark.parametrize(
    "z",
    [
        torch.zeros(8, 5),
        torch.full((20, 7), 0.3),
        torch.eye(12),
        torch.eye(6).repeat(3, 1) * 1e-30,
        normal(9, 4) * 1e18,
    ],
)
def test_polar_iteration_of_degenerate_batches(z):
    for center, distance in ((False, False), (True, False), (True, True)):
        value, grad = polar(z, center, distance)
        exact = oracles.spectral_gradient(z, center, NULL, distance)
        assert bool(value.isfinite())
        if float((z - z.mean(0)).abs().max()) > 1e-6 * float(z.abs().max()) or not center:
            assert error(grad, exact) <= 1e-5 * max(float(exact.abs().max()), 1e-30)
        elif not distance:
            assert float(grad.abs().max()) == 0


def test_polynomials_of_the_polar_iteration():
    """Each is nearest to 1: the error is the same, with alternating signs, at four points."""
    for low, high in ((1e-6, 1.0), (1e-3, 2 - 1e-3), (0.3, 1.7), (0.9, 1.1)):
        s = torch.linspace(low, high, 200001, dtype=torch.float64)
        a, b, c = _polar.nearest_to_one(low, high)
        off = s * (a + b * s**2 + c * s**4) - 1
        worst = 1 - _polar.evaluate((a, b, c), low)
        assert float(off.abs().max()) == pytest.approx(worst, rel=1e-6)
        assert float(off.max()) == pytest.approx(worst, rel=1e-6)
    growth, low, threshold = _polar.schedule(1e-6)
    assert len(growth) <= 11 and 0.85 <= low < 1 and 0.8 < threshold / low < 0.88
