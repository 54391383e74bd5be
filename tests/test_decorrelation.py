"""Losses on covariances: VICReg, VICRegL, Barlow Twins, TiCo, against formulas and public code."""

import copy

import oracles
import pytest
import torch
from checks import DTYPES, assert_relative, assert_right, error, normal, value_and_grads

from ssl_fast import set_backend
from ssl_fast.losses import BarlowTwinsLoss, TiCoLoss, VICRegLLoss, VICRegLoss

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(9, 5), (9, 40)], ids=str)
def test_vicreg(backend, shape, dtype) -> None:
    weights = torch.tensor([25.0, 25.0, 1.0], dtype=torch.float64)
    inputs = [normal(*shape, dtype=dtype, seed=s) for s in (1, 2)]
    assert_right(
        VICRegLoss(), lambda a, b: (weights.to(a) * oracles.vicreg(a, b)).sum(), inputs, wrt=2
    )
    options = VICRegLoss(3.0, 5.0, 7.0, gamma=1.4, eps=0.1)
    weights = torch.tensor([3.0, 5.0, 7.0], dtype=torch.float64)
    assert_right(
        options, lambda a, b: (weights.to(a) * oracles.vicreg(a, b, 1.4, 0.1)).sum(), inputs, wrt=2
    )


def test_vicreg_has_the_official_half(backend) -> None:
    """solo-learn and the paper's formula count the variance twice."""
    a, b = (normal(8, 6, seed=s).double() * 0.2 for s in (1, 2))
    plain = VICRegLoss(0.0, 1.0, 0.0)(a, b)
    assert_relative(2 * plain, oracles.variance_hinge(a) + oracles.variance_hinge(b), 1e-12)


@pytest.mark.parametrize("shape", [(9, 5), (9, 40)], ids=str)
def test_barlow_twins(backend, shape) -> None:
    inputs = [normal(*shape, seed=s) for s in (1, 2)]
    assert_right(BarlowTwinsLoss(), lambda a, b: oracles.barlow_twins(a, b, 0.0051), inputs, wrt=2)
    assert_right(
        BarlowTwinsLoss(0.02, scale=0.1, eps=0.3),
        lambda a, b: 0.1 * oracles.barlow_twins(a, b, 0.02, 0.3), inputs, wrt=2,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_tico(dtype) -> None:
    """Three steps: the moment grows as the formula's."""
    loss = TiCoLoss(beta=0.8, rho=5.0)
    previous = torch.zeros(5, 5, dtype=torch.float64)
    for step in range(3):
        inputs = [normal(9, 5, dtype=dtype, seed=10 * step + s) for s in (1, 2)]
        assert_right(
            lambda a, b: loss(a, b, update=False),
            lambda a, b, held=previous: oracles.tico(a, b, held.to(a), 0.8, 5.0),
            inputs, wrt=2, upstream=torch.tensor(-2.5),
        )  # fmt: skip
        loss(*inputs)
        previous = oracles.tico_moment(inputs[0].double(), previous, 0.8)
        assert error(loss.moment, previous) < 1e-6


@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_tico_of_zero_rows(choice) -> None:
    """A zero row has no direction: a zero gradient; the others are as the formula has them."""
    rows = torch.arange(6) != 2
    inputs = [normal(6, 4, seed=s).double() * rows[:, None] for s in (1, 2)]
    exact = value_and_grads(
        lambda a, b: oracles.tico(a, b, torch.zeros(4, 4).double(), 0.9, 8.0), inputs, 2
    )
    with set_backend(choice):
        value, *grads = value_and_grads(TiCoLoss(), inputs, 2)
    assert_relative(value, exact[0], 1e-12)
    for grad, expected in zip(grads, exact[1:], strict=True):
        assert not grad[2].any()
        assert error(grad[rows], expected[rows]) < 1e-12


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)], ids=str)
def test_tico_of_one_gradient(wanted) -> None:
    """The one alone is as of the two; both moments move alike."""
    inputs = [normal(6, 4, seed=s) for s in (1, 2)]
    losses = TiCoLoss(), TiCoLoss()
    _, *expected = value_and_grads(losses[0], inputs, 2)
    leaves = [x.requires_grad_(w) for x, w in zip(inputs, wanted, strict=True)]
    value = losses[1](*leaves)
    assert value.requires_grad == any(wanted)
    assert torch.equal(*(loss.moment for loss in losses))
    if value.requires_grad:
        value.backward()
    for x, want, gradient in zip(leaves, wanted, expected, strict=True):
        assert torch.equal(x.grad, gradient) if want else x.grad is None


def test_tico_state() -> None:
    loss = TiCoLoss()
    loss(normal(6, 4), normal(6, 4, seed=1))
    other = TiCoLoss()
    other.load_state_dict(loss.state_dict())
    later = normal(6, 4, seed=2), normal(6, 4, seed=3)
    assert torch.equal(loss(*later), other(*later))
    assert torch.equal(copy.deepcopy(loss)(*later), other(*later))
    with pytest.raises(ValueError, match="second moment of 4 features and got 5"):
        loss(normal(6, 5), normal(6, 5, seed=1))
    loss.eval()
    assert torch.equal(loss(*later), loss(*later))


