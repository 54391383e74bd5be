"""MSNLoss and PMSNLoss against the formulas, Lightly's class, and MSN's printed form."""

import math

import oracles
import pytest
import torch
from checks import (
    DTYPES,
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

from ssl_fast.functional import power_law_prior
from ssl_fast.functional._entropy import mean_entropy
from ssl_fast.losses import MSNLoss, PMSNLoss

pytestmark = [pytest.mark.cpu_kernels, pytest.mark.usefixtures("poisoned")]


def operands(
    views: int, n: int, d: int, k: int, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """Anchors (views n, d), targets (n, d), prototypes (k, d), of any norm."""
    return [
        normal(views * n, d, dtype=dtype),
        normal(n, d, dtype=dtype, seed=1),
        normal(k, d, dtype=dtype, seed=2),
    ]


def formula(*inputs, entropy_weight: float = 0.0, **options) -> torch.Tensor:
    loss = oracles.msn_loss(*inputs, **options)
    temperature = options.get("temperature", 0.1)
    return loss + entropy_weight * oracles.mean_entropy(inputs[0], inputs[2], temperature)


def with_prototypes(function, targets):
    """A function of (anchors, prototypes): the targets are constants."""
    return lambda a, c: function(a, targets.to(a.dtype), c)


OPTIONS = {
    "plain": {},
    "sinkhorn": {"sinkhorn_iterations": 3},
    "entropy": {"entropy_weight": 0.7},
    "all": {
        "temperature": 0.2,
        "sharpening": 0.5,
        "prior_weight": 2.5,
        "sinkhorn_iterations": 2,
        "entropy_weight": 0.3,
    },
    "no me-max": {"prior_weight": 0.0},
}
SHAPES = [(1, 33, 8, 31), (11, 7, 16, 130), (2, 1, 3, 5)]


@pytest.mark.parametrize(("options", "shape", "dtype"), spread(OPTIONS, SHAPES, [*DTYPES.values()]))
def test_right(backend, options, shape, dtype) -> None:
    """Gradients of anchors and of prototypes, which published examples cut with `.data`."""
    anchors, targets, prototypes = operands(*shape, dtype)
    options = OPTIONS[options]
    assert_right(
        with_prototypes(MSNLoss(**options), targets),
        with_prototypes(lambda *x: formula(*x, **options), targets),
        [anchors, prototypes], 2, torch.tensor(-1.5),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("prior", ["uniform", "power_law", "given"])
def test_pmsn(backend, prior, dtype) -> None:
    """Eq. 9 with each kind of prior."""
    anchors, targets, prototypes = operands(3, 13, 8, 29, dtype)
    given = power_law_prior(29, 2.0)[torch.randperm(29)]
    loss = PMSNLoss(given if prior == "given" else prior, 0.5, prior_weight=5.0)
    exact = {"uniform": None, "power_law": power_law_prior(29, 0.5), "given": given}[prior]
    assert_right(
        with_prototypes(loss, targets),
        with_prototypes(lambda *x: formula(*x, prior=exact, prior_weight=5.0), targets),
        [anchors, prototypes],
        2,
    )


def test_pmsn_uniform_is_msn(backend) -> None:
    inputs = operands(2, 9, 5, 13)
    assert same_bits(PMSNLoss("uniform")(*inputs), MSNLoss()(*inputs))
    assert error(PMSNLoss()(*inputs), MSNLoss()(*inputs)) > 1e-4


@pytest.mark.parametrize("iterations", [0, 3])
def test_more_samples_than_a_tile_has(backend, iterations) -> None:
    """Few prototypes: the teacher's product is kept whole while its targets come by tiles."""
    inputs = operands(2, 512, 16, 20)
    loss = MSNLoss(sinkhorn_iterations=iterations)
    found = loss(*inputs)
    wide = [x.double() for x in inputs]
    torch.testing.assert_close(
        found.double(), formula(*wide, sinkhorn_iterations=iterations), rtol=1e-5, atol=0
    )


def test_defaults_are_the_official_ones() -> None:
    loss = MSNLoss()
    assert (loss.temperature, loss.sharpening, loss.prior_weight) == (0.1, 0.25, 1.0)
    assert loss.sinkhorn_iterations == 0 and loss.entropy_weight == 0.0
    assert PMSNLoss().prior.exponent == 0.25 and PMSNLoss().prior.name == "power_law"
    assert not PMSNLoss().state_dict()


def test_printed_form(backend) -> None:
    """losses.py of MSN, line by line in float64: p^4, p^-t, log K - H(mean)."""
    anchors, targets, prototypes = operands(2, 9, 5, 13, torch.float64)
    a, t, c = (torch.nn.functional.normalize(x, dim=1) for x in (anchors, targets, prototypes))
    p = (a @ c.T / 0.1).softmax(1)
    q = oracles.msn(t @ c.T, 0.1, 0.25, 3).repeat(2, 1)
    ploss = (p ** (-q)).log().sum(1).mean()
    mean = p.mean(0)
    rloss = -(mean ** (-mean)).log().sum() + math.log(13)
    sloss = (p ** (-p)).log().sum(1).mean()
    loss = MSNLoss(sinkhorn_iterations=3, prior_weight=0.5, entropy_weight=0.2)
    assert_relative(loss(anchors, targets, prototypes), ploss + 0.5 * rloss + 0.2 * sloss, 1e-12)


@pytest.mark.parametrize("iterations", [0, 3])
def test_lightly(iterations) -> None:
    """MSNLoss of Lightly: values and gradients, prototypes included."""
    lightly = pytest.importorskip("lightly.loss")
    anchors, targets, prototypes = operands(3, 16, 8, 31)
    losses = (
        lightly.MSNLoss(sinkhorn_iterations=iterations),
        MSNLoss(sinkhorn_iterations=iterations),
    )
    expected, found = (
        value_and_grads(with_prototypes(loss, targets), [anchors, prototypes], 2) for loss in losses
    )
    for a, b in zip(found, expected, strict=True):
        assert error(a, b) <= 1e-5 * float(b.abs().max())


def test_targets_are_constants(backend) -> None:
    """No gradient reaches the targets; the prototypes' is that of the anchors' path alone."""
    anchors, targets, prototypes = (x.requires_grad_() for x in operands(2, 7, 5, 11))
    MSNLoss(sinkhorn_iterations=3)(anchors, targets, prototypes).backward()
    assert targets.grad is None and bool(prototypes.grad.any())


def test_sharpening_of_one_call(backend) -> None:
    inputs = operands(2, 7, 5, 11)
    other = MSNLoss(sharpening=0.5)(*inputs)
    assert same_bits(MSNLoss()(*inputs, sharpening=0.5), other)
    assert error(MSNLoss()(*inputs), other) > 1e-3


def test_gradcheck() -> None:
    targets = normal(3, 4, dtype=torch.float64, seed=1)
    anchors, prototypes = normal(6, 4), normal(5, 4, seed=2)
    gradcheck(lambda a: MSNLoss(entropy_weight=0.5)(a, targets, prototypes.double()), anchors)
    gradcheck(lambda a, c: mean_entropy(a, c, temperature=0.3), anchors, prototypes)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_mean_entropy(dtype) -> None:
    """Over several tiles; 0 for a single prototype, log K for equal ones."""
    anchors, prototypes = normal(300, 5, dtype=dtype), normal(5003, 5, dtype=dtype, seed=2)

    assert_right(
        lambda a, c: mean_entropy(a, c, temperature=0.2),
        lambda a, c: oracles.mean_entropy(a, c, 0.2),
        [anchors, prototypes],
        2,
    )
    assert float(mean_entropy(anchors, prototypes[:1], temperature=0.2)) == 0
    same = prototypes[:1].repeat(9, 1)
    assert float(mean_entropy(anchors, same, temperature=0.2)) == pytest.approx(math.log(9))


@pytest.mark.parametrize("case", ["collapsed", "zero rows", "large rows", "unused", "one image"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_finite(backend, case, dtype) -> None:
    """p^4 in half precision, prototypes that nobody picks; a zero row gets a zero gradient."""
    anchors, targets, prototypes = operands(2, 7, 5, 11)
    if case == "collapsed":
        anchors, targets = anchors[:1].repeat(14, 1), anchors[:1].repeat(7, 1)
    elif case == "zero rows":
        anchors[3], targets[2], prototypes[4] = 0, 0, 0
    elif case == "large rows":
        anchors, prototypes = anchors * 100, prototypes * 1e4
    elif case == "unused":
        anchors, targets = anchors.abs(), targets.abs()
        prototypes = torch.cat([prototypes.abs(), -prototypes[:1].abs()])
    else:
        anchors, targets = anchors[:2], targets[:1]
    inputs = [anchors.to(dtype), prototypes.to(dtype)]
    temperature = 0.01 if case == "unused" else 0.1
    loss = PMSNLoss(sinkhorn_iterations=3, entropy_weight=1.0, temperature=temperature)
    value, d_anchors, d_prototypes = value_and_grads(
        with_prototypes(loss, targets.to(dtype)), inputs, 2
    )
    assert all(bool(x.isfinite().all()) for x in (value, d_anchors, d_prototypes))
    if case == "zero rows":
        assert not d_anchors[3].any() and not d_prototypes[4].any()
        assert bool(d_anchors[:3].any()) and bool(d_prototypes[:4].any())


@pytest.mark.parametrize("entropy_weight", [0.0, 1.0])
def test_no_dense_matrix(backend, entropy_weight) -> None:
    """Neither scores, targets nor logits; the prior rides on the same tiles."""
    anchors, targets, prototypes = operands(2, 512, 32, 4096)
    anchors.requires_grad_()
    prototypes.requires_grad_()
    loss = PMSNLoss(sinkhorn_iterations=3, entropy_weight=entropy_weight)
    with Allocations() as watch, Saved(anchors, targets, prototypes) as saved:
        loss(anchors, targets, prototypes).backward()
    assert watch.largest() <= 1024 * 4096 // 4
    inputs = sum(4 * x.numel() for x in (anchors, targets, prototypes))
    assert saved.nbytes() <= 2 * inputs + 64 * (1024 + 512 + 4096)


def test_given_prior_moves_with_the_module() -> None:
    loss = PMSNLoss(torch.full((4,), 0.25))
    assert loss.to("meta").prior.given.device.type == "meta"


ARGUMENTS = operands(2, 4, 3, 5)
REFUSED = {
    "a zero in the prior": (
        lambda: PMSNLoss(torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0]))(*ARGUMENTS),
        ValueError,
        [r"prior\[2\]", "infinite"],
    ),
    "a prior of another length": (
        lambda: PMSNLoss(torch.full((4,), 0.25))(*ARGUMENTS), ValueError, ["prior", r"\(5,\)"]
    ),
    "a negative prior": (
        lambda: PMSNLoss(torch.tensor([1.5, -0.5])), ValueError, ["prior", "-0.5"]
    ),
    "a prior of sum 2": (lambda: PMSNLoss(torch.ones(2)), ValueError, ["prior", "sum to 1"]),
    "a prior without a name": (lambda: PMSNLoss("zipf"), ValueError, ["power_law", "zipf"]),
    "a negative exponent": (
        lambda: PMSNLoss(exponent=-1.0)(*ARGUMENTS), ValueError, ["exponent", "-1"]
    ),
    "anchors that do not match": (
        lambda: MSNLoss()(ARGUMENTS[0][:7], *ARGUMENTS[1:]), ValueError, ["7", "4", "view"]
    ),
    "another width": (
        lambda: MSNLoss()(ARGUMENTS[0], ARGUMENTS[1][:, :2], ARGUMENTS[2]),
        ValueError,
        [r"\(4, 2\)", r"\(5, 3\)"],
    ),
    "a negative weight": (
        lambda: MSNLoss(prior_weight=-1.0), ValueError, ["prior_weight", "-1"]
    ),
    "a negative entropy": (
        lambda: MSNLoss(entropy_weight=-1.0), ValueError, ["entropy_weight", "-1"]
    ),
    "sharpening 0": (lambda: MSNLoss(sharpening=0.0), ValueError, ["sharpening", "0"]),
    "sinkhorn_iterations -1": (
        lambda: MSNLoss(sinkhorn_iterations=-1), ValueError, ["sinkhorn_iterations", "-1"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case) -> None:
    call, kind, words = REFUSED[case]
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        caught.match(word)