def vicregl_inputs(seed: int = 0) -> tuple:
    """Two large crops and a small one: features, local features, locations."""

    def view(index: int, side: int) -> tuple:
        return (normal(4, 12, seed=index), normal(4, side, side, 6, seed=index + 10)), torch.rand(
            4, side, side, 2, generator=torch.Generator().manual_seed(index)
        )

    large, small = [view(seed + i, 5) for i in range(2)], [view(seed + 5, 3)]
    return tuple([v[i] for v in views] for views in (large, small) for i in (0, 1))


def vicregl_formula(weights, alpha, matches, global_views, where, local_views, local_where):
    """Written out: loops over pairs, samples and matches."""
    views, places = [*global_views, *local_views], [*where, *local_where]
    pairs = [(a, b) for a in range(len(global_views)) for b in range(len(views)) if a != b]
    weights = torch.tensor(weights, dtype=torch.float64)
    halved = weights * torch.tensor([1.0, 1.0, 0.5])
    inv = sum((views[a][0] - views[b][0]).square().mean() for a, b in pairs) / len(pairs)
    var = sum(oracles.variance_hinge(v) for v, _ in views) / len(views)
    cov = sum(oracles.covariance_penalty(v) for v, _ in views) / len(views)
    whole = weights[0] * inv + weights[1] * var + weights[2] * cov

    def match(own, other, own_at, other_at, count):
        kept = [[], []]
        for i in range(len(own)):
            far = [((p - other_at[i]).square().sum(1).min(0)) for p in own_at[i]]
            order = sorted(range(len(far)), key=lambda p: float(far[p].values))[:count]
            kept[0].append(own[i][order])
            kept[1].append(other[i][[int(far[p].indices) for p in order]])
        return (halved * oracles.vicreg(*(torch.stack(k) for k in kept))).sum()

    total = 0
    for a, b in pairs:
        fa, fb, pa, pb = (x.flatten(1, 2).double()
                          for x in (views[a][1], views[b][1], places[a], places[b]))  # fmt: skip
        for at_a, at_b in ((fa, fb), (pa, pb)):
            total = total + 0.5 * match(fa, fb, at_a, at_b, matches[0])
            total = total + 0.5 * match(fb, fa, at_b, at_a, matches[1])
    return alpha * whole + (1 - alpha) * total / len(pairs)


def test_vicregl(backend) -> None:
    (views, where, small, small_where) = vicregl_inputs()
    leaves = [x for pair in (*views, *small) for x in pair]

    def run(loss, dtype, *leaves):
        pairs = list(zip(leaves[::2], leaves[1::2], strict=True))
        return loss(pairs[:2], [w.to(dtype) for w in where], pairs[2:],
                    [w.to(dtype) for w in small_where])  # fmt: skip

    for options in ({}, {"alpha": 0.3, "matches": (7, 3), "covariance_weight": 4.0}):
        weights = (25.0, 25.0, options.get("covariance_weight", 1.0))
        alpha, matches = options.get("alpha", 0.75), options.get("matches", (20, 4))
        formula = lambda *a, w=weights, al=alpha, m=matches: vicregl_formula(w, al, m, *a)  # noqa: E731
        exact = value_and_grads(
            lambda *x, f=formula: run(f, torch.float64, *x), [x.double() for x in leaves], 6
        )
        found = value_and_grads(
            lambda *x, o=options: run(VICRegLLoss(**o), torch.float32, *x), leaves, 6
        )
        for a, b in zip(found, exact, strict=True):
            assert error(a, b) <= 2e-6 * float(b.abs().max())


LIGHTLY = {
    "VICRegLoss": (VICRegLoss, {}),
    "BarlowTwinsLoss": (BarlowTwinsLoss, {"off_diagonal_weight": 5e-3}),
    "TiCoLoss": (TiCoLoss, {}),
}


@pytest.mark.parametrize("name", LIGHTLY)
def test_equals_lightly(name) -> None:
    theirs = getattr(pytest.importorskip("lightly.loss"), name)()
    cls, options = LIGHTLY[name]
    ours = cls(**options)
    for step in range(2):
        inputs = [normal(12, 30, seed=2 * step + s) for s in (0, 1)]
        found, expected = (value_and_grads(loss, inputs, 2) for loss in (ours, theirs))
        for a, b in zip(found, expected, strict=True):
            assert error(a, b) <= 3e-6 * float(b.abs().max())


def test_vicregl_equals_lightly() -> None:
    theirs = pytest.importorskip("lightly.loss").VICRegLLoss()
    arguments = vicregl_inputs()
    assert_relative(VICRegLLoss()(*arguments), theirs(*arguments)[0].double(), 2e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VICRegLoss(gamma=0.0), "gamma must be finite and > 0"),
        (lambda: BarlowTwinsLoss(scale=-1.0), "scale must be finite and > 0"),
        (lambda: TiCoLoss(beta=1.0), r"beta must be at least 0 and less than 1, got 1.0"),
        (lambda: VICRegLLoss(alpha=2.0), "alpha must be at least 0 and at most 1, got 2.0"),
        (lambda: VICRegLLoss(matches=(0, 4)), "matches must be an integer >= 1"),
        (lambda: VICRegLLoss()([], []), "pass two global views"),
        (lambda: VICRegLLoss()([1, 2], [1]), "global_views and global_locations must have one"),
        (lambda: TiCoLoss()(torch.zeros(3, 2), torch.zeros(3, 4)), "one shape"),
    ],
)  # fmt: skip
def test_refusals(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
